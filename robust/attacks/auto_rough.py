"""Where the loss is rough: gradients averaged over points nearby, and how to tell that this is needed.

Gradients that differ from one point to the next lead a climb into one of many small maxima. Averages over random points
follow what the loss does at large, as in Wu, Zhu, Tai and E, "Understanding and enhancing the transferability of
adversarial examples", 2018 (variance-reduced gradients), there for attacks on other networks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from robust.attacks.base import exact, loss_and_gradient
from robust.attacks.losses import lead, margin
from robust.attacks.seen import Run, Seen
from robust.threats import per_image

# An image counts as rough where the gradient at its best point and that at any of this many random points, at up to
# this many eps from it, have a cosine below this. Of the adversarially trained networks measured, mnist_lenet5_adv is
# so on nearly all images near its boundary, the others on one in five at most and most of them on none.
_LOOKS, _AWAY, _ALIKE = 4, 3.0, 0.7
# What a step keeps of the direction before it.
_KEPT = 0.5
# How many streams of random numbers the points nearby may draw from in one run, and where they begin.
_STREAMS = 10_000


class Roughness:
    """Which images are rough: asked once for each, when a phase first comes to it."""

    def __init__(self, seeds: Tensor) -> None:
        self._seeds = seeds
        self._asked = self._rough = torch.zeros_like(seeds, dtype=torch.bool)

    def only(self, seen: Seen, run: Run) -> Run:
        """The run on rough images alone."""
        index = torch.zeros_like(self._asked).index_fill(0, run.index, True).logical_and(~self._asked).nonzero()[:, 0]
        if len(index):
            self._rough = self._rough.index_put((index,), self._ask(seen, index))
            self._asked = self._asked.index_fill(0, index, True)
        keep = self._rough[run.index]
        return replace(run, index=run.index[keep], aim=run.aim[keep], turn=run.turn[keep])

    def _ask(self, seen: Seen, index: Tensor) -> Tensor:
        goal, best = seen.goal[index], seen.best[index]
        _, logits, here = seen.margin_at_best(index)
        # Another class may lead nearby, which is no roughness.
        leading = logits.scatter(1, goal.labels[:, None], -torch.inf).argmax(1)
        loss = margin if goal.targets is not None else lead(leading)
        rough = torch.zeros_like(index, dtype=torch.bool)
        for look in range(_LOOKS):
            points = nearby(seen, index, best, _AWAY, self._seeds[index], 0, look)
            there = loss_and_gradient(exact(seen.model), points, goal, loss)[2].nan_to_num()
            rough |= torch.cosine_similarity(here.flatten(1), there.flatten(1)) < _ALIKE
        return rough


def nearby(seen: Seen, index: Tensor, points: Tensor, radius: float, seeds: Tensor, stream: int, step: int) -> Tensor:
    """A random point within ``radius`` eps of each of ``points``, inside ball and box; ``seeds`` has one for each."""
    images, eps = seen.images[index], seen.eps[index]
    stream = (1 + stream) * _STREAMS + 2 * step
    return seen.geometry.project(seen.geometry.random(points, radius * eps, seeds, stream), images, eps)


def averaged(here: Tensor, there: Tensor, before: Tensor) -> Tensor:
    """The sum of the gradients at the points and near them, scaled to a mean of 1, and of half the direction before."""
    total = here + there
    size = total.flatten(1).abs().mean(1).clamp_min(1e-30)
    return total / per_image(size, total) + _KEPT * before
