"""Sparse-RS: random search over which values to change and to which end of the box, from the model's scores alone."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Goal, Model
from robust.attacks.queries import Book, Queried, ScoreAttack
from robust.errors import InputError

# Queries, of 10,000, after which fewer of the values are exchanged, and what their share is then divided by.
_CHANGES = (50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DIVISORS = (2, 4, 5, 6, 8, 10, 12, 15, 20)


@dataclass(frozen=True)
class SparseRS(ScoreAttack):
    """Random search in l0: eps values stand at an end of the box; a step exchanges some, and is kept where it helps.

    Settings:
        queries: forward passes that any one image may cost: the clean image, the starting point, and one for each step.
        exchanged: share of the changed values that steps exchange, in (0, 1]; a fixed schedule divides it by 2 at first
            and by 20 at last. At least one value is exchanged.
        loss: ``margin``, ``ce`` or ``dlr``. By default the margin, and the cross-entropy of the target where targets
            are given.

    The schedule is the published one for 10,000 queries, rescaled to this budget. So a larger budget is another run and
    may lose a single image that a smaller one fooled.

    Source: Croce et al., AAAI 2022, algorithm 1 and its l0 form (section 4). There whole pixels change; here single
    values do, as everywhere in this package. A value at an end of the box already is only ever moved to the other.

    Raises InputError for settings out of range.
    """

    norm: str = "l0"
    _: KW_ONLY
    exchanged: float = 0.3

    name: ClassVar[str] = "sparse-rs"
    norms: ClassVar[tuple[str, ...]] = ("l0",)
    source: ClassVar[str] = "Croce et al., AAAI 2022"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.exchanged <= 1:
            raise InputError(f"sparse-rs: exchanged is a share of the values in (0, 1], not {self.exchanged:g}")

    def query(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Queried:
        book = Book(model, images, goal, eps, self.geometry, self.queries)
        count = eps.clamp_max(images[0].numel()).floor().long()
        if bool((count > 0).any()):
            self._search(book, goal, _Choice(images, count, seeds))
        return book.result()

    def _search(self, book: Book, goal: Goal, best: _Choice) -> None:
        highest = torch.full_like(book.distance, -torch.inf)
        step = 0
        while len(live := book.live[best.count[book.live] > 0]):
            trial = best.start(live) if step == 0 else best.exchange(live, step, self._share(step))
            points = best.points(*trial, live)
            values = self.judge(book.ask(points[:, None], live)[:, 0], goal[live]).to(highest)
            better = values > highest[live]
            kept = live[better]
            highest[kept] = values[better]
            best.positions[kept], best.ends[kept] = trial[0][better], trial[1][better]
            book.stay(points[better], kept)
            step += 1

    def _share(self, step: int) -> float:
        return self.exchanged / _DIVISORS[bisect_left(_CHANGES, step * 10_000 / self.queries)]


class _Choice:
    """``positions`` (N, K) of the values changed, and the ``ends`` (N, K) of the box where they stand.

    An image with fewer than K values to change has one more place D for the others.
    """

    def __init__(self, images: Tensor, count: Tensor, seeds: Tensor) -> None:
        self.images, self.count, self.seeds = images, count, seeds
        self.values, self.slots = images[0].numel(), int(count.max())
        self.positions = torch.full((len(images), self.slots), self.values, device=images.device)
        self.ends = torch.zeros_like(self.positions, dtype=images.dtype)
        self._flat = torch.cat([images.flatten(1), images.new_zeros(len(images), 1)], 1)
        self._slot = torch.arange(self.slots, device=images.device)

    def start(self, owners: Tensor) -> tuple[Tensor, Tensor]:
        order = randomness.uniform(self.seeds[owners], 0, (self.values,), torch.float64)
        positions = order.argsort(1)[:, : self.slots]
        positions = torch.where(self._slot < self.count[owners, None], positions, self.values)
        return positions, self._ends(owners, positions, randomness.uniform(self.seeds[owners], 1, (self.slots,)))

    def exchange(self, owners: Tensor, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Other places for this share of the values, at least one; a place that is taken already is not taken again."""
        # By slot first: what an image draws must not depend on how many slots others have.
        which, where, end = randomness.uniform(self.seeds[owners], 1 + step, (self.slots, 3), torch.float64).unbind(2)
        used, old, count = self._slot < self.count[owners, None], self.positions[owners], self.count[owners, None]
        rank = which.masked_fill(~used, 2).argsort(1).argsort(1)
        new = (where * self.values).long()
        going = used & (rank < (count * share).floor().clamp_min(1))
        taken = torch.zeros(len(owners), self.values + 1, dtype=torch.bool, device=new.device).scatter_(1, old, True)
        going &= ~taken.gather(1, new)
        last = torch.full_like(taken, -1, dtype=torch.long).scatter_reduce_(
            1, new, torch.where(going, self._slot, -1), "amax"
        )
        going &= last.gather(1, new) == self._slot
        return torch.where(going, new, old), torch.where(going, self._ends(owners, new, end), self.ends[owners])

    def points(self, positions: Tensor, ends: Tensor, owners: Tensor) -> Tensor:
        changed = self._flat[owners].scatter(1, positions, ends)
        return changed[:, : self.values].view_as(self.images[owners])

    def _ends(self, owners: Tensor, positions: Tensor, random: Tensor) -> Tensor:
        """A random end of the box, and the other one for a value that stands at one."""
        own = self._flat[owners].gather(1, positions)
        return torch.where(own <= 0, 1.0, torch.where(own >= 1, 0.0, random.round())).to(own.dtype)
