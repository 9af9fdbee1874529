"""Two audits of the same images side by side: what one model holds that the other does not, and whether by chance."""

from __future__ import annotations

from dataclasses import dataclass

from robust.errors import InputError
from robust.ledger import Ledger
from robust.stats import mcnemar


@dataclass(frozen=True)
class Paired:
    """Images that both models get right, only the first, only the second, and neither; p by McNemar's exact test."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p(self) -> float:
        return mcnemar(self.only_first, self.only_second)

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.only_second - self.only_first) / self.n


def paired_clean(first: Ledger, second: Ledger) -> Paired:
    """Right unattacked. Raises InputError where the two audits are not of the same images."""
    return _paired(_right(first), _right(second))


def paired_robust(first: Ledger, second: Ledger, threat: str) -> Paired:
    """Right, and broken by no attack of the audit under ``threat``. Raises InputError as above."""
    return _paired(_standing(first, threat), _standing(second, threat))


def _right(ledger: Ledger) -> dict[tuple[int, int], bool]:
    return {(row.id, row.label): row.correct for row in ledger.images()}


def _standing(ledger: Ledger, threat: str) -> dict[tuple[int, int], bool]:
    broken = {row.image for row in ledger.rows(threat) if row.broken_by}
    return {(row.id, row.label): row.correct and row.id not in broken for row in ledger.images()}


def _paired(first: dict[tuple[int, int], bool], second: dict[tuple[int, int], bool]) -> Paired:
    if first.keys() != second.keys():
        raise InputError("the two audits are of different images; audit both models on the same data, limit and seed")
    pairs = [(first[key], second[key]) for key in first]
    return Paired(
        pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)), pairs.count((False, False))
    )
