"""Random noise: the baseline that every attack must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, still_open


@dataclass(frozen=True)
class UniformNoise(Attack):
    """Random points of the ball, ``draws`` of them, until one fools the model. No gradient, no search.

    An image that no draw fools comes back with its first draw.
    """

    draws: int = 10

    name: ClassVar[str] = "noise"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "none"
    source: ClassVar[str] = "baseline"

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        result = images.clone()
        index = still_open(model(images), goal, eps)
        for draw in range(self.draws):
            if not len(index):
                break
            points = self.geometry.random(images[index], eps[index], seeds[index], 8 * draw)
            solved = goal[index].met(model(points))
            result[index if draw == 0 else index[solved]] = points if draw == 0 else points[solved]
            index = index[~solved]
        return result
