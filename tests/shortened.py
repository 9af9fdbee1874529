"""Attacks whose budgets cannot be set, with smaller ones, to keep the contract quick."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from robust.attacks import APGD, FAB, Attack, AutoAttack, Square, Transfer
from robust.attacks.base import Goal, Model


class ShortAutoAttack(AutoAttack):
    """The same attacks in the same order, each with a small budget."""

    def parts(self) -> tuple[Attack, ...]:
        return tuple(_short(part) for part in super().parts())


def _short(part: Attack) -> Attack:
    if isinstance(part, Square):
        return replace(part, queries=60)
    assert isinstance(part, APGD | FAB)
    return replace(part, steps=5)


class SelfTransfer(Transfer):
    """Transfer with the attacked model as its own surrogate: then it must do what any gradient attack must."""

    knowledge = "white-box"

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        own = Transfer(**{**vars(self), "surrogates": (model,)})
        return own.run(model, images, goal, eps, seeds)
