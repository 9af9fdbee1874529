"""Attacks: each a frozen dataclass of its settings, called as ``attack(model, images, labels)``."""

from robust.attacks.apgd import APGD
from robust.attacks.base import Attack
from robust.attacks.fgsm import FGSM
from robust.attacks.noise import UniformNoise
from robust.attacks.pgd import PGD
from robust.attacks.square import Square

__all__ = ["APGD", "FGSM", "PGD", "Attack", "Square", "UniformNoise"]
