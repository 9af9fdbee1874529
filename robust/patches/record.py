"""What a patch's record says: figures of the measurement, the places where it works, pictures of what was seen."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from robust.attacks.patch import (
    Anywhere,
    Conditions,
    PatchMeasurement,
    Success,
    apply,
    in_pixels,
    light_on,
    measure_patch,
    paste,
    placement_map,
)  # fmt: skip
from robust.models import evaluating
from robust.patches.setup import Case
from robust.randomness import image_seeds
from robust.reports.formats import class_name
from robust.reports.patch import Shown

_EXAMPLES, _MAPPED, _GRID = 8, 64, 7


def plain(conditions: Conditions) -> dict[str, Any]:
    """Conditions as JSON holds them."""
    return {
        field.name: list(value) if isinstance(value := getattr(conditions, field.name), tuple) else value
        for field in fields(conditions)
    }


def figures(found: PatchMeasurement) -> dict[str, Any]:
    """A measurement as JSON holds it."""
    return {
        "images": found.images,
        "draws": found.draws,
        "read": found.read.model_dump(),
        "patch": _success(found.patch),
        "controls": {name: _success(success) for name, success in found.controls.items()},
        "strata": [
            {"of": part.of, "low": part.low, "high": part.high, **_success(part.success)} for part in found.strata
        ],
    }


def _success(success: Success) -> dict[str, Any]:
    rates = {"targeted": success.targeted, "untargeted": success.untargeted}
    return {
        "draws": success.draws, **{name: None if rate is None else rate.model_dump() for name, rate in rates.items()}
    }  # fmt: skip


def places(
    case: Case, patch: Tensor, cover: Tensor
) -> tuple[tuple[float, float] | None, dict[str, Any] | None]:  # fmt: skip
    """For a patch that may lie anywhere: the middle, on the flat sign, where it works best on the images it was made
    on; and how well it works at each place on the others. None and None for any other patch."""
    where, tested = case.where, case.sources.test[:_MAPPED]
    if not isinstance(where.region, Anywhere) or patch.dim() == 4:
        return None, None
    maps = []
    for images in (case.sources.train[:_MAPPED], tested):
        rates, middles = placement_map(
            case.model, images, torch.full((len(images),), case.truth), case.goal, patch, cover, where.region,
            case.seen, grid=_GRID, boxes=where.boxes(images), seed=case.attack.seed + 2,
        )  # fmt: skip
        maps.append(rates.nan_to_num(0.0))
    best = divmod(int(maps[0].argmax()), _GRID)
    found = [where.on_sign(float(value)) for value in middles]
    middle = (found[best[1]], found[best[0]])
    record = {
        "middles": found, "success": maps[1].tolist(), "images": len(tested),
        "side": where.region.side * where.width, "at_best": float(maps[1][best]),
    }  # fmt: skip
    return middle, record


def measured(case: Case, patch: Tensor, cover: Tensor, draws: int) -> PatchMeasurement:
    """How often the patch misleads on the held-out images, in ``draws`` views of each."""
    test = case.sources.test
    return measure_patch(
        case.model, test, torch.full((len(test),), case.truth), case.goal, patch, cover, case.where.region, case.seen,
        draws=draws, boxes=case.where.boxes(test), seed=case.attack.seed + 1,
    )  # fmt: skip


def examples(case: Case, found: PatchMeasurement, patch: Tensor, cover: Tensor) -> list[Shown]:
    """The first held-out images of which the clean sign was read right, as the model was given them in the first
    draw of :func:`measured`, without and with the patch: as they come, not the best."""
    test, where = case.sources.test, case.where
    rows = found.outcomes[:, 0, 0].nonzero().flatten()[:_EXAMPLES]
    if not len(rows):
        return []
    images, boxes, seeds = test[rows], where.boxes(test)[rows], image_seeds(test[rows], case.attack.seed + 1)
    drawn = case.seen.draw(seeds, 0)
    light = light_on(images, boxes) if case.seen.relit else None
    corners = in_pixels(where.region.draw(seeds, 0).corners, boxes)
    textures = patch if patch.dim() == 3 else patch[rows]
    with torch.no_grad(), evaluating(case.model):
        clean = apply(images, drawn)
        patched = apply(paste(images, textures, cover, corners, light), drawn)
        read = [case.model(part).argmax(1).tolist() for part in (clean, patched)]
    pairs = zip(clean, patched, read[0], read[1], strict=True)
    return [
        Shown(one.cpu().numpy(), other.cpu().numpy(), class_name(case.names, first), class_name(case.names, second))
        for one, other, first, second in pairs
    ]
