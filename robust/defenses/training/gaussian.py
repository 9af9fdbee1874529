"""Training with Gaussian noise, for a randomized-smoothing certificate."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.validation import Held
from robust.errors import InputError


@dataclass(frozen=True)
class GaussianTraining(Defense):
    """Cross-entropy at images with Gaussian noise of deviation ``sigma`` (in [0, 1] pixel units); not clipped.

    The model is meant to be smoothed with the same sigma and certified; its best epoch is the one most often right
    under that noise. ``threat`` is only what the audit judges it by.

    Source: Cohen, Rosenfeld and Kolter, ICML 2019, section 3.3 (Lecuyer et al., S&P 2019).
    """

    _: KW_ONLY
    sigma: float = 0.25

    name: ClassVar[str] = "gaussian"
    source: ClassVar[str] = "Cohen et al., ICML 2019"
    measure: ClassVar[str] = "under noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma <= 10:
            raise InputError(f"sigma {self.sigma}: give a number above 0 in [0, 1] pixel units, such as 0.25")

    def attack(self, batch: Batch) -> Tensor:
        return batch.images + self.sigma * batch.drawn(torch.randn_like)

    def robust_accuracy(self, held: Held, network: Network) -> float:
        return held.under_noise(network, self.sigma)
