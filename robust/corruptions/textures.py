"""Textures that stand for fog and frost, one for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.corruptions.draws import Draws

_FINEST = 96  # pixels on which ice is drawn for a smaller image
_TABLE = 256


def plasma(draws: Draws, side: int, smoothness: float, stream: int = 0) -> Tensor:
    """Diamond-square noise (N, M, M) from 0 to 1, M the next power of two, that wraps around.

    Each level is weaker by ``smoothness`` squared. Source: Fournier, Fussell and Carpenter, CACM 25 (1982).
    """
    size = 1 << (side - 1).bit_length()
    field = torch.zeros(len(draws.seeds), size, size, device=draws.seeds.device)
    step, wobble = size, 100.0

    def filled(total: Tensor) -> Tensor:
        nonlocal stream
        stream += 1
        return total / 4 + wobble**2 * (2 * draws.uniform(stream, *total.shape[1:]) - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = filled(pairs + pairs.roll(-1, 2))
        centers = field[:, half::step, half::step]
        field[:, ::step, half::step] = filled(centers + centers.roll(1, 1) + corners + corners.roll(-1, 2))
        field[:, half::step, ::step] = filled(centers + centers.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wobble = half, wobble / smoothness
    low, high = field.flatten(1).amin(1), field.flatten(1).amax(1)
    return (field - low.view(-1, 1, 1)) / (high - low).clamp_min(1e-12).view(-1, 1, 1)


def ice(draws: Draws, height: int, width: int) -> Tensor:
    """Frost on glass, (N, 3, H, W) in [0, 1]: crystals of needles at 60 degrees to each other, bluish gray to white.

    Its mean (0.44 to 0.80, by image), its contrast and its tint are those of photographs of frosted windows.
    """
    finer = max(1, math.ceil(_FINEST / min(height, width)))
    rows, columns = finer * height, finer * width
    coarse, fine = _needles(draws, rows, columns, 4, 14.0, 0), _needles(draws, rows, columns, 8, 30.0, 20)
    needles = F.avg_pool2d(torch.maximum(coarse, 0.8 * fine)[:, None], finer)
    cover = plasma(draws, max(height, width), 2.0, 64)[:, None, :height, :width]
    relief = needles * (0.4 + 0.6 * cover) + 0.5 * cover
    relief = relief - relief.mean((2, 3), keepdim=True)
    tone = draws.uniform(60).view(-1, 1, 1, 1)
    # Thin ice is dark, blue and rich in contrast; thick ice is white and even.
    tint = torch.tensor([-0.085, 0.01, 0.06], device=relief.device).view(3, 1, 1) * (1 - 0.6 * tone)
    return ((0.44 + 0.36 * tone) + tint + (0.75 - 0.35 * tone) * relief).clamp(0, 1)


def _needles(draws: Draws, height: int, width: int, crystals: int, fineness: float, stream: int) -> Tensor:
    """Needles (N, H, W) in [0, 1]: ridges along the three directions of the nearest crystal.

    ``crystals``: along the shorter side, each somewhere in its own square; ``fineness``: needles along that side.
    """
    device, short = draws.seeds.device, min(height, width)
    y = ((torch.arange(height, device=device) + 0.5) / short).view(-1, 1)
    x = ((torch.arange(width, device=device) + 0.5) / short).view(1, -1)
    rows, columns = (math.ceil(crystals * side / short) for side in (height, width))
    places = draws.uniform(stream, 2, rows, columns)
    down = ((torch.arange(rows, device=device).view(-1, 1) + places[:, 0]) / crystals).flatten(1)
    across = ((torch.arange(columns, device=device) + places[:, 1]) / crystals).flatten(1)
    nearest = torch.full((len(draws.seeds), height, width), torch.inf, device=device)
    owner = torch.zeros_like(nearest, dtype=torch.int64)
    for step_down in (-1, 0, 1):
        for step_across in (-1, 0, 1):
            row = ((y * crystals).long() + step_down).clamp(0, rows - 1)
            column = ((x * crystals).long() + step_across).clamp(0, columns - 1)
            candidate = row * columns + column
            away = (y - down[:, candidate]) ** 2 + (x - across[:, candidate]) ** 2
            owner = torch.where(away < nearest, candidate, owner)
            nearest = torch.minimum(away, nearest)

    def of_owner(values: Tensor) -> Tensor:
        return values.gather(1, owner.flatten(1)).view_as(nearest)

    down, across = y - of_owner(down), x - of_owner(across)
    turn = of_owner(draws.uniform(stream + 1, rows * columns)) * math.pi
    table = draws.uniform(stream + 2, _TABLE)
    best = torch.zeros_like(nearest)
    for number, share in enumerate((1.0, 0.75, 0.75)):
        angle = turn + number * math.pi / 3
        cosine, sine = angle.cos(), angle.sin()
        along, beside = across * cosine + down * sine, (down * cosine - across * sine) * fineness
        # A needle is as wide as one step beside it, and as long as several along it.
        lane = beside.floor()
        section = (along * fineness / 5 + 0.37 * lane).floor()
        place = (lane * 31 + section * 17 + owner * 7 + number * 5).long().remainder(_TABLE)
        strength = table.gather(1, place.flatten(1)).view_as(nearest)
        ridge = 1 - (2 * (beside - lane) - 1).abs()
        best = torch.maximum(best, share * strength**2 * ridge)
    return best
