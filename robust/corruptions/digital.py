"""Digital faults: lost contrast, a rubbery lens, large pixels, JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from robust.corruptions.draws import Draws
from robust.corruptions.severity import Row
from robust.corruptions.warping import wavy


def contrast(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Every value brought nearer to the mean of its channel."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + constants[0] * (images - mean)


def elastic_transform(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Every pixel fetched from nearby, neighbors from almost the same direction."""
    return wavy(images, constants[0], constants[1], draws)


def pixelate(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Fewer, larger pixels, each the mean of those whose center it holds (as Pillow's BOX and NEAREST do)."""
    return _coarse(_coarse(images, constants[0], 2), constants[0], 3)


def _coarse(images: Tensor, block: float, dim: int) -> Tensor:
    """Along ``dim``, large pixels of about ``block`` each."""
    side = images.shape[dim]
    count = max(1, int(side / block + 1e-9))
    middles = torch.arange(1, 2 * side, 2, device=images.device) * count  # in units of 1 / (2 * side)
    member = F.one_hot((middles - 1) // (2 * side), count).to(images.dtype)
    mean = (member / member.sum(0))[:, middles // (2 * side)]
    result: Tensor = torch.tensordot(images, mean, ([dim], [0])).movedim(-1, dim)
    return result


def jpeg_compression(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Saved as JPEG (libjpeg by Pillow, 4:2:0) and read again; other than three channels, each one by itself."""
    quality = round(constants[0])
    pixels = (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    if images.shape[1] == 3:
        saved = np.stack([_saved(image.permute(1, 2, 0).numpy(), quality) for image in pixels]).transpose(0, 3, 1, 2)
    else:
        planes = pixels.flatten(0, 1)
        saved = np.stack([_saved(plane.numpy(), quality) for plane in planes]).reshape(pixels.shape)
    return torch.from_numpy(np.ascontiguousarray(saved)).to(images) / 255


def _saved(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], quality: int) -> np.ndarray[
    tuple[int, ...], np.dtype[np.uint8]
]:  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
