"""Patches on photographs of real signs: composed at full resolution, then seen as a camera would see them.

    photographs = load_photographs("photos/")            # pixels, where the sign is, the light on it
    trial = try_photographs(model, photographs, {"patch": Print(colors, cover, place)}, size=(32, 32), share=0.8)

:mod:`robust.photos.outline` finds the sign and its homography, :mod:`lighting` its light, :mod:`camera` looks at it
from a distance and an angle; :mod:`sheet`, :mod:`animation` and :mod:`printable` make the pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.lazy import loader

if TYPE_CHECKING:
    from robust.photos.animation import approach, as_gif
    from robust.photos.camera import Camera, View
    from robust.photos.composing import Print, centered, composed
    from robust.photos.photographs import Photograph, load_photographs, photograph
    from robust.photos.printable import pieces, write_pdf, write_png
    from robust.photos.sheet import Look, contact_sheet
    from robust.photos.trial import Trial, try_photographs

_HOME = {
    "Camera": "camera", "Look": "sheet", "Photograph": "photographs", "Print": "composing", "Trial": "trial",
    "View": "camera", "approach": "animation", "as_gif": "animation", "centered": "composing",
    "composed": "composing", "contact_sheet": "sheet", "load_photographs": "photographs",
    "photograph": "photographs", "pieces": "printable", "try_photographs": "trial", "write_pdf": "printable",
    "write_png": "printable",
}  # fmt: skip

__all__ = [
    "Camera", "Look", "Photograph", "Print", "Trial", "View", "approach", "as_gif", "centered", "composed",
    "contact_sheet", "load_photographs", "photograph", "pieces", "try_photographs", "write_pdf", "write_png",
]  # fmt: skip


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
