"""TRADES: accuracy, and agreement between an image and its surroundings."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.defenses.training.batch import Batch
from robust.defenses.training.defense import Defense


@dataclass(frozen=True)
class TRADES(Defense):
    """CE(x) + beta KL(p(x) || p(x')), where x' maximizes the divergence from a start beside x.

    Source: Zhang et al., ICML 2019, equation 5 and algorithm 1; beta 6 and 10 steps as for their CIFAR-10 model.
    """

    _: KW_ONLY
    beta: float = 6.0
    steps: int = 10
    step_size: float = 0.25

    name: ClassVar[str] = "trades"
    source: ClassVar[str] = "Zhang et al., ICML 2019"

    def attack(self, batch: Batch) -> Tensor:
        with batch.network.still(), torch.no_grad():
            clean = batch.network(batch.images).log_softmax(1)

        def loss(points: Tensor) -> Tensor:
            return divergence(clean, batch.network(points)).sum()

        # The divergence is flat at x itself, so the start is a little beside it.
        start = (batch.images + 0.001 * batch.drawn(torch.randn_like)).clamp(0, 1)
        return batch.ascend(start, loss, self.steps, self.step_size * batch.threat.eps)

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        logits = batch.network(batch.images)
        apart = divergence(logits.log_softmax(1), batch.network(points)).mean()
        return F.cross_entropy(logits, batch.labels) + self.beta * apart


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) for each image, (N,): p by its logarithms ``clean`` (N, K), q by its ``logits`` (N, K)."""
    return F.kl_div(logits.log_softmax(1), clean, reduction="none", log_target=True).sum(1)
