"""RayS: the shortest way out along a diagonal of the box, from the class alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Knowledge
from robust.attacks.queries import Book, DecisionAttack

# The share of a radius by which a turned block must do better, at the level of the whole image; each finer level asks
# for less. Measured at 100 to 1000 queries: the published fixed tolerance spends most of a small budget on digits.
_FIRST_GAIN, _FINER, _LEAST_GAIN = 0.1, 0.7, 0.002


@dataclass(frozen=True)
class RayS(DecisionAttack):
    """Minimum norm: of all rays from the image into a corner of the box, one along which another class is near.

    A ray is a sign per color value. Blocks of values, first the whole image, then halves, quarters and so on, have
    their signs turned one after another; a turn is kept where the ray then meets another class sooner, and by how much
    is found by halving. An image costs one query a round. There are no random numbers: ``seed`` has no effect.

    Source: Chen and Gu, KDD 2020, Algorithms 1 to 3. The paper's code finds every radius to 0.001 in l2; here the
    tolerance is relative and shrinks with the blocks. Untargeted, as published.
    """

    name: ClassVar[str] = "rays"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    knowledge: ClassVar[Knowledge] = "decision"
    source: ClassVar[str] = "Chen and Gu, KDD 2020"
    targetable: ClassVar[bool] = False

    def search(self, book: Book, seeds: Tensor) -> None:
        rays = _Rays(book)
        while len(live := book.live):
            rays.ask(live)


class _Rays:
    """The best ray of each image, and how far the comparison with its next variant has got.

    ``sign`` (N, D) and ``radius`` (N,) (inf: none fools) are the best; ``level`` and ``block`` name the turn under
    trial. While ``halving``, that one fools at ``high`` and, where that is above 0, does not at ``low``.
    """

    def __init__(self, book: Book) -> None:
        self.book = book
        flat = book.images.flatten(1)
        self.places = torch.arange(flat.shape[1], device=flat.device)
        self.sign = torch.ones_like(flat)
        self.radius = torch.full_like(flat[:, 0], torch.inf)
        self.low, self.high, self.step = (torch.zeros_like(self.radius) for _ in range(3))
        self.halving = torch.zeros_like(self.radius, dtype=torch.bool)
        self.level, self.block = (torch.zeros_like(self.halving, dtype=torch.long) for _ in range(2))

    def ask(self, live: Tensor) -> None:
        """One query for each of the images at ``live``: does the turned ray do better, or by how much?"""
        size = torch.ceil(len(self.places) / 2.0 ** self.level[live].clamp_max(60)).long()
        gain = (_FIRST_GAIN * _FINER ** self.level[live].to(self.radius)).clamp_min(_LEAST_GAIN)
        start = self.block[live] * size
        turned = (self.places >= start[:, None]) & (self.places < (start + size)[:, None])
        sign = torch.where(turned, -self.sign[live], self.sign[live])
        low, high, step, halving, radius = (
            state[live] for state in (self.low, self.high, self.step, self.halving, self.radius)
        )
        first = torch.where(radius.isinf(), 1.0, radius * (1 - gain / 2))
        # Gains are small as a rule: from the top in growing steps, until one fails.
        inner = torch.where(low > 0, (low + high) / 2, high - torch.minimum(step, high / 2))
        length = torch.where(halving, inner, first)
        images = self.book.images[live]
        points = (images + (sign * length[:, None]).view_as(images)).clamp_(0, 1)
        fooled = self.book.fooled(points[:, None], live)[:, 0]

        begins = fooled & ~halving
        low = torch.where(begins, 0.0, torch.where(fooled | ~halving, low, length))
        high = torch.where(fooled, length, high)
        step = torch.where(begins, torch.where(radius.isinf(), 0.5, 2 * gain * high), 2 * step)
        halving = halving | begins
        ends = halving & (high - low <= gain * high)
        self.low[live], self.high[live], self.step[live], self.halving[live] = low, high, step, halving & ~ends
        self.sign[live[ends]], self.radius[live[ends]] = sign[ends], high[ends]

        over = ends | ~halving
        block = self.block[live] + over
        # The last block of every level is an empty one: the best ray itself, to this level's tolerance.
        finer = (block - 1) * size >= len(self.places)
        self.block[live], self.level[live] = torch.where(finer, 0, block), self.level[live] + finer
