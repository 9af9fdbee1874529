"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.defenses.training.batch import Batch
from robust.defenses.training.defense import Defense
from robust.errors import InputError

_KEPT = "delta"


@dataclass(frozen=True)
class FreeAdversarialTraining(Defense):
    """Each batch is trained on ``replays`` times; each time the same gradient moves weights and perturbation.

    The perturbation is carried over to the next batch. ``epochs`` counts passes over the images, replays among them, so
    that the same number of epochs is the same number of gradient passes as plain training.

    Source: Shafahi et al., NeurIPS 2019, algorithm 1, with 8 replays for CIFAR-10.
    """

    _: KW_ONLY
    replays: int = 8

    name: ClassVar[str] = "free"
    source: ClassVar[str] = "Shafahi et al., NeurIPS 2019"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    single_step: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replays < 1:
            raise InputError(f"replays {self.replays}: give at least 1")

    @property
    def uses(self) -> int:
        return self.replays

    def attack(self, batch: Batch) -> Tensor:
        delta = batch.memory.get(_KEPT)
        if delta is None:
            batch.memory[_KEPT] = delta = torch.zeros_like(batch.images if batch.whole is None else batch.whole)
        points = batch.images + delta[batch.start :][: len(batch.images)]
        return batch.threat.geometry.project(points, batch.images, batch.threat.eps)

    def learn(self, batch: Batch, gradient: Tensor) -> None:
        geometry, eps = batch.threat.geometry, batch.threat.eps
        points = geometry.steepest(gradient, self.attack(batch), eps * batch.step_scale)
        batch.memory[_KEPT][batch.start :][: len(points)] = geometry.project(points, batch.images, eps) - batch.images
