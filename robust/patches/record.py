"""What a patch's record says: figures of the measurement, the places where it works, pictures of what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from robust.attacks.patch import (
    Anywhere,
    Conditions,
    PatchMeasurement,
    Success,
    apply,
    in_pixels,
    light_on,
    paste,
    placement_map,
)  # fmt: skip
from robust.models import evaluating
from robust.patches.setup import Spot, class_name
from robust.randomness import image_seeds
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
    model: nn.Module, train: Tensor, test: Tensor, truth: int, goal: int | None, patch: Tensor, cover: Tensor,
    where: Spot, conditions: Conditions, seed: int,
) -> tuple[tuple[float, float] | None, dict[str, Any] | None]:  # fmt: skip
    """For a patch that may lie anywhere: the middle, on the flat sign, where it works best on the images it was made
    on; and how well it works at each place on the others. None and None for any other patch."""
    if not isinstance(where.region, Anywhere) or patch.dim() == 4:
        return None, None
    maps = []
    for images in (train[:_MAPPED], test[:_MAPPED]):
        rates, middles = placement_map(
            model, images, torch.full((len(images),), truth), goal, patch, cover, where.region, conditions,
            grid=_GRID, boxes=where.boxes(images), seed=seed + 2,
        )  # fmt: skip
        maps.append(rates.nan_to_num(0.0))
    best = divmod(int(maps[0].argmax()), _GRID)
    found = [where.on_sign(float(value)) for value in middles]
    middle = (found[best[1]], found[best[0]])
    record = {
        "middles": found, "success": maps[1].tolist(), "images": min(_MAPPED, len(test)),
        "side": where.region.side * where.width, "at_best": float(maps[1][best]),
    }  # fmt: skip
    return middle, record


def examples(
    model: nn.Module, test: Tensor, found: PatchMeasurement, patch: Tensor, cover: Tensor, where: Spot,
    conditions: Conditions, seed: int, names: Sequence[str],
) -> list[Shown]:  # fmt: skip
    """The first held-out images of which the clean sign was read right, as the model was given them in the first
    draw, without and with the patch: as they come, not the best."""
    rows = found.outcomes[:, 0, 0].nonzero().flatten()[:_EXAMPLES]
    if not len(rows):
        return []
    images, boxes, seeds = test[rows], where.boxes(test)[rows], image_seeds(test[rows], seed)
    drawn = conditions.draw(seeds, 0)
    light = light_on(images, boxes) if conditions.relit else None
    corners = in_pixels(where.region.draw(seeds, 0).corners, boxes)
    textures = patch if patch.dim() == 3 else patch[rows]
    with torch.no_grad(), evaluating(model):
        clean = apply(images, drawn)
        patched = apply(paste(images, textures, cover, corners, light), drawn)
        read = [model(part).argmax(1).tolist() for part in (clean, patched)]
    pairs = zip(clean, patched, read[0], read[1], strict=True)
    return [
        Shown(one.cpu().numpy(), other.cpu().numpy(), class_name(names, first), class_name(names, second))
        for one, other, first, second in pairs
    ]
