"""Blur: out of focus, frosted glass, a moving camera, a camera that comes nearer."""

from __future__ import annotations

import torch
from kornia.filters import filter2d
from torch import Tensor

from robust.corruptions.draws import Draws
from robust.corruptions.severity import Row
from robust.corruptions.warping import picked, smoothed, trailed, zoomed


def defocus_blur(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """The mean over a disk with a softened edge."""
    kernel = disk(*constants).to(images)
    side = kernel.shape[-1]
    fits = min(side, 2 * min(images.shape[-2:]) - 1)
    cut = (side - fits) // 2
    blurred: Tensor = filter2d(images, kernel[:, cut : side - cut, cut : side - cut], "reflect", normalized=True)
    return blurred


def disk(radius: float, sigma: float) -> Tensor:
    """The kernel of a lens out of focus, (1, K, K), with sum 1."""
    soft = 1 if radius <= 8 else 2
    reach = int(radius) + soft
    at = torch.arange(-reach, reach + 1, dtype=torch.float32)
    hard = (at[:, None] ** 2 + at[None] ** 2 <= radius**2).float()
    near = torch.arange(-soft, soft + 1, dtype=torch.float32)
    line = (-(near**2) / (2 * sigma**2)).exp()
    line = line / line.sum()
    blurred = torch.nn.functional.conv2d(hard[None, None], (line[:, None] * line)[None, None], padding=soft)[0]
    return blurred / blurred.sum()


def glass_blur(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Blurred, every pixel replaced by one nearby, blurred again."""
    sigma, farthest, rounds = constants[0], max(1, round(constants[1])), max(1, round(constants[2]))
    result = smoothed(images, sigma)
    for number in range(rounds):
        result = picked(result, scattered(images.shape, farthest, draws, 2 * number))
    return smoothed(result, sigma)


def scattered(shape: torch.Size, farthest: int, draws: Draws, stream: int) -> Tensor:
    """Where each pixel's value comes from, flat positions (N, H, W).

    The published procedure goes through the pixels from the bottom right to the top left and gives each the value that
    one nearby has at that moment; that one may have been replaced before. So the origins form chains, which are
    followed here for all pixels at once, each round twice as far.
    """
    count, _, height, width = shape
    device = draws.seeds.device
    rows = torch.arange(height, device=device).view(-1, 1)
    columns = torch.arange(width, device=device)
    here = (rows * width + columns).expand(count, -1, -1)
    down = draws.integers(stream, -farthest, farthest, height, width)
    right = draws.integers(stream + 1, -farthest, farthest, height, width)
    inside = (rows > farthest) & (rows <= height - farthest) & (columns > farthest) & (columns <= width - farthest)
    source = torch.where(inside, here + down * width + right, here)
    # A pixel from which something is taken before its own turn gives its old value: there the chain ends.
    replaced = (source > here) & inside.flatten()[source.flatten(1)].view_as(source)
    following = torch.where(replaced, source, here).flatten(1)
    for _ in range((height * width).bit_length()):
        further = following.gather(1, following)
        if torch.equal(further, following):
            break
        following = further
    return source.flatten(1).gather(1, following).view_as(source)


def motion_blur(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Drawn out along a direction within 45 degrees of the horizontal."""
    return trailed(images, constants[0], constants[1], 90 * draws.uniform(0) - 45)


def zoom_blur(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """The mean of the image and of ever larger zooms into its middle."""
    largest, layers = constants[0], max(2, round(constants[1]))
    total = 2 * images
    for layer in range(1, layers):
        total = total + zoomed(images, 1 + (largest - 1) * layer / (layers - 1))
    return total / (layers + 1)
