"""Defenses: methods that turn (model, training data) into a hardened model, and certificates.

Certificates: :mod:`robust.defenses.bounds` (norm balls, ReLU networks), :mod:`robust.defenses.patch` (patches, any
classifier).
"""
