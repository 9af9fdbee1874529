"""The robustness score, 0 to 100.

For one threat model with radius eps, an image is worth

    v = 0                  if the model gets it wrong unattacked,
    v = d / (2 eps)        if the smallest perturbation found that breaks it has size d <= eps,
    v = 1                  if nothing found within eps breaks it,

and the score is 100 times the mean of v over all audited images. Half of it is the robust accuracy at eps; the other
half is the robust accuracy averaged over all sizes from 0 to eps, which tells apart two models that both fall at eps.
A model that falls on every image scores below 50. The score falls, never rises, when an attack finds a smaller
perturbation.

The score of an audit is the lowest over its threat models, so a further threat model can only lower it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robust.errors import InputError
from robust.stats import clopper_pearson
from robust.summary import ScoreRecord

_NOTHING = 1e-12  # beta quantiles overflow for subnormal counts

# The tolerance with which the audit holds a perturbation to lie within eps.
_SLACK = 1e-6


def image_values(correct: ArrayLike, distance: ArrayLike, eps: float) -> NDArray[np.float64]:
    """What each image is worth, in [0, 1].

    ``correct`` (N,) bool: right unattacked. ``distance`` (N,): the smallest perturbation found in the threat's norm,
    inf where none was. ``eps``: the threat's radius, at least 0; the limit for eps = 0 is 1 for a right image.
    Raises InputError for empty arrays, unequal shapes, NaN or negative distances and a bad eps.
    """
    right = np.asarray(correct, dtype=bool)
    size = np.asarray(distance, dtype=np.float64)
    if right.ndim != 1 or right.shape != size.shape or right.size == 0:
        raise InputError(f"score: correct {right.shape} and distance {size.shape} must be (N,), N at least 1")
    if np.isnan(size).any() or (size < 0).any():
        raise InputError("score: every distance must be 0 or more, inf where no perturbation was found")
    if not (math.isfinite(eps) and eps >= 0):
        raise InputError(f"score: eps must be finite and 0 or more, not {eps}")
    stands = size > eps * (1 + _SLACK) + _SLACK
    worth = (stands + np.minimum(size, eps) / eps) / 2 if eps > 0 else (size > 0).astype(np.float64)
    return np.where(right, worth, 0.0)


def threat_score(
    correct: ArrayLike, distance: ArrayLike, eps: float, *, threat: str, trusted: bool, confidence: float = 0.95
) -> ScoreRecord:
    """The score under one threat model; arguments as in :func:`image_values`.

    ``threat`` is the threat model's text, ``trusted`` whether the verdict on it is sound. The interval is
    Clopper-Pearson's on the sum of the values out of N, as if each were a coin that falls heads with that mean. Among
    variables on [0, 1] with one mean the coin has the largest variance, so the interval errs on the wide side, and it
    has a width even where all images agree.
    """
    values = image_values(correct, distance, eps)
    n = len(values)
    total = float(values.sum())
    low, high = clopper_pearson(total if total > _NOTHING else 0.0, n, confidence)
    value = total / n
    definition = (
        f"Half the robust accuracy under {threat}, half its average over all perturbation sizes from 0 to eps, times "
        f"100: the mean over {n} images of 1 for an image that stands, d / (2 eps) for one broken by a perturbation of "
        f"size d, and 0 for one that is wrong unattacked. Interval: Clopper-Pearson, {100 * confidence:g}%, on the sum."
    )
    return ScoreRecord(
        value=100 * value,
        low=100 * min(low, value),
        high=100 * max(high, value),
        definition=definition,
        trusted=trusted,
    )


def audit_score(scores: Mapping[str, ScoreRecord]) -> ScoreRecord:
    """The score of an audit: the lowest of ``scores``, by the threat model's text.

    It is trusted only if all of them are: the true value of one that is not may lie below the lowest.
    """
    if not scores:
        raise InputError("score: an audit needs at least one threat model")
    worst = min(scores, key=lambda threat: (scores[threat].value, threat))
    lowest = scores[worst]
    if len(scores) == 1:
        return lowest
    return ScoreRecord(
        value=lowest.value,
        low=min(score.low for score in scores.values()),
        high=min(score.high for score in scores.values()),
        definition=f"The lowest score over {', '.join(scores)}, here {worst}: {lowest.definition}",
        trusted=all(score.trusted for score in scores.values()),
    )
