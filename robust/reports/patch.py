"""The report of a patch as one HTML file, from its record and pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from robust.pixels import FloatImage
from robust.reports import formats
from robust.reports.gallery import picture
from robust.reports.page import page, write_page
from robust.reports.svg import GRID, MUTED, ROBUST, sheet

if TYPE_CHECKING:
    from robust.patches.photographs import Pictures

_SIDE, _MOST = 208, 40
_ROWS = {"patch": "The patch", "noise": "Noise, same area", "grey": "Grey, same area", "sticker": "A real label's look"}
_STRATA = {
    "distance": ("How far away", "times as far as in the data", "×"),
    "angle": ("From the side", "degrees to the side", "°"),
    "brightness": ("In which light", "brightness, as a factor", "×"),
    "rotation": ("Turned in the picture", "degrees", "°"),
    "scale": ("Size of the patch", "times its own size", "×"),
}


@dataclass(frozen=True)
class Shown:
    """One held-out image as the model was given it, without and with the patch, (C, H, W) in [0, 1]; its readings."""

    clean: FloatImage
    patched: FloatImage
    clean_reading: str
    patched_reading: str


def write_patch_report(
    record: dict[str, Any], patch: FloatImage, cover: FloatImage, shown: list[Shown], pictures: Pictures | None,
    path: Path,
) -> None:  # fmt: skip
    """Write the report to ``path`` in one step. Raises InputError where it cannot be written."""
    write_page(render(record, patch, cover, shown, pictures), path)


def render(
    record: dict[str, Any], patch: FloatImage, cover: FloatImage, shown: list[Shown], pictures: Pictures | None
) -> str:
    """The report as HTML text. ``patch``: (C, h, w), or (N, C, h, w), of which the first is shown; ``cover`` (h, w)."""
    goal = "targeted" if record["target"] is not None else "untargeted"
    return page(
        "patch.html",
        {"share": formats.percent},
        {
            "record": record, "figures": record["figures"], "goal": goal, "headline": _headline(record, goal),
            "rows": [(_ROWS[name], row) for name, row in _rows(record)],
            "strata": _strata(record, goal), "tone": _tone(record, goal),
            "patch_picture": _patch_picture(patch if patch.ndim == 3 else patch[0], cover),
            "shown": [
                {
                    "clean": picture(one.clean), "patched": picture(one.patched), "reads": one.clean_reading,
                    "patched_reads": one.patched_reading, "fooled": one.patched_reading != record["source"],
                }
                for one in shown
            ],
            "history": Markup(history_figure("history", record["history"])),
            "gif": None if pictures is None else _uri(pictures.gif, "gif"),
            "pairs": [] if pictures is None else [_pair(*pair) for pair in pictures.pairs[:_MOST]],
            "conditions": _conditions(record["settings"]["conditions"]),
        },
    )  # fmt: skip


def _rows(record: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    figures = record["figures"]
    return [("patch", figures["patch"]), *figures["controls"].items()]


def _headline(record: dict[str, Any], goal: str) -> str:
    rate = record["figures"]["patch"][goal]
    kind, count = record["settings"]["kind"], record["settings"]["count"]
    what = {"stickers": "Stickers", "universal": "One patch", "per-image": "A patch for each sign"}[kind]
    what = "One sticker" if kind == "stickers" and count == 1 else what
    start = f"{what} on {record['settings']['area']:.0%} of the sign"
    source, target = record["source"], record["target"]
    end = f"“{source}” read as “{target}”" if target else f"“{source}” misread"
    if rate is None:
        return f"The model reads no clean “{record['source']}” right: nothing can be said of the patch."
    many = f"{formats.percent(rate['value'])} of views"
    return f"{start}: {end} in {many}."


def _tone(record: dict[str, Any], goal: str) -> str:
    """Whether the patch does more than the same area filled with anything else, beyond doubt."""
    rate = record["figures"]["patch"][goal]
    others = [row[goal]["high"] for row in record["figures"]["controls"].values() if row[goal] is not None]
    return "suspect" if rate is not None and rate["low"] > max(others, default=0.0) else "inconclusive"


def _strata(record: dict[str, Any], goal: str) -> list[dict[str, Any]]:
    """The strata by what they are of, in a fixed order."""
    found = []
    for key, (title, unit, sign) in _STRATA.items():
        parts = [part for part in record["figures"]["strata"] if part["of"] == key and part[goal] is not None]
        if parts:
            rows = [
                {"label": _range(part["low"], part["high"], sign), "rate": part[goal], "draws": part["draws"]}
                for part in parts
            ]
            found.append({"title": title, "unit": unit, "rows": rows})
    return found


def _range(low: float, high: float, sign: str) -> str:
    digits = 0 if sign == "°" else 2
    return f"{low:.{digits}f} to {high:.{digits}f}{sign}"


def _conditions(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Each condition that varies or acts, as the report's table has it."""
    names = {
        "distance": "Distance, times the data's own", "yaw": "From the side, degrees", "pitch": "From above, degrees",
        "roll": "Rotation, degrees", "zoom": "Size in the frame", "shift": "Shift, share of the frame",
        "brightness": "Brightness, factor", "contrast": "Contrast, factor", "gamma": "Gamma",
        "blur": "Blur, pixels", "noise": "Sensor noise", "jpeg": "JPEG quality",
    }  # fmt: skip
    still = {"distance": 1, "zoom": 1, "brightness": 1, "contrast": 1, "gamma": 1}
    rows = [
        (title, f"{given[key][0]:g} to {given[key][1]:g}")
        for key, title in names.items()
        if given.get(key) is not None and list(given[key]) != [still.get(key, 0)] * 2
    ]
    if given.get("eight_bit"):
        rows.append(("Color depth", "8 bits"))
    if given.get("relit"):
        rows.append(("Light on the patch", "between the sign's own black and white"))
    return rows or [("None", "the images as they are")]


