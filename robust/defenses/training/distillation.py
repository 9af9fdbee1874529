"""Defensive distillation. It masks gradients and gives no robustness; it is here so that this can be shown."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.history import Hardened
from robust.defenses.training.validation import Held
from robust.errors import InputError

if TYPE_CHECKING:
    from robust.data import ImageSet
    from robust.progress import Progress


@dataclass(frozen=True)
class DefensiveDistillation(Defense):
    """A teacher trained with its logits divided by ``temperature``, then a student on the teacher's soft labels.

    Both have the model's architecture and, by default, start from new weights. The student is deployed at temperature
    1, where its logits are so large that the softmax saturates: in float32 the gradient of the cross-entropy is zero,
    and attacks that follow it fail. Attacks on the logits (margin, C&W), on the softmax with the temperature put back,
    from another model or by queries do not (Carlini and Wagner, S&P 2017, section VIII): gradient masking.

    Source: Papernot et al., S&P 2016, section IV.
    """

    _: KW_ONLY
    temperature: float = 20.0
    optimizer: str = "adamw"
    fresh: bool = True
    guard: bool = False
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)

    name: ClassVar[str] = "distillation"
    source: ClassVar[str] = "Papernot et al., S&P 2016"
    measure: ClassVar[str] = "clean (PGD would be misled)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.temperature <= 1e4:
            raise InputError(f"temperature {self.temperature}: give a number of at least 1, such as 20")

    def attack(self, batch: Batch) -> Tensor:
        return batch.images

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        logits = batch.network(points) / self.temperature
        if self.teacher is None:
            truth = batch.labels
        else:
            with torch.no_grad():
                truth = (self.teacher(points) / self.temperature).softmax(1)
        # Times the temperature: the gradient at the logits is then as large as in ordinary training.
        return self.temperature * F.cross_entropy(logits, truth)

    def robust_accuracy(self, held: Held, network: Network) -> float:
        return held.clean(network)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "teacher": "given" if self.teacher is not None else "trained first"}

    def fit(
        self, model: nn.Module, train: ImageSet | Any, validation: ImageSet | Any = None, *,
        out: str | Path | None = None, progress: Progress | None = None,
    ) -> Hardened:  # fmt: skip
        """As :meth:`Defense.fit`; the teacher, trained first, has its own folder ``teacher`` in ``out``."""
        if self.teacher is not None:
            return super().fit(model, train, validation, out=out, progress=progress)
        folder = None if out is None else Path(out)
        taught = super().fit(model, train, validation, out=folder and folder / "teacher", progress=progress)
        teacher = copy.deepcopy(taught.model).eval().requires_grad_(False)
        student = replace(self, teacher=teacher, seed=self.seed + 1)
        return super(DefensiveDistillation, student).fit(model, train, validation, out=out, progress=progress)
