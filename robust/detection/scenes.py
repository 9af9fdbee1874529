"""An object's picture as a camera takes it: patched, moved away in the frame, then under conditions, with its box."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.attacks.patch.placing import in_pixels, light_on, paste
from robust.attacks.patch.regions import Region
from robust.attacks.patch.transforms import Drawn, apply, homographies

# The frame in which a region lies on a box: a mask may be finer or coarser, and must be as square as this.
FRAME = (128, 128)


def patched(
    images: Tensor, boxes: Tensor, texture: Tensor, region: Region, drawn: Drawn, light: Tensor | None = None
) -> Tensor:
    """Images (N, 3, H, W) with the texture (3, h, w) on each box (N, 4), lit like it if the conditions say so.

    ``light``: what :func:`robust.attacks.patch.light_on` finds there, where that is known already.
    """
    if light is None and drawn.conditions.relit:
        light = light_on(images, boxes)
    corners = in_pixels(region.draw(drawn.seeds, drawn.turn).corners, boxes)
    return paste(images, texture, region.cover(FRAME).to(images), corners, light)


def seen(images: Tensor, boxes: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) and their objects' boxes (N, 4) under the ``drawn`` conditions; differentiable.

    Unlike for a classifier of crops, ``distance`` makes the whole picture smaller in its frame, as averages over areas,
    with the mean color of its edges around it. A box becomes that of the octagon which it holds.
    """
    near, placed = _further(images, boxes, drawn.distance)
    rest = replace(drawn, conditions=replace(drawn.conditions, distance=(1.0, 1.0)))
    return apply(near, rest), _carried(placed, homographies(drawn, (images.shape[-2], images.shape[-1])))


def _further(images: Tensor, boxes: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    (rows, high), (columns, wide) = (_shrinking(side, distance) for side in (height, width))
    rows, columns = rows.to(images)[:, None], columns.to(images)[:, None].transpose(-1, -2)
    edges = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1).detach()
    around = edges.mean(-1)[..., None, None]
    size = images.new_tensor([width, height] * 2)
    scale = torch.stack([wide, high] * 2, 1).to(images)
    return around + rows @ (images - around) @ columns, (boxes - size / 2) * scale + size / 2


def _shrinking(side: int, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (N, side, side) that average ``side`` values into the middle round(side / distance), and that share."""
    kept = (side / distance).round().long().clamp(1, side)
    # As even or odd as the side, so that the middle stays the middle.
    kept = (kept - (side - kept) % 2).clamp_min(2 - side % 2)
    eye = torch.eye(side, device=distance.device)[None]
    tables = {}
    for count in sorted(set(kept.tolist())):
        table = F.interpolate(eye[None], (side, count), mode="bilinear", antialias=True)[0, 0].T
        margin = (side - count) // 2
        tables[count] = F.pad(table, (0, 0, margin, margin))
    return torch.stack([tables[count] for count in kept.tolist()]), kept / side


def _carried(boxes: Tensor, matrices: Tensor) -> Tensor:
    """The boxes (N, 4) of the octagons in ``boxes`` after homographies (N, 3, 3) in pixels from the first's middle."""
    cut = (2**0.5 - 1) / 2
    edge = [(0.5 - cut, 0.0), (0.5 + cut, 0.0), (1.0, 0.5 - cut), (1.0, 0.5 + cut)]
    octagon = boxes.new_tensor(edge + [(1 - x, 1 - y) for x, y in edge])
    points = in_pixels(octagon.expand(len(boxes), 8, 2), boxes) - 0.5
    moved = F.pad(points, (0, 1), value=1.0) @ matrices.to(boxes).transpose(1, 2)
    flat = moved[..., :2] / moved[..., 2:] + 0.5
    return torch.cat([flat.amin(1), flat.amax(1)], 1)
