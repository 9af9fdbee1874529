"""The cascade's phases for a patch: where to put it, by successive halving of windows, and what to paint on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.base import Goal, Model
from robust.attacks.losses import margin
from robust.attacks.seen import Phase, Run, Seen, carried, cascade
from robust.patch_norm import gains, window, window_size, window_sums
from robust.threats import NORMS


@dataclass(frozen=True)
class Search(Phase):
    """``windows``: places that a run starts with; ``steps`` are those of the last one left, of which each place that
    is given up on the way has had a part."""

    windows: int = 1


EFFORT: dict[str, tuple[Search, ...]] = {
    "quick": (Search(12, windows=4), Search(12, 2, windows=2)),
    "standard": (
        Search(12, windows=4),
        Search(24, 3, windows=4),
        Search(40, 5, windows=8, within=0.6),
        Search(80, 9, windows=8, within=0.3),
    ),
    "exhaustive": (
        Search(12, windows=4),
        Search(40, 5, windows=16),
        Search(80, 9, windows=16),
    ),
}


def search(model: Model, images: Tensor, goal: Goal, eps: Tensor, logits: Tensor, effort: str) -> Tensor:
    """The best points found, (N, C, H, W); ``logits`` are those of the images."""
    seen = Seen(model, NORMS["patch"], images, goal, eps, logits, strays=False)
    clean = margin(logits, goal)

    def distance(seen: Seen, index: Tensor) -> Tensor:
        """The share of the way to the boundary that the best patch leaves, if the margin fell evenly, in eps."""
        left = seen.best_margin[index] / clean[index].clamp_max(-1e-12)
        return left.clamp_min(0) * seen.eps[index]

    cascade(seen, EFFORT[effort], _climb, distance)
    return seen.best


@dataclass
class _Rows:
    """What changes over a run, one row per place of a patch; the rows of one run of an image lie side by side."""

    owner: Tensor  # the row's place among the run's positions
    index: Tensor
    aim: Goal
    images: Tensor
    mask: Tensor
    points: Tensor
    previous: Tensor
    highest: Tensor  # the loss, at any point of the row

    def keep(self, chosen: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[chosen])


def _climb(seen: Seen, phase: Phase, run: Run) -> None:
    """All places a few steps each, then the better half of them some more, down to the best."""
    assert isinstance(phase, Search)
    rows = _start(seen, phase, run)
    rounds = phase.windows.bit_length()
    lengths = [phase.steps // (2 * rounds)] * (rounds - 1)
    lengths.append(phase.steps - sum(lengths))
    done = 0
    for number, length in enumerate(lengths):
        for step in range(length):
            if not len(rows.index):
                return
            size = 0.5 * (1 + math.cos(math.pi * (done + step) / phase.steps))
            _step(seen, run, rows, size)
        done += length
        if number + 1 < rounds:
            rows.keep(_better_half(rows))
    seen.look(rows.index, rows.points)


def _start(seen: Seen, phase: Search, run: Run) -> _Rows:
    """The places where the loss would rise most if it were linear, far enough apart, at the image itself."""
    images = seen.images[run.index]
    _, gradient = seen.slope(run.index, images, run.aim, run.loss)
    left = seen.unsolved[run.index].nonzero().squeeze(1)
    index, images, aim = run.index[left], images[left], run.aim[left]
    gain, _ = gains(gradient[left], images)
    height, width = images.shape[2:]
    size, across = window_size(seen.eps[index], images)
    scores = window_sums(gain.sum(1), size, across)
    places = _apart(scores, size, phase.windows)
    each = places.shape[1]
    owner = torch.arange(len(index), device=index.device).repeat_interleave(each)
    top, side = places.flatten() // width, places.flatten() % width
    mask = window(top, side, size[owner], across[owner], height, width)
    points = images[owner]
    return _Rows(
        owner, index[owner], aim[owner], points, mask, points, points,
        torch.full((len(owner),), -torch.inf, dtype=images.dtype, device=images.device),
    )  # fmt: skip


def _apart(scores: Tensor, side: Tensor, count: int) -> Tensor:
    """The ``count`` best places of (n, H, W), (n, count), no two nearer than half a side in both directions.

    Where there are not so many, the best is named again.
    """
    height, width = scores.shape[1:]
    vertical, horizontal = (torch.arange(n, device=scores.device) for n in (height, width))
    gap = ((side + 1) // 2).clamp_min(1)[:, None]
    free, found = scores.clone(), list[Tensor]()
    for _ in range(count):
        best, place = free.flatten(1).max(1)
        place = torch.where(best.isinf() & bool(found), found[0] if found else place, place)
        near = ((vertical - (place // width)[:, None]).abs() < gap)[:, :, None]
        near = near & ((horizontal - (place % width)[:, None]).abs() < gap)[:, None]
        free = free.masked_fill(near, -torch.inf)
        found.append(place)
    return torch.stack(found, 1)


def _step(seen: Seen, run: Run, rows: _Rows, size: float) -> None:
    values, gradient = seen.slope(rows.index, rows.points, rows.aim, run.loss)
    rows.highest = rows.highest.maximum(values.nan_to_num(-torch.inf))
    moved = (rows.points + size * gradient.sign()).clamp(0, 1)
    moved = carried(rows.previous, rows.points, moved).clamp_(0, 1)
    moved = torch.where(rows.mask, moved, rows.images)
    rows.previous, rows.points = rows.points, moved
    left = seen.unsolved[rows.index]
    if not bool(left.all()):
        rows.keep(left)


def _better_half(rows: _Rows) -> Tensor:
    """Which rows are among the better half of their owner's, rounded up."""
    order = torch.argsort(rows.highest, descending=True, stable=True)
    order = order[torch.argsort(rows.owner[order], stable=True)]
    _, counts = torch.unique_consecutive(rows.owner[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank = torch.arange(len(order), device=order.device) - starts
    kept = torch.zeros_like(rows.owner, dtype=torch.bool)
    kept[order[rank < ((counts + 1) // 2).repeat_interleave(counts)]] = True
    return kept
