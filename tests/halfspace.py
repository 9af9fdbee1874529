"""A classifier whose smoothed form, and with it every certified radius, is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SIGMA, SHAPE = 0.25, (3, 4, 4)


class Halfspace(nn.Module):
    """Class 0 where w.(x - 1/2) > 0 with |w| = 1: smoothed, class 0's chance is Phi(distance / sigma) exactly."""

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(math.prod(SHAPE), generator=torch.Generator().manual_seed(3))
        self.weights = nn.Parameter(weights / weights.norm())

    def forward(self, images: Tensor) -> Tensor:
        score = (images - 0.5).flatten(1) @ self.weights
        return torch.stack([score, -score], 1) * 20

    def at(self, *distances: float) -> Tensor:
        """Images at these signed distances from the boundary."""
        normal = self.weights.detach().view(1, *SHAPE)
        return 0.5 + torch.tensor(distances).view(-1, 1, 1, 1) * normal
