"""What stands behind a sign: sky, leaves, streets, brick and houses, out of focus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats: TypeAlias = NDArray[np.float32]
Rgb: TypeAlias = tuple[float, float, float]

_SIDE = 64  # backgrounds are drawn small: they are blurred anyway

_SKIES: tuple[Rgb, ...] = ((0.45, 0.63, 0.88), (0.72, 0.80, 0.90), (0.86, 0.87, 0.88), (0.60, 0.63, 0.68))
_LEAVES: tuple[Rgb, ...] = ((0.20, 0.32, 0.12), (0.32, 0.40, 0.14), (0.13, 0.22, 0.12), (0.42, 0.33, 0.14))
_WALLS: tuple[Rgb, ...] = ((0.62, 0.33, 0.24), (0.70, 0.58, 0.44), (0.55, 0.54, 0.52), (0.80, 0.78, 0.72))


def mottle(rng: np.random.Generator, side: int, coarsest: int = 4, roughness: float = 0.6) -> Floats:
    """Smooth random texture, (side, side), of mean about 0 and deviation about 1; rougher means finer grained."""
    total = np.zeros((side, side), np.float32)
    weight, cells, power = 1.0, coarsest, 0.0
    while cells <= side // 2:
        grid = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
        total += weight * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
        power += weight**2
        weight, cells = weight * roughness, cells * 2
    # Interpolation between the grid's points loses about a third of the deviation.
    return np.asarray(total * np.float32(1.5 / power**0.5))


def _pick(rng: np.random.Generator, colors: tuple[Rgb, ...], spread: float = 0.035) -> Floats:
    color = np.asarray(colors[rng.integers(len(colors))], np.float32)
    return np.asarray(color + rng.normal(0, spread, 3), np.float32)


def _textured(color: Floats, texture: Floats, strength: float) -> Floats:
    """The color, lighter and darker with the texture; (side, side, 3)."""
    return np.asarray(color * (1 + strength * texture)[..., None], np.float32)


def _sky(rng: np.random.Generator) -> Floats:
    top, bottom = _pick(rng, _SKIES), _pick(rng, _SKIES)
    ramp = np.linspace(0, 1, _SIDE, dtype=np.float32)[:, None, None]
    flat = top + (bottom - top) * ramp
    clouds = np.clip(mottle(rng, _SIDE, roughness=0.5) * rng.uniform(0, 0.35), 0, 1)[..., None]
    return np.asarray(flat + (0.97 - flat) * clouds, np.float32)


def _foliage(rng: np.random.Generator) -> Floats:
    near = _textured(_pick(rng, _LEAVES), mottle(rng, _SIDE, 4, 0.85), rng.uniform(0.25, 0.6))
    if rng.random() < 0.5:
        gaps = (mottle(rng, _SIDE, 8, 0.8) > rng.uniform(0.4, 1.6))[..., None]
        near = np.where(gaps, _pick(rng, _SKIES), near)
    return near


def _brick(rng: np.random.Generator) -> Floats:
    wall = _textured(_pick(rng, _WALLS), mottle(rng, _SIDE, 8, 0.7), 0.1)
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    height = int(rng.integers(5, 12))
    width = 2 * height
    shifted = columns + (rows // height % 2) * height
    joints = (rows % height == 0) | (shifted % width == 0)
    return np.where(joints[..., None], wall * rng.uniform(0.6, 1.35), wall).astype(np.float32)


def _street(rng: np.random.Generator) -> Floats:
    """Sky above, a rough skyline of trees or houses, the road below."""
    horizon = int(rng.uniform(0.35, 0.75) * _SIDE)
    scene = _sky(rng)
    skyline = horizon - 6 - np.cumsum(rng.integers(-2, 3, _SIDE)) - rng.integers(0, 16)
    rows = np.arange(_SIDE)[:, None]
    trees = _textured(_pick(rng, _LEAVES + _WALLS), mottle(rng, _SIDE, 8, 0.8), 0.3)
    scene = np.where((rows > skyline)[..., None], trees, scene)
    gray = _pick(rng, ((0.42, 0.42, 0.43), (0.55, 0.54, 0.52)), 0.03)
    road = _textured(gray, mottle(rng, _SIDE, 16, 0.8), 0.06)
    scene = np.where((rows > horizon)[..., None], road, scene)
    return np.asarray(scene, np.float32)


def _houses(rng: np.random.Generator) -> Floats:
    """A plain wall with windows, some lit, some dark."""
    wall = _textured(_pick(rng, _WALLS), mottle(rng, _SIDE, 4, 0.5), 0.06)
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    pitch = rng.integers(20, 44, 2)
    inset = rng.uniform(0.3, 0.6, 2)
    start = rng.integers(0, 44, 2)
    windows = ((rows + start[0]) % pitch[0] < inset[0] * pitch[0]) & (
        (columns + start[1]) % pitch[1] < inset[1] * pitch[1]
    )
    glass = _pick(rng, ((0.15, 0.17, 0.20), (0.35, 0.42, 0.50), (0.75, 0.68, 0.45)))
    return np.where(windows[..., None], glass, wall).astype(np.float32)


_KINDS: tuple[Callable[[np.random.Generator], Floats], ...] = (_sky, _foliage, _brick, _street, _houses)


def _byte(color: Floats) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(255 * color, 0, 255))


def _clutter(rng: np.random.Generator, image: Image.Image) -> None:
    """Cars, posts, hoardings and other signs: plain shapes of any color, most of them near the edge."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.poisson(1.2)):
        color = _byte(np.clip(rng.normal(0.5, 0.28) + rng.normal(0, 0.18, 3), 0, 1).astype(np.float32))
        x, y = rng.uniform(-0.1, 1.1, 2) * _SIDE
        width, height = rng.uniform(3, 26, 2)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if rng.random() < 0.6:
            draw.rectangle(box, fill=color)
        else:
            draw.ellipse(box, fill=color)


def background(rng: np.random.Generator, side: int) -> Image.Image:
    """A random scene without its sign: RGB, ``side`` x ``side`` pixels, soft, in even light."""
    scene = _KINDS[rng.integers(len(_KINDS))](rng)
    image = Image.fromarray(np.clip(255 * scene, 0, 255).astype(np.uint8))
    _clutter(rng, image)
    return image.resize((side, side), Image.Resampling.BILINEAR)
