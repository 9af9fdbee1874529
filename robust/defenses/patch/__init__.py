"""Defenses against patches, with certificates: any change of the pixels inside one rectangle, wherever it is."""

from robust.defenses.patch.ablation import BandSmoothing
from robust.defenses.patch.certificates import Certificates, CertifiesPatches, patch_size
from robust.defenses.patch.cleansing import MaskedClassifier

__all__ = ["BandSmoothing", "Certificates", "CertifiesPatches", "MaskedClassifier", "patch_size"]
