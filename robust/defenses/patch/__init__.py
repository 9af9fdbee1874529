"""Defenses against patches, with certificates: any change of the pixels inside one rectangle, wherever it is."""

from robust.defenses.patch.ablation import BandSmoothing
from robust.defenses.patch.certificates import Certificates
from robust.defenses.patch.masking import DoubleMasking

__all__ = ["BandSmoothing", "Certificates", "DoubleMasking"]
