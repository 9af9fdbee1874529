"""Small photographs of traffic signs, drawn: 16 classes, 32 x 32 RGB, every image fixed by (seed, index).

A flat sign is seen through a pinhole camera at a random angle, on a post before a random scene; then come
weather, shadow, leaves, blur, the sensor's 32 x 32 pixels, exposure and noise. One number per image, its
hardness, widens all of these together, so that most images are plain and a few are hard to read.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from robust.demo.faces import CLASS_NAMES, FACE, face
from robust.demo.scenes import Floats, background, mottle

__all__ = ["CLASS_NAMES", "FIRST_TRAINING_SEED", "SIDE", "render", "signs"]

SIDE = 32  # of a finished image, pixels
_OVER = 4
_LARGE = SIDE * _OVER  # of the picture before the sensor

# Seeds from here on are the training script's; audits use smaller ones, so they never meet an image trained on.
FIRST_TRAINING_SEED = 2**32

# First word of every random stream, so that the pictures and the order of the classes are independent.
_PICTURES, _ORDER = 0, 1


def _corners(rng: np.random.Generator, hardness: float) -> Floats:
    """Where the four corners of the face land in the large picture, (4, 2) pixels: a square turned in space."""
    yaw = rng.normal(0, math.radians(10 + 18 * hardness))
    pitch = rng.normal(0, math.radians(5 + 8 * hardness))
    roll = rng.normal(0, math.radians(4 + 6 * hardness))
    cy, sy, cp, sp, cr, sr = *_turn(yaw), *_turn(pitch), *_turn(roll)
    turned = (
        np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    )
    square = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) @ turned.T
    distance = rng.uniform(4, 9)  # in half widths of the sign: near means strong perspective
    flat = square[:, :2] * (distance / (distance + square[:, 2:]))
    diameter = _LARGE * (rng.uniform(0.72, 0.96) - hardness * rng.uniform(0, 0.34))
    free = (_LARGE - diameter) / 2
    center = _LARGE / 2 + free * rng.uniform(-0.8, 0.8, 2)
    return np.asarray(center + flat * diameter / 2, np.float32)


def _turn(angle: float) -> tuple[float, float]:
    return math.cos(angle), math.sin(angle)


def _homography(corners: Floats) -> list[float]:
    """The eight numbers by which Pillow maps each pixel of the picture back to the face."""
    face_corners = [(0, 0), (FACE, 0), (FACE, FACE), (0, FACE)]
    rows, right = [], []
    for (x, y), (u, v) in zip(corners.tolist(), face_corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(right))]


def _mount(rng: np.random.Generator, picture: Image.Image, corners: Floats) -> None:
    """The post under the sign and, at times, a plate below it."""
    draw = ImageDraw.Draw(picture)
    x, y = (float(value) for value in corners.mean(0))
    height = float(corners[2:, 1].max() - y)
    gray = int(rng.uniform(70, 190))
    lean = rng.normal(0, 4)
    if rng.random() < 0.75:
        draw.line((x, y, x + lean, 2 * _LARGE), fill=(gray, gray, gray), width=int(rng.uniform(5, 12)))
    if rng.random() < 0.15:
        half = height * rng.uniform(0.6, 0.95)
        top = y + height * 1.06
        draw.rectangle(
            (x - half, top, x + half, top + height * 0.6), fill=(225, 225, 220), outline=(40, 40, 40), width=3
        )


def _cover(rng: np.random.Generator, picture: Image.Image, hardness: float) -> None:
    """Leaves and twigs between camera and sign, more often on hard images."""
    if rng.random() > 0.1 + 0.4 * hardness:
        return
    draw = ImageDraw.Draw(picture)
    middle = rng.uniform(0, _LARGE, 2)
    shade = rng.uniform(0.5, 1.2)
    for _ in range(rng.integers(2, 9)):
        x, y = middle + rng.normal(0, 12, 2)
        width, height = rng.uniform(5, 20, 2)
        color = np.clip(shade * (np.array([60, 85, 35]) + rng.normal(0, 12, 3)), 0, 255)
        draw.ellipse((x - width / 2, y - height / 2, x + width / 2, y + height / 2), fill=tuple(int(c) for c in color))


def _daylight(rng: np.random.Generator, hardness: float) -> Floats:
    """How much light falls on each pixel, (large, large, 1): a slope, dirt, and at times the edge of a shadow."""
    y, x = np.mgrid[-1 : 1 : _LARGE * 1j, -1 : 1 : _LARGE * 1j].astype(np.float32)
    angle, steep = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.25)
    across = x * math.cos(angle) + y * math.sin(angle)
    light = 1 + steep * across + 0.04 * mottle(rng, _LARGE, 4, 0.5)
    if rng.random() < 0.2 + 0.2 * hardness:
        angle = rng.uniform(0, 2 * math.pi)
        edge = x * math.cos(angle) + y * math.sin(angle) - rng.uniform(-0.6, 0.6)
        light *= 1 - rng.uniform(0.25, 0.6) * np.clip(0.5 + edge * 6, 0, 1)
    return np.asarray(light[..., None], np.float32)


def _smear(rng: np.random.Generator, picture: Floats, hardness: float) -> Floats:
    """Motion blur: the mean of the picture along a short straight path, most often sideways."""
    length = rng.uniform(4, 8 + 14 * hardness)
    angle = rng.normal(0, 0.5)
    steps = np.linspace(-0.5, 0.5, 5) * length
    moved = [np.roll(picture, (round(s * math.sin(angle)), round(s * math.cos(angle))), (0, 1)) for s in steps]
    return np.asarray(sum(moved[1:], moved[0]) / len(moved), np.float32)


def _expose(rng: np.random.Generator, picture: Floats, hardness: float) -> Floats:
    """Haze, white balance, exposure, gamma and the sensor's noise; in and out (SIDE, SIDE, 3), about 0 to 1."""
    haze = rng.uniform(0, 0.1) + hardness * rng.uniform(0, 0.4)
    picture = picture * (1 - haze) + haze * rng.uniform(0.5, 0.9)
    cast = np.exp(rng.normal(0, 0.04 + 0.05 * hardness, 3))
    stops = max(-2.6, rng.normal(-0.05, 0.4) - hardness * abs(rng.normal(0, 1.4)))
    picture = np.clip(picture * cast * 2.0**stops, 0, 1) ** rng.uniform(0.8, 1.25)
    read, shot = rng.uniform(0.004, 0.015) + 0.025 * hardness, rng.uniform(0, 0.03)
    sigma = np.sqrt(read**2 + shot**2 * picture)
    return np.asarray(picture + sigma * rng.standard_normal(picture.shape), np.float32)


