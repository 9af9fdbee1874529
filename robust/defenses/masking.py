"""Whether a defense removes adversarial images or only hides the gradient that leads to them.

One model, several attacks: those that follow the cross-entropy in float32 starve where its softmax saturates, the
others do not. Where only the first kind fails, the gain is gradient masking.

Source: Carlini and Wagner, S&P 2017, section VIII; Athalye, Carlini and Wagner, ICML 2018, section 3.1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.attacks import PGD, Auto, Square
from robust.attacks.base import Goal, loss_and_gradient
from robust.attacks.losses import cross_entropy
from robust.attacks.registry import build
from robust.batching import batches
from robust.data import ImageSet
from robust.defenses.training.distillation import DefensiveDistillation
from robust.errors import InputError
from robust.models import device_of, evaluating, identify
from robust.progress import Progress, Silent
from robust.threats import ThreatModel

CROSS_ENTROPY = "PGD, cross-entropy"
_CARLINI = "C&W"
CARLINI_ATTACK = "foolbox:L2CarliniWagnerAttack(binary_search_steps=6, steps=200, stepsize=0.02)"
ROWS = "masking.json"
TEMPERATURES = (1.0, 10.0, 20.0, 50.0, 100.0)
IMAGES = 100
_STEPS, _QUERIES, _BATCH = 40, 1000, 100


@dataclass(frozen=True)
class Row:
    """Accuracy of ``n`` images under one attack. ``zero_gradients``: share of images whose gradient of the
    cross-entropy is zero to the last bit in float32. ``logit``: mean absolute logit."""

    temperature: float
    attack: str
    accuracy: float
    n: int
    zero_gradients: float
    logit: float


class Scaled(nn.Module):
    """A model with its logits divided by a temperature, which undoes the saturation."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits / self.temperature


def masking_rows(
    model: nn.Module, plain: nn.Module, data: ImageSet, threat: ThreatModel, temperature: float, seed: int = 0,
    queries: int | None = None,
) -> list[Row]:  # fmt: skip
    """Accuracy of ``model`` under seven attacks inside ``threat`` (linf or l2), each on all images of ``data``.

    PGD-40 on the cross-entropy, on the same with the logits divided by ``temperature``, and on the margin; the cascade
    ``auto``, which aims at one class after another where the margin to the nearest leads nowhere; C&W in the l2 ball
    that reaches half as far as the linf ball's corners; images made by PGD on the margin of ``plain``; Square.
    Raises InputError for another norm.
    """
    if threat.norm not in ("linf", "l2"):
        raise InputError(f"threat {threat.text}: gradient masking is measured in linf or l2")
    device = device_of(model)
    stages: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = _attacks(
        model, plain, data.shape, threat, temperature, seed, queries or _QUERIES
    )
    right = dict.fromkeys((name for name, _ in stages), 0)
    zeros, logit = 0, 0.0
    for ids in batches(list(range(len(data))), _BATCH):
        images, labels = data.batch(ids).to(device), data.labels[ids].to(device)
        for name, attack in stages:
            found = attack(images, labels)
            with evaluating(model), torch.no_grad():
                right[name] += int((model(found).argmax(1) == labels).sum())
        with evaluating(model):
            _, logits, gradient = loss_and_gradient(model, images, Goal(labels), cross_entropy)
        zeros += int((gradient.flatten(1) == 0).all(1).sum())
        logit += float(logits.abs().mean()) * len(ids)
    n = len(data)
    return [Row(temperature, name, right[name] / n, n, zeros / n, logit / n) for name, _ in stages]


def _attacks(
    model: nn.Module, plain: nn.Module, shape: tuple[int, int, int], threat: ThreatModel, temperature: float, seed: int,
    queries: int,
) -> list[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:  # fmt: skip
    def pgd(subject: nn.Module, loss: str) -> Callable[[Tensor, Tensor], Tensor]:
        attack = PGD(threat.eps, norm=threat.norm, steps=_STEPS, loss=loss, seed=seed)
        return lambda images, labels: attack(subject, images, labels)

    reach = threat.eps if threat.norm == "l2" else threat.eps * math.sqrt(math.prod(shape)) / 2
    carlini = build(CARLINI_ATTACK, norm="l2", eps=reach, seed=seed)
    cascade = Auto(threat.eps, norm=threat.norm, seed=seed)
    square = Square(threat.eps, norm=threat.norm, queries=queries, seed=seed)
    return [
        (CROSS_ENTROPY, pgd(model, "ce")),
        ("PGD, logits / temperature", pgd(Scaled(model, temperature), "ce")),
        ("PGD, margin", pgd(model, "margin")),
        ("auto", lambda images, labels: cascade(model, images, labels)),
        (f"{_CARLINI}, l2 {reach:.2g}", lambda images, labels: carlini(model, images, labels)),
        ("transfer", pgd(plain, "margin")),
        (f"Square, {queries:,} queries", lambda images, labels: square(model, images, labels)),
    ]


def masked(rows: Sequence[Row]) -> float:
    """By how much the cross-entropy attack flatters one model: its accuracy less the lowest under another attack.

    C&W does not count, because its ball is another one.
    """
    own = next(row.accuracy for row in rows if row.attack == CROSS_ENTROPY)
    others = [row.accuracy for row in rows if row.attack != CROSS_ENTROPY and not row.attack.startswith(_CARLINI)]
    return own - min(others)


def temperature_sweep(
    defense: DefensiveDistillation, model: nn.Module, train: ImageSet, validation: ImageSet, test: ImageSet,
    temperatures: Sequence[float], out: Path, progress: Progress | None = None, n: int = IMAGES,
) -> list[dict[str, Any]]:  # fmt: skip
    """Distil ``model`` at every temperature and attack each on ``n`` test images; rows as plain data, by temperature.

    Transferred images come from the model of the lowest temperature, best 1. Trainings are kept in ``out`` and resumed.
    """
    progress = progress or Silent()
    rows: list[dict[str, Any]] = []
    plain: nn.Module | None = None
    sample = test.limited(n, defense.seed)
    for temperature in sorted(set(temperatures)):
        folder = out / f"temperature-{temperature:g}"
        found = replace(defense, temperature=temperature).fit(model, train, validation, out=folder, progress=progress)
        plain = plain or found.model
        key = [identify(found.model), identify(plain), sample.sha256(), defense.ball.text, temperature, defense.seed]
        new = _kept(folder / ROWS, key)
        if new is None:
            new = [
                asdict(row) for row in masking_rows(found.model, plain, sample, defense.ball, temperature, defense.seed)
            ]
            (folder / ROWS).write_text(json.dumps({"key": key, "rows": new}, indent=2) + "\n", encoding="utf-8")
        told = ", ".join(f"{row['attack']} {row['accuracy']:.0%}" for row in new)
        progress.line(f"temperature {temperature:g}: {told}")
        rows += new
    return rows


def _kept(file: Path, key: list[Any]) -> list[dict[str, Any]] | None:
    """The rows of an earlier run of the same; None where there are none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return list(found["rows"]) if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
