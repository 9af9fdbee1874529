"""Noise of the sensor: Gaussian, photons, dead pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust.corruptions.draws import Draws
from robust.corruptions.severity import Row


def gaussian_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Independent normal noise on every value."""
    return images + constants[0] * draws.normal(0, *images.shape[1:])


def shot_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Every value is a count of photons: Poisson around the true one."""
    photons = constants[0]
    return poisson(images.double() * photons, draws.uniform(0, *images.shape[1:])).to(images.dtype) / photons


def impulse_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """A share of all values is set to 0 or to 1, each as likely."""
    hit = draws.uniform(0, *images.shape[1:]) < constants[0]
    white = (draws.uniform(1, *images.shape[1:]) < 0.5).to(images.dtype)
    return torch.where(hit, white, images)


def poisson(rate: Tensor, uniform: Tensor) -> Tensor:
    """The Poisson quantile of ``uniform`` in [0, 1) at each ``rate`` (float64, 0 to 700), same shape, float64.

    PyTorch's own sampler draws from a generator, where an image's numbers depend on its place in the batch.
    """
    uniform = uniform.double()
    highest = float(rate.max()) if rate.numel() else 0.0
    mass = (-rate).exp()
    below = mass.clone()
    count = torch.zeros_like(rate)
    for k in range(1, math.ceil(highest + 6 * math.sqrt(highest) + 12)):
        count += uniform >= below
        mass *= rate / k
        below += mass
    return count
