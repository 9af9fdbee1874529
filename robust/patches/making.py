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
    measure_patch,
    printed,
    train_patch,
)  # fmt: skip
from robust.counting import CountedModel
from robust.describing import circumstances, describe_data, describe_model, name_of
from robust.errors import InputError
from robust.models import check_model, identify, load_model
from robust.patches.photographs import as_print, check_prints, on_photographs, sign_outline, sign_width, write_prints
from robust.patches.record import examples, figures, places, plain
from robust.patches.setup import SHAPES, Sources, Spot, class_name, class_of, gather, spot
from robust.patches.state import STATE, Meter, fingerprint, load_state, save_state
from robust.photos.camera import View
from robust.photos.photographs import Photograph, load_photographs
from robust.photos.trial import ANGLES, DISTANCES
from robust.places import check_folder, write_text, written_whole
from robust.progress import Progress, Silent
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
    named = conditions if isinstance(conditions, str) else "own"
    seen = Conditions.named(conditions) if isinstance(conditions, str) else conditions
    inks = _palette(palette, nps)
    attack = PatchAttack(
        steps=steps, batch=batch, nps=nps, tv=tv, palette=inks, per_image=kind == "per-image", seed=seed
    )  # fmt: skip
    _check_numbers(draws, distances, angles, size_cm)
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(place)
    sources, truth = gather(data, train_data, source, kind=kind, limit=limit, resize=resize, seed=seed)
    names = sources.data.class_names
    classes = check_model(network, sources.test[:8].to(place), sources.data.labels, len(names))
    goal = None if target is None else class_of("--target", target, names, classes)
    if goal == truth:
        raise InputError(f"--target {target}: is the source's own class; give another, or none for any other")
    where = spot(kind, mask, area, sign_share, count, layouts, (sources.test.shape[2], sources.test.shape[3]))
    where.region.cover((sources.test.shape[2], sources.test.shape[3]))
    if kind != "per-image":
        check_prints(where, (sources.test.shape[2], sources.test.shape[3]), size_cm, dpi)
    if inks is not None and sources.test.shape[1] != 3:
        raise InputError(f"--nps {nps:g}: printable colors need color images, not {sources.test.shape[1]} channels")
    held = _photographs(photos, mask, kind, sources)

    counted = CountedModel(network)
    train, test = sources.train.to(place), sources.test.to(place)
    ours = {
        "model": identify(network), "target": goal, "source": truth, "kind": kind, "area": area, "mask": str(mask),
        "sign_share": sign_share, "count": count, "layouts": layouts, "conditions": plain(seen), "steps": steps,
        "batch": batch,        "nps": nps, "tv": tv, "palette": None if inks is None else inks.tolist(), "seed": seed,
    }  # fmt: skip
    mark = fingerprint(ours, train)
    result, spent = _made(counted, train, truth, goal, where, seen, attack, mark, folder, progress)
    where = replace(where, region=result.region)
    patch = result.patch if inks is None else printed(result.patch, inks)
    patch = (patch * 255).round() / 255  # what is printed has 8 bits
    before = counted.passes

    progress.line(f"measuring on {len(test)} images, {draws} views of each")
    found = measure_patch(
        counted, test, torch.full((len(test),), truth), goal, patch, result.cover, where.region, seen, draws=draws,
        boxes=where.boxes(test), seed=seed + 1,
    )  # fmt: skip
    middle, where_best = places(counted, train, test, truth, goal, patch, result.cover, where, seen, seed)
    record = {
        "schema_version": 1, **circumstances(), "command": command,
        "model": describe_model(model, network, classes, name).model_dump(),
        "data": describe_data(sources.data, sources.data.available).model_dump() | {"tested": len(test)},
        "source": class_name(names, truth), "target": None if goal is None else class_name(names, goal),
        "settings": {**ours, "draws": draws, "limit": limit, "conditions_name": named, "area": where.area,
                     "made_on": len(train), "train_data": None if train_data is None else name_of(train_data),
                     "outline": sign_outline(mask if mask in SHAPES else "octagon")},
        "figures": figures(found), "places": where_best, "middle": list(middle or (0.5, 0.5)),
        "width": where.width * (where.region.side if isinstance(where.region, Anywhere) else 1.0),
        "history": [round(value, 4) for value in result.history],
        "cost": {"made": spent, "measured": {"forward": (counted.passes - before).forward}},
        "remarks": list(sources.remarks), "photographs": None, "print": None,
    }  # fmt: skip
    record["settings"].pop("palette")
    pictures = None
    folder.mkdir(parents=True, exist_ok=True)
    _save(patch, result.cover, folder)
    if kind != "per-image":
        title = f"{record['model']['name']}: {record['source']} to {record['target'] or 'another class'}"
        print_ = as_print(patch, result.cover, where, middle or (0.5, 0.5))
        sign_cm = sign_width(print_, size_cm)
        record["print"] = write_prints(print_, sign_cm, dpi, title, folder)
        if held:
            record["photographs"], pictures = on_photographs(
                counted, held, print_, names, source=truth, target=goal, size=(test.shape[2], test.shape[3]),
                share=sign_share, sign_cm=sign_cm, distances=distances, angles=angles, seed=seed, title=title,
                folder=folder, progress=progress,
            )  # fmt: skip
    record["cost"]["total_seconds"] = time.perf_counter() - started
    shown = examples(counted, test, found, patch, result.cover, where, seen, seed + 1, names)
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    write_patch_report(record, patch.cpu().numpy(), result.cover.cpu().numpy(), shown, pictures, folder / REPORT)
    return Patching(record, patch.cpu(), result.cover.cpu(), where.region, folder)


def _made(
    model: CountedModel, train: Tensor, truth: int, goal: int | None, where: Spot, seen: Conditions,
    attack: PatchAttack, mark: str, folder: Path, progress: Progress,
) -> tuple[PatchResult, dict[str, float]]:  # fmt: skip
    """The patch, gone on with where an earlier run left it; of stickers, where they lie is chosen first. Also what it
    cost, that earlier run included."""
    labels, boxes = torch.full((len(train),), truth), where.boxes(train)
    state = load_state(mark, folder, train.device) or {}
    mask, region = state.pop("mask", None), where.region
    meter = Meter(model, state.pop("spent", {}))
    if where.layouts:
        if mask is None:
            progress.line(f"choosing where {where.area:.0%} of the sign does most, of {len(where.layouts)} layouts")
            masks = list(where.layouts)
            region, _ = choose_layout(
                model, train, labels, goal, masks, seen, attack, boxes=boxes, progress=progress
            )  # fmt: skip
            save_state({"mask": region.mask, "spent": meter.read()}, mark, folder)
        else:
            region = OnSign(mask)

    def keep(state: dict[str, Any]) -> None:
        place = {"mask": region.mask} if isinstance(region, OnSign) else {}
        save_state({**state, **place, "spent": meter.read()}, mark, folder)

    if "step" in state:
        progress.line(f"going on after step {state['step']} of {attack.steps}")
    result = train_patch(
        model, train, labels, goal, region, seen, attack, boxes=boxes, progress=progress, state=state or None,
        keep=keep, keep_every=min(20, attack.steps),
    )  # fmt: skip
    return result, meter.read()


def _palette(given: str | Path | None, nps: float) -> Tensor | None:
    if given is None:
        return default_palette() if nps > 0 else None
    if not nps > 0:
        raise InputError(f"--palette {given}: is only used with --nps, such as --nps 0.3")
    return load_palette(given)


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