def _photograph(rng: np.random.Generator, name: str) -> NDArray[np.uint8]:
    hardness = float(rng.beta(1.0, 2.6))
    corners = _corners(rng, hardness)
    picture = background(rng, _LARGE)
    _mount(rng, picture, corners)
    sign = face(name).transform(
        (_LARGE, _LARGE), Image.Transform.PERSPECTIVE, _homography(corners), Image.Resampling.BICUBIC
    )
    picture.paste(sign, (0, 0), sign)
    _cover(rng, picture, hardness)
    focus = rng.uniform(0.5, 2.0) + hardness * rng.uniform(0, 4.0)
    picture = picture.filter(ImageFilter.GaussianBlur(focus))
    lit: Floats = np.asarray(picture, np.float32) / np.float32(255) * _daylight(rng, hardness)
    if rng.random() < 0.3:
        lit = _smear(rng, lit, hardness)
    small = lit.reshape(SIDE, _OVER, SIDE, _OVER, 3).mean((1, 3))
    return np.clip(np.rint(255 * _expose(rng, small, hardness)), 0, 255).astype(np.uint8)


def render(label: int, seed: int, index: int = 0) -> NDArray[np.uint8]:
    """One photograph of the sign ``CLASS_NAMES[label]``: (32, 32, 3) uint8 RGB, the same for the same three numbers.

    ``seed`` and ``index`` are at least 0; they set everything but the sign.
    """
    return _photograph(np.random.default_rng((_PICTURES, seed, index)), CLASS_NAMES[label])


def _label_of(seed: int, index: int) -> int:
    """The class of image ``index``: every block of as many images as there are classes is a shuffle of them all."""
    block, place = divmod(index, len(CLASS_NAMES))
    return int(np.random.default_rng((_ORDER, seed, block)).permutation(len(CLASS_NAMES))[place])


def signs(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first ``n`` images of a seed, (n, 32, 32, 3) uint8 RGB, and their labels, (n,) int64.

    Image i does not depend on ``n``. Classes are balanced: their counts differ by at most one.
    """
    labels = np.array([_label_of(seed, index) for index in range(n)], np.int64)
    images = np.zeros((n, SIDE, SIDE, 3), np.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index] = render(label, seed, index)
    return images, labels
