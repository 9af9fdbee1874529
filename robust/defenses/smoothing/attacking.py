"""The upper bound beside the certificates: attacks on the same smoothed classifier, judged by its votes."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.attacks.base import Goal, loss_and_gradient
from robust.attacks.losses import cross_entropy
from robust.defenses.smoothing.anytime import RadiusTest
from robust.defenses.smoothing.certificates import decide
from robust.defenses.smoothing.sampling import Sampler, Stream
from robust.defenses.smoothing.smoothed import SmoothedClassifier
from robust.errors import RobustError
from robust.threats import NORMS, per_image

STEPS = 20
CONFIRMING_DRAWS = 10_000


class CertificateBroken(RobustError):
    """An attack inside a certified radius: a bug, a model that is not deterministic, or a very unlikely draw."""


def smooth_attack(
    smoothed: SmoothedClassifier, images: Tensor, labels: Tensor, radius: float, steps: int = STEPS
) -> Tensor:
    """Images inside the l2 ball of ``radius`` and [0, 1] at which the label's mean softmax is smallest.

    Projected gradient descent on the smoothed classifier's own differentiable form, with all steps taken and the best
    iterate kept: unlike an attack on a model, it must not stop where the label barely loses, since votes have to
    confirm it. Source: SmoothAdv-PGD, Salman et al., NeurIPS 2019, section 3.
    """
    geometry, goal = NORMS["l2"], Goal(labels)
    size = 2 * radius / steps
    points, best = images.clone(), images.clone()
    highest = torch.full((len(images),), -torch.inf, device=images.device)
    for step in range(steps + 1):
        loss, _, gradient = loss_and_gradient(smoothed, points, goal, cross_entropy)
        better = loss > highest
        highest = torch.where(better, loss, highest)
        best = torch.where(per_image(better, points).bool(), points, best)
        if step < steps:
            points = geometry.project(geometry.steepest(gradient, points, size), images, radius)
    return best


def lost_majority(sampler: Sampler, images: Tensor, labels: Tensor, alpha: float) -> list[bool]:
    """Where fewer than half of all noisy copies are given the label, with confidence 1 - ``alpha`` for each image.

    A vote that 10,000 draws leave open counts as not lost.
    """
    test = RadiusTest((0.0,), sampler.sigma, alpha, CONFIRMING_DRAWS)
    for _ in decide(sampler, images, labels, test, Stream.VERIFICATION, against=True):
        pass
    return [bool(count) for count in test.certified()]
