"""The contact sheet: every photograph without and with the print, and what the model reads in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from robust.photos.lettering import INK, MUTED, PAPER, RIGHT, WRONG, as_picture, write
from robust.photos.outline import Floats

_SIDE, _GAP, _LINE = 176, 10, 20
_MARGIN, _HEAD = 24, 74


@dataclass(frozen=True)
class Look:
    """A photograph (H, W, 3), without or with a print, and the reading of it; ``right``: it is the sign's own class."""

    pixels: Floats
    reading: str
    right: bool


def contact_sheet(
    title: str, note: str, pairs: Sequence[tuple[str, Look, Look]], columns: int = 4
) -> Image.Image:  # fmt: skip
    """A picture of (name, clean, patched) ``pairs``, ``columns`` to a row."""
    columns = max(1, min(columns, len(pairs)))
    cell_width, cell_height = 2 * _SIDE + 4 + _GAP, _SIDE + 2 * _LINE + _GAP
    rows = -(-len(pairs) // columns)
    size = (2 * _MARGIN + columns * cell_width - _GAP, _HEAD + _MARGIN + rows * cell_height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (_MARGIN, 18), title, 20, INK, size[0] - 2 * _MARGIN, bold=True)
    write(draw, (_MARGIN, 46), note, 13, MUTED, size[0] - 2 * _MARGIN)
    for at, (name, clean, patched) in enumerate(pairs):
        left, top = _MARGIN + at % columns * cell_width, _HEAD + at // columns * cell_height
        for number, look in enumerate((clean, patched)):
            x = left + number * (_SIDE + 4)
            sheet.paste(thumbnail(look.pixels, _SIDE), (x, top))
            color = RIGHT if look.right else WRONG
            write(draw, (x, top + _SIDE + 3), look.reading, 13, color, _SIDE, bold=True)
        write(draw, (left, top + _SIDE + _LINE), name, 11, MUTED, 2 * _SIDE)
    return sheet


def thumbnail(pixels: Floats, side: int) -> Image.Image:
    """The photograph in a square of ``side`` pixels, paper where it does not fill it."""
    picture = as_picture(pixels)
    scale = side / max(picture.size)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
    )
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square
