"""Checks of the gradient at the input: that it is there, and that it says where the loss rises."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.attacks.base import Goal
from robust.attacks.losses import cross_entropy, margin
from robust.checks.sample import Sample, gradient_of, logits_of, record
from robust.errors import NoGradientError
from robust.randomness import image_seeds
from robust.summary import CheckRecord
from robust.threats import NORMS

# Honest nets, trained against attacks or not, measured at 0.81 and more; steep ripples at 0.13 and less.
_AGREEMENT = 0.3
_NEAR = 16  # the neighbor lies this many times nearer than eps
_OTHER_NORMS = 2 / 255  # for l1, l0 and a patch, which hold no dense step


def gradients_are_useful(sample: Sample) -> CheckRecord:
    title, meaning = (
        "Gradients reach the input",
        "Gradient attacks are blind where the gradient is missing, zero or not finite, and the model looks robust "
        "without being so (gradient masking). Attacks that need none are run on every image instead; name the step "
        "that hides the gradient with --bpda to attack through it.",
    )
    details, good = [], True
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        try:
            gradient = gradient_of(sample, loss)[1]
        except NoGradientError as error:
            return record("gradients", title, False, str(error), meaning)
        flat = gradient.flatten(1)
        zero = int((flat == 0).all(1).sum())
        infinite = int((~flat.isfinite()).any(1).sum())
        details.append(f"{name}: {zero} zero and {infinite} not finite of {len(sample)}")
        # One dead image in a hundred happens in honest nets whose logits saturate float32.
        good = good and infinite == 0 and zero <= max(1, len(sample) // 100)
    return record("gradients", title, good, "; ".join(details), meaning)


def gradients_hold_nearby(sample: Sample) -> CheckRecord:
    """Whether the gradient at a point very near points the same way, and the loss rises as it says (median images)."""
    title, meaning = (
        "The gradient holds nearby",
        "Where the gradient changes its direction within a fraction of eps, it says nothing of the way to the "
        "boundary (shattered gradients). Attacks then wander, and the model looks robust without being so. Name the "
        "step that does it with --bpda to attack through it.",
    )
    norm, eps = (
        (sample.threat.norm, sample.threat.eps) if sample.threat.norm in ("linf", "l2") else ("linf", _OTHER_NORMS)
    )
    geometry = NORMS[norm]
    radius = torch.full_like(sample.labels, eps / _NEAR, dtype=sample.images.dtype)
    near = geometry.random(sample.images, radius, image_seeds(sample.images, sample.seed), 0)
    try:
        values, gradient = gradient_of(sample, margin)
        cosine = _cosine(gradient, gradient_of(sample, margin, near)[1])
        same = _cosine(gradient, gradient_of(sample, margin)[1]) if sample.random else 1.0
    except NoGradientError as error:
        return record("stable", title, None, str(error), meaning, weight="advice")
    step = geometry.project(geometry.steepest(gradient, sample.images, radius), sample.images, radius) - sample.images
    told = (gradient * step).flatten(1).sum(1)
    rise = (_margins(sample, sample.images + step) - values) / told.clamp_min(1e-20)
    share = float(rise[told > 0].median()) if bool((told > 0).any()) else 0.0
    more = f"and a step along it brings {share:.0%} of the rise it promises"
    if sample.random:
        more = f"two draws at the same point one of {same:.2f}"
    return record(
        "stable", title, cosine >= _AGREEMENT * same,
        f"at eps/{_NEAR} from the image the gradient keeps a cosine of {cosine:.2f}, {more} (medians of "
        f"{len(sample)} images)", meaning,
    )  # fmt: skip


def _cosine(first: Tensor, second: Tensor) -> float:
    found = torch.cosine_similarity(first.flatten(1).double(), second.flatten(1).double()).nan_to_num(0.0)
    return float(found.median())


def _margins(sample: Sample, points: Tensor) -> Tensor:
    parts = []
    for start in range(0, len(sample), sample.batch_size):
        piece = slice(start, start + sample.batch_size)
        parts.append(margin(logits_of(sample.model, points[piece]), Goal(sample.labels[piece])))
    return torch.cat(parts)
