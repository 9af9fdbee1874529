"""The cascade's phases in l1."""

from __future__ import annotations

import math

from torch import Tensor

from robust.attacks.base import Goal, Model
from robust.attacks.seen import Phase, Run, Seen, carried, cascade
from robust.threats import NORMS

EFFORT: dict[str, tuple[Phase, ...]] = {
    "quick": (Phase(20), Phase(30, 2, 3)),
    "standard": (
        Phase(20),
        Phase(50, 3, 3),
        Phase(60, 0, 100),
        Phase(60, 9, 100, within=0.5, gap=0.7),
        Phase(60, 9, 3, within=0.15, gap=0.5, exact=True),
        Phase(120, 9, 3, within=0.05, gap=0.4, exact=True),
    ),
    "exhaustive": (
        Phase(20),
        Phase(60, 9, 3),
        Phase(60, 0, 100),
        Phase(60, 9, 100),
        Phase(160, 9, 3, within=0.2, exact=True),
    ),
}


def search(model: Model, images: Tensor, goal: Goal, eps: Tensor, logits: Tensor, effort: str) -> Tensor:
    """The best points found, (N, C, H, W); ``logits`` are those of the images."""
    seen = Seen(model, NORMS["l1"], images, goal, eps, logits)
    cascade(seen, EFFORT[effort], _climb, _distance)
    return seen.best


def _climb(seen: Seen, phase: Phase, run: Run) -> None:
    """One run from the image, ascending; an image may stand at ``index`` more than once, with an aim each."""
    index, aim, geometry = run.index, run.aim, seen.geometry
    images, eps = seen.images[index], seen.eps[index]
    points = previous = images
    for step in range(phase.steps):
        gradient = seen.gradient(index, points, aim, run.loss)
        keep = seen.unsolved[index]
        if not bool(keep.all()):
            index, images, eps, aim = index[keep], images[keep], eps[keep], aim[keep]
            points, previous, gradient = points[keep], previous[keep], gradient[keep]
            if not len(index):
                return
        part = step / phase.steps
        last = step == phase.steps - 1
        radius = eps * (1.0 if last else max(1.0, phase.widest ** (1 - part / _NARROW)))
        size = radius * (1 + math.cos(math.pi * part)) / 2
        moved = geometry.project(geometry.steepest(gradient, points, size), images, radius)
        if step and not last:
            moved = geometry.project(carried(previous, points, moved), images, radius)
        previous, points = points, moved
    seen.look(index, points)


# The share of a run after which the ball has shrunk to eps.
_NARROW = 0.6


def _distance(seen: Seen, index: Tensor) -> Tensor:
    """How far, in l1, the boundary would be from the best point if the model were linear and the box far away."""
    values, _, gradient = seen.margin_at_best(index)
    distance: Tensor = -values / gradient.flatten(1).abs().amax(1).clamp_min(1e-30)
    return distance
