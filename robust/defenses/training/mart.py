"""MART: like TRADES, with most weight on the images that are read wrong."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.defenses.training.batch import Batch
from robust.defenses.training.pgd import PGDAdversarialTraining
from robust.defenses.training.trades import divergence


@dataclass(frozen=True)
class MART(PGDAdversarialTraining):
    """BCE(x') + weight KL(p(x) || p(x')) (1 - p_y(x)), where BCE also pushes the likeliest wrong class down.

    Source: Wang et al., ICLR 2020, equations 8 to 12; weight 5, 10 steps.
    """

    _: KW_ONLY
    steps: int = 10
    weight: float = 5.0

    name: ClassVar[str] = "mart"
    source: ClassVar[str] = "Wang et al., ICLR 2020"

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        clean, logits = batch.network(batch.images).log_softmax(1), batch.network(points)
        wrong = logits.softmax(1).scatter(1, batch.labels[:, None], 0).amax(1)
        boosted = F.cross_entropy(logits, batch.labels, reduction="none") - torch.log1p(1e-4 - wrong)
        unsure = 1 - clean.gather(1, batch.labels[:, None]).squeeze(1).exp()
        return (boosted + self.weight * divergence(clean, logits) * unsure).mean()
