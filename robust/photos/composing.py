"""A print on the sign of a photograph, at the photograph's full resolution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from robust.photos.outline import Floats, moved
from robust.photos.photographs import Photograph, inside

_FINENESS = 3  # samples along each side of a pixel


@dataclass(frozen=True)
class Print:
    """What is stuck on the sign: ``colors`` (h, w, 3) in [0, 1], ``cover`` (h, w) from 0, bare sign, to 1.

    ``place`` is the 3 x 3 matrix from the print's own unit square to the flat sign's, both from 0 to 1. ``smooth``
    says whether its pixels blend into each other or are printed as squares.
    """

    colors: Floats
    cover: Floats
    place: Floats
    smooth: bool = False


def centered(share: float, middle: tuple[float, float] = (0.5, 0.5), turn: float = 0.0) -> Floats:
    """The place of a square print of ``share`` of the flat sign's width around ``middle``, turned by degrees."""
    angle = np.deg2rad(turn)
    cos, sin = share * np.cos(angle), share * np.sin(angle)
    x, y = middle
    return np.array([[cos, -sin, x - (cos - sin) / 2], [sin, cos, y - (sin + cos) / 2], [0, 0, 1]])


def composed(photograph: Photograph, print_: Print) -> Floats:
    """The photograph (H, W, 3) with the print on its sign, in the sign's perspective and light, nowhere beyond it."""
    inverse = np.linalg.inv(photograph.place @ print_.place)
    back = np.linalg.inv(photograph.place)
    top, left, bottom, right = _box(photograph)
    rows, columns = np.mgrid[top:bottom, left:right]
    colors, cover = np.zeros((*rows.shape, 3)), np.zeros(rows.shape)
    steps = (np.arange(_FINENESS) + 0.5) / _FINENESS
    for down in steps:
        for along in steps:
            points = np.stack([columns.ravel() + along, rows.ravel() + down], 1)
            u, v = moved(inverse, points).T
            covered = _sample(print_.cover, u, v, print_.smooth) * inside(moved(back, points), photograph.shape)
            cover += covered.reshape(rows.shape)
            for channel in range(3):
                values = covered * _sample(print_.colors[..., channel], u, v, print_.smooth)
                colors[..., channel] += values.reshape(rows.shape)
    printed = np.ones((*photograph.sign.shape, 3))
    printed[top:bottom, left:right] = colors / np.maximum(cover, 1e-9)[..., None]
    share = np.zeros(photograph.sign.shape)
    share[top:bottom, left:right] = cover / _FINENESS**2
    return np.asarray(photograph.pixels + share[..., None] * (photograph.light.on(printed) - photograph.pixels))


def _box(photograph: Photograph) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the sign in its photograph, with a pixel around it."""
    rows, columns = np.nonzero(photograph.sign)
    height, width = photograph.sign.shape
    return (
        max(int(rows.min()) - 1, 0), max(int(columns.min()) - 1, 0),
        min(int(rows.max()) + 2, height), min(int(columns.max()) + 2, width),
    )  # fmt: skip


def _sample(plane: Floats, u: Floats, v: Floats, smooth: bool) -> Floats:
    """Values of an (h, w) plane at unit-square points; 0 outside the square."""
    height, width = plane.shape
    within = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    rows, columns = np.where(within, v, 0) * height, np.where(within, u, 0) * width
    if smooth:
        found = ndimage.map_coordinates(plane, [rows - 0.5, columns - 0.5], order=1, mode="nearest")
    else:
        found = plane[rows.astype(int), columns.astype(int)]
    return np.asarray(np.where(within, found, 0.0))
