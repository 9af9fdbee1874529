"""What a training run leaves behind: one record an epoch, remarks, and the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from robust.places import write_text


@dataclass(frozen=True)
class Epoch:
    """One epoch. Accuracies are shares, of the held-out images unless said otherwise.

    loss: mean over the steps. clean: unattacked. robust: by the method's own cheap
    measure (PGD-10), which chooses the best epoch. fgsm and pgd: of the raw weights on the guard's images, null where
    not measured. rollbacks: by the guard so far. seconds: since the start, pauses left out; processor: the same in
    seconds of all the process's threads.
    """

    epoch: int
    loss: float
    clean: float
    robust: float
    fgsm: float | None
    pgd: float | None
    learning_rate: float
    step_scale: float
    noise_scale: float
    rollbacks: int
    seconds: float
    processor: float


@dataclass(frozen=True)
class History:
    """The record of a run: ``measure`` names the robust validation, ``best`` the epoch whose weights were kept."""

    method: str
    measure: str
    epochs: list[Epoch]
    best: int
    stopped: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.epochs[-1].seconds if self.epochs else 0.0

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.record(), indent=2) + "\n")


@dataclass(frozen=True)
class Hardened:
    """The result of a training: the model of the best epoch, in eval mode on its device, and how it came about."""

    model: nn.Module
    history: History
