"""What several corruptions share: smoothing, moving every pixel, zooming into the middle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from robust.corruptions.draws import Draws

_LEAST = 1e-4  # of a trail's weight: below it a step is left out


def smoothed(images: Tensor, sigma: float, border: str = "replicate") -> Tensor:
    """Gaussian blur of (N, C, H, W), cut off at four deviations."""
    reach = min(int(4 * sigma + 0.5), *(side - 1 for side in images.shape[-2:]))
    if reach == 0:
        return images
    size = 2 * reach + 1
    blurred: Tensor = gaussian_blur2d(images, (size, size), (sigma, sigma), border)
    return blurred


def picked(images: Tensor, index: Tensor) -> Tensor:
    """The pixels (N, C, H, W) at flat positions ``index`` (N, H, W), int64 in [0, H * W)."""
    flat = images.flatten(2)
    return flat.gather(2, index.flatten(1)[:, None].expand(-1, flat.shape[1], -1)).view_as(images)


def moved(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Each image moved by its own whole number of pixels, (N,) int64; the border pixels are repeated."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    row = (rows - down[:, None]).clamp(0, height - 1)
    column = (columns - right[:, None]).clamp(0, width - 1)
    return picked(images, row[:, :, None] * width + column[:, None, :])


def trailed(images: Tensor, reach: float, sigma: float, degrees: Tensor) -> Tensor:
    """Each image drawn out along its own direction, ``degrees`` (N,), with the weights of half a Gaussian.

    The kernel and its whole-pixel steps are ImageMagick's motion blur, which both data sets use.
    """
    steps = torch.arange(2 * round(reach) + 1, device=images.device, dtype=torch.float64)
    weights = (-(steps**2) / (2 * sigma**2)).exp()
    weights = weights[weights >= _LEAST * weights[0]]
    weights = (weights / weights.sum()).to(images.dtype)
    angle = degrees.double() * math.pi / 180
    result = torch.zeros_like(images)
    for step, weight in enumerate(weights):
        down = -(step * angle.sin() - 0.5).ceil().long()
        right = -(step * angle.cos() - 0.5).ceil().long()
        result += weight * moved(images, down, right)
    return result


def zoomed(images: Tensor, factor: float) -> Tensor:
    """The middle of (N, C, H, W), magnified bilinearly to the whole frame."""
    height, width = images.shape[-2:]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    size = (max(height, round(rows * factor)), max(width, round(columns * factor)))
    middle = images[..., top : top + rows, left : left + columns]
    large = F.interpolate(middle, size, mode="bilinear", align_corners=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[..., top : top + height, left : left + width]


def wavy(images: Tensor, spread: float, sigma: float, draws: Draws) -> Tensor:
    """Every pixel fetched from nearby: moves of deviation ``spread`` pixels, alike within about ``sigma`` pixels."""
    count, _, height, width = images.shape
    fields = smoothed(draws.normal(0, 2, height, width), sigma, "reflect")
    middle = torch.zeros(1, 1, height, width, device=images.device)
    middle[..., height // 2, width // 2] = 1
    # By how much smoothing shrinks independent noise: the length of its kernel.
    fields = fields * (spread / smoothed(middle, sigma, "reflect").norm())
    rows = torch.arange(height, device=images.device).view(-1, 1) + fields[:, 0]
    columns = torch.arange(width, device=images.device) + fields[:, 1]
    grid = torch.stack(((2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1), -1)
    return F.grid_sample(images, grid.view(count, height, width, 2), padding_mode="reflection", align_corners=False)
