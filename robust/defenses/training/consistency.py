"""Training with noise, where the copies of an image must agree."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.defenses.training.batch import Batch
from robust.defenses.training.gaussian import GaussianTraining
from robust.errors import InputError


@dataclass(frozen=True)
class ConsistencyTraining(GaussianTraining):
    """CE over ``draws`` noisy copies + weight mean KL(mean p || p_i) + entropy H(mean p).

    Source: Jeong and Shin, NeurIPS 2020, equation 8, with lambda (``weight``) 10 and eta (``entropy``) 0.5.
    """

    _: KW_ONLY
    draws: int = 2
    weight: float = 10.0
    entropy: float = 0.5

    name: ClassVar[str] = "consistency"
    source: ClassVar[str] = "Jeong and Shin, NeurIPS 2020"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 2:
            raise InputError(f"draws {self.draws}: consistency needs at least 2 copies to compare")

    def attack(self, batch: Batch) -> Tensor:
        def noise(like: Tensor) -> Tensor:
            return torch.randn_like(like.repeat(self.draws, 1, 1, 1)).view(self.draws, *like.shape)

        return (batch.images + self.sigma * batch.drawn(noise, dim=1)).flatten(0, 1)

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        logits = batch.network(points)
        logs = logits.log_softmax(1).view(self.draws, len(batch.labels), -1)
        mean = logs.exp().mean(0)
        log_mean = mean.clamp_min(1e-20).log()
        apart = (mean * (log_mean - logs)).sum(2).mean()
        unsure = -(mean * log_mean).sum(1).mean()
        fit = F.cross_entropy(logits, batch.labels.repeat(self.draws))
        return fit + self.weight * apart + self.entropy * unsure
