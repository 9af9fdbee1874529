"""Deterministic bounds: proofs that no perturbation inside a norm ball changes what a ReLU network says."""

from robust.defenses.bounds.proving import EFFORTS, Proofs, prove
from robust.defenses.bounds.tracing import trace
from robust.defenses.bounds.unsupported import Unsupported

__all__ = ["EFFORTS", "Proofs", "Unsupported", "prove", "trace"]
