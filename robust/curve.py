"""The smallest perturbation that breaks each image, which gives the whole robustness curve.

For each image the interval between the largest eps that withstood and the smallest that broke is halved by PGD with
one eps per image. The images broken start from the adversarial example already known, drawn towards the original;
those standing are first attacked with wider balls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robust.attacks.base import exact
from robust.attacks.hopskipjump import HopSkipJump
from robust.attacks.pgd import PGD
from robust.attacks.queries import DecisionAttack
from robust.attacks.rays import RayS
from robust.models import evaluating
from robust.stats import clopper_pearson
from robust.summary import CurvePoint
from robust.threats import ThreatModel, per_image

WIDER = (1.5, 2.0, 4.0)
_ROUNDS = 4
_STEPS = 10
_POINTS = 40
_DECISION: dict[str, type[DecisionAttack]] = {"linf": RayS, "l2": HopSkipJump}
_CURVE_QUERIES = 500


@dataclass
class Bracket:
    """Per image: ``low`` withstood the search, ``high`` (inf: none) is the distance of ``adversarial``."""

    low: Tensor
    high: Tensor
    adversarial: Tensor


def smallest(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, bracket: Bracket, seed: int
) -> Bracket:
    """Narrow the bracket of each image (N, C, H, W), on the model's device. The claims are not yet re-verified."""
    with evaluating(model):
        search = _Search(model, images, labels, threat, seed)
        _shrink(search, bracket)
        for factor in WIDER:
            standing = bracket.high.isinf()
            _attempt(search, bracket, standing, torch.full_like(bracket.high, factor * threat.eps), 2 * _STEPS)
        for _ in range(_ROUNDS):
            middle = threat.geometry.snap((bracket.low + bracket.high) / 2, images)
            worth = bracket.high.isfinite() & (middle > bracket.low)
            _attempt(search, bracket, worth, middle, _STEPS)
    return bracket


def smallest_by_queries(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, bracket: Bracket, seed: int
) -> Bracket:
    """The same without gradients: what is known, drawn nearer, or what a decision attack finds (linf and l2)."""
    with evaluating(model), torch.no_grad():
        _shrink(_Search(model, images, labels, threat, seed), bracket)
    attack = _DECISION.get(threat.norm)
    if attack is not None:
        points, distance = attack(norm=threat.norm, seed=seed, queries=_CURVE_QUERIES).smallest(model, images, labels)
        nearer = distance < bracket.high
        bracket.high[nearer], bracket.adversarial[nearer] = distance[nearer].to(bracket.high), points[nearer]
    return bracket


@dataclass(frozen=True)
class _Search:
    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int


def _attempt(search: _Search, bracket: Bracket, chosen: Tensor, eps: Tensor, steps: int) -> None:
    """Attack the chosen images, each with its own eps, and move the ends of their brackets."""
    index = (chosen & (eps > 0)).nonzero().squeeze(1)
    if not len(index):
        return
    images, labels, radius = search.images[index], search.labels[index], eps[index]
    attack = PGD(radius, norm=search.threat.norm, seed=search.seed, steps=steps, loss="margin")
    found = attack(search.model, images, labels)
    with torch.no_grad():
        logits = exact(search.model)(found)
    broken = (logits.argmax(1) != labels) & ~logits.isnan().any(1)
    distance = search.threat.geometry.length(found - images)
    better = broken & (distance < bracket.high[index])
    bracket.high[index[better]] = distance[better]
    bracket.adversarial[index[better]] = found[better]
    bracket.low[index[~broken]] = torch.maximum(bracket.low[index[~broken]], radius[~broken])


def _shrink(search: _Search, bracket: Bracket) -> None:
    """Draw the known adversarial images towards their originals by bisection along the line; forward passes only."""
    index = bracket.high.isfinite().nonzero().squeeze(1)
    if not len(index) or search.threat.norm in ("l0", "patch"):  # which no step along the line makes shorter
        return
    images, labels, known = search.images[index], search.labels[index], bracket.adversarial[index]
    low, high = torch.zeros(len(index), device=images.device), torch.ones(len(index), device=images.device)
    for _ in range(6):
        middle = (low + high) / 2
        points = images + (known - images) * per_image(middle, images)
        with torch.no_grad():
            broken = exact(search.model)(points).argmax(1) != labels
        low, high = torch.where(broken, low, middle), torch.where(broken, middle, high)
    points = images + (known - images) * per_image(high, images)
    bracket.adversarial[index] = points
    bracket.high[index] = search.threat.geometry.length(points - images)


def curve(correct: NDArray[np.bool_], distance: NDArray[np.float64], eps: float, norm: str) -> list[CurvePoint]:
    """Robust accuracy over eps: the share of images right unattacked and not broken by a perturbation so small.

    Args:
        correct: (N,) whether each image is classified right unattacked.
        distance: (N,) smallest perturbation found, inf where none.
        eps: the threat model's own radius, which is always one of the points.
    """
    n = len(correct)
    broken = distance[correct & np.isfinite(distance)]
    last = max(eps, min(float(broken.max()) * 1.1 if len(broken) else eps * 2, WIDER[-1] * eps))
    if norm == "l0":
        grid: Sequence[float] = sorted({float(round(value)) for value in np.linspace(0, last, _POINTS + 1)} | {eps})
    else:
        grid = sorted({*np.linspace(0, last, _POINTS + 1).tolist(), eps})
    points = []
    for radius in grid:
        standing = int((correct & (distance > radius * (1 + 1e-6) + 1e-6)).sum()) if radius else int(correct.sum())
        low, high = clopper_pearson(standing, n)
        points.append(CurvePoint(eps=radius, robust_accuracy=standing / n, low=low, high=high))
    return points
