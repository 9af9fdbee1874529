"""One call for all corruptions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust import randomness
from robust.corruptions import blur, digital, noise, weather
from robust.corruptions.draws import Draws
from robust.corruptions.severity import NAMES, SEVERITIES, Row, check_size, constants
from robust.errors import InputError, unknown

_FUNCTIONS: dict[str, Callable[[Tensor, Row, Draws], Tensor]] = {
    "gaussian_noise": noise.gaussian_noise, "shot_noise": noise.shot_noise, "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur, "glass_blur": blur.glass_blur, "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow, "frost": weather.frost, "fog": weather.fog, "brightness": weather.brightness,
    "contrast": digital.contrast, "elastic_transform": digital.elastic_transform, "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}  # fmt: skip


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int, seeds: int | Tensor = 0) -> Tensor:
    """The images corrupted.

    Args:
        images: (N, C, H, W), floating point in [0, 1], C at least 1, H and W at least 16.
        name: one of :data:`robust.corruptions.NAMES`.
        severity: 1 (mild) to 5.
        seeds: int64 (N,), one an image, on the device of the images; or one number, from which and from its pixels each
            image gets its own. An image, its seed, a corruption and a severity give the same result in any batch.

    Returns:
        (N, C, H, W) in [0, 1], of the same type and on the same device. Not rounded to 8-bit color, but for JPEG.

    Raises:
        InputError: for an unknown name or severity, and images of another shape or type.
    """
    if name not in _FUNCTIONS:
        raise unknown("corruption", name, NAMES)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity}: give 1 to 5")
    if images.dim() != 4 or not images.is_floating_point() or images.shape[1] < 1:
        raise InputError(
            f"images of shape {tuple(images.shape)}, {images.dtype}: give (N, C, H, W), floating point in [0, 1]"
        )
    check_size(images.shape[2], images.shape[3])
    if len(images) == 0:
        return images.clone()
    own = randomness.image_seeds(images, seeds) if isinstance(seeds, int) else seeds
    if own.shape != (len(images),):
        raise InputError(f"seeds of shape {tuple(own.shape)}: give one for each of the {len(images)} images")
    settings = constants(name, severity, images.shape[2], images.shape[3])
    found = _FUNCTIONS[name](images.float(), settings, Draws.of(own, name, severity))
    return found.clamp(0, 1).to(images.dtype)
