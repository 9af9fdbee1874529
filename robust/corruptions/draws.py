"""The random numbers of one corruption at one severity: each image's own, whatever batch it is in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust import randomness
from robust.corruptions.severity import NAMES, SEVERITIES

_FIRST = 1 << 16  # attacks use the streams below
_EACH = 128


@dataclass(frozen=True)
class Draws:
    """``seeds`` (N,) int64, one an image; ``first`` is the first of 128 streams that are this corruption's alone."""

    seeds: Tensor
    first: int

    @classmethod
    def of(cls, seeds: Tensor, name: str, severity: int) -> Draws:
        return cls(seeds, _FIRST + _EACH * (NAMES.index(name) * len(SEVERITIES) + severity - 1))

    def uniform(self, stream: int, *shape: int) -> Tensor:
        """Uniform in [0, 1), float32 (N, *shape)."""
        return randomness.uniform(self.seeds, self.first + stream, shape)

    def normal(self, stream: int, *shape: int) -> Tensor:
        """Standard normal, float32 (N, *shape)."""
        return randomness.normal(self.seeds, self.first + stream, shape)

    def integers(self, stream: int, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in [low, high), int64 (N, *shape)."""
        return randomness.integers(self.seeds, self.first + stream, shape, high - low) + low
