"""Projected gradient descent on a loss averaged over draws, for models that draw random numbers."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, loss_and_gradient, still_open
from robust.attacks.losses import LOSSES
from robust.errors import InputError, unknown


@dataclass(frozen=True)
class PGDEOT(Attack):
    """PGD whose loss and gradient are means over ``eot`` passes (expectation over transformation).

    Settings:
        steps: gradient steps, each a quarter of eps long; more steps only continue the same run.
        eot: passes over which each step averages.
        loss: ``margin``, ``ce`` or ``dlr``.
        random_start: start at a random point of the ball (linf and l2) or at the image itself.

    No image leaves the batch on success, since one lucky draw is none: the iterate that fools the most passes comes
    back, of these the one of highest mean loss.

    Source: Athalye, Carlini and Wagner, ICML 2018, section 4.2, with the steps of Madry et al., ICLR 2018.
    """

    _: KW_ONLY
    steps: int = 20
    eot: int = 10
    loss: str = "margin"
    random_start: bool = True

    name: ClassVar[str] = "pgd-eot"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Athalye et al., ICML 2018"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.steps < 1 or self.eot < 1:
            raise InputError(f"pgd-eot needs steps >= 1 and eot >= 1, not {self.steps} and {self.eot}")

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        best = images.clone()
        index = still_open(model(images), goal, eps)
        if not len(index):
            return best
        geometry, center, aim, radius = self.geometry, images[index], goal[index], eps[index]
        size = (radius / 4).clamp_min(1) if self.norm == "l0" else radius / 4
        dense = self.random_start and self.norm in ("linf", "l2")
        points = geometry.random(center, radius, seeds[index], 0) if dense else center.clone()
        best_loss, best_votes = torch.full_like(radius, -torch.inf), torch.full_like(radius, -1)
        for step in range(self.steps + 1):
            values, votes, gradient = self._mean(model, points, aim, last=step == self.steps)
            # More draws fooled count first, so that no success is given up for a higher loss.
            better = (votes > best_votes) | ((votes == best_votes) & (values > best_loss))
            best[index[better]] = points[better]
            best_loss, best_votes = torch.where(better, values, best_loss), torch.where(better, votes, best_votes)
            if step < self.steps:
                points = geometry.ascend(gradient, points, center, radius, size)
        return best

    def _mean(self, model: Model, points: Tensor, aim: Goal, last: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss and share of passes fooled, (n,), and mean gradient (zeros at the last point)."""
        loss = LOSSES[self.loss]
        total, fooled = points.new_zeros(len(points)), points.new_zeros(len(points))
        gradient = torch.zeros_like(points)
        for _ in range(self.eot):
            if last:
                logits = model(points)
                values = loss(logits, aim)
            else:
                values, logits, slope = loss_and_gradient(model, points, aim, loss)
                gradient += slope / self.eot
            total += values / self.eot
            fooled += aim.met(logits) / self.eot
        return total, fooled.round(decimals=6), gradient
