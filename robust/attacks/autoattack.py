"""AutoAttack: the published ensemble, under its name and with nothing changed."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.apgd import APGD
from robust.attacks.base import Attack, Goal, Knowledge, Model, still_open
from robust.attacks.fab import FAB
from robust.attacks.losses import margin
from robust.attacks.square import Square
from robust.errors import InputError, unknown


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The published ensemble, each attack on the images that those before it left standing.

    Settings:
        version:
            ``standard``: APGD-CE, 100 steps; APGD-T with the DLR loss, 9 targets of 100 steps; FAB-T, 9 targets of 100
            steps; Square, 5000 queries.
            ``plus``: APGD-CE and APGD-DLR, 5 restarts each; FAB, 5 restarts; Square; APGD-T; FAB-T.
            ``rand``, for models that draw random numbers: APGD-CE and APGD-DLR, gradients averaged over 20 passes.

    Budgets are part of the name and cannot be set; for other budgets name the parts: ``apgd-ce``, ``apgd-t``,
    ``fab-t``, ``square``. With 4 to 9 classes there are fewer targets than 9. In l1, where only ``standard`` is
    published, APGD-CE makes 5 restarts and APGD-T 5 targets, each in balls of 3, 2 and 1 times eps. An image that is
    never broken costs 7,820 forward and 1,900 backward passes (standard; in l1 7,840 and 1,900).

    Raises InputError for models with too few classes: DLR is defined from 3 on, its targeted form from 4 on.

    Source: Croce and Hein, ICML 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
    parameter-free attacks", and its code for ``plus``, ``rand`` and Square's schedule; Croce and Hein, "Mind the box",
    ICML 2021 (l1).
    """

    _: KW_ONLY
    version: str = "standard"

    name: ClassVar[str] = "autoattack"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Croce and Hein, ICML 2020"
    targetable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.version not in _PARTS:
            raise unknown("version of autoattack", self.version, _PARTS)
        if self.norm == "l1" and self.version != "standard":
            raise InputError(f"autoattack ({self.version}) is not published for l1: use autoattack, the standard one")

    def parts(self) -> tuple[Attack, ...]:
        """The attacks in their order, each ready to be called alone."""
        return tuple(self._part(name) for name in _PARTS[self.version])

    def _part(self, name: str) -> Attack:
        restarts = 5 if self.version == "plus" or self.norm == "l1" else 1
        eot = 20 if self.version == "rand" else 1
        if name == "apgd-t":
            return APGD(self.eps, norm=self.norm, seed=self.seed, loss="dlr", n_targets=5 if self.norm == "l1" else 9)
        if name == "fab":
            return FAB(self.eps, norm=self.norm, seed=self.seed, restarts=restarts, minimize=False)
        if name == "fab-t":
            return FAB(self.eps, norm=self.norm, seed=self.seed, n_targets=9, minimize=False)
        if name == "square":
            return _PublishedSquare(self.eps, norm=self.norm, seed=self.seed)
        loss = name.removeprefix("apgd-")
        return APGD(self.eps, norm=self.norm, seed=self.seed, loss=loss, restarts=restarts, eot=eot)

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        if images.dim() != 4:
            raise InputError(f"autoattack needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        logits = model(images)
        index = still_open(logits, goal, eps)
        self._check_classes(logits.shape[1])
        result, highest = images.clone(), torch.full_like(eps, -torch.inf)
        for part in self.parts():
            if not len(index):
                break
            found = part.run(model, images[index], goal[index], eps[index], seeds[index])
            logits = model(found)
            solved = goal[index].met(logits)
            values = margin(logits, goal[index]).to(eps.dtype).masked_fill(solved, torch.inf)
            better = values > highest[index]
            result[index[better]], highest[index[better]] = found[better], values[better]
            index = index[~solved]
        return result

    def _check_classes(self, classes: int) -> None:
        fewest = 3 if self.version == "rand" else 4
        if classes < fewest:
            instead = "apgd-ce(eot=20)" if self.version == "rand" else "apgd-ce, fab and square"
            raise InputError(
                f"autoattack ({self.version}) is not defined for {classes} classes, it needs {fewest}: use {instead} "
                "instead"
            )


@dataclass(frozen=True)
class _PublishedSquare(Square):
    """Square with AutoAttack's schedule and count: as many windows as queries, the first of those for 10,000."""

    @property
    def windows(self) -> int:
        return self.queries

    def _share(self, query: int) -> float:
        return Square(self.eps, queries=10_002, p_init=self.p_init)._share(query)


_PARTS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
