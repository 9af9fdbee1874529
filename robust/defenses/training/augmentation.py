"""Random changes of training images. Any function of a batch may be used; these are the common ones, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.errors import InputError, unknown
from robust.randomness import own_random

Augmentation = Callable[[Tensor], Tensor]
NAMES = ("shift", "flip", "light", "turn", "erase", "none")


@dataclass(frozen=True)
class Compose:
    """Several augmentations, one after the other: images (N, C, H, W) in [0, 1] to the same."""

    parts: tuple[Augmentation, ...]

    def __call__(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images


@dataclass(frozen=True)
class Shift:
    """Each image moved by up to ``pixels`` each way, whole pixels, its border repeated."""

    pixels: int

    def __call__(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        padded = F.pad(images, [self.pixels] * 4, mode="replicate")
        down, across = torch.randint(0, 2 * self.pixels + 1, (2, n, 1), device=images.device)
        rows = down + torch.arange(height, device=images.device)
        columns = across + torch.arange(width, device=images.device)
        at = torch.arange(n, device=images.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[at, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Flip:
    """Half of the images mirrored, left to right. Not for digits, text and signs, where that is another class."""

    def __call__(self, images: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, images.flip(3), images)


@dataclass(frozen=True)
class Light:
    """Contrast and brightness of each image changed: (x - mean) e^a + mean + b with |a|, |b| up to ``amount``."""

    amount: float

    def __call__(self, images: Tensor) -> Tensor:
        a, b = (torch.rand(2, len(images), 1, 1, 1, device=images.device) * 2 - 1) * self.amount
        mean = images.mean((1, 2, 3), keepdim=True)
        lit: Tensor = (images - mean) * a.exp() + mean + b
        return lit.clamp(0, 1)


@dataclass(frozen=True)
class Turn:
    """Each image turned by up to ``degrees`` either way, its border repeated."""

    degrees: float

    def __call__(self, images: Tensor) -> Tensor:
        angle = torch.deg2rad((torch.rand(len(images), device=images.device) * 2 - 1) * self.degrees)
        zero = torch.zeros_like(angle)
        rows = [[angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero]]
        theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        turned: Tensor = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return turned.clamp(0, 1)


@dataclass(frozen=True)
class Erase:
    """A square of ``side`` pixels of each image made gray (DeVries and Taylor 2017), wholly inside the image."""

    side: int

    def __call__(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        place = torch.rand(2, n, 1, device=images.device)
        spans = []
        for start, length in zip(place, (height, width), strict=True):
            first = (start * (length - self.side + 1)).floor()
            at = torch.arange(length, device=images.device)
            spans.append((at >= first) & (at < first + self.side))
        hidden = spans[0][:, None, :, None] & spans[1][:, None, None, :]
        return images.masked_fill(hidden, 0.5)


def augmentation(given: str | Augmentation | Sequence[str | Augmentation] | None) -> Augmentation:
    """From names such as ``shift:2`` and ``flip``, any functions of a batch, or a sequence of both. Raises InputError.

    For one seed to give one model, an augmentation of your own must draw from torch's global generator, as those of
    torchvision.transforms.v2 do.
    """
    if given is None:
        return Compose(())
    if isinstance(given, str):
        return _named(given)
    if callable(given):
        return given
    return Compose(tuple(augmentation(part) for part in given))


def check_augmentation(augment: Augmentation, images: Tensor) -> None:
    """Raises InputError where ``augment`` does not give images of the same shape and range."""
    with own_random(images.device):
        changed = augment(images)
    if not isinstance(changed, Tensor) or changed.shape != images.shape or not changed.is_floating_point():
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise InputError(f"augment: gives {found} for images of shape {tuple(images.shape)}; it must keep the shape")
    if not bool(((changed >= -1e-5) & (changed <= 1 + 1e-5)).all()):
        raise InputError("augment: gives values outside [0, 1]; clamp them, and leave normalization to the model")


def _named(text: str) -> Augmentation:
    name, _, value = text.strip().partition(":")
    if name not in NAMES:
        raise unknown("augmentation", name, NAMES)
    try:
        if name == "none":
            return Compose(())
        if name == "flip":
            return Flip()
        if name in ("shift", "erase"):
            size = int(value or {"shift": 2, "erase": 8}[name])
            if size < 1:
                raise ValueError
            return Shift(size) if name == "shift" else Erase(size)
        amount = float(value or {"light": 0.3, "turn": 10}[name])
        if not 0 < amount < 181:
            raise ValueError
        return Light(amount) if name == "light" else Turn(amount)
    except ValueError:
        raise InputError(f"augmentation {text!r}: write {name} or {name}:NUMBER with a number above 0") from None
