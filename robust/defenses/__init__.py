"""Defenses: methods that turn (model, training data) into a hardened model, and certificates.

None is here yet; the audit, attacks and reports that will judge them are.
"""
