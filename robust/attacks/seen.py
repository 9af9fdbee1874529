"""A cascade of runs: its phases, and what they have seen so far, one row per image of the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.base import Goal, Loss, Model, loss_and_gradient
from robust.attacks.losses import margin
from robust.threats import Norm


@dataclass(frozen=True)
class Phase:
    """One phase, run on the images still standing that lie near enough to the boundary.

    steps: gradient steps of a run; targets: runs, towards the classes that came nearest so far, in that order (0: one
    untargeted run); widest: the radius of the ball that a run starts in, in eps; within: only images whose distance to
    the boundary, to first order, is below this share of eps (inf: all).
    """

    steps: int
    targets: int = 0
    widest: float = 1.0
    within: float = math.inf


class Seen:
    """Best points so far, which images still stand, and how near each class came.

    ``best`` (N, C, H, W): inside ball and box, the point that fools the model, else that of highest margin;
    ``unsolved`` (N,) bool; ``lead`` (N, K): the highest z_t - z_y of each class at any point visited, in the ball or
    not. Runs may leave the ball on their way; what they find counts only inside.
    """

    def __init__(self, model: Model, geometry: Norm, images: Tensor, goal: Goal, eps: Tensor, logits: Tensor) -> None:
        self.model, self.geometry, self.images, self.goal, self.eps = model, geometry, images, goal, eps
        self.best = images.clone()
        self.best_margin = torch.full_like(logits[:, 0], -torch.inf)
        self.lead = torch.full_like(logits, -torch.inf)
        self.unsolved = eps > 0
        self._note(torch.arange(len(images), device=images.device), images, logits)

    def standing(self) -> Tensor:
        """Positions of the images that nothing has broken."""
        return self.unsolved.nonzero().squeeze(1)

    def targets(self, index: Tensor, count: int) -> Tensor:
        """The classes to aim at, (n, count or fewer): those that came nearest, or the call's own target every time."""
        if self.goal.targets is not None:
            return self.goal.targets[index][:, None].expand(len(index), count)
        others = self.lead[index].scatter(1, self.goal.labels[index][:, None], -torch.inf)
        return others.argsort(dim=1, descending=True)[:, :-1][:, :count]

    def gradient(self, index: Tensor, points: Tensor, aim: Goal, loss: Loss) -> Tensor:
        """The loss's gradient at points of the images at ``index``, without NaN; what they show is noted."""
        _, logits, gradient = loss_and_gradient(self.model, points, aim, loss)
        self._note(index, points, logits)
        return gradient.nan_to_num()

    def look(self, index: Tensor, points: Tensor) -> None:
        """A forward pass alone."""
        self._note(index, points, self.model(points))

    def margin_at_best(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The margin at the best points, (n,), and its gradient; nothing is noted."""
        values, _, gradient = loss_and_gradient(self.model, self.best[index], self.goal[index], margin)
        return values, gradient.nan_to_num()

    def _note(self, index: Tensor, points: Tensor, logits: Tensor) -> None:
        goal = self.goal[index]
        lead = logits - logits.gather(1, goal.labels[:, None])
        self.lead.scatter_reduce_(0, index[:, None].expand_as(lead), lead, "amax")
        inside = self.geometry.contains(points, self.images[index], self.eps[index])
        solved = goal.met(logits) & inside
        values = margin(logits, goal).masked_fill(~inside, -torch.inf).masked_fill(solved, torch.inf)
        highest = torch.full_like(self.best_margin, -torch.inf).scatter_reduce_(0, index, values, "amax")
        better = ((values > self.best_margin[index]) & (values == highest[index])).nonzero().squeeze(1)
        # An image may have several rows, one after another; of equals the first is taken.
        better = better[index[better] != torch.cat([index.new_full((1,), -1), index[better][:-1]])]
        self.best[index[better]], self.best_margin[index[better]] = points[better], values[better]
        self.unsolved[index[solved]] = False


# One run of a phase: over the images at the positions given, which may name one more than once, with an aim each.
Climb = Callable[[Seen, Phase, Tensor, Goal, Loss], None]
# How far the boundary is from the best points of the images at the positions given, (n,), in the norm's unit.
Distance = Callable[[Seen, Tensor], Tensor]


def cascade(seen: Seen, phases: Sequence[Phase], climb: Climb, distance: Distance) -> None:
    """The phases one after another, each on what still stands."""
    for phase in phases:
        index = seen.standing()
        if math.isfinite(phase.within) and len(index):
            index = index[distance(seen, index) < phase.within * seen.eps[index]]
        for rows, aim, loss in _runs(seen, phase, index):
            climb(seen, phase, rows, aim, loss)


def _runs(seen: Seen, phase: Phase, index: Tensor) -> Iterator[tuple[Tensor, Goal, Loss]]:
    if phase.targets == 0 and seen.goal.targets is None:
        if len(index):
            yield index, seen.goal[index], probability_margin
        return
    # The call's own target is to be the highest logit of all, not just higher than the label's.
    loss = lead if seen.goal.targets is None else margin
    ranked = seen.targets(index, max(phase.targets, 1))
    # Few images: all their runs side by side, since a step on few images costs almost what it does on many.
    parts = [ranked] if math.isfinite(phase.within) else [ranked[:, rank, None] for rank in range(ranked.shape[1])]
    for part in parts:
        left = seen.unsolved[index]
        rows = index[left].repeat_interleave(part.shape[1])
        if len(rows):
            yield rows, Goal(seen.goal.labels[rows], part[left].flatten()), loss


def lead(logits: Tensor, goal: Goal) -> Tensor:
    """z_t - z_y."""
    assert goal.targets is not None
    found = logits.gather(1, torch.stack([goal.targets, goal.labels], 1))
    return found[:, 0] - found[:, 1]


def probability_margin(logits: Tensor, goal: Goal) -> Tensor:
    """max_{i != y} p_i - p_y. Source: Xie et al., CVPR 2025."""
    probabilities = logits.softmax(1)
    others = probabilities.scatter(1, goal.labels[:, None], -torch.inf)
    return others.amax(1) - probabilities.gather(1, goal.labels[:, None]).squeeze(1)
