"""Noise of the sensor: Gaussian, photons, dead pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust.corruptions.draws import Draws
from robust.corruptions.severity import Row

_EXACT = 50.0
_PART = 1 << 16  # values at a time, so that they stay in the cache


def gaussian_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Independent normal noise on every value."""
    return images + constants[0] * draws.normal(0, *images.shape[1:])


def shot_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """Every value is a count of photons: Poisson around the true one."""
    photons = constants[0]
    counts = poisson(images.double() * photons, draws.uniform(0, *images.shape[1:]).double())
    return counts.to(images.dtype) / photons


def impulse_noise(images: Tensor, constants: Row, draws: Draws) -> Tensor:
    """A share of all values is set to 0 or to 1, each as likely."""
    hit = draws.uniform(0, *images.shape[1:]) < constants[0]
    white = (draws.uniform(1, *images.shape[1:]) < 0.5).to(images.dtype)
    return torch.where(hit, white, images)


def poisson(rate: Tensor, uniform: Tensor) -> Tensor:
    """The Poisson quantile of ``uniform`` in [0, 1) at each ``rate``, both float64 of one shape.

    PyTorch's own sampler draws from a generator, where an image's numbers depend on its place in the batch. Up to a
    rate of 50 it is exact; above, the Cornish-Fisher expansion, in two values of a thousand one photon off.
    """
    parts = zip(torch.split(rate.flatten(), _PART), torch.split(uniform.flatten(), _PART), strict=True)
    low = [_exact(*part) for part in parts]
    deviate = torch.special.ndtri(uniform.clamp_min(2.0**-25))
    root = rate.sqrt()
    spread = deviate * root + (deviate**2 - 1) / 6 + (deviate - deviate**3) / (72 * root.clamp_min(1))
    return torch.where(rate > _EXACT, (rate + spread - 0.5).ceil().clamp_min(0), torch.cat(low).view_as(rate))


def _exact(rate: Tensor, uniform: Tensor) -> Tensor:
    rate = rate.clamp_max(_EXACT)
    highest = float(rate.max())
    mass = (-rate).exp()
    below = mass.clone()
    count = torch.zeros_like(rate)
    for k in range(1, math.ceil(highest + 6 * math.sqrt(highest) + 12)):
        count += uniform >= below
        mass *= rate / k
        below += mass
    return count
