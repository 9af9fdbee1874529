"""A finished patch on real photographs and on paper: what the model reads, the pictures, the files to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust.attacks.patch import Anywhere, control
from robust.patches.setup import Case, Spot
from robust.photos.animation import approach, as_gif
from robust.photos.camera import Camera
from robust.photos.composing import Print, centered, composed
from robust.photos.outline import flat_corners
from robust.photos.photographs import Photograph
from robust.photos.printable import Piece, pieces, raster_size, write_pdf, write_png
from robust.photos.sheet import Look, contact_sheet
from robust.photos.trial import CLEAN, Trial, try_photographs, with_prints
from robust.places import written_whole
from robust.progress import Progress
from robust.reports.formats import class_name
from robust.stats import clopper_pearson

PATCH, STICKER = "patch", "sticker"
SHEET, GIF = "contact-sheet.png", "approach.gif"
SIGN_CM = 75.0


def as_print(patch: Tensor, cover: Tensor, spot: Spot, middle: tuple[float, float]) -> Print:
    """A patch (C, h, w) as it is stuck on the sign; one that may lie anywhere gets its middle at ``middle``."""
    colors = (patch if patch.shape[0] == 3 else patch[:1].expand(3, -1, -1)).permute(1, 2, 0).double().cpu().numpy()
    width = spot.width
    if isinstance(spot.region, Anywhere):
        width *= spot.region.side
    return Print(colors, cover.double().cpu().numpy(), centered(width, middle))


def width_on_sign(print_: Print) -> float:
    """The width of the whole print as a share of the sign's."""
    columns = np.nonzero((print_.cover > 0.02).any(0))[0]
    across = (int(columns.max()) + 1 - int(columns.min())) / print_.cover.shape[1]
    return float(across * np.linalg.norm(print_.place[:2, 0]))


def sign_width(print_: Print, size_cm: float | None) -> float:
    """The sign's width in cm where the print is ``size_cm`` wide; None: that of a usual stop sign."""
    return SIGN_CM if size_cm is None else size_cm / width_on_sign(print_)


def check_prints(spot: Spot, size: tuple[int, int], size_cm: float | None, dpi: int) -> None:
    """Raises InputError where a print of that size cannot be made, whichever layout will be chosen; ``size``: of the
    images, (H, W)."""
    for cover in spot.layouts or (spot.region.cover(size),):
        print_ = as_print(torch.zeros(3, *cover.shape), cover, spot, (0.5, 0.5))
        for piece in pieces(print_, sign_width(print_, size_cm)):
            raster_size(piece, dpi)


def write_prints(print_: Print, sign_cm: float, dpi: int, title: str, folder: Path) -> dict[str, Any]:
    """The PNG of every piece and one PDF; what the record says of them."""
    found = pieces(print_, sign_cm)
    files = []
    for number, piece in enumerate(found, 1):
        name = "patch.png" if len(found) == 1 else f"patch-{number}.png"
        write_png(piece, dpi, folder / name)
        files.append(name)
    write_pdf(found, dpi, title, folder / "patch.pdf")
    return {
        "sign_cm": sign_cm, "dpi": dpi, "pdf": "patch.pdf",
        "pieces": [_piece(piece, file) for piece, file in zip(found, files, strict=True)],
    }  # fmt: skip


def _piece(piece: Piece, file: str) -> dict[str, Any]:
    numbers = {name: round(getattr(piece, name), 2) for name in ("width", "height", "across", "down")}
    return {"file": file, **{f"{name}_cm": number for name, number in numbers.items()}}


@dataclass(frozen=True)
class Pictures:
    """Of the photographs, for the report: (name, clean look, patched look), and the animation's bytes."""

    pairs: list[tuple[str, Look, Look]]
    gif: bytes


@dataclass(frozen=True)
class Views:
    """Photographs, from how far (m) and from which side (degrees) each is seen, the share of the model's input that
    the sign takes, and the sign's width in cm."""

    photographs: Sequence[Photograph]
    distances: Sequence[float]
    angles: Sequence[float]
    share: float
    sign_cm: float


