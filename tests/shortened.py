"""Attacks whose budgets cannot be set, with smaller ones, to keep the contract quick."""

from __future__ import annotations

from dataclasses import replace

from robust.attacks import APGD, FAB, Attack, AutoAttack, Square


class ShortAutoAttack(AutoAttack):
    """The same attacks in the same order, each with a small budget."""

    def parts(self) -> tuple[Attack, ...]:
        return tuple(_short(part) for part in super().parts())


def _short(part: Attack) -> Attack:
    if isinstance(part, Square):
        return replace(part, queries=60)
    assert isinstance(part, APGD | FAB)
    return replace(part, steps=5)
