"""What a certified patch defense says of images, and how patches are written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from robust.errors import InputError
from robust.patch_norm import window_size

Size = tuple[int, int]
Patch = int | Size | str


@dataclass(frozen=True)
class Certificates:
    """Per image (N,): the defended prediction; whether no patch can change it; and the forward passes spent."""

    predicted: Tensor
    certified: Tensor
    passes: Tensor

    def correct(self, labels: Tensor) -> Tensor:
        """Which images are certified and right: what certified accuracy counts."""
        return self.certified & (self.predicted == labels)


@runtime_checkable
class CertifiesPatches(Protocol):
    """A classifier that proves, image by image, that no patch as large as ``patch`` changes its prediction."""

    patch: Patch

    def certify(self, images: Tensor) -> Certificates:
        """Certificates of images (N, C, H, W) in [0, 1]."""


def rounding(device: torch.device) -> float:
    """By what share of the largest logit a model's logits may differ for one image in two batches."""
    return 1e-5 if device.type == "cpu" else 5e-3  # other devices round convolutions to TF32


def doubtful(logits: Tensor) -> Tensor:
    """Where the two best logits (..., K) are so close that rounding may swap them: (...) bool."""
    if logits.shape[-1] < 2:
        return torch.zeros(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    best, second = logits.topk(2, dim=-1).values.unbind(-1)
    return best - second <= rounding(logits.device) * logits.abs().amax(-1)


def patch_size(patch: Patch, shape: Size) -> Size:
    """Height and width in pixels of a patch on images of ``shape`` (height, width).

    ``patch``: a side, height and width, or a text: ``5x7`` in pixels, or ``5%`` for the largest square of at most so
    large a share of the image's area. Raises InputError where it cannot be read or does not fit the image.
    """
    height, width = _sides(patch, shape)
    if not (1 <= height <= shape[0] and 1 <= width <= shape[1]):
        raise InputError(f"patch {height}x{width}: give sides from 1 to the image's {shape[0]}x{shape[1]}, in pixels")
    return height, width


def _sides(patch: Patch, shape: Size) -> Size:
    if isinstance(patch, int):
        return patch, patch
    if not isinstance(patch, str):
        return patch
    text = patch.strip().lower()
    pixels = re.fullmatch(r"(\d+)x(\d+)", text)
    if pixels is not None:
        return int(pixels[1]), int(pixels[2])
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if share is None or not 0 < float(share[1]) <= 100:
        raise InputError(f"patch {patch!r}: write 5% of the image's area, or 5x5 pixels")
    return window(float(share[1]) / 100, shape)


def window(share: float, shape: Size) -> Size:
    """Height and width in pixels of the largest square of at most this share of an image of ``shape``.

    What the patch threat allows: cut off where the square is longer than the image. Raises InputError below one pixel.
    """
    rows, columns = window_size(share, torch.empty(1, 1, *shape))
    if not int(rows):
        raise InputError(f"patch of {share:.3g} of the area: less than one pixel of {shape[0]}x{shape[1]}; give more")
    return int(rows), int(columns)
