"""The cascade's phases in linf and l2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust.attacks.base import Goal, Model
from robust.attacks.seen import Climb, Phase, Run, Seen, cascade
from robust.threats import Norm

# With "standard" an image that stands to the end costs 10 and 20 backward passes, 60 more if it is left near to
# breaking; if it is left nearly broken, 30 and 100 for each class that came near.
EFFORT: dict[str, tuple[Phase, ...]] = {
    "quick": (Phase(10), Phase(10, 2)),
    "standard": (
        Phase(10),
        Phase(10, 2),
        Phase(20, 3, within=0.3),
        Phase(30, 9, within=0.08, gap=0.4, exact=True),
        Phase(100, 9, within=0.03, gap=0.4, exact=True),
    ),
    "exhaustive": (
        Phase(20),
        Phase(40, 9),
        Phase(80, 9, within=0.2, exact=True),
        Phase(160, 9, within=0.1, exact=True),
    ),
}

# Sets the turns of one image apart; any odd number far from 1 does.
_TURN = 0x632BE59BD9B4E019
# How many streams a random start may draw from.
_STREAMS = 8


def search(
    model: Model, geometry: Norm, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor, logits: Tensor, effort: str
) -> Tensor:
    """The best points found, (N, C, H, W); ``logits`` are those of the images."""
    seen = Seen(model, geometry, images, goal, eps, logits, strays=False)
    cascade(seen, EFFORT[effort], _climb(seeds), _distance)
    return seen.best


def _climb(seeds: Tensor) -> Climb:
    """Runs from a random start that follow the steepest ascent, with a quarter of momentum and steps that fall from
    2 eps to 0 along a cosine; an image leaves with all its turns when one fools the model."""

    def climb(seen: Seen, phase: Phase, run: Run) -> None:
        index, aim, geometry = run.index, run.aim, seen.geometry
        images, eps = seen.images[index], seen.eps[index]
        points = previous = geometry.random(images, eps, seeds[index] + run.turn * _TURN, _STREAMS * run.stream)
        for step in range(phase.steps):
            gradient = seen.gradient(index, points, aim, run.loss)
            keep = seen.unsolved[index]
            if not bool(keep.all()):
                index, images, eps, aim = index[keep], images[keep], eps[keep], aim[keep]
                points, previous, gradient = points[keep], previous[keep], gradient[keep]
                if not len(index):
                    return
            size = eps * (1 + math.cos(math.pi * step / phase.steps))
            moved = geometry.project(geometry.steepest(gradient, points, size), images, eps)
            if step:
                moved = geometry.project(points + 0.75 * (moved - points) + 0.25 * (points - previous), images, eps)
            previous, points = points, moved
        seen.look(index, points)

    return climb


def _distance(seen: Seen, index: Tensor) -> Tensor:
    """How far the boundary would be from the best point if the model were linear, in the threat's norm."""
    values, gradient = seen.margin_at_best(index)
    slope = torch.linalg.vector_norm(gradient.flatten(1), ord=1 if seen.geometry.name == "linf" else 2, dim=1)
    distance: Tensor = -values / slope.clamp_min(1e-30)
    return distance
