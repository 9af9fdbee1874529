"""How strong each corruption is: five severities, for images of every size.

The constants for images up to 32 pixels are those of CIFAR-10-C, those for 224 pixels ImageNet-C's (Hendrycks and
Dietterich, ICLR 2019). Between the two sizes each constant is interpolated geometrically; above 224 pixels, what is
measured in pixels grows with the image. Where they differ from the published ones, a comment says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from robust.errors import InputError

FAMILIES: dict[str, tuple[str, ...]] = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
NAMES: tuple[str, ...] = tuple(name for names in FAMILIES.values() for name in names)
SEVERITIES = (1, 2, 3, 4, 5)

SMALLEST, SMALL, LARGE = 16, 32, 224  # pixels of the shorter side
Row = tuple[float, ...]


@dataclass(frozen=True)
class Scale:
    """The constants of one corruption, one row a severity; ``pixels`` marks the columns that are lengths."""

    small: tuple[Row, Row, Row, Row, Row]
    large: tuple[Row, Row, Row, Row, Row]
    pixels: tuple[bool, ...]


_SCALES = {
    # standard deviation
    "gaussian_noise": Scale(
        ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
        ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
        (False,),
    ),
    # photons at full brightness
    "shot_noise": Scale(
        ((500,), (250,), (100,), (75,), (50,)),
        ((60,), (25,), (12,), (5,), (3,)),
        (False,),
    ),
    # share of values set to black or white
    "impulse_noise": Scale(
        ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
        ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
        (False,),
    ),
    # radius of the disk, deviation that smooths its edge
    "defocus_blur": Scale(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        (True, False),
    ),
    # deviation of the blur before and after, farthest move, rounds
    "glass_blur": Scale(
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        (True, True, False),
    ),
    # reach, deviation along the way
    "motion_blur": Scale(
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        (True, True),
    ),
    # largest zoom, layers from 1 to it
    "zoom_blur": Scale(
        ((1.06, 7), (1.11, 12), (1.15, 16), (1.20, 21), (1.25, 26)),
        ((1.11, 12), (1.15, 16), (1.20, 11), (1.24, 13), (1.30, 11)),
        (False, False),
    ),
    # flakes: mean, deviation, size, threshold; their trail: reach, deviation; what is kept of the image's own colors
    "snow": Scale(
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        (False, False, True, False, True, True, False),
    ),
    # share of the image, share of the frost
    "frost": Scale(
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        (False, False),
    ),
    # thickness, how much smoother each finer level of the fog is
    "fog": Scale(
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        (False, False),
    ),
    # added to the value of hue, saturation, value
    "brightness": Scale(
        ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
        ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
        (False,),
    ),
    # what is left of the distance to the mean
    "contrast": Scale(
        ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
        ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
        (False,),
    ),
    # deviation of the move, how far neighbors move alike. Both data sets also tilt the image as a whole, at the low
    # severities the most, so that these change more than the high ones; here it is the local move that grows.
    "elastic_transform": Scale(
        ((0.35, 1.3), (0.45, 1.3), (0.6, 1.3), (0.75, 1.3), (0.95, 1.3)),
        ((1.02, 2.24), (1.32, 2.24), (1.73, 2.24), (2.03, 2.24), (2.44, 2.24)),
        (True, True),
    ),
    # pixels of the image in one of the new ones, along each side
    "pixelate": Scale(
        ((1 / 0.95,), (1 / 0.9,), (1 / 0.85,), (1 / 0.75,), (1 / 0.65,)),
        ((1 / 0.6,), (1 / 0.5,), (1 / 0.4,), (1 / 0.3,), (1 / 0.25,)),
        (True,),
    ),
    # quality
    "jpeg_compression": Scale(
        ((80,), (65,), (58,), (50,), (40,)),
        ((25,), (18,), (15,), (10,), (7,)),
        (False,),
    ),
}


def constants(name: str, severity: int, height: int, width: int) -> Row:
    """The constants of a corruption for images of this size; the shorter side counts."""
    scale, side = _SCALES[name], min(height, width)
    small, large = scale.small[severity - 1], scale.large[severity - 1]
    way = min(1.0, max(0.0, math.log(side / SMALL) / math.log(LARGE / SMALL)))
    grown = max(1.0, side / LARGE)
    return tuple(
        low ** (1 - way) * high**way * (grown if length else 1)
        for low, high, length in zip(small, large, scale.pixels, strict=True)
    )


def check_size(height: int, width: int) -> None:
    """Raises InputError where images are too small for the corruptions."""
    if min(height, width) < SMALLEST:
        raise InputError(
            f"images of {height}x{width} pixels: corruptions need at least {SMALLEST}x{SMALLEST}; resize them "
            "(--resize)"
        )
