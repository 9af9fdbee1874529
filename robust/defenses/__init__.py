"""Defenses: methods that turn (model, training data) into a hardened model, and certificates.

    from robust.defenses import PGDAdversarialTraining

    hardened = PGDAdversarialTraining("linf:8/255", epochs=15).fit(model, train, validation)

The training methods are in :mod:`robust.defenses.training`; `robust.harden` adds the audits before and after.
Certificates: :mod:`robust.defenses.smoothing` (l2, any classifier), :mod:`robust.defenses.bounds` (norm balls, ReLU
networks), :mod:`robust.defenses.patch` (patches, any classifier).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.lazy import loader

if TYPE_CHECKING:
    from robust.defenses.training.consistency import ConsistencyTraining
    from robust.defenses.training.distillation import DefensiveDistillation
    from robust.defenses.training.fast import FastAdversarialTraining
    from robust.defenses.training.free import FreeAdversarialTraining
    from robust.defenses.training.gaussian import GaussianTraining
    from robust.defenses.training.mart import MART
    from robust.defenses.training.masking import BandTraining, MaskTraining
    from robust.defenses.training.nfgsm import NFGSM
    from robust.defenses.training.pgd import PGDAdversarialTraining
    from robust.defenses.training.roa import OcclusionTraining
    from robust.defenses.training.smoothadv import SmoothAdv
    from robust.defenses.training.trades import TRADES

_HOME = {
    "BandTraining": "training.masking",
    "ConsistencyTraining": "training.consistency",
    "DefensiveDistillation": "training.distillation",
    "FastAdversarialTraining": "training.fast",
    "FreeAdversarialTraining": "training.free",
    "GaussianTraining": "training.gaussian",
    "MART": "training.mart",
    "MaskTraining": "training.masking",
    "NFGSM": "training.nfgsm",
    "OcclusionTraining": "training.roa",
    "PGDAdversarialTraining": "training.pgd",
    "SmoothAdv": "training.smoothadv",
    "TRADES": "training.trades",
}

__all__ = [
    "MART", "NFGSM", "TRADES", "BandTraining", "ConsistencyTraining", "DefensiveDistillation",
    "FastAdversarialTraining", "FreeAdversarialTraining", "GaussianTraining", "MaskTraining", "OcclusionTraining",
    "PGDAdversarialTraining", "SmoothAdv",
]  # fmt: skip


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
