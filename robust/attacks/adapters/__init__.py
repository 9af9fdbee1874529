"""Attacks of other libraries, with the call, the guarantees and the accounting of our own."""

from robust.attacks.adapters.art import ArtAttack
from robust.attacks.adapters.foolbox import FoolboxAttack

__all__ = ["ArtAttack", "FoolboxAttack"]
