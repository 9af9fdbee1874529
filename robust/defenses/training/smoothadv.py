"""Adversarial training of the smoothed classifier."""

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
class SmoothAdv(GaussianTraining):
    """Cross-entropy at noisy copies of a point that fools the smoothed classifier.

    The point maximizes -log of the mean of the softmax over ``draws`` copies with the same noise throughout, in
    ``steps`` steps of twice eps over steps. All copies are trained on.

    Source: Salman et al., NeurIPS 2019, equation 6 and pseudocode 1 and 2 (SmoothAdv-PGD).
    """

    _: KW_ONLY
    draws: int = 2
    steps: int = 2

    name: ClassVar[str] = "smoothadv"
    source: ClassVar[str] = "Salman et al., NeurIPS 2019"
    norms: ClassVar[tuple[str, ...]] = ("l2", "linf")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1 or self.steps < 1:
            raise InputError(f"smoothadv needs draws and steps of at least 1, not {self.draws} and {self.steps}")

    def attack(self, batch: Batch) -> Tensor:
        noise = self.sigma * batch.drawn(lambda like: torch.randn((self.draws, *like.shape), device=like.device), dim=1)

        def loss(points: Tensor) -> Tensor:
            logs = batch.network((points + noise).flatten(0, 1)).log_softmax(1).view(self.draws, len(points), -1)
            return F.nll_loss(logs.logsumexp(0), batch.labels, reduction="sum")

        size = 2 * batch.threat.eps / self.steps
        points = batch.ascend(batch.images, loss, self.steps, size)
        return (points + noise).flatten(0, 1)

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        return F.cross_entropy(batch.network(points), batch.labels.repeat(self.draws))
