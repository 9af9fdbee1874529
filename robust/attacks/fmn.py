"""FMN: the fast minimum-norm attack, in all four norms."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Goal, Knowledge, Loss, Model, linear_distances, loss_and_gradient
from robust.attacks.hyperplane import step_over
from robust.attacks.losses import cross_entropy, lead, margin
from robust.attacks.minimum import MinimumNorm, Nearest, bisect_radius, cosine, onto_sphere
from robust.attacks.sparse import thin_out
from robust.errors import InputError
from robust.threats import NORMS, per_image

_DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}
_SHARE = {"linf": 1.0, "l1": 0.3}  # of the radius, that the first step takes
_LENGTH = {"l2": 1.0, "l1": 2.0, "l0": 5.0}  # of the first step, in l2
_TINY = 1e-12
_THINNING = 5
_CROSSING = {"linf": 0.18, "l2": 0.54}  # the share of the steps that cross the boundary first
_CLASSES, _RANKED = 3, 9  # how many classes they aim at, of how many
_BACK = 0.8
_AGAIN = {"linf": 0.7, "l2": 1.0, "l1": 0.5, "l0": 1.0}  # the share of the other steps before the second start
_GROWTH = 1.15


@dataclass(frozen=True)
class FMN(MinimumNorm):
    """Fast minimum-norm attack: a step up the margin, then a projection onto a ball whose radius follows the boundary.

    Until an image is fooled for the first time, its radius is the distance of its iterate plus that of the boundary to
    first order (and gamma more, or an iterate might come to rest on the boundary). From then on it shrinks by the
    factor 1 - gamma wherever the iterate is adversarial, to at most the smallest distance found, and grows by 1 + gamma
    wherever it is not.

    Settings:
        steps: gradients per image.
        step_size: a factor on the length of all steps, which fall to a hundredth of the first along a cosine.
        gamma: of the first step, falling to a fiftieth of it along a cosine.
        search: at the end, rounds of bisection of the radius of the ball onto which the point found is projected; not
            in l0.

    It starts at the image, as published. Unlike the published attack:
        - In linf and l2 a gradient for each of at most nine classes, those of highest logit, ranks them by the distance
          of their boundary to first order. The next 18 and 54 % of the steps are FAB's, a third towards each of the
          three nearest: from the image over the boundary's hyperplane, and wherever that fools the model a fifth of the
          way back. The rest goes on from the nearest point found. Each of FAB's steps takes a second forward pass.
        - In linf the last 30 % of that rest are another run from the image, on the cross-entropy, which often ends at
          another class; it starts at the best radius so far.
        - An image not fooled when that run starts (in l1: after half of the steps) gets a small radius that grows by
          15 % a step: a boundary that seems far throws the iterate into a corner of the box that it may never leave.
        - The first step has l2 length 1 in l2 only; it has length 2 in l1 and 5 in l0, and in linf the step is along
          the gradient's sign and as long as the radius. The first quarter of the steps in l1 are the steepest in that
          norm, 0.3 of the radius long.
        - The projection is onto the intersection of ball and box, not onto one and then the other.
        - The l0 form spends its last five gradients on dropping values that are not needed
          (:func:`robust.attacks.sparse.thin_out`).
        - It ends with the bisection, which takes forward passes only.

    Source: Pintor et al., NeurIPS 2021, algorithm 1.
    """

    _: KW_ONLY
    steps: int = 100
    step_size: float = 1.0
    gamma: float = 0.05
    search: int = 10

    name: ClassVar[str] = "fmn"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Pintor et al., NeurIPS 2021"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.search < 0:
            raise InputError(f"fmn needs steps >= 1 and search >= 0, not {self.steps} and {self.search}")
        if not 0 < self.gamma < 1 or not self.step_size > 0:
            raise InputError(
                f"fmn needs gamma in (0, 1) and a step_size above 0, not {self.gamma} and {self.step_size}"
            )

    def walk(self, model: Model, images: Tensor, goal: Goal) -> Nearest:
        nearest = Nearest(images, self.geometry)
        thinning = min(_THINNING, self.steps // 4) if self.norm == "l0" else 0
        crossed = self._cross_all(model, goal, nearest) if self.norm in _CROSSING else 0
        steps = self.steps - thinning - crossed
        again = math.ceil(_AGAIN[self.norm] * steps)
        farthest = self.geometry.length(torch.maximum(images, 1 - images))
        points, radius = nearest.points, torch.where(nearest.found, nearest.distance, torch.ones_like(farthest))
        for step in range(steps):
            second = step >= again
            if step == again:
                points, radius = self._second_start(points, images, radius, nearest, farthest / 100)
            objective = cross_entropy if second and self.norm != "l1" else margin
            loss, logits, gradient = loss_and_gradient(model, points, goal, objective)
            fooled = goal.met(logits)
            nearest.note(points, fooled, margin(logits, goal))
            part = self._part(step, steps, again)
            gamma = self.gamma * cosine(1.0, 0.02, *part)
            if self.norm == "l0":
                radius = _count(radius, nearest, fooled, gamma)
            else:
                unfound = radius * _GROWTH if second else self._reach(points - images, loss, gradient)
                radius = _radius(radius, nearest, fooled, gamma, unfound)
            radius = radius.minimum(farthest)
            points = self._project(self._moved(points, gradient, radius, *part), images, radius)
        logits = model(points)
        nearest.note(points, goal.met(logits), margin(logits, goal))
        if self.norm == "l0":
            thin_out(model, goal, nearest, thinning)
        else:
            bisect_radius(model, goal, nearest, self.search)
        return nearest

    def _cross_all(self, model: Model, goal: Goal, nearest: Nearest) -> int:
        """Crosses towards each of the nearest classes, or the call's target; returns the gradients spent."""
        ranked = 0
        aims: list[Loss] = [margin]
        if goal.targets is None:
            others = model(nearest.images).scatter(1, goal.labels[:, None], -torch.inf)
            count = min(_RANKED, max(self.steps // 10, 1), others.shape[1] - 1)
            classes = others.argsort(dim=1, descending=True)[:, :count]
            if count > _CLASSES:
                ranked, distances = count, linear_distances(model, nearest.images, goal, classes, self.geometry)
                classes = classes.gather(1, distances.argsort(dim=1, stable=True))
            aims = [lead(column) for column in classes.T[:_CLASSES]]
        steps = int(_CROSSING[self.norm] * self.steps) // max(len(aims), 1)
        for aim in aims:
            self._cross(model, goal, nearest, steps, aim)
        return ranked + steps * len(aims)

    def _cross(self, model: Model, goal: Goal, nearest: Nearest, steps: int, aim: Loss) -> None:
        """FAB's steps, over the hyperplane where ``aim`` is 0 and, where that fools the model, part of the way back."""
        points, images = nearest.images, nearest.images
        for _ in range(steps):
            gap, logits, gradient = loss_and_gradient(model, points, goal, aim)
            nearest.note(points, goal.met(logits), margin(logits, goal))
            points = step_over(points, images, gap, gradient.flatten(1).nan_to_num(0, 0, 0), self.norm)
            logits = model(points)
            fooled = goal.met(logits)
            nearest.note(points, fooled, margin(logits, goal))
            points = torch.where(per_image(fooled, points).bool(), images + _BACK * (points - images), points)

    def _second_start(
        self, points: Tensor, images: Tensor, radius: Tensor, nearest: Nearest, small: Tensor
    ) -> tuple[Tensor, Tensor]:
        """All from the image again, those found with their best radius; in l1 only those not found."""
        kept = nearest.found & (self.norm == "l1")
        radius = torch.where(kept, radius, torch.where(nearest.found, nearest.distance, small))
        return torch.where(per_image(kept, images).bool(), points, images), radius

    def _part(self, step: int, steps: int, again: int) -> tuple[int, int]:
        """The place of a step in its cosine, and the length of that; in linf and l2 each run has its own."""
        if self.norm in ("l1", "l0"):
            return step, steps
        return (step, again) if step < again else (step - again, steps - again)

    def _reach(self, delta: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """The distance of the iterate plus, to first order, that of the boundary from it."""
        slope: Tensor = torch.linalg.vector_norm(gradient.nan_to_num().flatten(1), _DUAL[self.norm], 1)
        reach: Tensor = self.geometry.length(delta) + loss.abs() / slope.clamp_min(_TINY)
        return reach

    def _moved(self, points: Tensor, gradient: Tensor, radius: Tensor, step: int, steps: int) -> Tensor:
        size = cosine(self.step_size, self.step_size / 100, step, steps)
        if self.norm == "linf" or (self.norm == "l1" and step < steps // 4):
            return self.geometry.steepest(gradient, points, _SHARE[self.norm] * size * radius)
        return NORMS["l2"].steepest(gradient, points, _LENGTH[self.norm] * size)

    def _project(self, points: Tensor, images: Tensor, radius: Tensor) -> Tensor:
        if self.norm == "l2":
            return onto_sphere(points, images, radius)
        return self.geometry.project(points, images, radius)


def _radius(radius: Tensor, nearest: Nearest, fooled: Tensor, gamma: float, unfound: Tensor) -> Tensor:
    shrunk = (radius * (1 - gamma)).minimum(nearest.distance)
    # Right at the boundary nothing would ever fool, so the first reach goes a little beyond it, too.
    return torch.where(fooled, shrunk, torch.where(nearest.found, radius, unfound) * (1 + gamma))


def _count(radius: Tensor, nearest: Nearest, fooled: Tensor, gamma: float) -> Tensor:
    """The same in l0, by at least one value."""
    shrunk = torch.minimum(radius - 1, (radius * (1 - gamma)).floor()).minimum(nearest.distance)
    grown = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
    return torch.where(fooled, shrunk, grown).clamp_min(1)
