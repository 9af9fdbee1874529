"""Sign lettering as strokes: each glyph is a few center lines, drawn thick with round ends.

No font file is read, so the pictures do not depend on the fonts or the FreeType of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from PIL import ImageDraw

Point: TypeAlias = tuple[float, float]
Line: TypeAlias = list[Point]
Color: TypeAlias = tuple[int, int, int, int]

_GAP = 0.12  # between neighboring glyphs, beyond the strokes' own width, in glyph units


def arc(center: Point, radii: Point, start: float, stop: float) -> Line:
    """Points along an ellipse from ``start`` to ``stop`` degrees; 0 points right and 90 points down."""
    steps = max(2, int(abs(stop - start) / 6))
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return [(center[0] + radii[0] * math.cos(angle), center[1] + radii[1] * math.sin(angle)) for angle in angles]


def _bend(start: Point, pull: Point, stop: Point) -> Line:
    """A quadratic curve from ``start`` to ``stop``, drawn toward ``pull``."""
    points = []
    for step in range(13):
        t = step / 12
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
        points.append((a * start[0] + b * pull[0] + c * stop[0], a * start[1] + b * pull[1] + c * stop[1]))
    return points


def _ring(center: Point, radii: Point) -> Line:
    return arc(center, radii, 0, 360)


_OVAL = [*arc((0.25, 0.25), (0.25, 0.25), 180, 360), *arc((0.25, 0.75), (0.25, 0.25), 0, 180), (0.0, 0.25)]

# Center lines; a glyph is one unit high, y points down. The width is that of the lines.
_GLYPHS: dict[str, list[Line]] = {
    "0": [_OVAL],
    "1": [[(0.0, 0.24), (0.26, 0.0), (0.26, 1.0)]],
    "2": [[*arc((0.25, 0.25), (0.25, 0.25), 190, 400), (0.0, 1.0), (0.5, 1.0)]],
    "3": [[*arc((0.25, 0.24), (0.24, 0.24), 200, 450), *arc((0.25, 0.74), (0.25, 0.26), 270, 520)]],
    "5": [[(0.46, 0.0), (0.07, 0.0), (0.03, 0.47), *arc((0.24, 0.68), (0.26, 0.32), 222, 510)]],
    "6": [_ring((0.25, 0.69), (0.25, 0.31)), _bend((0.0, 0.69), (0.0, 0.32), (0.38, 0.0))],
    "7": [[(0.0, 0.0), (0.5, 0.0), (0.17, 1.0)]],
    "8": [_ring((0.25, 0.23), (0.21, 0.23)), _ring((0.25, 0.73), (0.25, 0.27))],
    "S": [[*arc((0.25, 0.25), (0.25, 0.25), 330, 90), *arc((0.25, 0.75), (0.25, 0.25), 270, 510)]],
    "T": [[(0.0, 0.0), (0.54, 0.0)], [(0.27, 0.0), (0.27, 1.0)]],
    "O": [_OVAL],
    "P": [[(0.0, 1.0), (0.0, 0.0), (0.22, 0.0), *arc((0.22, 0.27), (0.26, 0.27), 270, 450), (0.0, 0.54)]],
}


def thick(draw: ImageDraw.ImageDraw, line: Sequence[Point], width: float, fill: Color) -> None:
    """Draw a polyline with round joints and round ends, ``width`` pixels wide."""
    draw.line(list(line), fill=fill, width=max(1, round(width)))
    radius = width / 2
    for x, y in line:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def lettering(
    draw: ImageDraw.ImageDraw, text: str, center: Point, size: tuple[float, float], stroke: float, fill: Color
) -> None:
    """Write ``text`` into the box of ``size`` (width, height) pixels around ``center``, strokes ``stroke`` pixels wide.

    The letters are stretched to fill the box, as condensed faces are on signs with three digits.
    """
    glyphs = [_GLYPHS[character] for character in text]
    widths = [max(x for line in glyph for x, _ in line) for glyph in glyphs]
    tall = size[1] - stroke
    wide = (size[0] - stroke * len(text)) / (sum(widths) + _GAP * (len(text) - 1))
    left = center[0] - size[0] / 2 + stroke / 2
    top = center[1] - tall / 2
    for glyph, width in zip(glyphs, widths, strict=True):
        for line in glyph:
            thick(draw, [(left + x * wide, top + y * tall) for x, y in line], stroke, fill)
        left += (width + _GAP) * wide + stroke
