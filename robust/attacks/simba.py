"""SimBA: one direction after another, kept where the loss rises; from the model's scores alone."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Goal, Loss, Model
from robust.attacks.queries import Book, Queried, ScoreAttack
from robust.errors import InputError, unknown
from robust.threats import per_image

BASES = ("dct", "pixel")
# How far the order of the waves is from that of their frequencies: the width of a uniform number that is added to them.
_SHUFFLE = 0.15


@dataclass(frozen=True)
class SimBA(ScoreAttack):
    """Greedy steps along the directions of a basis, in random order: one way, else the other way, else the next.

    Settings:
        basis: ``dct``, waves over the whole image, roughly the slow ones first; ``pixel``, single values. By default
            the waves in linf and l2. l1 and l0 have only pixels.
        step: length of a step as a share of eps, in the attack's norm. By default 0.15 in l2; in linf 0.3 for waves
            and 2 (from face to face) for pixels; in l1 and l0 all of a value's range, as far as eps goes.
        loss: ``margin``, ``ce`` or ``dlr``. By default the margin, and the cross-entropy of the target where targets
            are given.

    A step that leaves ball and box is projected back, so the search goes on at the ball's surface. When all directions
    have been tried they start again. Weak in linf with pixels, where a query can move one value only.

    Source: Guo et al., ICML 2019, Algorithm 1. There steps are never projected (the ball follows from step and budget)
    and only the slowest eighth of the waves is used; here all are, in order, as a small image soon runs out of them.

    Raises InputError for images that are not (N, C, H, W), for settings out of range, and for waves in l1 or l0.
    """

    _: KW_ONLY
    basis: str | None = None
    step: float | None = None

    name: ClassVar[str] = "simba"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    source: ClassVar[str] = "Guo et al., ICML 2019"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis is not None and self.basis not in BASES:
            raise unknown("basis", self.basis, BASES)
        if self.step is not None and not self.step > 0:
            raise InputError(f"simba: step must be above 0, not {self.step:g}")
        if self.basis == "dct" and self.norm in ("l1", "l0"):
            raise InputError(f"simba: a wave changes every value, so basis='dct' has no {self.norm} form; use 'pixel'")

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        if images.dim() != 4:
            raise InputError(f"simba needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        book = Book(model, images, goal, eps, self.geometry, self.queries)
        waves = (self.basis or ("dct" if self.norm in ("linf", "l2") else "pixel")) == "dct"
        walk = _Walk(book, (_Waves if waves else _Pixels)(book, seeds), self._length(eps, waves), self.judge)
        while len(live := book.live):
            walk.ask(live)
        return book.result()

    def _length(self, eps: Tensor, waves: bool) -> Tensor:
        """The length (N,) of a step."""
        if self.norm in ("l1", "l0") and self.step is None:
            return eps.clamp_max(1)
        usual = 0.15 if self.norm != "linf" else 0.3 if waves else 2.0
        return eps * (self.step or usual)


class _Walk:
    """The best point of each image, and what it tries next: ``position`` in its own order, and which way."""

    def __init__(self, book: Book, directions: _Pixels, length: Tensor, judge: Loss) -> None:
        self.book, self.directions, self.length, self._judge = book, directions, length, judge
        self.points = book.images.clone()
        self.best = self._judge(book.clean, book.goal)
        self.position = torch.zeros_like(book.spent)
        self.backwards = torch.zeros_like(book.spent, dtype=torch.bool)

    def ask(self, live: Tensor) -> None:
        """One query for each of the images at ``live``."""
        book, backwards = self.book, self.backwards[live]
        length = torch.where(backwards, -self.length[live], self.length[live])
        moved = self.points[live] + self.directions.at(live, self.position[live]) * per_image(length, book.images)
        trial = book.geometry.project(moved, book.images[live], book.eps[live])
        values = self._judge(book.ask(trial[:, None], live)[:, 0], book.goal[live])
        better = values > self.best[live]
        self.points[live[better]], self.best[live[better]] = trial[better], values[better]
        book.stay(self.points[live], live)
        self.position[live] += (better | backwards).long()
        self.backwards[live] = ~better & ~backwards


class _Pixels:
    """The unit vectors of single values, for every image in an order of its own."""

    def __init__(self, book: Book, seeds: Tensor) -> None:
        self.images = book.images
        self.order = self.keys(randomness.uniform(seeds, 0, (book.images[0].numel(),))).argsort(dim=1, stable=True)

    def keys(self, noise: Tensor) -> Tensor:
        """Numbers (N, D) by whose size the directions are ordered, from ``noise`` (N, D), uniform in [0, 1)."""
        return noise

    def at(self, owners: Tensor, position: Tensor) -> Tensor:
        """The directions (M, C, H, W) of the images at ``owners`` (M,), of length 1 in the attack's norm."""
        return self.vectors(self.order[owners, position % self.order.shape[1]])

    def vectors(self, numbers: Tensor) -> Tensor:
        """Those with these ``numbers`` (M,), from 0 to D - 1 in the order of the image's values."""
        flat = self.images.new_zeros(len(numbers), self.order.shape[1])
        return flat.scatter_(1, numbers[:, None], 1.0).view(-1, *self.images.shape[1:])


class _Waves(_Pixels):
    """The two-dimensional cosine waves of each channel."""

    def __init__(self, book: Book, seeds: Tensor) -> None:
        super().__init__(book, seeds)
        self._geometry = book.geometry
        self._vertical, self._horizontal = (_cosines(side).to(self.images) for side in self.images.shape[2:])

    def keys(self, noise: Tensor) -> Tensor:
        channels, height, width = self.images.shape[1:]
        rows, columns = (torch.arange(side, device=noise.device) / side for side in (height, width))
        frequency = (rows[:, None] + columns) / 2
        return frequency.expand(channels, -1, -1).reshape(1, -1) + _SHUFFLE * noise

    def vectors(self, numbers: Tensor) -> Tensor:
        height, width = self.images.shape[2:]
        channel, row, column = numbers // (height * width), numbers // width % height, numbers % width
        waves = self.images.new_zeros(len(numbers), *self.images.shape[1:])
        places = torch.arange(len(numbers), device=numbers.device)
        waves[places, channel] = self._vertical[row][:, :, None] * self._horizontal[column][:, None]
        return waves / per_image(self._geometry.length(waves), waves)


def _cosines(side: int) -> Tensor:
    """The cosine basis (side, side): row k is cos(pi k (i + 1/2) / side)."""
    places = torch.arange(side, dtype=torch.float64)
    return torch.cos(math.pi / side * places[:, None] * (places + 0.5))
