"""Fast adversarial training: one step from a random start."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from robust.defenses.training.batch import Batch
from robust.defenses.training.defense import Defense


@dataclass(frozen=True)
class FastAdversarialTraining(Defense):
    """FGSM-RS: a step of ``step_size`` times eps from a random point of the ball, projected back into it.

    Source: Wong, Rice and Kolter, ICLR 2020, algorithm 3, with alpha = 1.25 eps.
    """

    _: KW_ONLY
    step_size: float = 1.25

    name: ClassVar[str] = "fast"
    source: ClassVar[str] = "Wong et al., ICLR 2020"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    single_step: ClassVar[bool] = True

    def attack(self, batch: Batch) -> Tensor:
        eps = batch.threat.eps
        start = batch.noise(eps * min(1.0, batch.noise_scale))
        return batch.ascend(start, batch.cross_entropy, 1, self.step_size * batch.step_scale * eps)
