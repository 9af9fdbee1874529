"""Training defenses: a method is its loss and its inner attack; loop, guard and checkpoints are shared."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from robust.errors import unknown

if TYPE_CHECKING:
    from robust.defenses.training.defense import Defense

# The name on the command line: module and class.
METHODS = {
    "pgd": ("pgd", "PGDAdversarialTraining"),
    "trades": ("trades", "TRADES"),
    "mart": ("mart", "MART"),
    "free": ("free", "FreeAdversarialTraining"),
    "fast": ("fast", "FastAdversarialTraining"),
    "nfgsm": ("nfgsm", "NFGSM"),
    "gaussian": ("gaussian", "GaussianTraining"),
    "smoothadv": ("smoothadv", "SmoothAdv"),
    "consistency": ("consistency", "ConsistencyTraining"),
    "roa": ("roa", "OcclusionTraining"),
    "masking": ("masking", "MaskTraining"),
    "bands": ("masking", "BandTraining"),
    "distillation": ("distillation", "DefensiveDistillation"),
}


def method(name: str) -> type[Defense]:
    """The class of a method by its name. Raises InputError for an unknown one, with the nearest."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module, attribute = METHODS[name]
    found: type[Defense] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found
