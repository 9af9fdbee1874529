"""N-FGSM: one step from a noisy image, without a way back."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from robust.defenses.training.batch import Batch
from robust.defenses.training.defense import Defense


@dataclass(frozen=True)
class NFGSM(Defense):
    """A step of ``step_size`` times eps from noise of ``noise`` times eps around the image, not clipped to the ball.

    Source: de Jorge et al., NeurIPS 2022, algorithm 1, with alpha = eps and k = 2 eps.
    """

    _: KW_ONLY
    noise: float = 2.0
    step_size: float = 1.0

    name: ClassVar[str] = "nfgsm"
    source: ClassVar[str] = "de Jorge et al., NeurIPS 2022"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    single_step: ClassVar[bool] = True

    def attack(self, batch: Batch) -> Tensor:
        eps = batch.threat.eps
        start = batch.noise(self.noise * batch.noise_scale * eps)
        return batch.ascend(start, batch.cross_entropy, 1, self.step_size * batch.step_scale * eps, inside=False)
