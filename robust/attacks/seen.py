"""A cascade of runs: its phases, and what they have seen so far, one row per image of the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks import losses
from robust.attacks.base import Goal, Loss, Model, exact, fooled, linear_distances, loss_and_gradient
from robust.attacks.losses import margin
from robust.threats import Norm


@dataclass(frozen=True)
class Phase:
    """One phase, run on those images of the phase before that still stand and lie near enough to the boundary.

    steps: gradient steps of a run; targets: runs, towards the classes that came nearest so far, in that order (0: one
    untargeted run); widest: the radius of the ball that a run starts in, in eps; within: only images whose distance to
    the boundary, to first order, is below this share of eps (inf: all); gap: only targets of whose gap to the label's
    logit, as it was on the image itself, at most this share is still open, but always the nearest one; exact: gradients
    from the model itself and not from a fast copy, whose rounding matters where the boundary is near; ranked: how many
    of the classes that came nearest to put first, before the runs, in the order of their linear distance from the image
    (a gradient each); restarts: runs towards each target; biased: steps before a run that drive the logits apart at
    random, but the label's down and the target's up; rough: only images whose loss is rough, on gradients averaged over
    points nearby, every other run from the best point so far.
    """

    steps: int
    targets: int = 0
    widest: float = 1.0
    within: float = math.inf
    gap: float = math.inf
    exact: bool = False
    ranked: int = 0
    restarts: int = 1
    biased: int = 0
    rough: bool = False


@dataclass(frozen=True)
class Run:
    """One run of a phase, over the images at the positions ``index``, which may name one more than once.

    aim: what the loss looks at, one for each position; turn: which of its image's positions each is; stream: the same
    for no other run of the call, for those who draw random numbers.
    """

    index: Tensor
    aim: Goal
    loss: Loss
    turn: Tensor
    stream: int


class Seen:
    """Best points so far, which images still stand, and how near each class came.

    ``best`` (N, C, H, W): inside ball and box, the point that fools the model, else that of highest margin;
    ``unsolved`` (N,) bool; ``lead`` (N, K): the highest z_t - z_y of each class at any point visited. Runs may leave
    the ball on their way, where ``strays`` says so; what they find counts only inside, and how near a class came too:
    far outside, every class comes near.
    """

    def __init__(
        self, model: Model, geometry: Norm, images: Tensor, goal: Goal, eps: Tensor, logits: Tensor, strays: bool = True
    ) -> None:
        self.strays = strays
        self.model, self.geometry, self.images, self.goal, self.eps = model, geometry, images, goal, eps
        self.best = images.clone()
        self.best_margin = torch.full_like(logits[:, 0], -torch.inf)
        self.lead = torch.full_like(logits, -torch.inf)
        self.first_lead = _lead(logits, goal)
        self.first_distance = torch.full_like(logits, torch.inf)
        self.unsolved = eps > 0
        self._note(torch.arange(len(images), device=images.device), images, logits, exact(model))

    def standing(self) -> Tensor:
        """Positions of the images that nothing has broken."""
        return self.unsolved.nonzero().squeeze(1)

    def targets(self, index: Tensor, count: int) -> Tensor:
        """The classes to aim at, (n, count or fewer), or the call's own target every time.

        First those that were ranked, by their linear distance from the image, then the others, by how near they came.
        """
        if self.goal.targets is not None:
            return self.goal.targets[index][:, None].expand(len(index), count)
        others = self.lead[index].scatter(1, self.goal.labels[index][:, None], -torch.inf)
        order = others.argsort(dim=1, descending=True)[:, :-1]
        by_distance = self.first_distance[index].gather(1, order).argsort(dim=1, stable=True)
        return order.gather(1, by_distance)[:, :count]

    def rank(self, index: Tensor, count: int) -> None:
        """Puts ``count`` of the classes that came nearest in order (linf and l2); not where the call has targets."""
        if self.goal.targets is not None:
            return
        classes = self.targets(index, count)
        for rows in self._passes(index):
            at = index[rows]
            found = linear_distances(self.model, self.images[at], self.goal[at], classes[rows], self.geometry)
            self.first_distance[at] = self.first_distance[at].scatter(1, classes[rows], found)

    def open_gap(self, index: Tensor, classes: Tensor) -> Tensor:
        """The share of the gap between each of ``classes`` (n, k) and the label that nothing has closed yet."""
        gap = self.lead[index].gather(1, classes) / self.first_lead[index].gather(1, classes).clamp_max(-_TINY)
        return gap.clamp_min(0)

    def gradient(self, index: Tensor, points: Tensor, aim: Goal, loss: Loss) -> Tensor:
        """The loss's gradient at points of the images at ``index``, without NaN; what they show is noted."""
        return self.slope(index, points, aim, loss)[1]

    def slope(self, index: Tensor, points: Tensor, aim: Goal, loss: Loss) -> tuple[Tensor, Tensor]:
        """The loss too, (n,)."""
        passes = self._passes(index)
        if len(passes) == 1:
            return self._slope(index, points, aim, loss)
        parts = [self._slope(index[rows], points[rows], aim[rows], loss) for rows in passes]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def drive(self, index: Tensor, points: Tensor, weights: Tensor) -> Tensor:
        """The gradient of the logits' weighted sums, ``weights`` (n, K), in the same manner."""
        return torch.cat([
            self._slope(index[rows], points[rows], self.goal[index[rows]], _Weighted(weights[rows]))[1]
            for rows in self._passes(index)
        ])  # fmt: skip

    def _slope(self, index: Tensor, points: Tensor, aim: Goal, loss: Loss) -> tuple[Tensor, Tensor]:
        values, logits, gradient = loss_and_gradient(self.model, points, aim, loss)
        self._note(index, points, logits, self.model)
        return values, gradient.nan_to_num()

    def look(self, index: Tensor, points: Tensor, model: Model | None = None) -> None:
        """A forward pass alone, of the model that decides or of the one given."""
        model = exact(self.model) if model is None else model
        for rows in self._passes(index):
            self._note(index[rows], points[rows], model(points[rows]), model)

    def _passes(self, index: Tensor) -> list[slice]:
        """The rows of each pass: no pass holds more than the caller's batch, however many runs each image has."""
        size = max(len(self.images), _FEWEST)
        return [slice(at, at + size) for at in range(0, len(index), size)]

    def margin_at_best(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The margin at the best points, (n,), their logits and its gradient, without NaN; nothing is noted."""
        values, logits, gradient = loss_and_gradient(exact(self.model), self.best[index], self.goal[index], margin)
        return values, logits, gradient.nan_to_num()

    def _note(self, index: Tensor, points: Tensor, logits: Tensor, model: Model) -> None:
        """``logits`` are the model's at the points; what a fast copy says it broke is run again."""
        goal = self.goal[index]
        # Of several rows of an image, one whose logits are no numbers must not hide what the others show.
        lead = _lead(logits, goal).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        values = margin(logits, goal).nan_to_num(-torch.inf, torch.inf, -torch.inf)
        if self.strays:
            inside = self.geometry.contains(points, self.images[index], self.eps[index])
            values = values.masked_fill(~inside, -torch.inf)
            lead = lead.masked_fill(~inside[:, None], -torch.inf)
            # Nothing is confirmed that would not count.
            logits = logits.masked_fill(~inside[:, None], torch.nan)
        self.lead.scatter_reduce_(0, index[:, None].expand_as(lead), lead, "amax")
        solved = fooled(model, points, goal, logits)
        if bool(solved.any()):
            values = values.masked_fill(solved, torch.inf)
            self.unsolved[index[solved]] = False
        better = (values > self.best_margin[index]).nonzero().squeeze(1)
        if len(better):
            self._keep(better, index[better], points, values[better])

    def _keep(self, rows: Tensor, index: Tensor, points: Tensor, values: Tensor) -> None:
        """Takes the best of ``rows`` of the points; those of an image lie one after another, of equals the first."""
        self.best_margin.scatter_reduce_(0, index, values, "amax")
        if bool((index[1:] == index[:-1]).any()):
            highest = (values == self.best_margin[index]).nonzero().squeeze(1)
            first = highest[index[highest] != torch.cat([index.new_full((1,), -1), index[highest][:-1]])]
            rows, index = rows[first], index[first]
        self.best[index] = points.index_select(0, rows)  # several times as fast as points[rows]


Climb = Callable[[Seen, Phase, Run], None]
# How far the boundary is from the best points of the images at the positions given, (n,), in the norm's unit.
Distance = Callable[[Seen, Tensor], Tensor]


def cascade(seen: Seen, phases: Sequence[Phase], climb: Climb, distance: Distance) -> None:
    """The phases one after another, each on what still stands."""
    model, index = seen.model, seen.standing()
    for number, phase in enumerate(phases):
        # An image that a phase left out has not moved since, so it is not asked about again.
        index = index[seen.unsolved[index]]
        seen.model = exact(model) if phase.exact else model
        if math.isfinite(phase.within) and len(index):
            index = index[distance(seen, index) < phase.within * seen.eps[index]]
        if phase.ranked and len(index):
            seen.rank(index, phase.ranked)
        for run in _runs(seen, phase, index, _MOST_RUNS * number):
            climb(seen, phase, run)


_MOST_RUNS = 100
# Images in a pass that need no splitting whatever the caller's batch.
_FEWEST = 16
_TINY = 1e-12


def _runs(seen: Seen, phase: Phase, index: Tensor, stream: int) -> Iterator[Run]:
    if phase.targets == 0 and seen.goal.targets is None:
        if len(index):
            rows, turn = index.repeat_interleave(phase.restarts), torch.arange(phase.restarts, device=index.device)
            yield Run(rows, seen.goal[rows], probability_margin, turn.repeat(len(index)), stream)
        return
    # The call's own target is to be the highest logit of all, not just higher than the label's.
    loss = lead if seen.goal.targets is None else margin
    ranked = seen.targets(index, max(phase.targets, 1))
    # Few images: all their runs side by side, since a step on few images costs almost what it does on many.
    parts = [ranked] if math.isfinite(phase.within) else [ranked[:, rank, None] for rank in range(ranked.shape[1])]
    for number, part in enumerate(parts):
        chosen = seen.unsolved[index][:, None] & _promising(seen, phase, index, part, ranked[:, :1])
        chosen, part = (values.repeat_interleave(phase.restarts, dim=1) for values in (chosen, part))
        rows = index[:, None].expand_as(part)[chosen]
        if len(rows):
            turn = torch.arange(part.shape[1], device=rows.device).expand_as(part)[chosen]
            yield Run(rows, Goal(seen.goal.labels[rows], part[chosen]), loss, turn, stream + number)


def _promising(seen: Seen, phase: Phase, index: Tensor, classes: Tensor, nearest: Tensor) -> Tensor:
    """Which of the classes to aim at, (n, k), are worth a run; ``nearest`` (n, 1) always is."""
    if not math.isfinite(phase.gap) or seen.goal.targets is not None:
        return torch.ones_like(classes, dtype=torch.bool)
    return (seen.open_gap(index, classes) <= phase.gap) | (classes == nearest)


def carried(previous: Tensor, points: Tensor, moved: Tensor) -> Tensor:
    """Where a step from ``points`` to ``moved`` leads with a quarter of momentum; ``previous``: before the last step.

    points + 3/4 (moved - points) + 1/4 (points - previous). Source: APGD, Croce and Hein, ICML 2020, algorithm 1.
    """
    return (moved - points).mul_(0.75).add_(points).add_(points - previous, alpha=0.25)


@dataclass(frozen=True)
class _Weighted:
    """A loss: the sum of the logits by ``weights`` (n, K)."""

    weights: Tensor

    def __call__(self, logits: Tensor, goal: Goal) -> Tensor:
        return (logits * self.weights).sum(1)


def _lead(logits: Tensor, goal: Goal) -> Tensor:
    """z_k - z_y of every class k."""
    return logits - logits.gather(1, goal.labels[:, None])


def lead(logits: Tensor, goal: Goal) -> Tensor:
    """z_t - z_y."""
    assert goal.targets is not None
    return losses.lead(goal.targets)(logits, goal)


def probability_margin(logits: Tensor, goal: Goal) -> Tensor:
    """max_{i != y} p_i - p_y. Source: Xie et al., CVPR 2025."""
    probabilities = logits.softmax(1)
    others = probabilities.scatter(1, goal.labels[:, None], -torch.inf)
    return others.amax(1) - probabilities.gather(1, goal.labels[:, None]).squeeze(1)
