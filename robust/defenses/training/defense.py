"""What all training defenses share: their settings, the two parts that make a method, and `fit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.defenses.training import augmentation, averaging, precision, schedule
from robust.defenses.training.augmentation import Augmentation
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.history import Hardened
from robust.errors import InputError, unknown
from robust.threats import ThreatModel

if TYPE_CHECKING:
    from robust.data import ImageSet
    from robust.defenses.training.validation import Held
    from robust.progress import Progress

OPTIMIZERS = {"sgd": 0.1, "adamw": 2e-3}


@dataclass(frozen=True)
class Defense(ABC):
    """A way of training: its settings, and ``attack`` and ``loss``, which alone set one method apart from another.

    ``hardened = PGDAdversarialTraining("linf:8/255", epochs=15).fit(model, train, validation)``

    Settings common to all:
        threat: what the model shall withstand, a threat model or text such as ``linf:8/255``.
        epochs, batch_size: passes over the training images; images a step.
        optimizer: ``sgd`` (Nesterov, momentum 0.9) or ``adamw``. learning_rate: its peak; by default 0.1 or 0.002.
        weight_decay, schedule: ``one-cycle``, ``cosine`` or ``constant``.
        averaging: the weights that are judged and kept: ``ema`` (with ``decay`` a step), ``swa`` or ``none``.
        awp: size of the adversarial weight perturbation relative to each weight's norm, such as 0.005; 0 for none.
        augment: names such as ``shift:2``, functions of a batch, or several of them.
        patience: stop after so many epochs without a better robust validation; None never.
        guard: watch for catastrophic overfitting, roll back, and go on more carefully.
        fresh: start from new random weights, not from the model's.
        clip: largest norm of the weights' gradient.
        seed, device, precision: the same data and seed give the same model on one machine with as many threads.
    """

    threat: ThreatModel | str
    _: KW_ONLY
    epochs: int = 15
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float | None = None
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    averaging: str = "ema"
    decay: float = 0.995
    awp: float = 0.0
    augment: str | Augmentation | Sequence[str | Augmentation] | None = None
    patience: int | None = None
    guard: bool = True
    fresh: bool = False
    clip: float = 5.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    name: ClassVar[str]
    source: ClassVar[str]
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    single_step: ClassVar[bool] = False
    guarded: ClassVar[bool] = True  # whether comparing FGSM with PGD says anything of this method
    measure: ClassVar[str] = "PGD-10"
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        threat = ThreatModel.parse(self.threat) if isinstance(self.threat, str) else self.threat
        object.__setattr__(self, "threat", threat)
        if threat.norm not in self.norms:
            raise InputError(f"{self.name} has no {threat.norm} form; it supports {', '.join(self.norms)}")
        if threat.eps == 0:
            raise InputError(f"threat {threat.text}: eps is 0, so there is nothing to withstand; give more")
        for kind, value, valid in (
            ("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, schedule.SCHEDULES),
            ("averaging", self.averaging, averaging.KINDS), ("precision", self.precision, precision.PRECISIONS),
        ):  # fmt: skip
            if value not in valid:
                raise unknown(kind, value, valid)
        augmentation.augmentation(self.augment)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, lowest in (("epochs", 1), ("batch_size", 2), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise InputError(f"{name} {value}: give at least {lowest}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} {value}: give a number above 0")
        for name in ("weight_decay", "awp"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} {getattr(self, name)}: give a number of at least 0")
        if not 0 <= self.decay < 1:
            raise InputError(f"decay {self.decay}: give a share of at least 0 and below 1, such as 0.995")

    # The method

    @abstractmethod
    def attack(self, batch: Batch) -> Tensor:
        """The points to train on, (N, C, H, W), made from the batch's images."""

    def loss(self, batch: Batch, points: Tensor) -> Tensor:
        """The mean loss of the batch at these points; gradients flow to the weights (and to the points)."""
        return F.cross_entropy(batch.network(points), batch.labels)

    def learn(self, batch: Batch, gradient: Tensor) -> None:  # noqa: B027 (most methods have nothing to learn here)
        """Told of the loss's gradient at the points after each step, where the method ``learns`` from it."""

    def robust_accuracy(self, held: Held, network: Network) -> float:
        """The cheap fixed measure that chooses the best epoch, a share."""
        return held.under_pgd(network)

    def deployed(self, model: nn.Module, shape: tuple[int, int]) -> nn.Module:
        """The trained ``model`` as it is meant to be used, on images of this height and width: itself, or behind a
        defense that changes inference."""
        return model

    @property
    def behind(self) -> str | None:
        """What ``deployed`` puts the model behind, as ``--behind`` of `robust audit` writes it; None for nothing."""
        return None

    @property
    def uses(self) -> int:
        """How many steps are taken on each batch."""
        return 1

    # Training

    @property
    def ball(self) -> ThreatModel:
        assert isinstance(self.threat, ThreatModel)
        return self.threat

    @property
    def peak_rate(self) -> float:
        return self.learning_rate or OPTIMIZERS[self.optimizer]

    def fitted(self, shape: tuple[int, int, int]) -> Defense:
        """The same for images of this (C, H, W) shape: a patch given in pixels becomes a share of their area."""
        return replace(self, threat=self.ball.fitted(shape))

    def settings(self) -> dict[str, Any]:
        """All settings as plain data; functions by their representation."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = (str, int, float, bool, type(None))
        return {name: value if isinstance(value, plain) else _text(value) for name, value in found.items()}

    def fit(
        self, model: nn.Module, train: ImageSet | Any, validation: ImageSet | Any = None, *,
        out: str | Path | None = None, progress: Progress | None = None,
    ) -> Hardened:  # fmt: skip
        """Train a copy of ``model`` on ``train`` and return the epoch that did best on ``validation``.

        Args:
            model: from images in [0, 1] to logits; stays as it is.
            train, validation: what :func:`robust.load_data` takes. Without validation a tenth of each class of the
                training images is held out.
            out: folder for checkpoint.pt and history.json; the same call there goes on where it was killed.

        Under torchrun all processes call this together and have the same model then; the first alone writes.

        Raises InputError for settings, models and data that cannot be trained with; RobustError where training diverges
        before anything worth keeping was found.
        """
        from robust.defenses.training.loop import train_model

        return train_model(self, model, train, validation, None if out is None else Path(out), progress)


def _text(value: Any) -> str:
    if isinstance(value, ThreatModel):
        return value.text
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, torch.Tensor):
        return "tensor"
    # Not the address of a function: the same settings must read the same in the next process.
    return value if isinstance(value, str) else getattr(value, "__qualname__", None) or repr(value)
