"""The Square attack: random search over squares, from the model's scores alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from copy import copy
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from robust import randomness
from robust.attacks.base import Goal, Model, still_open
from robust.attacks.queries import Queried, ScoreAttack
from robust.errors import InputError
from robust.threats import NORMS, per_image

# Queries, of 10,000, after which the changed share of the image halves.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Random numbers of one image are drawn for this many queries at once: a draw costs about as much as a small model.
_BLOCK = 64
_TINY = 1e-12


@dataclass(frozen=True)
class Square(ScoreAttack):
    """Random search: each query changes one square window, and the change is kept where the loss rises.

    Settings:
        queries: forward passes that any one image may cost: the clean image, the starting point, and for each of the
            others one window. There is no backward pass.
        p_init: share of the pixels that the first windows cover, in (0, 1]; a fixed schedule halves it.
        loss: ``margin``, ``ce`` or ``dlr``. By default the published choice: the margin, and the cross-entropy of the
            target where targets are given.

    An image leaves the batch at the first query that fools the model. The schedule is the published one for 10,000
    windows, rescaled to those of this budget. So a larger budget is another run, with larger windows for longer, and
    not the same run continued: it succeeds more often, but may lose a single image that a smaller one fooled.

    linf: starts from vertical stripes on the faces of the ball; a step puts a window on a random face per channel.
    l2: starts from a grid of bumps; a step mixes a new bump into a window, and takes the norm for it from a second
    window, which is cleared. The result lies at eps from the image, less what the box cuts off.
    l1: the same with sharper bumps, of which a new one gets the norm of both windows times the number of channels; the
    projection onto ball and box then drops what is small.

    Raises InputError for images that are not (N, C, H, W) and for settings out of range.

    Source: Andriushchenko et al., ECCV 2020, Algorithms 1 to 3; Croce and Hein, "Mind the box", ICML 2021 (l1);
    schedule, budget and losses as in AutoAttack (Croce and Hein, ICML 2020). AutoAttack's code differs in two details:
    its windows never reach the last row and column, and in l2 every channel of the window gets the norm that the
    windows held in all channels together, not in its own.
    """

    _: KW_ONLY
    queries: int = 5000
    p_init: float = 0.8

    name: ClassVar[str] = "square"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    source: ClassVar[str] = "Andriushchenko et al., ECCV 2020"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise InputError(f"square: p_init is a share of the pixels in (0, 1], not {self.p_init:g}")

    @property
    def windows(self) -> int:
        """How many windows are tried on an image that is never fooled."""
        return self.queries - 2

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        if images.dim() != 4:
            raise InputError(f"square needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        images = images.contiguous()
        logits = model(images)
        index = still_open(logits, goal, eps)
        broken_at = goal.met(logits).long()
        found = Queried(images.clone(), torch.ones_like(broken_at), broken_at)
        if not len(index):
            return found
        kinds: dict[str, type[_Faces | _Bumps]] = {"linf": _Faces, "l2": _Bumps, "l1": _Spikes}
        moves: _Moves = kinds[self.norm](images[index], eps[index])
        goal, seeds, points, draws = goal[index], seeds[index], images[index], eps.new_empty(len(index), 0)
        kind = torch.promote_types(images.dtype, torch.float32)
        best = torch.full(index.shape, -torch.inf, dtype=kind, device=index.device)
        for query in range(-1, self.windows):  # -1 is the starting point
            if query >= 0 and query % _BLOCK == 0:
                # Stream 0 belongs to the starting point, 1 + b to the b-th block of queries.
                draws = randomness.uniform(seeds, 1 + query // _BLOCK, (_BLOCK, moves.numbers), torch.float64)
            if query < 0:
                trial = moves.start(seeds, 0)
            else:
                trial = moves.step(points, draws[:, query % _BLOCK], self._share(query))
            values, solved = self._judge(model(trial).to(kind), goal)
            found.spent[index] += 1
            better = (values > best).nonzero().squeeze(1)
            if not len(better):
                continue
            points[better], best = trial[better], torch.maximum(best, values)
            if bool(solved.any()):
                found.points[index[solved]], broken_at[index[solved]] = points[solved], query + 3
                keep = ~solved
                index, goal, seeds, moves = index[keep], goal[keep], seeds[keep], moves[keep]
                points, best, draws = points[keep], best[keep], draws[keep]
                if not len(index):
                    break
        found.points[index] = points
        return found

    def _share(self, query: int) -> float:
        """The share of the pixels that the window of this query (from 0) covers."""
        return self.p_init * 0.5 ** bisect_left(_HALVINGS, int(query / self.windows * 10_000))

    def _judge(self, logits: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """The loss of each image, inf where it is fooled and -inf where it is no number; and whether it is fooled."""
        solved = goal.met(logits)
        return self.judge(logits, goal).masked_fill_(solved, torch.inf), solved


class _Moves(Protocol):
    """Starting point and steps of one norm, for a batch of images (N, C, H, W)."""

    numbers: int
    """How many random numbers a step takes per image."""

    def __getitem__(self, index: Tensor) -> _Moves: ...

    def start(self, seeds: Tensor, stream: int) -> Tensor:
        """The first points; ``seeds`` (N,) int64."""

    def step(self, points: Tensor, draw: Tensor, share: float) -> Tensor:
        """New points from ``points``; ``draw`` (N, numbers) is uniform in [0, 1), ``share`` the window's share."""


