"""Losses that attacks maximize: (logits (N, K), goal) to one number per image, (N,)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.attacks.base import Goal, Loss


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """Cross-entropy of the label, or minus that of the target."""
    if goal.targets is None:
        return F.cross_entropy(logits, goal.labels, reduction="none")
    return -F.cross_entropy(logits, goal.targets, reduction="none")


def margin(logits: Tensor, goal: Goal) -> Tensor:
    """max_{i != y} z_i - z_y; targeted: z_t - max_{i != t} z_i. Positive exactly where the image is fooled.

    Source: Carlini and Wagner, S&P 2017, f_6 without its cut.
    """
    if goal.targets is None:
        return _others(logits, goal.labels).amax(1) - _at(logits, goal.labels)
    return _at(logits, goal.targets) - _others(logits, goal.targets).amax(1)


def lead(classes: Tensor) -> Loss:
    """z_c - z_y, towards one class for each image, ``classes`` (N,), whatever the goal."""
    return lambda logits, goal: _at(logits, classes) - _at(logits, goal.labels)


def dlr(logits: Tensor, goal: Goal) -> Tensor:
    """Difference of logits ratio; the margin itself where there are too few classes for the ratio.

    Untargeted: -(z_y - max_{i != y} z_i) / (z_1 - z_3), for at least 3 classes.
    Targeted: -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), for at least 4; z_1 >= z_2 >= ... are the sorted logits.
    Source: Croce and Hein, ICML 2020, equations 6 and 7.
    """
    classes = logits.shape[1]
    if goal.targets is None:
        if classes < 3:
            return margin(logits, goal)
        top = logits.topk(3, dim=1).values
        return margin(logits, goal) / (top[:, 0] - top[:, 2] + 1e-12)
    difference = _at(logits, goal.targets) - _at(logits, goal.labels)
    if classes < 4:
        return difference
    top = logits.topk(4, dim=1).values
    return difference / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).squeeze(1)


def _others(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -torch.inf)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
