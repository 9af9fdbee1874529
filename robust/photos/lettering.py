"""Text in pictures."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robust.photos.outline import Floats

Color: TypeAlias = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (28, 33, 40)
MUTED: Color = (98, 108, 120)
RIGHT: Color = (16, 122, 80)
WRONG: Color = (196, 43, 28)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that it is the same everywhere."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, color: Color, width: float,
    bold: bool = False, anchor: str = "la",
) -> None:  # fmt: skip
    """Write one line, shortened in its middle until it is at most ``width`` pixels wide."""
    face, shown, cut = font(size, bold), text, 0
    while draw.textlength(shown, font=face) > width and cut < len(text) - 1:
        cut += 1
        keep = len(text) - cut
        shown = text[: (keep + 1) // 2].rstrip() + "…" + text[len(text) - keep // 2 :].lstrip()
    draw.text(at, shown, font=face, fill=color, anchor=anchor)


def as_picture(pixels: Floats) -> Image.Image:
    """(H, W, 3) in [0, 1] as an RGB picture."""
    return Image.fromarray(np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8))
