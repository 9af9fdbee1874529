"""A print to be cut out and stuck on: PNG and PDF of a stated size in centimeters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from robust.errors import InputError
from robust.photos.composing import Print
from robust.photos.lettering import as_picture
from robust.photos.outline import Floats
from robust.places import written_whole

_MARGIN, _A4 = 1.5, (21.0, 29.7)
_RULER = 5.0
LARGEST_PIXELS = 20_000


@dataclass(frozen=True)
class Piece:
    """One piece to cut out: ``colors`` (h, w, 3), ``cover`` (h, w), its size in cm, and where its middle goes on the
    sign, in cm from the sign's left and top edges."""

    colors: Floats
    cover: Floats
    width: float
    height: float
    across: float
    down: float


def pieces(print_: Print, sign_cm: float) -> list[Piece]:
    """The separate pieces of a print on a sign ``sign_cm`` wide, from top to bottom.

    Raises InputError for a size that is not positive.
    """
    if not 0 < sign_cm < 10_000:
        raise InputError(f"a sign of {sign_cm:g} cm: give its width in cm, such as 75")
    parts, count = ndimage.label(print_.cover > 0.02)
    height, width = print_.cover.shape
    scale_x = float(np.linalg.norm(print_.place[:2, 0])) * sign_cm / width
    scale_y = float(np.linalg.norm(print_.place[:2, 1])) * sign_cm / height
    found = []
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        rows, columns = box
        cover = np.where(parts[box] == number, print_.cover[box], 0.0)
        middle = print_.place @ [(columns.start + columns.stop) / 2 / width, (rows.start + rows.stop) / 2 / height, 1]
        found.append(
            Piece(
                print_.colors[box], cover, cover.shape[1] * scale_x, cover.shape[0] * scale_y,
                float(middle[0]) * sign_cm, float(middle[1]) * sign_cm,
            )
        )  # fmt: skip
    if count == 0:
        raise InputError("the print covers nothing")
    return found


def pixels_of(centimeters: float, dpi: int) -> int:
    return max(1, round(centimeters / 2.54 * dpi))


def raster_size(piece: Piece, dpi: int) -> tuple[int, int]:
    """Width and height in pixels of the piece at its size. Raises InputError for a resolution that makes no picture."""
    if not 1 <= dpi <= 2400:
        raise InputError(f"--dpi {dpi}: give dots per inch from 1 to 2400, such as 300")
    size = pixels_of(piece.width, dpi), pixels_of(piece.height, dpi)
    if max(size) > LARGEST_PIXELS:
        raise InputError(f"--dpi {dpi}: a print of {size[0]}x{size[1]} pixels is too large; lower it or --size-cm")
    return size


def raster(piece: Piece, dpi: int) -> Image.Image:
    """The piece at its size: its own pixels as squares, white paper where nothing is printed.

    Raises InputError for a resolution that makes no picture.
    """
    printed = 1 + piece.cover[..., None] * (piece.colors - 1)
    return as_picture(printed).resize(raster_size(piece, dpi), Image.Resampling.NEAREST)


def write_png(piece: Piece, dpi: int, path: Path) -> None:
    """A PNG whose resolution is in it, so that it prints at its size."""
    with written_whole(path) as partial:
        raster(piece, dpi).save(partial, "PNG", dpi=(dpi, dpi), optimize=True)


def write_pdf(found: list[Piece], dpi: int, title: str, path: Path) -> None:
    """A PDF of one page a piece, each at its true size with a cutting line, a ruler and where it goes.

    A piece that is too large for an A4 sheet gets a larger one.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    with written_whole(path) as partial, PdfPages(partial, metadata={"Title": title, "CreationDate": None}) as book:
        for number, piece in enumerate(found, 1):
            book.savefig(_page(piece, dpi, title, f"piece {number} of {len(found)}"), dpi=dpi)


def _page(piece: Piece, dpi: int, title: str, which: str):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    notes = 4.5  # cm below the piece
    wide = max(_A4[0], piece.width + 2 * _MARGIN)
    high = max(_A4[1], piece.height + 2 * _MARGIN + notes)
    figure = Figure(figsize=(wide / 2.54, high / 2.54))
    left, bottom = (wide - piece.width) / 2, high - _MARGIN - piece.height
    axes = figure.add_axes((left / wide, bottom / high, piece.width / wide, piece.height / high))
    axes.imshow(np.asarray(raster(piece, dpi)), interpolation="none", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, linestyle=(0, (6, 4)), color="0.4")
    lines = [
        f"{title}, {which}",
        f"{piece.width:.1f} x {piece.height:.1f} cm, {dpi} dpi. Print at 100 %, cut along the dashed line.",
        f"Its middle goes {piece.across:.1f} cm from the sign's left edge and {piece.down:.1f} cm from its top.",
    ]
    for number, line in enumerate(lines):
        figure.text(
            _MARGIN / wide, (bottom - 0.8 - 0.6 * number) / high, line, fontsize=9, color="0.2", va="top",
            parse_math=False,
        )  # fmt: skip
    ruler = figure.add_axes((_MARGIN / wide, (bottom - 3.6) / high, _RULER / wide, 0.4 / high))
    ruler.set_xlim(0, _RULER)
    ruler.set_ylim(0, 1)
    ruler.set_yticks([])
    ruler.set_xticks(range(int(_RULER) + 1))
    ruler.tick_params(labelsize=7, color="0.3", labelcolor="0.3")
    for side in ("top", "left", "right"):
        ruler.spines[side].set_visible(False)
    figure.text((_MARGIN + _RULER + 0.4) / wide, (bottom - 3.5) / high, "cm: measure this", fontsize=7, color="0.3")
    return figure
