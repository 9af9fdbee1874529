"""Weather and light: snow, frost, fog, brightness."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.corruptions.draws import Draws
from robust.corruptions.severity import Row
from robust.corruptions.textures import ice, plasma
from robust.corruptions.warping import trailed, zoomed

_LUMA = (0.299, 0.587, 0.114)


def luminance(images: Tensor) -> Tensor:
    """(N, 1, H, W): the luma of three channels (ITU-R BT.601), the mean of any other number."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def snow(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Streaks of flakes, from both sides, over an image that is itself whitened."""
    mean, deviation, size, threshold, reach, sigma, kept = constants
    flakes = zoomed(mean + deviation * draws.normal(0, 1, *images.shape[-2:]), size)
    flakes = torch.where(flakes < threshold, torch.zeros_like(flakes), flakes).clamp(0, 1)
    flakes = trailed(flakes, reach, sigma, -135 + 90 * draws.uniform(1))
    white = torch.maximum(images, luminance(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + flakes + flakes.flip(-1, -2)


def frost(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Ice on the lens. Both data sets add a piece of a photograph of frost; here the ice is drawn."""
    own, frosted = constants
    layer = ice(draws, *images.shape[-2:])
    if images.shape[1] != 3:
        layer = luminance(layer)
    return own * images + frosted * layer


def fog(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """A cloud of diamond-square noise, with the image's own highest value as its white."""
    thickness, smoothness = constants
    height, width = images.shape[-2:]
    cloud = plasma(draws, max(height, width), smoothness)[:, None, :height, :width]
    white = images.flatten(1).amax(1).view(-1, 1, 1, 1)
    return (images + thickness * cloud) * white / (white + thickness)


def brightness(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """The value of hue, saturation, value raised, up to 1; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    raised = (value + constants[0]).clamp_max(1)
    # Black has no hue: it turns gray.
    return torch.where(value > 0, images * (raised / value.clamp_min(1e-12)), raised)