def _patch_picture(patch: FloatImage, cover: FloatImage) -> str:
    """The patch, what is not patch left out, as a PNG of a fair size."""
    colors = patch if patch.shape[0] == 3 else np.repeat(patch[:1], 3, 0)
    pixels = np.concatenate([colors, np.clip(cover, 0, 1)[None]]).transpose(1, 2, 0)
    image = Image.fromarray(np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8), "RGBA")
    factor = max(1, 320 // max(image.size))
    return _encoded(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), "PNG")


def _pair(name: str, clean: Any, patched: Any) -> dict[str, Any]:
    return {
        "name": name, "clean": _photograph(clean.pixels), "patched": _photograph(patched.pixels),
        "reads": clean.reading, "patched_reads": patched.reading, "right": clean.right, "fooled": not patched.right,
    }  # fmt: skip


def _photograph(pixels: NDArray[np.floating]) -> str:
    image = Image.fromarray(np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8))
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG", quality=84)


def _encoded(image: Image.Image, kind: str, **settings: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **settings)
    return _uri(buffer.getvalue(), kind.lower())


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def history_figure(key: str, history: list[float]) -> str:
    """The success on each step's images (read as the target or, without one, misread), smoothed over steps."""
    steps = np.arange(1, len(history) + 1)
    span = max(1, len(history) // 30)
    smooth = np.convolve(np.pad(history, (span // 2, span - 1 - span // 2), "edge"), np.ones(span) / span, "valid")
    with sheet(key, 460, 250, (46, 70, 30, 46)) as drawing:
        axes = drawing.axes
        axes.set_xlim(1, max(2, len(history)))
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.plot(steps, smooth, color=ROBUST, linewidth=2.2)
        axes.set_xlabel("step")
        drawing.text(1.02, float(smooth[-1]), formats.percent(float(smooth[-1])), color=ROBUST, bold=True, frame=True)
        drawing.text(-0.12, 1.1, "success on the images that it was made on", color=MUTED, frame=True)
        return drawing.svg(f"Success over {len(history)} steps, {formats.percent(float(smooth[-1]))} at the end.")
