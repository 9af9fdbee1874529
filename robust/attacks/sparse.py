"""Fewer changed values: what the l0 attacks do to the adversarial point they end with."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.attacks.base import Goal, Model, loss_and_gradient
from robust.attacks.losses import margin
from robust.attacks.minimum import Nearest


def thin_out(model: Model, goal: Goal, nearest: Nearest, gradients: int) -> None:
    """Drops changed values that are not needed, ``gradients`` times over, each for one gradient and forward passes.

    To first order the best that can be made of k values is to move those with most to gain to the end of the box. So
    the values are ranked by that gain at the adversarial point, first those changed already, then all, and k is lowered
    down to where the image is no longer fooled. On a linear model this is the optimum.
    """
    images = nearest.images.flatten(1)
    for _ in range(gradients):
        _, _, gradient = loss_and_gradient(model, nearest.points, goal, margin)
        points, slope = nearest.points.flatten(1), gradient.nan_to_num().flatten(1)
        ends = torch.where(slope > 0, 1.0, 0.0).to(images.dtype)
        gain = slope * (ends - images)
        changed = points != images
        # A changed value without gain is the first to go, and until then stays as it is.
        among_changed = torch.where(changed, gain.clamp_min(_LEAST), 0.0)
        _fewest(model, goal, nearest, among_changed, torch.where(gain > 0, ends, points))
        _fewest(model, goal, nearest, gain, ends)


def _fewest(model: Model, goal: Goal, nearest: Nearest, score: Tensor, values: Tensor) -> None:
    """Sets ever fewer of the values (N, D) of highest ``score`` (N, D), the rest being the image's own.

    One less than the nearest point has, and twice as many less each time that this still fools the model; where it does
    not, a quarter as many. An image whose next smaller number does not fool costs no more: mostly one forward pass.
    """
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1).masked_fill(score <= 0, score.shape[1])
    less = torch.ones_like(nearest.distance)
    index = (nearest.found & (nearest.distance > 1)).nonzero().squeeze(1)
    while len(index):
        images, count = nearest.images[index], (nearest.distance[index] - less[index]).clamp_min(1)
        trial = torch.where(rank[index] < count[:, None], values[index], images.flatten(1)).view_as(images)
        fooled = goal[index].met(model(trial))
        nearest.replace(index[fooled], trial[fooled])
        more = (less[index] > 1) & ~fooled
        less[index] = torch.where(fooled, 2 * less[index], (less[index] / 4).floor().clamp_min(1))
        index = index[(fooled | more) & (nearest.distance[index] > 1)]


_LEAST = 1e-30
