"""The faces of the signs, flat and clean, as a driver would see them from straight ahead in even light."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from PIL import Image, ImageDraw

from robust.demo.glyphs import Color, Point, lettering, thick

FACE = 160  # side of a finished face, pixels
_OVER = 4  # drawn this many times larger, then reduced: smooth edges
_SIDE = FACE * _OVER

RED: Color = (178, 22, 34, 255)
BLUE: Color = (18, 84, 168, 255)
YELLOW: Color = (246, 184, 28, 255)
WHITE: Color = (238, 238, 234, 255)
BLACK: Color = (26, 26, 30, 255)

Draw = ImageDraw.ImageDraw


def _at(x: float, y: float) -> Point:
    """From face units, -1 to 1 with y down, to pixels of the large drawing."""
    return (_SIDE / 2 * (1 + x), _SIDE / 2 * (1 + y))


def _disc(draw: Draw, radius: float, fill: Color, center: Point = (0.0, 0.0)) -> None:
    x, y = center
    draw.ellipse((*_at(x - radius, y - radius), *_at(x + radius, y + radius)), fill=fill)


def _polygon(draw: Draw, points: list[Point], fill: Color) -> None:
    draw.polygon([_at(x, y) for x, y in points], fill=fill)


def _stroke(draw: Draw, points: list[Point], width: float, fill: Color) -> None:
    thick(draw, [_at(x, y) for x, y in points], width * _SIDE / 2, fill)


def _text(draw: Draw, text: str, size: tuple[float, float], stroke: float, fill: Color) -> None:
    half = _SIDE / 2
    lettering(draw, text, _at(0, 0), (size[0] * half, size[1] * half), stroke * half, fill)


def _regular(corners: int, radius: float, turn: float) -> list[Point]:
    """A regular polygon; ``turn`` is the direction of its first corner in degrees, 90 pointing down."""
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _rounded(draw: Draw, corners: list[Point], radius: float, fill: Color) -> None:
    """A convex polygon with rounded corners: the corners given are the centers of the rounding."""
    _polygon(draw, corners, fill)
    _stroke(draw, [*corners, corners[0], corners[1]], 2 * radius, fill)


def _triangle(draw: Draw, direction: float) -> None:
    """A red-bordered white triangle that points up (-90) or down (90)."""
    lift = 0.24 if direction < 0 else -0.24
    outer = [(x, y + lift) for x, y in _regular(3, 1.0, direction)]
    inner = [(x, y + lift) for x, y in _regular(3, 0.7, direction)]
    _rounded(draw, outer, 0.1, WHITE)
    _rounded(draw, outer, 0.07, RED)
    _rounded(draw, inner, 0.03, WHITE)


def _stop(draw: Draw) -> None:
    _polygon(draw, _regular(8, 1.0, 22.5), WHITE)
    _polygon(draw, _regular(8, 0.93, 22.5), RED)
    _text(draw, "STOP", (1.5, 0.66), 0.13, WHITE)


def _yield(draw: Draw) -> None:
    _triangle(draw, 90)


def _no_entry(draw: Draw) -> None:
    _disc(draw, 0.98, WHITE)
    _disc(draw, 0.93, RED)
    draw.rectangle((*_at(-0.7, -0.17), *_at(0.7, 0.17)), fill=WHITE)


def _priority_road(draw: Draw) -> None:
    _rounded(draw, _regular(4, 0.9, 90), 0.08, BLACK)
    _rounded(draw, _regular(4, 0.88, 90), 0.07, WHITE)
    _rounded(draw, _regular(4, 0.6, 90), 0.04, YELLOW)


def _keep_right(draw: Draw) -> None:
    _disc(draw, 0.98, WHITE)
    _disc(draw, 0.93, BLUE)
    _stroke(draw, [(-0.42, -0.42), (0.2, 0.2)], 0.26, WHITE)
    _polygon(draw, [(0.56, 0.56), (0.56, -0.24), (-0.24, 0.56)], WHITE)


def _ring(draw: Draw) -> None:
    _disc(draw, 0.98, WHITE)
    _disc(draw, 0.96, RED)
    _disc(draw, 0.74, WHITE)


def _car(draw: Draw, x: float, fill: Color) -> None:
    """A car seen from behind, 0.56 wide, standing at y = 0.36."""
    _polygon(draw, [(x - 0.2, -0.3), (x + 0.2, -0.3), (x + 0.26, 0.0), (x - 0.26, 0.0)], fill)
    draw.rectangle((*_at(x - 0.28, -0.02), *_at(x + 0.28, 0.24)), fill=fill)
    for side in (-1, 1):
        wheel = x + side * 0.2
        draw.rectangle((*_at(wheel - 0.07, 0.22), *_at(wheel + 0.07, 0.36)), fill=fill)
    _polygon(draw, [(x - 0.14, -0.22), (x + 0.14, -0.22), (x + 0.17, -0.05), (x - 0.17, -0.05)], WHITE)


def _no_overtaking(draw: Draw) -> None:
    _ring(draw)
    _car(draw, -0.32, RED)
    _car(draw, 0.32, BLACK)


def _pedestrians(draw: Draw) -> None:
    """A person walking over the bars of a crossing."""
    _triangle(draw, -90)
    _disc(draw, 0.1, BLACK, (0.0, -0.3))
    _stroke(draw, [(0.0, -0.1), (0.0, 0.12)], 0.2, BLACK)
    _stroke(draw, [(0.0, 0.16), (0.19, 0.44)], 0.11, BLACK)
    _stroke(draw, [(0.0, 0.16), (-0.19, 0.44)], 0.11, BLACK)
    _stroke(draw, [(0.04, -0.1), (0.22, 0.1)], 0.08, BLACK)
    _stroke(draw, [(-0.04, -0.1), (-0.22, 0.1)], 0.08, BLACK)
    for x in (-0.5, -0.18, 0.14, 0.46):
        _polygon(draw, [(x, 0.53), (x + 0.16, 0.53), (x + 0.12, 0.64), (x - 0.04, 0.64)], BLACK)


def _danger(draw: Draw) -> None:
    _triangle(draw, -90)
    _polygon(draw, [(-0.11, -0.34), (0.11, -0.34), (0.06, 0.26), (-0.06, 0.26)], BLACK)
    _disc(draw, 0.11, BLACK, (0.0, -0.34))
    _disc(draw, 0.11, BLACK, (0.0, 0.44))


def _speed_limit(text: str) -> Callable[[Draw], None]:
    def paint(draw: Draw) -> None:
        _ring(draw)
        if len(text) == 2:
            _text(draw, text, (1.0, 0.8), 0.15, BLACK)
        else:
            _text(draw, text, (1.16, 0.72), 0.125, BLACK)

    return paint


SPEEDS = (20, 30, 50, 60, 70, 80, 100, 120)

_PAINTERS: dict[str, Callable[[Draw], None]] = {
    "stop": _stop,
    "yield": _yield,
    "no entry": _no_entry,
    "priority road": _priority_road,
    "keep right": _keep_right,
    "no overtaking": _no_overtaking,
    "pedestrian crossing": _pedestrians,
    "general danger": _danger,
    **{f"speed limit {speed}": _speed_limit(str(speed)) for speed in SPEEDS},
}

CLASS_NAMES: tuple[str, ...] = tuple(_PAINTERS)


@cache
def face(name: str) -> Image.Image:
    """The sign ``name`` of `CLASS_NAMES` as an RGBA image of FACE x FACE pixels. Shared: do not draw on it."""
    large = Image.new("RGBA", (_SIDE, _SIDE), (128, 128, 128, 0))
    _PAINTERS[name](ImageDraw.Draw(large))
    return large.reduce(_OVER)
