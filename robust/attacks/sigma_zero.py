"""Sigma-zero: the smallest number of changed values, by a smooth stand-in for it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Goal, Knowledge, Model, loss_and_gradient
from robust.attacks.losses import margin
from robust.attacks.minimum import MinimumNorm, Nearest, cosine
from robust.attacks.sparse import thin_out
from robust.errors import InputError
from robust.threats import per_image

_MEAN, _SQUARE = 0.9, 0.999  # Adam's decay rates
_THINNING = 5


@dataclass(frozen=True)
class SigmaZero(MinimumNorm):
    """Sigma-zero: Adam on the margin, as long as the image is not fooled, plus the mean of d^2 / (d^2 + sigma).

    The gradient is scaled to largest value 1. After each step, changes smaller than a threshold are undone; it rises
    wherever the iterate is adversarial and falls elsewhere.

    Settings:
        steps: gradients per image.
        sigma: how closely the stand-in follows the number of changed values.
        threshold: of the first step.
        threshold_step: how much the threshold changes, in parts of the step size.

    Steps have size 1 at first and 0.1 at the end, along a cosine. Unlike the published attack: thresholds move three
    times as fast, which suits a tenth of its 1,000 steps; it can be targeted; and the last five gradients, and about a
    dozen forward passes, are spent on dropping values that are not needed (:func:`robust.attacks.sparse.thin_out`).

    Source: Cina et al., ICLR 2025, algorithm 1.
    """

    norm: str = "l0"
    _: KW_ONLY
    steps: int = 100
    sigma: float = 1e-3
    threshold: float = 0.3
    threshold_step: float = 0.03

    name: ClassVar[str] = "sigma-zero"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Cina et al., ICLR 2025"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"sigma-zero needs steps >= 1, not {self.steps}")
        if not self.sigma > 0 or not 0 <= self.threshold <= 1 or not self.threshold_step >= 0:
            raise InputError(
                "sigma-zero needs sigma above 0, threshold in [0, 1] and threshold_step >= 0, not "
                f"{self.sigma}, {self.threshold} and {self.threshold_step}"
            )

    def walk(self, model: Model, images: Tensor, goal: Goal) -> Nearest:
        nearest = Nearest(images, self.geometry)
        thinning = min(_THINNING, self.steps // 4)
        steps = self.steps - thinning
        points, mean, square = images, torch.zeros_like(images), torch.zeros_like(images)
        threshold = torch.full_like(nearest.distance, self.threshold)
        for step in range(steps):
            loss, logits, slope = loss_and_gradient(model, points, goal, margin)
            fooled = goal.met(logits)
            nearest.note(points, fooled, loss)
            gradient = self._gradient(points - images, slope, fooled)
            mean = torch.lerp(gradient, mean, _MEAN)
            square = torch.lerp(gradient.square(), square, _SQUARE)
            # The published step size lags one step behind its cosine.
            size = cosine(1.0, 0.1, max(step - 1, 0), steps)
            scale = (square / (1 - _SQUARE ** (step + 1))).sqrt() + 1e-8
            points = (points - size / (1 - _MEAN ** (step + 1)) * mean / scale).clamp(0, 1)
            change = self.threshold_step * cosine(1.0, 0.1, step, steps)
            threshold = (threshold + torch.where(fooled, change, -change)).clamp(0, 1)
            points = torch.where((points - images).abs() < per_image(threshold, images), images, points)
        logits = model(points)
        nearest.note(points, goal.met(logits), margin(logits, goal))
        thin_out(model, goal, nearest, thinning)
        return nearest

    def _gradient(self, delta: Tensor, slope: Tensor, fooled: Tensor) -> Tensor:
        """The gradient of the objective to minimize, its largest value 1; ``slope`` is that of the margin."""
        count = delta[0].numel()
        smooth = 2 * self.sigma * delta / (delta.square() + self.sigma).square() / count
        climbing = torch.where(per_image(fooled, slope).bool(), 0.0, slope.nan_to_num())
        gradient = smooth - climbing
        return gradient / per_image(gradient.flatten(1).abs().amax(1).clamp_min(1e-12), gradient)
