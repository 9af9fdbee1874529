"""What checks look at, and what they share: passes, gradients and attacks on a sample of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robust.attacks import PGD, PGDEOT
from robust.attacks.base import Attack, Goal, Loss, loss_and_gradient
from robust.calibration import first_line
from robust.draws import Averaged
from robust.errors import NoGradientError
from robust.memory import Fitting, OutOfMemory
from robust.models import evaluating
from robust.summary import CheckRecord
from robust.threats import ThreatModel

Weight = Literal["evidence", "advice"]


@dataclass(frozen=True)
class Sample:
    """Images (N, C, H, W) that are classified right unattacked, on the model's device.

    ``model`` is what attacks see. ``random`` says that it draws random numbers: it then is an average over draws, whose
    figures still move a little from call to call.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int
    batch_size: int
    random: bool = False
    results: dict[Attack, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def slack(self) -> int:
        """How many images may go astray by chance: one in 100 and at least one, of a random model one in 20."""
        return max(2, len(self) // 20) if self.random else max(1, len(self) // 100)


_DRAWS = 32

Check = Callable[[Sample], CheckRecord]


def sample_size(images: int) -> int:
    """How many of an audit's images checks look at: an eighth, but 32 to 128 where there are so many."""
    return min(images, max(32, min(128, images // 8)))


def record(
    name: str, title: str, passed: bool | None, detail: str, meaning: str, weight: Weight = "evidence"
) -> CheckRecord:
    return CheckRecord(name=name, title=title, passed=passed, detail=detail, meaning=meaning, weight=weight)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(images).float()  # type: ignore[no-any-return]


def gradient_of(sample: Sample, loss: Loss, points: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss (N,) and its gradient at ``points``, by default the images. Raises NoGradientError where there is none."""
    points = sample.images if points is None else points

    def look(piece: slice) -> tuple[Tensor, Tensor]:
        try:
            values, _, gradient = loss_and_gradient(sample.model, points[piece], Goal(sample.labels[piece]), loss)
        except OutOfMemory:
            raise
        except RuntimeError as error:
            raise NoGradientError(f"the model fails where a gradient is taken: {first_line(error)}") from error
        return values, gradient

    with evaluating(sample.model):
        values, gradients = zip(*Fitting(sample.batch_size).run(look, len(sample)), strict=True)
    return torch.cat(values), torch.cat(gradients)


def fooled(sample: Sample, points: Tensor) -> Tensor:
    """Which of ``points``, one per image, are misclassified, (N,) of 0 and 1; of a random model the share of draws."""
    parts = []
    if isinstance(sample.model, Averaged):
        with evaluating(sample.model), torch.no_grad():
            return sample.model.misread(points, sample.labels, _DRAWS)
    for start in range(0, len(sample), sample.batch_size):
        piece = slice(start, start + sample.batch_size)
        logits = logits_of(sample.model, points[piece])
        parts.append((logits.argmax(1) != sample.labels[piece]) & ~logits.isnan().any(1))
    return torch.cat(parts).double()


def broken(sample: Sample, attack: Attack) -> Tensor:
    """Which images an attack breaks, as :func:`fooled` says; none where it finds no gradient. Runs once per sample."""

    def attacked(piece: slice) -> Tensor:
        try:
            return attack(sample.model, sample.images[piece], sample.labels[piece])
        except OutOfMemory:
            raise
        except (NoGradientError, RuntimeError):  # the latter from a step outside of torch
            return sample.images[piece]

    if attack not in sample.results:
        found = torch.cat(Fitting(sample.batch_size).run(attacked, len(sample)))
        sample.results[attack] = fooled(sample, found)
    return sample.results[attack]


def pgd(sample: Sample, eps: float, loss: str = "ce") -> Attack:
    """20 steps of PGD, of a random model not stopped at the first lucky draw."""
    if sample.random:
        return PGDEOT(eps, norm=sample.threat.norm, seed=sample.seed, steps=20, eot=1, loss=loss)
    return PGD(eps, norm=sample.threat.norm, seed=sample.seed, steps=20, loss=loss)


def size_text(eps: float, sample: Sample) -> str:
    if sample.threat.norm == "patch":
        return f"{100 * eps:.3g}%"
    return f"{eps * 255:.3g}/255" if sample.threat.norm == "linf" else f"{eps:.4g}"
