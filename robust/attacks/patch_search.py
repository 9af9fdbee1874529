"""Random search over a patch, from the model's scores alone."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Goal, Model
from robust.attacks.queries import Book, Queried, ScoreAttack
from robust.errors import InputError
from robust.patch_norm import window, window_size

_BLOCK = 64  # queries for which random numbers are drawn at once
_MOVE_EVERY = 5  # of so many queries one moves the patch, the others repaint a square of it
# Queries, of 10,000, after which the repainted share of the patch halves, as in the Square attack.
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@dataclass(frozen=True)
class PatchSearch(ScoreAttack):
    """Random search for a patch and its place: a change is kept where the loss does not fall.

    Settings:
        queries: forward passes that any one image may cost: the clean image, the starting point, and for each of the
            others one change. There is no backward pass.
        share: of the patch's area that the first repainted squares cover, in (0, 1]; a fixed schedule halves it.
        loss: ``margin``, ``ce`` or ``dlr``. By default the margin, and the cross-entropy of the target where targets
            are given.

    The patch starts at a random place, painted in vertical stripes of the box's corners. Four of five queries paint a
    random square of it in one random corner color; the fifth moves the patch, at first anywhere, later by less and
    less. The schedule is for 10,000 changes, rescaled to the budget.

    Source: Croce et al., "Sparse-RS", AAAI 2022, section 5 (image-specific patches): its alternation of moves and
    paint, its moves that grow shorter; the schedule of squares is the Square attack's (Andriushchenko et al., ECCV
    2020). Raises InputError for settings out of range.
    """

    _: KW_ONLY
    norm: str = "patch"
    queries: int = 5000
    share: float = 0.4

    name: ClassVar[str] = "patch-search"
    norms: ClassVar[tuple[str, ...]] = ("patch",)
    source: ClassVar[str] = "Croce et al., AAAI 2022"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise InputError(f"patch-search: share is a part of the patch in (0, 1], not {self.share:g}")

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        book = Book(model, images, goal, eps, self.geometry, self.queries)
        rows, columns = window_size(eps, images)
        sketch = _Sketch(images, torch.minimum(rows, columns), seeds)
        best = torch.full_like(eps, -torch.inf)
        numbers = 5 + images.shape[1]
        draws = eps.new_empty(len(images), 0, dtype=torch.float64)
        for number in range(-1, self.queries - 2):
            live = book.live
            live = live[sketch.side[live] > 0]
            if not len(live):
                break
            if number >= 0 and number % _BLOCK == 0:
                draws = randomness.uniform(seeds, 3 + number // _BLOCK, (_BLOCK, numbers), torch.float64)
            trial = sketch if number < 0 else self._changed(sketch, draws[:, number % _BLOCK], number)
            points = trial.points(live)
            values = self.judge(book.ask(points[:, None], live)[:, 0], goal[live])
            better = values >= best[live]
            kept = live[better]
            best[kept] = values[better].to(best)
            sketch.take(trial, kept)
            book.stay(points[better], kept)
        return book.result()

    def _changed(self, sketch: _Sketch, draw: Tensor, number: int) -> _Sketch:
        done = number / max(self.queries - 2, 1)
        if number % _MOVE_EVERY == _MOVE_EVERY - 1:
            return sketch.moved(draw[:, 0], draw[:, 1], max(1 - done, 0.05))
        share = self.share * 0.5 ** bisect_left(_HALVINGS, int(done * 10_000))
        return sketch.painted(draw[:, 2], draw[:, 3], draw[:, 5:], share)


class _Sketch:
    """Place and paint of each image's patch. The paint is as large as the image, its upper left corner is used."""

    def __init__(self, images: Tensor, side: Tensor, seeds: Tensor) -> None:
        height, width = images.shape[2:]
        self.images, self.side = images, side
        self.room = torch.stack([height - side, width - side], 1)  # how far a corner may lie from the image's
        place = randomness.uniform(seeds, 0, (2,), torch.float64)
        self.corner = (place * (self.room + 1)).long()
        stripes = randomness.uniform(seeds, 1, (images.shape[1], 1, width)) < 0.5
        self.paint = stripes.to(images.dtype).expand(-1, -1, height, -1).contiguous()

    def _like(self, corner: Tensor, paint: Tensor) -> _Sketch:
        made = object.__new__(_Sketch)
        made.images, made.side, made.room, made.corner, made.paint = self.images, self.side, self.room, corner, paint
        return made

    def take(self, other: _Sketch, index: Tensor) -> None:
        self.corner[index], self.paint[index] = other.corner[index], other.paint[index]

    def moved(self, vertical: Tensor, horizontal: Tensor, reach: float) -> _Sketch:
        """By a random step of up to ``reach`` of the image and at least a pixel, both ways, cut off at its borders."""
        height, width = self.images.shape[2:]
        furthest = max(reach * height, 1.49), max(reach * width, 1.49)
        away = torch.stack([(vertical * 2 - 1) * furthest[0], (horizontal * 2 - 1) * furthest[1]], 1).round().long()
        return self._like((self.corner + away).clamp_min(0).minimum(self.room), self.paint)

    def painted(self, vertical: Tensor, horizontal: Tensor, color: Tensor, share: float) -> _Sketch:
        """A random square of ``share`` of the patch in one color, of 0 or 1 in each channel."""
        size = (self.side * math.sqrt(share)).round().long().clamp_min(1).minimum(self.side)
        top, left = ((draw * (self.side - size + 1)).long() for draw in (vertical, horizontal))
        inside = self._square(top, left, size)
        shade = (color < 0.5)[:, :, None, None].to(self.paint.dtype)
        return self._like(self.corner, torch.where(inside, shade, self.paint))

    def points(self, index: Tensor) -> Tensor:
        """The images at ``index`` with their patches on."""
        images, paint = self.images[index], self.paint[index]
        top, left = self.corner[index].unbind(1)
        height, width = images.shape[2:]
        vertical = (torch.arange(height, device=index.device) - top[:, None]) % height
        horizontal = (torch.arange(width, device=index.device) - left[:, None]) % width
        shape = (-1, images.shape[1], -1, -1)
        rolled = paint.gather(2, vertical[:, None, :, None].expand(*shape[:2], -1, width))
        rolled = rolled.gather(3, horizontal[:, None, None, :].expand(*shape[:2], height, -1))
        return torch.where(self._square(top, left, self.side[index]), rolled, images)

    def _square(self, top: Tensor, left: Tensor, side: Tensor) -> Tensor:
        height, width = self.images.shape[2:]
        return window(top, left, side, side, height, width)
