"""What a certified patch defense says of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robust.errors import InputError

Size = tuple[int, int]


@dataclass(frozen=True)
class Certificates:
    """Per image (N,): the defended prediction; whether no patch can change it; and the forward passes spent."""

    predicted: Tensor
    certified: Tensor
    passes: Tensor

    def correct(self, labels: Tensor) -> Tensor:
        """Which images are certified and right: what certified accuracy counts."""
        return self.certified & (self.predicted == labels)


def patch_size(patch: int | Size, shape: Size) -> Size:
    """Height and width of a patch, a number meaning a square. Raises InputError where it does not fit the image."""
    height, width = (patch, patch) if isinstance(patch, int) else patch
    if not (1 <= height <= shape[0] and 1 <= width <= shape[1]):
        raise InputError(f"patch {height}x{width}: give sides from 1 to the image's {shape[0]}x{shape[1]}, in pixels")
    return height, width