def on_photographs(
    case: Case, print_: Print, views: Views, *, title: str, folder: Path, progress: Progress
) -> tuple[dict[str, Any], Pictures]:
    """The model's readings of every photograph from every view; writes the contact sheet and the animation."""
    camera, photographs, names = Camera(sign=views.sign_cm / 100), views.photographs, case.names
    source, target, seed = case.truth, case.goal, case.attack.seed
    picture = control(STICKER, 3, print_.cover.shape, seed).permute(1, 2, 0).double().numpy()
    prints = {PATCH: print_, STICKER: Print(picture, print_.cover, print_.place)}
    trial = try_photographs(
        case.model, photographs, prints, size=case.size, share=views.share, camera=camera,
        distances=list(dict.fromkeys(views.distances)), angles=list(dict.fromkeys(views.angles)), seed=seed,
        progress=progress,
    )  # fmt: skip
    shown = _shown_view(trial)
    pairs = []
    for at, photograph in enumerate(photographs):
        clean, patched = (int(trial.classes[kind][at][shown]) for kind in (CLEAN, PATCH))
        pairs.append((
            photograph.name,
            Look(photograph.pixels, class_name(names, clean), clean == source),
            Look(composed(photograph, print_), class_name(names, patched), patched == source),
        ))  # fmt: skip
    view = f"{trial.distances[shown[0]]:g} m, {trial.angles[shown[1]]:+g} degrees".replace("+0 deg", "0 deg")
    with written_whole(folder / SHEET) as partial:
        contact_sheet(title, f"Readings from {view}; {camera.text}.", pairs).save(partial, "PNG", optimize=True)
    best = _most_telling(trial, photographs, source, target)
    frames, read = approach(
        with_prints(photographs[best], {PATCH: print_}), case.model, names, source=source, size=case.size,
        share=views.share, camera=camera, far=max(trial.distances), near=min(trial.distances), seed=seed,
    )  # fmt: skip
    gif = as_gif(frames)
    with written_whole(folder / GIF) as partial:
        partial.write_bytes(gif)
    record = trial_record(trial, source, target, names)
    record |= {
        "shown_view": view, "sheet": SHEET, "animation": GIF, "animated": photographs[best].name,
        "approach": [{"distance": round(d, 2), "clean": clean, "patched": patched} for d, clean, patched in read],
    }  # fmt: skip
    return record, Pictures(pairs, gif)


def trial_record(trial: Trial, source: int, target: int | None, names: Sequence[str]) -> dict[str, Any]:
    """The figures of a trial. Views of which the clean sign is not read right count for nothing."""
    counted = trial.counted(source)

    def fooled(kind: str, targeted: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
        read = trial.classes[kind]
        return np.asarray(counted & (read == target if targeted and target is not None else read != source))

    kinds = {}
    for kind in (PATCH, STICKER):
        hits, misses = fooled(kind, True), fooled(kind, False)
        kinds[kind] = {"views": int(counted.sum()), "targeted": int(hits.sum()) if target is not None else None,
                       "untargeted": int(misses.sum())}  # fmt: skip
    hits = fooled(PATCH, True)
    seen = counted.sum((1, 2))
    most = int(((hits.sum((1, 2)) * 2 >= seen) & (seen > 0)).sum())
    usable = int((seen > 0).sum())
    low, high = clopper_pearson(most, usable) if usable else (0.0, 1.0)
    cells = [
        {"distance": distance, "angle": angle, "counted": int(counted[:, i, j].sum()), "hits": int(hits[:, i, j].sum())}
        for i, distance in enumerate(trial.distances)
        for j, angle in enumerate(trial.angles)
    ]
    each = [
        {
            "name": name, "counted": int(seen[at]), "hits": int(hits[at].sum()),
            "reads": class_name(names, _most_frequent(trial.classes[PATCH][at])),
        }
        for at, name in enumerate(trial.names)
    ]  # fmt: skip
    return {
        "photographs": len(trial.names), "distances": trial.distances, "angles": trial.angles,
        "camera": {**asdict(trial.camera), "text": trial.camera.text}, "views": int(counted.size),
        "kinds": kinds, "cells": cells, "each": each,
        "mostly": {"value": most / usable if usable else 0.0, "low": low, "high": high, "numerator": most, "n": usable},
    }  # fmt: skip


def _most_frequent(classes: np.ndarray[Any, np.dtype[np.int64]]) -> int:
    found, counts = np.unique(classes, return_counts=True)
    return int(found[np.argmax(counts)])


def _shown_view(trial: Trial) -> tuple[int, int]:
    """The view of the contact sheet: nearest to 10 m, straight ahead."""
    distance = int(np.argmin(np.abs(np.log(np.array(trial.distances) / 10))))
    return distance, int(np.argmin(np.abs(np.array(trial.angles))))


def _most_telling(trial: Trial, photographs: Sequence[Photograph], source: int, target: int | None) -> int:
    """The photograph for the animation: among those read right when clean, and bright enough to look at, the median
    one by success, so that it flatters nobody."""
    counted = trial.counted(source)
    read = trial.classes[PATCH]
    hits = (counted & (read == target if target is not None else read != source)).sum((1, 2))
    whole = counted.sum((1, 2)) == counted[0].size
    bright = np.array([photograph.light.white.mean() > 0.5 for photograph in photographs])
    usable = np.flatnonzero(whole & bright)
    if not len(usable):
        usable = np.arange(len(photographs))
    return int(usable[np.argsort(hits[usable], kind="stable")][len(usable) // 2])


def sign_outline(shape: str) -> str:
    """The flat sign's outline as the points of an SVG polygon in the unit square; empty for a circle."""
    return "" if shape == "circle" else " ".join(f"{x:.4f},{y:.4f}" for x, y in flat_corners(shape))
