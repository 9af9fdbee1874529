"""Where the sign lies in a photograph: its mask, the corners of its outline, and the homography from a flat sign.

The flat sign fills the unit square: x to the right, y down, both from 0 to 1. Points are (N, 2), photographs are
measured in pixels with the first pixel's center at (0.5, 0.5).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

Floats: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

# By how much a stop sign is wider than its red: the white rim, measured on photographs of US signs.
RIM = 1.056
SMALLEST = 0.02  # of the photograph: a smaller mask is no sign to paste on


def flat_corners(shape: str) -> Floats:
    """The corners of a flat sign in the unit square, clockwise from the top left one; a circle has its four poles."""
    if shape == "octagon":
        cut = 1 / (2 + math.sqrt(2))
        return np.array(
            [(cut, 0), (1 - cut, 0), (1, cut), (1, 1 - cut), (1 - cut, 1), (cut, 1), (0, 1 - cut), (0, cut)]
        )  # fmt: skip
    if shape == "rectangle":
        return np.array([(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
    if shape == "circle":
        return np.array([(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)])
    raise ValueError(f"shape {shape!r}: octagon, rectangle or circle")


def red_mask(pixels: Floats) -> Mask:
    """The largest red thing in a photograph (H, W, 3) in [0, 1], with its holes filled; (H, W) bool.

    Red is told by its share of the light, so that a sign in the dark is found as well. The threshold lies halfway
    between the photograph's red and the rest, which Otsu's method tells apart (IEEE Transactions on Systems, Man and
    Cybernetics 9, 1979), so that the edge is where a pixel is half red.
    """
    redness = (pixels[..., 0] - pixels[..., 1:].max(2)) / (pixels[..., 0] + 0.06)
    redness = ndimage.gaussian_filter(redness, 1)
    apart = redness > _otsu(redness)
    if not apart.any() or apart.all():
        return np.zeros(redness.shape, bool)
    parts, count = ndimage.label(redness > (np.median(redness[apart]) + np.median(redness[~apart])) / 2)
    if count == 0:
        return np.zeros(redness.shape, bool)
    largest = int(np.argmax(np.bincount(parts.ravel())[1:])) + 1
    return np.asarray(ndimage.binary_fill_holes(parts == largest), bool)


def _otsu(values: Floats) -> float:
    counts, edges = np.histogram(values, 128)
    middles = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middles)
    between = (mass[-1] * below / below[-1] - mass) ** 2 / np.maximum(below * (below[-1] - below), 1)
    return float(middles[np.argmax(between)])


def corners(mask: Mask, shape: str) -> Floats | None:
    """The corners of a mask's outline in pixels, in the order of :func:`flat_corners`; None where it has no such shape.

    The convex hull gives up the sides that its neighbors can best do without until as many are left as the sign has;
    a circle is the ellipse of the mask's second moments. Signs stand upright: of the ways in which the corners may
    correspond, the least turned is taken, so a sign may lean by up to half the angle of a corner.
    """
    if mask.sum() < SMALLEST * mask.size:
        return None
    if shape == "circle":
        return _poles(mask)
    edge = mask & ~ndimage.binary_erosion(mask, border_value=0)
    rows, columns = np.nonzero(edge)
    points = np.stack([columns, rows], 1) + 0.5
    middle = points.mean(0)
    points = points + 0.5 * np.sign(points - middle)  # from the pixels' centers to their outer corners
    try:
        found = points[ConvexHull(points).vertices]
    except QhullError:
        return None
    flat = flat_corners(shape)
    outline = _simplified(found, len(flat))
    if outline is None:
        return None
    return _matched(outline, flat)


def _simplified(outline: Floats, sides: int) -> Floats | None:
    """The convex polygon of ``sides`` sides that is left when the sides whose loss adds least area are dropped."""
    points = [np.asarray(point, float) for point in outline]
    while len(points) > sides:
        best: tuple[float, int, Floats] | None = None
        for at in range(len(points)):
            before, start, end, after = (points[(at + step) % len(points)] for step in (-1, 0, 1, 2))
            first, second = start - before, end - after
            turn = _cross(first, second)
            if abs(turn) < 1e-9:
                continue
            along = _cross(after - before, second) / turn
            if along < 1:  # the neighbors run apart
                continue
            met = before + along * first
            area = abs(_cross(end - start, met - start)) / 2
            if best is None or area < best[0]:
                best = (area, at, met)
        if best is None:
            return None
        points[best[1]] = best[2]
        del points[(best[1] + 1) % len(points)]
    return np.array(points) if len(points) == sides else None


def _matched(outline: Floats, flat: Floats) -> Floats:
    """The corners in the order of ``flat``: clockwise on the screen, turned as little as can be."""
    middle = outline.mean(0)
    seen = np.arctan2(*(outline - middle).T[::-1])
    outline, seen = outline[np.argsort(seen)], np.sort(seen)  # y points down: rising angles run clockwise
    wanted = np.arctan2(*(flat - flat.mean(0)).T[::-1])
    turns = [np.abs(np.angle(np.exp(1j * (np.roll(seen, step) - wanted)))).sum() for step in range(len(flat))]
    return np.roll(outline, int(np.argmin(turns)), axis=0)


def _poles(mask: Mask) -> Floats:
    """Top, right, bottom and left of the ellipse with the mask's area and second moments, upright in the picture."""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], 1) + 0.5
    middle, spread = points.mean(0), np.cov(points.T)
    # The lower triangular root keeps the vertical axis vertical: a camera turned about it only shears and squeezes.
    down = math.sqrt(spread[1, 1])
    shear = spread[0, 1] / down
    across = math.sqrt(max(spread[0, 0] - shear**2, 1e-9))
    top, right = 2 * np.array([-shear, -down]), 2 * np.array([across, 0.0])
    return np.array([middle + top, middle + right, middle - top, middle - right])


def homography(source: Floats, target: Floats) -> Floats:
    """The 3 x 3 matrix that takes ``source`` points to ``target`` points, (N, 2), N >= 4, least squares beyond four.

    Source: the normalized direct linear transformation, Hartley and Zisserman, section 4.4.4.
    """
    first, second = _normalizer(source), _normalizer(target)
    rows = []
    for (x, y), (u, v) in zip(moved(first, source), moved(second, target), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y, -u], [0, 0, 0, x, y, 1, -v * x, -v * y, -v]]
    solved = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)
    matrix = np.linalg.inv(second) @ solved @ first
    return np.asarray(matrix / matrix[2, 2])


def _normalizer(points: Floats) -> Floats:
    middle = points.mean(0)
    scale = math.sqrt(2) / max(float(np.linalg.norm(points - middle, axis=1).mean()), 1e-12)
    return np.array([[scale, 0, -scale * middle[0]], [0, scale, -scale * middle[1]], [0, 0, 1]])


def moved(matrix: NDArray[np.floating], points: Floats) -> Floats:
    """``points`` (N, 2) after a homography."""
    result = np.hstack([points, np.ones((len(points), 1))]) @ matrix.T
    return np.asarray(result[:, :2] / result[:, 2:])


def grown(matrix: Floats, factor: float) -> Floats:
    """The homography of a sign ``factor`` times as large around the same middle: from the red to the whole sign."""
    shift = (1 - factor) / 2
    return np.asarray(matrix @ np.array([[factor, 0, shift], [0, factor, shift], [0, 0, 1]]))


def _cross(first: Floats, second: Floats) -> float:
    return float(first[0] * second[1] - first[1] * second[0])
