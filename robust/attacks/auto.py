"""The cascade: the verdict of a long ensemble of attacks at a small part of its cost."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import (
    Attack,
    Goal,
    Knowledge,
    Loss,
    Model,
    check_classes,
    exact,
    fooled,
    loss_and_gradient,
)
from robust.attacks.losses import margin
from robust.errors import unknown
from robust.threats import Norm


@dataclass(frozen=True)
class Phase:
    """One phase of the cascade, run on the images still standing that lie near enough to the boundary.

    steps: gradient steps of a run; targets: runs, towards the classes that came nearest so far, in that order (0: one
    untargeted run); within: only images of the phase before whose linear distance to the boundary is below this share
    of eps (inf: all).
    exact: gradients from the model itself and not from a fast copy, whose rounding matters where the boundary is near.
    """

    steps: int
    targets: int
    within: float = math.inf
    exact: bool = False


# The whole budget, in order. With "standard" an image that stands to the end costs 10 and 20 backward passes, 60 more
# if it is left near to breaking, then 240 and 900 if it is left nearly broken.
EFFORT: dict[str, tuple[Phase, ...]] = {
    "quick": (Phase(10, 0), Phase(10, 2)),
    "standard": (
        Phase(10, 0), Phase(10, 2), Phase(20, 3, within=0.3), Phase(40, 6, within=0.08, exact=True),
        Phase(100, 9, within=0.03, exact=True),
    ),
    "exhaustive": (
        Phase(20, 0), Phase(40, 9), Phase(80, 9, within=0.2, exact=True), Phase(160, 9, within=0.1, exact=True),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Auto(Attack):
    """The cascade, from cheap to costly; what a phase learns, the next one uses.

    1. A short run on the probability margin max_{i != y} p_i - p_y from a random start.
    2. Runs towards the classes whose logit came nearest to the label's at any point visited so far, on z_t - z_y.
    3. Longer runs towards more classes, only for images near to breaking: those whose linear distance to the boundary,
       margin over dual norm of its gradient at the best point, is a small share of eps. That share does not depend on
       the other images, so results do not depend on batching.

    Every run follows the steepest ascent with a quarter of momentum and steps that fall from 2 eps to 0 along a cosine;
    success is read off the gradient's own forward pass, and a solved image leaves at once. With ``targets`` in the call
    only runs towards them are made, as many per phase as the phase has targets.

    Settings:
        effort: ``quick``, ``standard`` or ``exhaustive``; the phases of each stand in :data:`EFFORT`.

    Sources: probability margin and cosine steps from PMA (Xie et al., CVPR 2025); targets in order from MM (Gao et al.,
    ICML 2022) and MALT (Melamed et al., NeurIPS 2024); effort where the boundary is near from A3 (Liu et al., CVPR
    2022).
    """

    _: KW_ONLY
    effort: str = "standard"

    name: ClassVar[str] = "auto"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "this project, after PMA, MM, MALT and A3"
    uses_lane: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.effort not in EFFORT:
            raise unknown("effort", self.effort, EFFORT)

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        logits = exact(model)(images)
        check_classes(logits, goal)
        search = _Search(model, self.geometry, images, goal, eps, seeds, logits)
        index = search.standing()
        for number, phase in enumerate(EFFORT[self.effort]):
            # An image that a phase left out has not moved since, so it is not asked about again.
            index = index[search.unsolved[index]]
            search.model = exact(model) if phase.exact else model
            if math.isfinite(phase.within) and len(index):
                index = index[search.linear_distance(index) < phase.within * eps[index]]
            if not len(index):
                break
            # Streams of different phases and runs must not meet: a run draws from at most 8, a phase makes at most 99.
            self._phase(search, phase, index, 8 * 100 * number)
        return search.best

    def _phase(self, search: _Search, phase: Phase, index: Tensor, stream: int) -> None:
        if phase.targets == 0 and search.goal.targets is None:
            search.climb(index, search.goal[index], probability_margin, phase.steps, stream)
            return
        ranked = search.ranked_targets(index, max(phase.targets, 1))
        if math.isfinite(phase.within):
            # Few images: all their runs side by side, since a step on few images costs almost what it does on many.
            rows, turn = index.repeat_interleave(ranked.shape[1]), torch.arange(ranked.shape[1], device=index.device)
            aim = Goal(search.goal.labels[rows], ranked.flatten())
            search.climb(rows, aim, _lead, phase.steps, stream, turn.repeat(len(index)))
            return
        for rank in range(ranked.shape[1]):
            left = search.unsolved[index]
            aim = Goal(search.goal.labels[index[left]], ranked[left, rank])
            search.climb(index[left], aim, _lead, phase.steps, stream + 8 * rank)


# Sets the turns of one image apart; any odd number far from 1 does.
_TURN = 0x632BE59BD9B4E019


class _Search:
    """Best points and what was seen so far, one row per image of the call."""

    def __init__(
        self, model: Model, geometry: Norm, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor, logits: Tensor
    ) -> None:
        self.model, self.geometry, self.images, self.goal = model, geometry, images, goal
        self.eps, self.seeds = eps, seeds
        self.best = images.clone()
        self.best_margin = torch.full_like(logits[:, 0], -torch.inf)
        # Per class, how near its logit came to the label's at any point visited.
        self.lead = torch.full_like(logits, -torch.inf)
        self.unsolved = eps > 0
        self._note(torch.arange(len(images), device=images.device), images, logits)

    def standing(self) -> Tensor:
        return self.unsolved.nonzero().squeeze(1)

    def ranked_targets(self, index: Tensor, count: int) -> Tensor:
        """The classes to aim at, (n, count or fewer): those that came nearest, or the call's own target every time."""
        if self.goal.targets is not None:
            return self.goal.targets[index][:, None].expand(len(index), count)
        others = self.lead[index].scatter(1, self.goal.labels[index][:, None], -torch.inf)
        return others.argsort(dim=1, descending=True)[:, :-1][:, :count]

    def linear_distance(self, index: Tensor) -> Tensor:
        """How far the boundary would be from the best point if the model were linear, in the threat's norm."""
        aim = self.goal[index]
        values, _, gradient = loss_and_gradient(exact(self.model), self.best[index], aim, margin)
        flat = gradient.flatten(1)
        slope = torch.linalg.vector_norm(flat, ord=1 if self.geometry.name == "linf" else 2, dim=1)
        distance: Tensor = -values / slope.clamp_min(1e-30)
        return distance

    def climb(self, index: Tensor, aim: Goal, loss: Loss, steps: int, stream: int, turn: Tensor | None = None) -> None:
        """One run from a random start over the images at ``index``, ascending; an image may stand there more than once,
        with a ``turn`` of its own each time, and leaves with all its turns when one fools the model."""
        images, eps = self.images[index], self.eps[index]
        seeds = self.seeds[index] if turn is None else self.seeds[index] + turn * _TURN
        points = self.geometry.random(images, eps, seeds, stream)
        previous = points
        for step in range(steps + 1):
            last = step == steps
            if last:
                logits, gradient = exact(self.model)(points), points
            else:
                _, logits, gradient = loss_and_gradient(self.model, points, aim, loss)
            solved = self._note(index, points, logits)
            if last:
                return
            if solved:
                keep = self.unsolved[index]
                index, images, eps, aim = index[keep], images[keep], eps[keep], aim[keep]
                points, previous, gradient = points[keep], previous[keep], gradient[keep]
                if not len(index):
                    return
            size = eps * (1 + math.cos(math.pi * step / steps))
            moved = self.geometry.project(self.geometry.steepest(gradient, points, size), images, eps)
            if step:
                moved = points + 0.75 * (moved - points) + 0.25 * (points - previous)
                moved = self.geometry.project(moved, images, eps)
            previous, points = points, moved

    def _note(self, index: Tensor, points: Tensor, logits: Tensor) -> bool:
        """Remembers what these points show; returns whether any of them fools the model."""
        goal = self.goal[index]
        lead = logits - logits.gather(1, goal.labels[:, None])
        self.lead.scatter_reduce_(0, index[:, None].expand_as(lead), lead, "amax")
        solved = fooled(self.model, points, goal, logits)
        values = margin(logits, goal).masked_fill(solved, torch.inf)
        highest = torch.full_like(self.best_margin, -torch.inf).scatter_reduce_(0, index, values, "amax")
        better = ((values > self.best_margin[index]) & (values == highest[index])).nonzero().squeeze(1)
        # Of equal turns of one image the first is taken.
        better = better[index[better] != torch.cat([index.new_full((1,), -1), index[better][:-1]])]
        self.best[index[better]], self.best_margin[index[better]] = points[better], values[better]
        self.unsolved[index[solved]] = False
        return bool(solved.any())


def probability_margin(logits: Tensor, goal: Goal) -> Tensor:
    """max_{i != y} p_i - p_y. Source: Xie et al., CVPR 2025."""
    probabilities = logits.softmax(1)
    others = probabilities.scatter(1, goal.labels[:, None], -torch.inf)
    return others.amax(1) - probabilities.gather(1, goal.labels[:, None]).squeeze(1)


def _lead(logits: Tensor, goal: Goal) -> Tensor:
    """z_t - z_y."""
    assert goal.targets is not None
    found = logits.gather(1, torch.stack([goal.targets, goal.labels], 1))
    return found[:, 0] - found[:, 1]