class _Faces:
    """linf: every value sits on a face of the ball, or where the box cuts it."""

    def __init__(self, images: Tensor, eps: Tensor) -> None:
        radius = per_image(eps, images)
        self.low, self.high = (images - radius).clamp_min_(0), (images + radius).clamp_max_(1)
        self.numbers = 2 + images.shape[1]

    def __getitem__(self, index: Tensor) -> _Faces:
        chosen = copy(self)
        chosen.low, chosen.high = self.low[index], self.high[index]
        return chosen

    def start(self, seeds: Tensor, stream: int) -> Tensor:
        """Vertical stripes one pixel wide, with a random face for each stripe and channel."""
        _, channels, _, width = self.low.shape
        up = randomness.uniform(seeds, stream, (channels, 1, width)) < 0.5
        return torch.where(up, self.high, self.low)

    def step(self, points: Tensor, draw: Tensor, share: float) -> Tensor:
        """Algorithm 2, then the projection of Algorithm 1.

        From anywhere inside, a step of 2 eps ends at a face once it is clipped, so the face is set right away.
        """
        height, width = points.shape[2:]
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        window = _windows(draw[:, :1], draw[:, 1:2], side, height, width).expand(-1, points.shape[1], -1)
        faces = torch.where(
            draw[:, 2:, None] < 0.5, self.high.flatten(2).gather(2, window), self.low.flatten(2).gather(2, window)
        )
        return points.flatten(2).scatter(2, window, faces).view_as(points)


