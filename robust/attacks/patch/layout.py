"""Where on a sign a patch or stickers do most: short runs on many layouts, the best of them longer."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from robust.attacks.base import Model
from robust.attacks.patch.optimize import PatchAttack, train_patch
from robust.attacks.patch.regions import OnSign, rectangle
from robust.attacks.patch.transforms import Conditions
from robust.errors import InputError
from robust.progress import Progress, Silent

# Steps of a short run, and one in how many of the layouts goes on to twice as many. What follows is in shares of the
# sign's frame: shifts of a single piece from its middle, distances of several from each other; then proportions, lines.
_STEPS, _KEPT = 15, 3
_SHIFTS = (-0.3, -0.15, 0.0, 0.15, 0.3)
_SPACINGS = (0.25, 0.4, 0.55)
_ASPECTS = (0.5, 1.0, 2.0, 3.0)
_LINES = ((0.0, 1.0), (1.0, 0.0), (math.sqrt(0.5), math.sqrt(0.5)), (math.sqrt(0.5), -math.sqrt(0.5)))


def layouts(sign: Tensor, area: float, count: int = 1) -> list[Tensor]:
    """Masks (H, W) of ``count`` equal rectangles on a ``sign`` (H, W), together ``area`` of the sign's own area.

    One rectangle: of several proportions, on a grid over the sign. More: in a row, a column or a diagonal. Only those
    that lie wholly on the sign and do not touch each other. Raises InputError where there is none.
    """
    if not (0 < area < 1) or count < 1:
        raise InputError(
            f"a patch on a sign needs an area between 0 and 1 and at least one piece, not {area:g}, {count}"
        )
    height, width = sign.shape
    each = float(sign.mean()) * area / count
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None].expand(height, width)
    weight = sign / sign.sum().clamp_min(1e-6)
    middle = (float((columns * weight).sum() + 0.5) / width, float((rows * weight).sum() + 0.5) / height)
    found = []
    for centers, aspect in itertools.product(_groups(count), _ASPECTS):
        try:
            pieces = [rectangle(height, width, each, (middle[0] + x, middle[1] + y), aspect) for x, y in centers]
        except InputError:
            continue
        mask = torch.stack(pieces).sum(0)
        outside = float((mask * (sign < 0.5)).sum()) > 0.02 * float(mask.sum())
        if not outside and float(mask.max()) <= 1.0001:
            found.append(mask.clamp(max=1))
    if not found:
        raise InputError(
            f"{count} piece(s) on together {area:.3g} of the sign's area do not fit on it: lower the area or the count"
        )
    return found


def choose_layout(
    model: Model,
    images: Tensor,
    labels: Tensor,
    target: int | None,
    masks: list[Tensor],
    conditions: Conditions | None = None,
    attack: PatchAttack | None = None,
    *,
    boxes: Tensor | None = None,
    progress: Progress | None = None,
) -> tuple[OnSign, float]:
    """Of ``masks``, the region on which a patch misleads most, and the mean gain it reached in its last trial.

    Every mask gets a short run of :func:`train_patch` with ``attack``'s settings; the better third goes on to one of
    twice the steps, until one is left. Arguments and errors as of train_patch.
    """
    if not masks:
        raise InputError("no layout to choose from: give at least one mask")
    attack, progress = attack or PatchAttack(), progress or Silent()
    left, steps = [(OnSign(mask), 0.0) for mask in masks], _STEPS
    while True:
        progress.stage("layouts", len(left))
        trial = replace(attack, steps=steps, restarts=1, per_image=False)
        scored = []
        for region, _ in left:
            result = train_patch(model, images, labels, target, region, conditions, trial, boxes=boxes)
            tail = result.gains[-max(1, steps // 3) :]
            scored.append((region, sum(tail) / len(tail)))
            progress.advance(1)
        left = sorted(scored, key=lambda pair: -pair[1])[: max(1, len(scored) // _KEPT)]
        if len(left) == 1:
            return left[0]
        steps *= 2


def _groups(count: int) -> list[list[tuple[float, float]]]:
    """Offsets (x, y) of the pieces' middles from the sign's."""
    if count == 1:
        return [[(x, y)] for x, y in itertools.product(_SHIFTS, _SHIFTS)]
    groups = []
    for (dx, dy), spacing in itertools.product(_LINES, _SPACINGS):
        places = [(index - (count - 1) / 2) * spacing for index in range(count)]
        groups.append([(place * dx, place * dy) for place in places])
    return groups
