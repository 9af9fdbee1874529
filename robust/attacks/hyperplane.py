"""The shortest way to a hyperplane inside the box [0, 1], in linf, l2 and l1, and FAB's step over it."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.threats import NORMS

_TINY = 1e-12


def step_over(
    points: Tensor, images: Tensor, gap: Tensor, normal: Tensor, norm: str, alpha_max: float = 0.1, eta: float = 1.05
) -> Tensor:
    """The points moved over the hyperplane gap + normal @ d = 0, partly from where they are and partly from the images.

    ``points`` and ``images`` (N, ...), ``gap`` (N,) and ``normal`` (N, D) at the points. ``eta`` says how far over, 1
    being just onto it; ``alpha_max`` is the largest weight of the step from the images, which is the larger the farther
    the hyperplane is from the points and the nearer to the images.

    Source: Croce and Hein, ICML 2020 (FAB), section 3.2.
    """
    current, image = points.flatten(1), images.flatten(1)
    needed = torch.cat([-gap, (normal * (current - image)).sum(1) - gap])
    moves = way_to_hyperplane(torch.cat([current, image]), normal.repeat(2, 1), needed, norm)
    near, far = (NORMS[norm].length(part).clamp_min(1e-8)[:, None] for part in moves.chunk(2))
    alpha = (near / (near + far)).clamp_max(alpha_max)
    from_current, from_image = moves.chunk(2)
    mixed = (current + eta * from_current) * (1 - alpha) + (image + eta * from_image) * alpha
    return mixed.clamp(0, 1).view_as(points)


def way_to_hyperplane(points: Tensor, normals: Tensor, needed: Tensor, norm: str) -> Tensor:
    """The moves d (N, D) of least ``norm`` with normals @ d = needed (row by row) and points + d in [0, 1].

    ``points`` and ``normals`` are (N, D), ``needed`` (N,). Where the box holds no such point, d goes as far as the box
    allows; where the normal is zero, d is zero.

    Source: Croce and Hein, ICML 2020 (FAB), section 3.1 and appendix A. Solved here without sorting in linf and l2.
    """
    scale = normals.abs().amax(1, keepdim=True)
    # The same hyperplane with a largest weight of 1: squares of tiny gradients are no float32 numbers.
    normals, needed = normals / scale.clamp_min(1e-38), needed[:, None] / scale.clamp_min(1e-38)
    direction = torch.where(needed >= 0, normals, -normals)
    needed = needed.abs()
    weights = direction.abs()
    room = torch.where(direction > 0, 1 - points, points).clamp_min(0) * (weights > 0)
    moved = _filled(weights, room, needed) if norm == "l1" else _leveled(weights, room, needed, norm)
    out_of_reach = (weights * room).sum(1, keepdim=True) <= needed
    return direction.sign() * torch.where(out_of_reach, room, moved)


def _leveled(weights: Tensor, room: Tensor, needed: Tensor, norm: str) -> Tensor:
    """m_i = min(level * pace_i, room_i) with weights @ m = needed; pace is 1 in linf and the weight itself in l2.

    weights @ m is concave and piecewise linear in the level, so Newton's steps from level 0 climb to the answer and
    reach it once the set of full values no longer changes.
    """
    pace = torch.ones_like(weights) if norm == "linf" else weights
    slopes = weights * pace
    full_at = torch.where(weights > 0, room / pace.clamp_min(_TINY), torch.zeros_like(room))
    level, full = torch.zeros_like(needed), torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(weights.shape[1]):
        held = (weights * room * full).sum(1, keepdim=True)
        slope = (slopes * ~full).sum(1, keepdim=True)
        level = torch.where(slope > 0, (needed - held) / slope.clamp_min(_TINY), level)
        now = (full_at <= level) | full
        if torch.equal(now, full):
            break
        full = now
    return torch.minimum(level.clamp_min(0) * pace, room)


def _filled(weights: Tensor, room: Tensor, needed: Tensor) -> Tensor:
    """The values of largest weight moved as far as they can, one after the other, until the sum is reached."""
    order = weights.argsort(dim=1, descending=True, stable=True)
    sorted_weights = weights.gather(1, order)
    gains = sorted_weights * room.gather(1, order)
    left = (needed - (gains.cumsum(1) - gains)).clamp_min(0)
    moved = torch.minimum(left / sorted_weights.clamp_min(_TINY), room.gather(1, order))
    return torch.zeros_like(room).scatter(1, order, moved)
