"""Masks so laid that each patch, wherever it is, lies wholly under one of them.

Source: Xiang, Mahloujifar and Mittal, "PatchCleanser", USENIX Security 2022 (arXiv 2108.09135), section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robust.defenses.patch.certificates import Size
from robust.patch_norm import window

Rectangle = tuple[int, int, int, int]  # top, left, height, width


def cover(length: int, patch: int, count: int) -> tuple[list[int], int]:
    """Along one axis: where masks start, and how long they are, so that each patch lies wholly in one of at most
    ``count``."""
    step = -(-(length - patch + 1) // count)
    size = patch + step - 1
    starts = [*range(0, length - size, step), length - size]
    return starts, size


def masks(shape: Size, patch: Size, count: int) -> list[Rectangle]:
    """At most ``count`` x ``count`` rectangles that between them cover every placement of the patch."""
    (tops, height), (lefts, width) = (cover(shape[axis], patch[axis], count) for axis in (0, 1))
    return [(top, left, height, width) for top in tops for left in lefts]


def placed(place: Tensor, size: Size, shape: Size) -> Tensor:
    """The pixels of one rectangle in each image, (N, 1, H, W); ``place`` (N,) counts along rows of placements."""
    width = shape[1] - size[1] + 1
    return window(place // width, place % width, *size, *shape)


def kept(shape: Size, rectangles: list[Rectangle]) -> Tensor:
    """What each mask leaves of an image: (masks, 1, H, W), False under the mask."""
    found = torch.ones(len(rectangles), 1, *shape, dtype=torch.bool)
    for row, (top, left, height, width) in enumerate(rectangles):
        found[row, :, top : top + height, left : left + width] = False
    return found
