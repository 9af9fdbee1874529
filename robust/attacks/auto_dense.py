"""The cascade's phases in linf and l2."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.auto_rough import Roughness, averaged, nearby
from robust.attacks.base import Goal, Model, dual_length
from robust.attacks.seen import Climb, Phase, Run, Seen, carried, cascade
from robust.threats import Norm, per_image

# With "standard" an image that stands to the end costs 10, 9 and 10 backward passes, 40 more if it is left near to
# breaking; if it is left nearly broken, for each class that came near, 30, 100 and ten runs of 15. Where its loss is
# rough, the runs for that cost 80, and up to 1,280 more the nearer it is left.
EFFORT: dict[str, tuple[Phase, ...]] = {
    "quick": (Phase(10), Phase(10, 1, ranked=9)),
    "standard": (
        Phase(10),
        Phase(10, 1, ranked=9),
        Phase(40, within=0.5, rough=True),
        Phase(20, 2, within=0.3),
        Phase(40, within=0.15, rough=True, restarts=2),
        Phase(30, 9, within=0.08, gap=0.4, exact=True),
        Phase(40, within=0.05, rough=True, exact=True, restarts=4),
        Phase(10, 9, within=0.04, gap=0.3, exact=True, restarts=10, biased=5),
        Phase(40, within=0.04, rough=True, exact=True, restarts=10),
        Phase(100, 9, within=0.03, gap=0.4, exact=True),
    ),
    "exhaustive": (
        Phase(20),
        Phase(40, 9),
        Phase(80, within=0.5, rough=True, exact=True, restarts=4),
        Phase(80, 9, within=0.2, exact=True),
        Phase(80, within=0.1, rough=True, exact=True, restarts=20),
        Phase(40, 9, restarts=10, biased=10, within=0.1, exact=True),
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
    """Runs from a random start that follow the steepest ascent, with a quarter of momentum and steps that fall to 0
    along a cosine, from 2 eps, or from eps where a biased start or an earlier run has shown the way; an image leaves
    with all its turns when one fools the model. Where the loss is rough, they follow an average of the gradients at the
    point and at one nearby, less and less far from it."""

    roughness = Roughness(seeds)

    def climb(seen: Seen, phase: Phase, run: Run) -> None:
        if phase.rough:
            run = roughness.only(seen, run)
        index, aim, geometry = run.index, run.aim, seen.geometry
        if not len(index):
            return
        images, eps, own = seen.images[index], seen.eps[index], seeds[index] + run.turn * _TURN
        points = previous = geometry.random(images, eps, own, _STREAMS * run.stream)
        direction = torch.zeros_like(points)
        if phase.biased:
            points = previous = _biased_start(seen, phase.biased, run, points, own)
        if phase.rough:
            points = previous = torch.where(per_image(run.turn % 2, points) == 0, seen.best[index], points)
        first = 1 if phase.biased or phase.rough else 2
        into = geometry.into(images, eps)
        for step in range(phase.steps):
            gradient = seen.gradient(index, points, aim, run.loss)
            if phase.rough:
                radius = 2 * (1 - step / phase.steps)
                near = nearby(seen, index, points, radius, own, run.stream, step)
                gradient = averaged(gradient, seen.gradient(index, near, aim, run.loss), direction)
            direction = gradient
            keep = seen.unsolved[index]
            if not bool(keep.all()):
                left = keep.nonzero().squeeze(1)
                index, aim, eps, own = index[left], aim[left], eps[left], own[left]
                # Several times as fast as by [left].
                images, points, previous, direction = (
                    rows.index_select(0, left) for rows in (images, points, previous, direction)
                )
                if not len(index):
                    return
                into = geometry.into(images, eps)
            size = eps * (first * (1 + math.cos(math.pi * step / phase.steps)) / 2)
            moved = into(geometry.steepest(direction, points, size))
            if step:
                moved = into(carried(previous, points, moved))
            previous, points = points, moved
        seen.look(index, points)

    return climb


def _biased_start(seen: Seen, steps: int, run: Run, points: Tensor, seeds: Tensor) -> Tensor:
    """``points`` driven along random weights of the logits, the label's negative and the target's positive.

    Source: adaptive direction initialization, A3 (Liu et al., CVPR 2022), without what it learns from other images.
    """
    index, goal = run.index, run.aim
    stream = _STREAMS * run.stream + _STREAMS - 1  # the last one: the random start takes the first
    weights = 2 * randomness.uniform(seeds, stream, seen.lead.shape[1:], points.dtype) - 1
    for classes, sign in ((goal.labels, -1), (goal.targets, 1)):
        assert classes is not None, "biased starts are for runs towards a class"
        weights.scatter_(1, classes[:, None], sign * (0.1 + 0.9 * weights.gather(1, classes[:, None]).abs()))
    for _ in range(steps):
        gradient = seen.drive(index, points, weights)
        points = seen.geometry.ascend(gradient, points, seen.images[index], seen.eps[index], 0.6 * seen.eps[index])
    return points


def _distance(seen: Seen, index: Tensor) -> Tensor:
    """How far the boundary would be from the best point if the model were linear, in the threat's norm."""
    values, _, gradient = seen.margin_at_best(index)
    return -values / dual_length(gradient, seen.geometry)
