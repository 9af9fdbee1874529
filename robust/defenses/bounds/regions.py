"""The set of images a bound speaks of: a linf or l2 ball inside the box [0, 1].

The evidence accepts a perturbation that is longer than eps by a rounding error, so the set here is larger by that and
a little more: whatever counts as an attack's success lies in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.threats import TOLERANCE, ThreatModel, per_image

NORMS = ("linf", "l2")
_LENGTH = 1e-5  # relative error allowed to a length computed in float32
_ROUNDS = 6


@dataclass(frozen=True)
class Region:
    """``lower`` to ``upper`` (N, C, H, W) is the box; ``radius`` (None for linf) the l2 radius around ``center``."""

    center: Tensor
    lower: Tensor
    upper: Tensor
    radius: float | None

    def minimum(self, coefficients: Tensor) -> Tensor:
        """The least value of each linear function over the set, or less: (N, S, C, H, W) to (N, S), in float64."""
        a = coefficients.flatten(2).double()
        low, high = self.lower.flatten(1).double()[:, None], self.upper.flatten(1).double()[:, None]
        box = torch.where(a > 0, a * low, a * high).sum(2)
        if self.radius is None:
            return box
        center = self.center.flatten(1).double()[:, None]
        return torch.maximum(box, (a * center).sum(2) + _ball_and_box(a, low - center, high - center, self.radius))


def region_of(images: Tensor, threat: ThreatModel) -> Region:
    """All that the threat model allows, for images (N, C, H, W). ``threat.norm`` is one of :data:`NORMS`."""
    reach = threat.eps * (1 + 2 * TOLERANCE) + 2 * TOLERANCE
    radius = None if threat.norm == "linf" else threat.eps * (1 + _LENGTH) + 2 * TOLERANCE
    reach = reach if radius is None else radius
    lower = torch.clamp(images - per_image(reach, images), min=-2 * TOLERANCE)
    upper = torch.clamp(images + per_image(reach, images), max=1 + 2 * TOLERANCE)
    return Region(images, lower, upper, radius)


def _ball_and_box(a: Tensor, low: Tensor, high: Tensor, radius: float) -> Tensor:
    """A lower bound of a . d over l2 length at most ``radius`` and low <= d <= high, by Lagrange duality.

    For every t > 0 the box-wise minimum of a . d + t (|d|^2 - radius^2) / 2 is one; t is found by fixed-point steps
    from the ball alone, where it is exact if the box does not bind.
    """
    best = torch.full(a.shape[:2], -torch.inf, dtype=a.dtype, device=a.device)
    t = a.norm(dim=2, keepdim=True).clamp_min(1e-30) / radius
    for _ in range(_ROUNDS):
        d = (-a / t).clamp(low, high)
        value = (a * d + t * d.square() / 2).sum(2) - t.squeeze(2) * radius**2 / 2
        best = torch.maximum(best, value)
        bound = (d == low) | (d == high)
        room = radius**2 - torch.where(bound, d.square(), 0).sum(2, keepdim=True)
        free = torch.where(bound, 0, a).norm(dim=2, keepdim=True)
        t = torch.where((room > 0) & (free > 0), free / room.clamp_min(1e-30).sqrt(), t / 2)
    return best
