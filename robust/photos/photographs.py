"""Photographs of real signs from a folder: pixels, where the sign is, and the light on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from robust.errors import InputError
from robust.photos.lighting import Light, read_light
from robust.photos.outline import RIM, Floats, Mask, corners, flat_corners, grown, homography, moved, red_mask

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
SHAPES = ("octagon", "circle", "rectangle")
LARGEST_MISFIT = 0.06  # of the sign's width, at the worst corner


@dataclass(frozen=True)
class Photograph:
    """One photograph: ``pixels`` (H, W, 3) in [0, 1]; ``sign`` (H, W) bool; ``place``, the 3 x 3 homography from the
    flat sign, the unit square, to the photograph's pixels; the light on the sign."""

    name: str
    pixels: Floats
    sign: Mask
    place: Floats
    light: Light
    shape: str

    @property
    def width(self) -> float:
        """The sign's larger side in pixels, of its upright bounding box."""
        return float(np.ptp(moved(self.place, flat_corners(self.shape)), axis=0).max())


def load_photographs(folder: str | Path, shape: str = "octagon") -> list[Photograph]:
    """The photographs of a folder, or of its sub-folder ``highres``, in the natural order of their names.

    ``masks/NAME.png`` beside them, where there is one, is the sign (anything above half brightness), of the
    photograph's size. Without one, the sign is the largest red thing, with a stop sign's white rim for an octagon.
    ``shape``: octagon, circle or rectangle. Raises InputError.
    """
    given = Path(folder).expanduser()
    if not given.is_dir():
        raise InputError(f"--photos {folder}: no such folder; give a folder of photographs")
    held = given / "highres" if (given / "highres").is_dir() else given
    files = sorted(
        (file for file in held.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()), key=_natural
    )
    if not files:
        raise InputError(f"--photos {folder}: no photographs ({', '.join(SUFFIXES)}) in it; give a folder with some")
    return [_load(file, given / "masks" / f"{file.stem}.png", shape) for file in files]


def _natural(file: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _load(file: Path, mask_file: Path, shape: str) -> Photograph:
    pixels = _picture(file, "RGB")
    if mask_file.is_file():
        mask = _picture(mask_file, "L") > 0.5
        if mask.shape != pixels.shape[:2]:
            raise InputError(
                f"{mask_file}: {mask.shape[1]}x{mask.shape[0]} pixels, but {file.name} has "
                f"{pixels.shape[1]}x{pixels.shape[0]}; give masks of the photographs' size"
            )
        return photograph(file.stem, pixels, mask, shape)
    return photograph(file.stem, pixels, red_mask(pixels), shape, RIM if shape == "octagon" else 1.0)


def photograph(name: str, pixels: Floats, mask: Mask, shape: str, rim: float = 1.0) -> Photograph:
    """A photograph whose sign shows as ``mask`` (H, W) but for a rim that makes it ``rim`` times as wide.

    Raises InputError where the mask is empty or not of that shape.
    """
    flat = flat_corners(shape)
    found = corners(mask, shape)
    if found is None:
        raise InputError(f"{name}: no {shape} sign found in it; give its mask as masks/{name}.png or leave it out")
    place = homography(flat, found)
    misfit = float(np.linalg.norm(moved(place, flat) - found, axis=1).max() / max(np.ptp(found, axis=0).max(), 1e-9))
    if misfit > LARGEST_MISFIT:
        raise InputError(
            f"{name}: what was found in it is no {shape} (a corner is {misfit:.0%} of the sign's width away); give "
            f"its mask as masks/{name}.png or leave it out"
        )
    place = grown(place, rim)
    sign = _filled(place, pixels.shape[:2], shape)
    return Photograph(name, pixels, sign, place, read_light(pixels, sign), shape)


def _filled(place: Floats, size: tuple[int, int], shape: str) -> Mask:
    """The pixels whose centers the sign covers."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    centers = np.stack([columns.ravel(), rows.ravel()], 1) + 0.5
    flat = moved(np.linalg.inv(place), centers)
    return np.asarray(inside(flat, shape).reshape(size), bool)


def inside(flat: Floats, shape: str) -> Mask:
    """Which points (N, 2) of the unit square lie on a sign of that shape."""
    x, y = np.abs(flat - 0.5).T
    if shape == "circle":
        return np.asarray(x**2 + y**2 <= 0.25)
    box = (x <= 0.5) & (y <= 0.5)
    return np.asarray(box & (x + y <= np.sqrt(0.5)) if shape == "octagon" else box)


def _picture(file: Path, mode: str) -> Floats:
    try:
        with Image.open(file) as picture:
            # Telephones store pictures as the sensor lay, and how to turn them beside it.
            return np.asarray(ImageOps.exif_transpose(picture).convert(mode), np.float64) / 255
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file}: cannot be read as a picture ({error}); replace or remove it") from error
