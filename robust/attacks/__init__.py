"""Attacks: each a frozen dataclass of its settings, called as ``attack(model, images, labels)``."""

from robust.attacks.acg import ACG
from robust.attacks.apgd import APGD
from robust.attacks.auto import Auto
from robust.attacks.autoattack import AutoAttack
from robust.attacks.base import Attack
from robust.attacks.ddn import DDN
from robust.attacks.fab import FAB
from robust.attacks.fgsm import FGSM
from robust.attacks.fmn import FMN
from robust.attacks.hopskipjump import HopSkipJump
from robust.attacks.noise import UniformNoise
from robust.attacks.patch_search import PatchSearch
from robust.attacks.pgd import PGD
from robust.attacks.pgd_eot import PGDEOT
from robust.attacks.rays import RayS
from robust.attacks.sigma_zero import SigmaZero
from robust.attacks.simba import SimBA
from robust.attacks.sparse_rs import SparseRS
from robust.attacks.square import Square
from robust.attacks.transfer import Transfer

__all__ = [
    "ACG",
    "APGD",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "PGDEOT",
    "Attack",
    "Auto",
    "AutoAttack",
    "HopSkipJump",
    "PatchSearch",
    "RayS",
    "SigmaZero",
    "SimBA",
    "SparseRS",
    "Square",
    "Transfer",
    "UniformNoise",
]
