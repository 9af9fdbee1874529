"""DDN: decoupled direction and norm."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Goal, Knowledge, Model, loss_and_gradient
from robust.attacks.losses import cross_entropy
from robust.attacks.minimum import MinimumNorm, Nearest, bisect_radius, cosine, onto_sphere
from robust.errors import InputError


@dataclass(frozen=True)
class DDN(MinimumNorm):
    """Decoupled direction and norm: a step up the cross-entropy, then onto a sphere of a radius of its own.

    The radius shrinks by the factor 1 - gamma wherever the iterate is adversarial and grows by 1 + gamma elsewhere.

    Settings:
        steps: gradients per image.
        gamma: how fast the radius changes.
        first_radius: the radius at the start.
        search: at the end, rounds of bisection of the radius of the ball onto which the point found is projected.

    Steps have length 1 at first and 0.01 at the end, along a cosine. Unlike the published attack: iterates are not
    rounded to 8-bit color; an image whose gradient vanishes stays where it is rather than step at random; and it ends
    with the bisection, which takes forward passes only.

    Source: Rony et al., CVPR 2019, algorithm 1.
    """

    norm: str = "l2"
    _: KW_ONLY
    steps: int = 100
    gamma: float = 0.05
    first_radius: float = 1.0
    search: int = 10

    name: ClassVar[str] = "ddn"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Rony et al., CVPR 2019"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.search < 0:
            raise InputError(f"ddn needs steps >= 1 and search >= 0, not {self.steps} and {self.search}")
        if not 0 < self.gamma < 1 or not self.first_radius > 0:
            raise InputError(
                f"ddn needs gamma in (0, 1) and a first_radius above 0, not {self.gamma} and {self.first_radius}"
            )

    def walk(self, model: Model, images: Tensor, goal: Goal) -> Nearest:
        nearest = Nearest(images, self.geometry)
        farthest = self.geometry.length(torch.maximum(images, 1 - images))
        points, radius = images, torch.full_like(farthest, self.first_radius)
        for step in range(self.steps):
            loss, logits, gradient = loss_and_gradient(model, points, goal, cross_entropy)
            fooled = goal.met(logits)
            nearest.note(points, fooled, loss)
            radius = (radius * torch.where(fooled, 1 - self.gamma, 1 + self.gamma)).minimum(farthest)
            moved = self.geometry.steepest(gradient, points, cosine(1.0, 0.01, step, self.steps))
            points = onto_sphere(moved, images, radius)
        logits = model(points)
        nearest.note(points, goal.met(logits), cross_entropy(logits, goal))
        bisect_radius(model, goal, nearest, self.search)
        return nearest
