"""The light on a sign, read off the sign itself, and a printed picture seen in that light.

A print on the sign receives the light that the sign receives. Its paper white will look like the sign's own white
(letters, rim), darker or brighter from place to place as the sign's own color is, and its black like the darkest that
the photograph has on the sign. Camera values are taken as a power of the light, so that a factor on the light is a
factor on the values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from robust.photos.outline import Floats, Mask

_SMOOTHING = 0.06  # of the sign's width: how fine the shading may be
_LEAST_WHITE = 0.01  # of the sign's pixels; with fewer, the sign shows no white
_DARKEST_WHITE = 0.08


@dataclass(frozen=True)
class Light:
    """White and black of a print, (3,) in [0, 1], and the shading (H, W), a factor of about 1 over the sign."""

    white: NDArray[np.float64]
    black: NDArray[np.float64]
    shading: NDArray[np.float64]

    def on(self, printed: Floats) -> Floats:
        """What a camera sees of ``printed``, (H, W, 3) colors as they were sent to the printer, in [0, 1]."""
        lit = self.black + printed * (self.white * self.shading[..., None] - self.black)
        return np.asarray(np.clip(lit, 0, 1))


def read_light(pixels: Floats, sign: Mask) -> Light:
    """The light on the sign of a photograph: ``pixels`` (H, W, 3) in [0, 1], ``sign`` (H, W) bool, not empty."""
    inside = pixels[sign]
    brightness = inside.max(1)
    own = _own_color(pixels, sign)
    shading = _shading(pixels.max(2), own, sign)
    pale = (inside.max(1) - inside.min(1)) < 0.35 * np.maximum(brightness, 1e-6)
    pale &= brightness > np.median(brightness)
    if pale.mean() >= _LEAST_WHITE:
        white = np.median(inside[pale] / shading[sign][pale, None], axis=0)
    else:  # a sign without white: what its brightest color says of each channel
        white = np.full(3, np.quantile(brightness, 0.98))
    white = np.clip(white, _DARKEST_WHITE, 1)
    black = np.minimum(np.quantile(inside.min(1), 0.02), 0.5 * white)
    return Light(white, np.broadcast_to(black, (3,)).copy(), shading)


def _own_color(pixels: Floats, sign: Mask) -> Mask:
    """The pixels of the sign's prevailing color: those near to the median chromaticity of its eroded middle."""
    chromaticity = pixels / (pixels.sum(2, keepdims=True) + 0.05)
    inner = ndimage.binary_erosion(sign, iterations=2)
    inner = inner if inner.any() else sign
    away = np.abs(chromaticity - np.median(chromaticity[inner], axis=0)).max(2)
    return np.asarray(inner & (away < 0.1), bool)


def _shading(brightness: Floats, own: Mask, sign: Mask) -> Floats:
    """Smoothed brightness of the sign's own color over its median, carried on over letters and edges; (H, W)."""
    if not own.any():
        return np.ones_like(brightness)
    sigma = max(1.0, _SMOOTHING * float(np.sqrt(sign.sum())))
    weights = ndimage.gaussian_filter(own.astype(float), sigma)
    sums = ndimage.gaussian_filter(np.where(own, brightness, 0.0), sigma)
    middle = float(np.median(brightness[own]))
    # A little of the median everywhere: far from the color there is nothing else to go by.
    smooth = (sums + 0.01 * middle) / (weights + 0.01)
    return np.asarray(np.clip(smooth / max(middle, 1e-6), 0.3, 3.0))
