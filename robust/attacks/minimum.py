"""Minimum-norm attacks: what they share. They look for the nearest adversarial point, not for any inside eps."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from robust.attacks.base import Attack, Goal, Model, still_open
from robust.models import evaluating
from robust.threats import NORMS, Norm, per_image


class Nearest:
    """The nearest adversarial point of each image so far.

    ``points`` (N, C, H, W); ``distance`` (N,), inf where none was found: there the point of highest loss stands.
    """

    def __init__(self, images: Tensor, geometry: Norm) -> None:
        self.images, self.geometry = images, geometry
        self.points = images.clone()
        self.distance = images.new_full((len(images),), torch.inf)
        self._loss = images.new_full((len(images),), -torch.inf)

    @property
    def found(self) -> Tensor:
        return self.distance.isfinite()

    def note(self, points: Tensor, fooled: Tensor, loss: Tensor) -> None:
        """Keeps those of ``points`` that are better; ``fooled`` (N,) bool, ``loss`` (N,)."""
        distance = self.geometry.length(points - self.images)
        nearer = fooled & (distance < self.distance)
        higher = ~self.found & ~fooled & (loss > self._loss)
        self.points = torch.where(per_image(nearer | higher, points).bool(), points, self.points)
        self.distance = torch.where(nearer, distance, self.distance)
        self._loss = torch.where(higher, loss, self._loss)

    def replace(self, index: Tensor, points: Tensor) -> None:
        """Takes ``points``, which fool the model and are nearer, for the images at ``index``."""
        self.points[index] = points
        self.distance[index] = self.geometry.length(points - self.images[index])


@dataclass(frozen=True)
class MinimumNorm(Attack):
    """An attack whose one run gives the distance of every image, and with it the whole curve of accuracy over eps.

    The search does not depend on ``eps``, which may be left out (inf) for :meth:`smallest`. The call returns the
    nearest adversarial point found where it lies inside eps, else the best point found, brought into the ball; so more
    eps never loses a success.
    """

    eps: float | Tensor = math.inf
    _: KW_ONLY

    def smallest(
        self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The nearest adversarial points found (N, C, H, W) and their distances (N,), whatever eps.

        Distances are in the norm's own unit (l0: changed values): 0 for images that are fooled unattacked, inf where no
        adversarial point was found, and there the point is that of highest loss. Arguments and errors are the call's.
        """
        goal, eps = replace(self, eps=math.inf)._checked(images, labels, targets)
        if not len(images):
            return images.clone(), images.new_zeros(0)
        with torch.inference_mode(False), evaluating(model), torch.no_grad():
            own = images.clone() if images.is_inference() else images.detach()
            return self._nearest(model, own, goal, eps)

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        points, _ = self._nearest(model, images, goal, eps)
        inside = per_image(self.geometry.contains(points, images, eps), images).bool()
        return torch.where(inside, points, self.geometry.project(points, images, eps))

    def _nearest(self, model: Model, images: Tensor, goal: Goal, eps: Tensor) -> tuple[Tensor, Tensor]:
        index = still_open(model(images), goal, eps)
        points, distance = images.clone(), torch.zeros_like(images.flatten(1)[:, 0])
        if len(index):
            found = self.walk(model, images[index], goal[index])
            points[index], distance[index] = found.points, found.distance
        return points, distance

    @abstractmethod
    def walk(self, model: Model, images: Tensor, goal: Goal) -> Nearest:
        """The attack itself, on images that are not fooled: gradients off, the model guarded."""


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """From ``first`` at step 0 down to (almost) ``last`` at the last of ``steps`` steps, along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def onto_sphere(points: Tensor, images: Tensor, radius: Tensor) -> Tensor:
    """The points moved along their rays from the images to l2 distance ``radius`` (N,), then clipped to the box."""
    delta = points - images
    return (images + delta * per_image(radius / NORMS["l2"].length(delta).clamp_min(1e-12), images)).clamp(0, 1)


def bisect_radius(model: Model, goal: Goal, nearest: Nearest, rounds: int) -> None:
    """Projects the points found onto smaller balls, the smallest that still fools by bisection; forward passes only.

    The radius is looked for between nine tenths of the distance found and all of it.
    """
    images, geometry, points = nearest.images, nearest.geometry, nearest.points
    high = torch.where(nearest.found, nearest.distance, 0.0)
    low = 0.9 * high
    for _ in range(rounds):
        middle = (low + high) / 2
        trial = geometry.project(points, images, middle)
        fooled = goal.met(model(trial)) & nearest.found
        nearest.note(trial, fooled, torch.full_like(middle, -torch.inf))
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
