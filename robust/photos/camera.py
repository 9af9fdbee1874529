"""What a camera sees of a sign from a distance and an angle, as the classifier behind it is given it.

The photograph is turned about the sign's vertical axis and moved away, its light averaged over the area of each of the
sensor's pixels; then come the lens's blur, the sensor's noise, JPEG, the crop around the sign at whole pixels, and the
scaling to the classifier's size. Everything in the photograph is treated as lying in the sign's plane.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from robust.errors import InputError
from robust.photos.outline import Floats, flat_corners, moved
from robust.photos.photographs import Photograph

_FILL = 0.75  # of the photograph's side: how far the scene is carried on beyond each of its edges
_SAMPLES = 3  # along each side of a sensor's pixel
NEAREST = 1.0  # meters: nearer, a sign seen from the side would reach behind the camera


@dataclass(frozen=True)
class Camera:
    """A camera on a car.

    ``across`` pixels over a horizontal ``field`` of view in degrees; the sign's width in meters; the deviation of the
    lens's blur in pixels and of the sensor's noise in [0, 1]; the JPEG quality, 0 for none.
    """

    across: int = 1920
    field: float = 60.0
    sign: float = 0.75
    blur: float = 0.6
    noise: float = 0.01
    quality: int = 90

    def __post_init__(self) -> None:
        if not (self.across >= 1 and 0 < self.field < 170 and self.sign > 0):
            raise InputError("camera: give across >= 1 pixel, field between 0 and 170 degrees, sign > 0 m")
        if self.blur < 0 or self.noise < 0 or not 0 <= self.quality <= 100:
            raise InputError("camera: give blur and noise >= 0, and a JPEG quality from 0 (none) to 100")

    @property
    def focal(self) -> float:
        """The focal length in pixels."""
        return self.across / 2 / math.tan(math.radians(self.field / 2))

    def width(self, distance: float) -> float:
        """How many pixels wide a sign facing the camera is at a distance in meters."""
        return self.focal * self.sign / distance

    @property
    def text(self) -> str:
        quality = f"JPEG quality {self.quality}" if self.quality else "no JPEG"
        return (
            f"{self.across} pixels across {self.field:g} degrees, sign {100 * self.sign:g} cm wide, blur "
            f"{self.blur:g} pixel, noise {self.noise:g}, {quality}"
        )


@dataclass(frozen=True)
class View:
    """Where the camera stands: meters away, and degrees to the side of the direction that the photograph has."""

    distance: float
    angle: float = 0.0

    def __post_init__(self) -> None:
        if not (NEAREST <= self.distance < math.inf and abs(self.angle) < 80):
            raise InputError(
                f"view {self.distance:g} m at {self.angle:g} degrees: give at least {NEAREST:g} m, less than 80 degrees"
            )


@dataclass(frozen=True)
class Scene:
    """A photograph ready to be looked at, in K variants: with and without a print on the sign.

    ``pixels`` (K, 3, H, W) float32, with the scene carried on around the photograph, which is shifted in it by
    ``offset`` pixels to the right and down.
    """

    pixels: Tensor
    offset: int
    photograph: Photograph


def scene(photograph: Photograph, variants: Sequence[Floats]) -> Scene:
    """The scene of a photograph; ``variants``: the photograph itself or with prints composed on it, (H, W, 3) each.

    Beyond the edges the nearest thing that is not the sign is carried on, out of focus.
    """
    height, width = photograph.sign.shape
    pad = math.ceil(_FILL * max(height, width))
    rim = max(2, round(0.03 * photograph.width))
    wide = np.pad(photograph.pixels, ((pad, pad), (pad, pad), (0, 0)))
    known = np.zeros(wide.shape[:2], bool)
    known[pad : pad + height, pad : pad + width] = ~ndimage.binary_dilation(photograph.sign, iterations=rim)
    if known.any():
        nearest = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
        around = wide[tuple(nearest)]
    else:
        around = np.full_like(wide, photograph.pixels.mean())
    around = np.stack([ndimage.gaussian_filter(around[..., channel], 0.04 * pad) for channel in range(3)])
    pixels = np.repeat(around[None].astype(np.float32), len(variants), 0)
    for held, variant in zip(pixels, variants, strict=True):
        held[:, pad : pad + height, pad : pad + width] = variant.transpose(2, 0, 1)
    return Scene(torch.from_numpy(pixels), pad, photograph)


def crop(held: Scene, camera: Camera, view: View, share: float, rng: np.random.Generator) -> Tensor:
    """The square around the sign on the sensor, (K, 3, n, n) in [0, 1]: the sign takes ``share`` of its side.

    ``rng`` places the crop between pixels and draws the noise, which all variants have in common.
    """
    to_sensor = _projection(held, camera, view)
    seen = moved(to_sensor, _corners(held))
    side = max(4, round(float(np.ptp(seen, axis=0).max()) / share))
    middle = (seen.max(0) + seen.min(0)) / 2 + rng.uniform(-0.5, 0.5, 2)
    return window(held, camera, view, side, side, middle, rng)


def window(
    held: Scene, camera: Camera, view: View, height: int, width: int, middle: Floats | None, rng: np.random.Generator
) -> Tensor:
    """A part of the sensor of ``height`` x ``width`` pixels around a point, or around the sign's axis;
    (K, 3, h, w)."""
    to_sensor = _projection(held, camera, view)
    middle = np.zeros(2) if middle is None else middle
    light = held.pixels
    # Pixels of the photograph to one of the sensor: most are averaged beforehand, the rest by sampling finely.
    ratio = max(1, round(held.photograph.width / camera.width(view.distance)))
    level = max(1, min(ratio // _SAMPLES, light.shape[2], light.shape[3]))
    fine = max(1, min(_SAMPLES, ratio))
    if level > 1:
        light = _averaged(light, level)
    rows, columns = np.mgrid[0 : fine * height, 0 : fine * width]
    points = (np.stack([columns.ravel(), rows.ravel()], 1) + 0.5) / fine - (width / 2, height / 2) + middle
    found = moved(np.linalg.inv(to_sensor), points)
    size = np.array([light.shape[3], light.shape[2]]) * level
    grid = torch.from_numpy((2 * found / size - 1).reshape(1, fine * height, fine * width, 2).astype(np.float32))
    grid = grid.expand(len(light), -1, -1, -1)
    sampled = functional.grid_sample(light, grid, padding_mode="border", align_corners=False)
    images = _averaged(sampled, fine).numpy()
    if camera.blur:
        images = ndimage.gaussian_filter(images, (0, 0, camera.blur, camera.blur))
    images = np.clip(images + camera.noise * rng.standard_normal(images.shape[1:]), 0, 1)
    eight = np.rint(255 * images).astype(np.uint8).transpose(0, 2, 3, 1)
    if camera.quality:
        eight = np.stack([_through_jpeg(image, camera.quality) for image in eight])
    return torch.from_numpy(eight.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def fitted(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops (K, 3, n, n) scaled to the classifier's (H, W), in 8 bits again."""
    scaled = functional.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    return (scaled.clamp(0, 1) * 255).round() / 255


def _projection(held: Scene, camera: Camera, view: View) -> Floats:
    """From pixels of the scene to pixels of the sensor, whose middle is (0, 0)."""
    seen = _corners(held)
    middle = (seen.max(0) + seen.min(0)) / 2
    meters = camera.sign / float(np.ptp(seen, axis=0).max())
    flat = np.array([[meters, 0, -meters * middle[0]], [0, meters, -meters * middle[1]], [0, 0, 1]])
    angle = math.radians(view.angle)
    turned = np.array(
        [[camera.focal * math.cos(angle), 0, 0], [0, camera.focal, 0], [math.sin(angle), 0, view.distance]]
    )
    return np.asarray(turned @ flat)


def _corners(held: Scene) -> Floats:
    photograph = held.photograph
    return moved(photograph.place, flat_corners(photograph.shape)) + held.offset


def _averaged(images: Tensor, side: int) -> Tensor:
    """The means over squares of ``side`` pixels; what is left at the right and bottom edges is dropped."""
    count, channels, height, width = images.shape
    kept = images[..., : height // side * side, : width // side * side]
    return kept.reshape(count, channels, height // side, side, width // side, side).mean((3, 5))


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as read:
        return np.asarray(read)
