"""The cascade's phases in l0."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.attacks.base import Goal, Model
from robust.attacks.seen import Phase, Run, Seen, cascade
from robust.threats import NORMS, per_image

# A widest of 1 stands for runs that swap values; runs that start wider thin out.
EFFORT: dict[str, tuple[Phase, ...]] = {
    "quick": (Phase(20), Phase(20, 2)),
    "standard": (
        Phase(20),
        Phase(20, 4, gap=0.8),
        Phase(60, 0, 100),
        Phase(60, 4, 100, gap=0.6),
        Phase(80, 9, within=1, gap=0.5, exact=True),
    ),
    "exhaustive": (
        Phase(20),
        Phase(40, 9),
        Phase(100, 0, 100),
        Phase(160, 9, 100),
        Phase(160, 9, within=1, exact=True),
    ),
}


def search(model: Model, images: Tensor, goal: Goal, eps: Tensor, logits: Tensor, effort: str) -> Tensor:
    """The best points found, (N, C, H, W); ``logits`` are those of the images."""
    seen = Seen(model, NORMS["l0"], images, goal, eps, logits)
    cascade(seen, EFFORT[effort], _climb, _distance)
    return seen.best


def _climb(seen: Seen, phase: Phase, run: Run) -> None:
    if phase.widest == 1:
        _swap(seen, phase, run)
    else:
        _thin(seen, phase, run)


def _swap(seen: Seen, phase: Phase, run: Run) -> None:
    """Goes, step by step, to the best point of the ball for the linear function with the mean of past gradients."""
    index, aim = run.index, run.aim
    images, eps = seen.images[index], seen.eps[index]
    points, mean = images, torch.zeros_like(images)
    for _ in range(phase.steps):
        gradient = _scaled(seen.gradient(index, points, aim, run.loss))
        keep = seen.unsolved[index]
        if not bool(keep.all()):
            index, images, eps, aim = index[keep], images[keep], eps[keep], aim[keep]
            mean, gradient = mean[keep], gradient[keep]
            if not len(index):
                return
        mean = torch.lerp(gradient, mean, 0.9)
        points = seen.geometry.steepest(mean, images, eps)
    seen.look(index, points)


def _thin(seen: Seen, phase: Phase, run: Run) -> None:
    """From many changed values to eps of them: Adam's steps, after which the values that matter least are undone.

    A change matters by its size times the root of the mean square of its gradients. What the eps most important
    changes do alone is looked at in each step.
    """
    index, aim = run.index, run.aim
    images, eps = seen.images[index], seen.eps[index]
    points, mean, square = images, torch.zeros_like(images), torch.zeros_like(images)
    most = (phase.widest * eps).clamp_max(images[0].numel()).maximum(eps)
    for step in range(phase.steps):
        gradient = _scaled(seen.gradient(index, points, aim, run.loss))
        keep = seen.unsolved[index]
        if not bool(keep.all()):
            index, images, eps, aim, most = index[keep], images[keep], eps[keep], aim[keep], most[keep]
            points, mean, square, gradient = points[keep], mean[keep], square[keep], gradient[keep]
            if not len(index):
                return
        part = step / phase.steps
        mean, square = torch.lerp(gradient, mean, _MEAN), torch.lerp(gradient.square(), square, _SQUARE)
        scale = (square / (1 - _SQUARE ** (step + 1))).sqrt()
        size = 0.3 * 0.1**part / (1 - _MEAN ** (step + 1))
        wanted = (points + size * mean / (scale + 1e-8)).clamp(0, 1)
        matters = ((wanted - images).abs() * scale).flatten(1)
        count = most * (eps / most).pow(min(1.0, part / _THINNED))
        points, few = _keep(wanted, images, matters, count, eps)
        seen.look(index, few, seen.model)
    seen.look(index, points)


_MEAN, _SQUARE = 0.9, 0.999  # Adam's decay rates
_THINNED = 0.8  # the share of a run after which eps values are left


def _keep(points: Tensor, images: Tensor, matters: Tensor, *counts: Tensor) -> list[Tensor]:
    """For each of ``counts`` (n,): as many changes of each image, those that matter most, (n, D), and its own values
    elsewhere."""
    before, after = images.flatten(1), points.flatten(1)
    order = matters.topk(max(int(count.max()) for count in counts), dim=1).indices
    moved = after.gather(1, order)
    places = torch.arange(order.shape[1], device=order.device)
    rest = before.gather(1, order)
    return [
        before.scatter(1, order, torch.where(places < count.floor()[:, None], moved, rest)).view_as(points)
        for count in counts
    ]


def _scaled(gradient: Tensor) -> Tensor:
    return gradient / per_image(gradient.flatten(1).abs().amax(1).clamp_min(1e-30), gradient)


def _distance(seen: Seen, index: Tensor) -> Tensor:
    """How many more values, to first order, it would take from the best point to the boundary."""
    values, _, gradient = seen.margin_at_best(index)
    images, points = seen.images[index], seen.best[index]
    gain = (seen.geometry.steepest(gradient, points, float(images[0].numel())) - points) * gradient
    gain = torch.where(points == images, gain, 0.0).flatten(1)
    reached = gain.sort(1, descending=True).values.cumsum(1)
    return (reached < -values[:, None]).sum(1).to(values.dtype) + 1
