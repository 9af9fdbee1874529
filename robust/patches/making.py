"""A patch for a model: made on some images of a class, measured on others, on photographs and against controls."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust.attacks.patch import (
    Anywhere,
    Conditions,
    OnSign,
    PatchAttack,
    PatchResult,
    Region,
    choose_layout,
    default_palette,
    load_palette,
    printed,
    train_patch,
)  # fmt: skip
from robust.counting import CountedModel
from robust.describing import circumstances, describe_data, describe_model
from robust.errors import InputError
from robust.float32 import exact_float32
from robust.models import check_model, identify, load_model
from robust.patches.photographs import (
    Pictures,
    Views,
    as_print,
    check_prints,
    on_photographs,
    sign_outline,
    sign_width,
    write_prints,
)  # fmt: skip
from robust.patches.record import examples, figures, measured, places, plain
from robust.patches.setup import SHAPES, Case, Sources, gather, goal_of, spot
from robust.patches.state import STATE, Meter, fingerprint, load_state, save_state
from robust.photos.camera import View
from robust.photos.composing import Print
from robust.photos.photographs import Photograph, load_photographs
from robust.photos.trial import ANGLES, DISTANCES
from robust.places import check_folder, write_text, written_whole
from robust.progress import Progress, Silent
from robust.reports.formats import class_name
from robust.reports.patch import write_patch_report
from robust.request import choose_device

RECORD, REPORT, PATCH = "patch.json", "report.html", "patch.npz"


@dataclass(frozen=True)
class Patching:
    """What `make_patch` gives back: the record that patch.json holds, and the patch (C, h, w) with its cover (h, w);
    with one per image the patch is (N, C, h, w)."""

    record: dict[str, Any]
    patch: Tensor
    cover: Tensor
    region: Region
    out: Path


@exact_float32()
def make_patch(
    model: str | Path | nn.Module, data: Any, *, source: str, target: str | None = None, train_data: Any = None,
    kind: str = "stickers", area: float = 0.1, mask: str = "octagon", sign_share: float = 0.8, count: int = 2,
    layouts: int = 24, conditions: str | Conditions = "physical", steps: int = 300, batch: int = 32,
    nps: float = 0.0, tv: float = 0.0, palette: str | Path | None = None, draws: int = 5,
    limit: int | None = None, photos: str | Path | None = None, distances: Sequence[float] = DISTANCES,
    angles: Sequence[float] = ANGLES, size_cm: float | None = None, dpi: int = 300, seed: int = 0,
    device: str = "auto", out: str | Path, weights: str | Path | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, resize: tuple[int, int] | None = None, trust: bool = False,
    name: str | None = None, command: str | None = None, progress: Progress | None = None,
) -> Patching:  # fmt: skip
    """Make a patch that a model takes for another class, and measure it on images that it was not made on.

    Args:
        model, data: as :func:`robust.load_model` and :func:`robust.load_data` take them.
        source, target: class names, or numbers; without a target, any other class will do.
        train_data: images to make the patch on. Default: a half of those in ``data``, and the other half measures it.
        kind: ``universal``, anywhere on the sign; ``stickers``, still on the sign; ``per-image``, another patch each.
        area: of the sign's. mask: the sign's shape, or a file of what stickers may change. sign_share: of the image's
            side, how much the sign takes. count: of stickers. layouts: of them to choose from, 1 for the usual
            one.
        conditions: a preset or a distribution of distance, angle, light, blur, noise and compression.
        steps, batch, nps, tv, palette: of the optimizer; with ``nps`` the patch is snapped to printable colors.
        draws: times that each image is seen. limit: measure a random sample of so many images.
        photos: folder of photographs of the sign, seen from ``distances`` (m) and ``angles`` (degrees).
        size_cm: printed width of the patch. Default: as its share of a sign of 75 cm comes to.
        out: folder for everything; the same call there goes on where it was stopped.

    Raises InputError for anything wrong with the arguments, the model or the data, before anything is written.
    """
    progress, started = progress or Silent(), time.perf_counter()
    place = choose_device(device)
    folder = check_folder(Path(out), STATE, "patch")
    assert folder is not None
    named, seen = ("own", conditions) if isinstance(conditions, Conditions) else (conditions, None)
    seen = seen or Conditions.named(named)
    inks = _palette(palette, nps)
    attack = PatchAttack(
        steps=steps, batch=batch, nps=nps, tv=tv, palette=inks, per_image=kind == "per-image", seed=seed
    )  # fmt: skip
    _check_numbers(draws, distances, angles, size_cm)
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(place)
    sources, truth = gather(data, train_data, source, kind=kind, limit=limit, resize=resize, seed=seed)
    names = sources.data.class_names
    classes = check_model(network, sources.test[:8].to(place), sources.data.labels, len(names))
    goal = goal_of(target, truth, names, classes)
    where = spot(kind, mask, area, sign_share, count, layouts, sources.size)
    where.region.cover(sources.size)
    _check_colors(nps, sources)
    if kind != "per-image":
        check_prints(where, sources.size, size_cm, dpi)
    held = _photographs(photos, mask, kind, sources)

    sources = replace(sources, train=sources.train.to(place), test=sources.test.to(place))
    case = Case(CountedModel(network), sources, truth, goal, where, seen, attack)
    ours = {
        "model": identify(network), "target": goal, "source": truth, "kind": kind, "area": area, "mask": str(mask),
        "sign_share": sign_share, "count": count, "layouts": layouts, "conditions": plain(seen), "steps": steps,
        "batch": batch, "nps": nps, "tv": tv, "palette": None if inks is None else inks.tolist(), "seed": seed,
    }  # fmt: skip
    result, spent = _made(case, _mark(ours, case), folder, progress)
    case = replace(case, where=replace(where, region=result.region))
    patch, cover = result.patch if inks is None else printed(result.patch, inks), result.cover
    patch = (patch * 255).round() / 255  # what is printed has 8 bits

    progress.line(f"measuring on {len(sources.test)} images, {draws} views of each")
    before = case.model.passes
    found = measured(case, patch, cover, draws)
    middle, where_best = places(case, patch, cover)
    forward = (case.model.passes - before).forward
    record = {
        "schema_version": 1, **circumstances(), "command": command,
        "model": describe_model(model, network, classes, name).model_dump(),
        "data": describe_data(sources.data, sources.data.available).model_dump() | {"tested": len(sources.test)},
        "source": class_name(names, truth), "target": None if goal is None else class_name(names, goal),
        "settings": {**ours, "draws": draws, "limit": limit, "conditions_name": named, "area": where.area,
                     "made_on": len(sources.train), "train_data": sources.train_name,
                     "outline": sign_outline(mask if mask in SHAPES else "octagon")},
        "figures": figures(found), "places": where_best, "middle": list(middle or (0.5, 0.5)),
        "width": where.width * (where.region.side if isinstance(where.region, Anywhere) else 1.0),
        "history": [round(value, 4) for value in result.history],
        "cost": {"made": spent, "measured": {"forward": forward}},
        "remarks": list(sources.remarks), "photographs": None, "print": None,
    }  # fmt: skip
    record["settings"].pop("palette")
    folder.mkdir(parents=True, exist_ok=True)
    _save(patch, cover, folder)
    pictures = None
    if kind != "per-image":
        print_ = as_print(patch, cover, case.where, middle or (0.5, 0.5))
        views = Views(held, distances, angles, sign_share, sign_width(print_, size_cm))
        pictures = _stuck(case, print_, views, dpi, record, folder, progress)
    record["cost"]["total_seconds"] = time.perf_counter() - started
    shown = examples(case, found, patch, cover)
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    write_patch_report(record, patch.cpu().numpy(), cover.cpu().numpy(), shown, pictures, folder / REPORT)
    return Patching(record, patch.cpu(), cover.cpu(), case.where.region, folder)


def _mark(settings: dict[str, Any], case: Case) -> str:
    """What tells this patch from all others, the mask that a file gave included."""
    region = case.where.region
    return fingerprint(settings, case.sources.train, *([region.mask] if isinstance(region, OnSign) else []))


def _made(
    case: Case, mark: str, folder: Path, progress: Progress
) -> tuple[PatchResult, dict[str, float]]:  # fmt: skip
    """The patch, gone on with where an earlier run left it; of stickers, where they lie is chosen first. Also what it
    cost, that earlier run included."""
    train, where, attack = case.sources.train, case.where, case.attack
    labels, boxes = torch.full((len(train),), case.truth), where.boxes(train)
    state = load_state(mark, folder, train.device) or {}
    mask, region = state.pop("mask", None), where.region
    meter = Meter(case.model, state.pop("spent", {}))
    if where.layouts and mask is None:
        progress.line(f"choosing where {where.area:.0%} of the sign does most, of {len(where.layouts)} layouts")
        region, _ = choose_layout(
            case.model, train, labels, case.goal, list(where.layouts), case.seen, attack, boxes=boxes,
            progress=progress,
        )  # fmt: skip
        save_state({"mask": region.mask, "spent": meter.read()}, mark, folder)
    elif where.layouts:
        region = OnSign(mask.cpu())

    def keep(state: dict[str, Any]) -> None:
        place = {"mask": region.mask} if isinstance(region, OnSign) else {}
        save_state({**state, **place, "spent": meter.read()}, mark, folder)

    if "step" in state:
        progress.line(f"going on after step {state['step']} of {attack.steps}")
    result = train_patch(
        case.model, train, labels, case.goal, region, case.seen, attack, boxes=boxes, progress=progress,
        state=state or None, keep=keep, keep_every=min(20, attack.steps),
    )  # fmt: skip
    return result, meter.read()


def _stuck(
    case: Case, print_: Print, views: Views, dpi: int, record: dict[str, Any], folder: Path, progress: Progress
) -> Pictures | None:
    """The files to print and, with photographs, what the model reads in them; both go into ``record``."""
    title = f"{record['model']['name']}: {record['source']} to {record['target'] or 'another class'}"
    record["print"] = write_prints(print_, views.sign_cm, dpi, title, folder)
    if not views.photographs:
        return None
    record["photographs"], pictures = on_photographs(case, print_, views, title=title, folder=folder, progress=progress)
    return pictures


def _palette(given: str | Path | None, nps: float) -> Tensor | None:
    if given is None:
        return default_palette() if nps > 0 else None
    if not nps > 0:
        raise InputError(f"--palette {given}: is only used with --nps, such as --nps 0.3")
    return load_palette(given)


def _check_colors(nps: float, sources: Sources) -> None:
    channels = sources.test.shape[1]
    if nps > 0 and channels != 3:
        raise InputError(f"--nps {nps:g}: printable colors need color images, not {channels} channels")


def _check_numbers(draws: int, distances: Sequence[float], angles: Sequence[float], size_cm: float | None) -> None:
    if draws < 1:
        raise InputError(f"--draws {draws}: give at least 1")
    if not distances or not angles:
        raise InputError("--distances and --angles: give at least one of each")
    for distance in distances:
        for angle in angles:
            View(distance, angle)
    if size_cm is not None and not 0 < size_cm <= 1000:
        raise InputError(f"--size-cm {size_cm:g}: give the printed width in cm, up to 1000")


def _photographs(photos: str | Path | None, mask: str, kind: str, sources: Sources) -> list[Photograph]:
    if photos is None:
        return []
    if kind == "per-image":
        raise InputError("--photos: a patch per image has no place on other photographs; choose another kind")
    if sources.test.shape[1] != 3:
        raise InputError(f"--photos: need a color model, but the data has {sources.test.shape[1]} channels")
    return load_photographs(photos, mask if mask in SHAPES else "octagon")


def _save(patch: Tensor, cover: Tensor, folder: Path) -> None:
    """The patch as numbers: ``patch`` (h, w, C) uint8, or (N, h, w, C), and ``cover`` (h, w) float32."""
    colors = (patch * 255).round().to("cpu", torch.uint8).movedim(-3, -1).numpy()
    with written_whole(folder / PATCH) as partial, partial.open("wb") as file:
        np.savez(file, patch=colors, cover=cover.cpu().numpy().astype(np.float32))
