"""Adversarial training on projected gradient descent."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from robust.defenses.training.batch import Batch
from robust.defenses.training.defense import Defense


@dataclass(frozen=True)
class PGDAdversarialTraining(Defense):
    """Cross-entropy at the point that ``steps`` steps of ``step_size`` times eps reach from a random start.

    Source: Madry et al., ICLR 2018, equation 2.1; 7 steps of a quarter of eps as for their CIFAR-10 model.
    """

    _: KW_ONLY
    steps: int = 7
    step_size: float = 0.25

    name: ClassVar[str] = "pgd"
    source: ClassVar[str] = "Madry et al., ICLR 2018"

    def attack(self, batch: Batch) -> Tensor:
        eps = batch.threat.eps
        return batch.ascend(batch.noise(eps), batch.cross_entropy, self.steps, self.step_size * eps)