class _Bumps:
    """l2: the perturbation is a heap of bumps, and a step moves norm from one window to another."""

    order = 2

    def __init__(self, images: Tensor, eps: Tensor) -> None:
        # Beyond the diameter of the box the ball is the whole box; the cap keeps an infinite eps from giving NaN.
        self.images, self.radius = images, eps.clamp_max(images[0].numel() ** (1 / self.order))[:, None]
        self.numbers = 5 + images.shape[1]
        self.gain = 1

    def __getitem__(self, index: Tensor) -> _Bumps:
        chosen = copy(self)
        chosen.images, chosen.radius = self.images[index], self.radius[index]
        return chosen

    def start(self, seeds: Tensor, stream: int) -> Tensor:
        """A centered grid of bumps with random signs, as many as fit; their side is a fifth of the shorter one."""
        count, channels, height, width = self.images.shape
        side = max(min(height, width) // 5, 1)
        rows, columns = height // side, width // side
        draw = randomness.uniform(seeds, stream, (1 + channels, rows, columns))
        tiles = _turned(_bump(side, self.images.dtype, self.images.device, self.order), draw[:, :1] < 0.5)
        tiles = tiles * _signs(draw[:, 1:], tiles)[..., None, None]
        grid = tiles.transpose(3, 4).reshape(count, channels, rows * side, columns * side)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        return self._at_radius(F.pad(grid, (left, width - columns * side - left, top, height - rows * side - top)))

    def step(self, points: Tensor, draw: Tensor, share: float) -> Tensor:
        """Algorithm 3."""
        order = self.order
        channels, height, width = points.shape[1:]
        side = max(round(math.sqrt(share * height * width)), 3)
        side = min(side + (side + 1) % 2, height, width)
        windows = _windows(draw[:, :2], draw[:, 2:4], side, height, width)
        gaining, losing = windows[:, :1].expand(-1, channels, -1), windows[:, 1:].expand(-1, channels, -1)
        delta = (points - self.images).flatten(2)
        unused = (self.radius**order - _length(delta.flatten(1), order) ** order).clamp_min_(0)[..., None]
        old = delta.gather(2, gaining)
        held = _length(old, order)
        # The windows may overlap: what the first one holds must not count twice.
        delta.scatter_(2, gaining, 0.0)
        available = held**order + _length(delta.gather(2, losing), order) ** order + unused / channels
        bump = _turned(_bump(side, points.dtype, points.device, order), draw[:, 4:5] < 0.5).flatten(2)
        fresh = bump * _signs(draw[:, 5:], points)[..., None] + old / held.clamp_min(_TINY)
        scale = self.gain * available ** (1 / order) / _length(fresh, order).clamp_min_(_TINY)
        delta.scatter_(2, losing, 0.0).scatter_(2, gaining, fresh * scale)
        return self._at_radius(delta.view_as(points))

    def _at_radius(self, delta: Tensor) -> Tensor:
        """The images moved by ``delta`` scaled to norm eps, then clipped to the box."""
        scale = self.radius / _length(delta.flatten(1)).clamp_min_(_TINY)
        return torch.addcmul(self.images, delta, scale[..., None, None]).clamp_(0, 1)


class _Spikes(_Bumps):
    """l1: as l2, but a step makes more than the ball holds, of which the projection leaves the largest values."""

    order = 1

    def __init__(self, images: Tensor, eps: Tensor) -> None:
        super().__init__(images, eps)
        self.gain = images.shape[1]

    def _at_radius(self, delta: Tensor) -> Tensor:
        """The images moved by ``delta``, projected onto ball and box."""
        return NORMS["l1"].project(self.images + delta, self.images, self.radius[:, 0])


def _windows(vertical: Tensor, horizontal: Tensor, side: int, height: int, width: int) -> Tensor:
    """The positions in a flattened image of the pixels of random windows, (N, M, side * side) int64.

    ``vertical`` and ``horizontal`` (N, M), uniform in [0, 1), say where: the corner is uniform over the places at which
    the window lies inside.
    """
    steps = torch.arange(side, device=vertical.device)
    rows = (vertical * (height - side + 1)).long()[..., None] + steps
    columns = (horizontal * (width - side + 1)).long()[..., None] + steps
    return (rows[..., None] * width + columns[:, :, None]).flatten(2)


@lru_cache(maxsize=64)
def _bump(side: int, dtype: torch.dtype, device: torch.device, order: int = 2) -> Tensor:
    """The paper's eta, (side, side) of norm 1: a bump in the upper half, its negative in the lower."""
    upper = side // 2
    bump = torch.cat([_half_bump(upper, side, order), -_half_bump(side - upper, side, order)])
    return bump.div_(_length(bump.flatten(), order)).to(device, dtype)


def _half_bump(rows: int, columns: int, order: int) -> Tensor:
    """Concentric squares of half-width m = 0, 1, ... laid on each other, of height 1 / (m + 1)^2, in l1 to the fourth.

    A pixel at Chebyshev distance d from the middle lies in those with m >= d.
    """
    distance = torch.maximum(
        (torch.arange(rows) - rows // 2).abs()[:, None], (torch.arange(columns) - columns // 2).abs()[None]
    )
    rectangles = torch.arange(1, max(rows // 2, columns // 2) + 2, dtype=torch.float64) ** (-4 // order)
    heights = rectangles.flip(0).cumsum(0).flip(0)[distance]
    return heights.div_(_length(heights.flatten(), order).clamp_min_(_TINY))


def _turned(bump: Tensor, turn: Tensor) -> Tensor:
    """``bump`` (s, s), transposed where ``turn`` (...) says so: (..., s, s)."""
    return torch.where(turn[..., None, None], bump.T, bump)


def _signs(draw: Tensor, like: Tensor) -> Tensor:
    return torch.where(draw < 0.5, 1.0, -1.0).to(like.dtype)


def _length(values: Tensor, order: int = 2) -> Tensor:
    """The l2 or l1 norm over the last dimension, which is kept."""
    # Unlike a sum of squares, it rounds the same in a batch of one as in any other.
    length: Tensor = torch.linalg.vector_norm(values, order, dim=-1, keepdim=True)
    return length
