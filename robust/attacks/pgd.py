"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, exact, fooled, loss_and_gradient, still_open
from robust.attacks.losses import LOSSES
from robust.errors import InputError, unknown


@dataclass(frozen=True)
class PGD(Attack):
    """Steps of fixed size along the steepest ascent of the loss, each projected back into ball and box.

    Settings:
        steps: gradient steps per restart.
        step_size: length of a step in the norm's own unit; by default a quarter of eps. It does not depend on
            ``steps``, so more steps only continue the same run and never lose a success.
        restarts: runs, each from its own random start; only images still standing are run again.
        random_start: start at a random point of the ball (True) or at the image itself, in the first run. In l1 and
            l0 the first run always starts at the image: a random point has spent the ball on the wrong values.
        loss: ``ce``, ``margin`` or ``dlr``.

    An image leaves the batch at the first iterate that fools the model, read off the gradient's own forward pass.

    Source: Madry et al., ICLR 2018, section 2.1 (BIM, Kurakin et al. 2017, without the random start).
    """

    _: KW_ONLY
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"

    name: ClassVar[str] = "pgd"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Madry et al., ICLR 2018"
    uses_lane: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.steps < 0 or self.restarts < 1:
            raise InputError(f"pgd needs steps >= 0 and restarts >= 1, not {self.steps} and {self.restarts}")
        if self.step_size is not None and not self.step_size > 0:
            raise InputError(f"pgd needs a step_size above 0, not {self.step_size}")

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        best, best_loss = images.clone(), torch.full_like(eps, -torch.inf)
        index = still_open(exact(model)(images), goal, eps)
        for restart in range(self.restarts):
            if not len(index):
                break
            index = self._climb(model, images, goal, eps, seeds, restart, index, best, best_loss)
        return best

    def _climb(
        self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor, restart: int, index: Tensor,
        best: Tensor, best_loss: Tensor,
    ) -> Tensor:  # fmt: skip
        """One run over the images at ``index``; notes the best iterates and returns what still stands."""
        geometry, loss = self.geometry, LOSSES[self.loss]
        center, aim, radius = images[index], goal[index], eps[index]
        size = self._size(radius)
        start_at_random = restart > 0 or (self.random_start and self.norm in ("linf", "l2"))
        points = geometry.random(center, radius, seeds[index], 8 * restart) if start_at_random else center.clone()
        for step in range(self.steps + 1):
            if step < self.steps:
                values, logits, gradient = loss_and_gradient(model, points, aim, loss)
            else:
                logits = exact(model)(points)
                values, gradient = loss(logits, aim), points
            # The last logits are the model's own.
            solved = fooled(model, points, aim, logits) if step < self.steps else aim.met(logits)
            values = values.masked_fill(solved, torch.inf)
            better = values > best_loss[index]
            best[index[better]], best_loss[index[better]] = points[better], values[better]
            if bool(solved.any()):
                keep = ~solved
                index, center, radius, size = index[keep], center[keep], radius[keep], size[keep]
                points, gradient, aim = points[keep], gradient[keep], aim[keep]
            if step == self.steps or not len(index):
                break
            points = geometry.ascend(gradient, points, center, radius, size)
        return index

    def _size(self, radius: Tensor) -> Tensor:
        if self.step_size is not None:
            return torch.full_like(radius, self.step_size)
        return (radius / 4).clamp_min(1) if self.norm == "l0" else radius / 4
