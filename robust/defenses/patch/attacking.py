"""An attack on PatchCleanser that knows its masks: it puts the patch where the second round cannot save the image.

A placement is safe where some mask that covers it wholly is *strong*: the clean image under it and any other mask reads
as its label. Everywhere else the defended label falls once most views show another class, so the patch is optimized
there, through random views that do not hide it. For a certified image there is no such placement, and the attack tries
those of steepest loss instead, which must not succeed.

Source: Xiang, Mahloujifar and Mittal, USENIX Security 2022, theorem 1, read the other way round.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from robust import randomness
from robust.attacks.base import Goal
from robust.attacks.losses import margin
from robust.defenses.patch.certificates import Size, patch_size
from robust.defenses.patch.cleansing import MaskedClassifier
from robust.defenses.patch.masking import placed
from robust.models import evaluating

_VIEWS = 6  # at each step
_ENOUGH = 3.0  # a view that is lost by so much needs no more


def cleansing_attack(
    defended: MaskedClassifier, images: Tensor, labels: Tensor, *, placements: int = 4, steps: int = 40, seed: int = 0
) -> Tensor:
    """Images (N, C, H, W) with one patch of ``defended.patch`` each, against their labels (N,).

    Up to ``placements`` are tried one after the other, each by ``steps`` signed steps on the margins of random views;
    images that fall are left alone. An image that withstands comes back as its last attempt.
    """
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    size = patch_size(defended.patch, shape)
    places = _ranked(defended, images, labels, size, placements)
    found, seeds = images.clone(), randomness.image_seeds(images, seed)
    standing = defended.predict(images).predicted.to(labels.device) == labels
    for attempt in range(placements):
        index = standing.nonzero().squeeze(1)
        if not len(index):
            break
        inside = placed(places[index.to(places.device), attempt], size, shape).to(images.device)
        points = _optimized(defended, images[index], labels[index], inside, steps, seeds[index] + attempt)
        found[index] = points
        fallen = defended.predict(points).predicted.to(labels.device) != labels[index]
        standing[index[fallen]] = False
    return found


def _ranked(defended: MaskedClassifier, images: Tensor, labels: Tensor, size: Size, count: int) -> Tensor:
    """For each image the ``count`` best corners (N, count) as flat placements: open ones first, then by gradient."""
    with torch.no_grad():
        strong = defended.strong_masks(images, labels)
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    hidden = F.unfold((~defended.masks(shape)).float(), size).amin(1) > 0  # (masks, placements): wholly covered
    safe = strong.float() @ hidden.float() > 0
    with evaluating(defended.model):
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(margin(defended(leaf), Goal(labels)).sum(), leaf)
    energy = F.avg_pool2d(gradient.abs().sum(1, keepdim=True), size, stride=1).flatten(1).cpu()
    order = energy / energy.amax(1, keepdim=True).clamp_min(1e-30) - safe.float()
    return _apart(order, size, shape, count)


def _apart(score: Tensor, size: Size, shape: Size, count: int) -> Tensor:
    """The best placements, each at least half a patch from those before it where there are so many."""
    width = shape[1] - size[1] + 1
    places = torch.arange(score.shape[1])
    rows, columns = places // width, places % width
    score, chosen = score.clone(), []
    for _ in range(count):
        best = score.argmax(1)
        chosen.append(best)
        near = ((rows - rows[best, None]).abs() < (size[0] + 1) // 2) & (
            (columns - columns[best, None]).abs() < (size[1] + 1) // 2
        )
        score = torch.where(near, score - 10, score)
    return torch.stack(chosen, 1)


def _optimized(
    defended: MaskedClassifier, images: Tensor, labels: Tensor, inside: Tensor, steps: int, seeds: Tensor
) -> Tensor:
    """Signed steps inside the patch, each through a few views drawn at random from those that show any of it."""
    shape = (int(images.shape[-2]), int(images.shape[-1]))
    keep = defended.masks(shape).to(images.device)
    seen = (keep[None] & inside[:, None]).flatten(2).any(2)
    start = randomness.uniform(seeds, 0, images.shape[1:], images.dtype)
    count = min(_VIEWS, len(keep))
    points, goal = torch.where(inside, start, images), Goal(labels.repeat_interleave(count))
    with evaluating(defended.model):
        for step in range(steps):
            draw = randomness.uniform(seeds, step + 1, (len(keep),), images.dtype)
            views = (draw * seen).topk(count, 1).indices
            leaf = points.detach().requires_grad_()
            with torch.enable_grad():
                masked = torch.where(keep[views], leaf[:, None], defended.fill).flatten(0, 1)
                loss = margin(defended.model(masked).float(), goal).clamp_max(_ENOUGH).sum()
                (gradient,) = torch.autograd.grad(loss, leaf)
            size = 0.3 * (1 - step / steps) + 0.02  # from a third of the range down to a few 255ths
            points = torch.where(inside, points + size * gradient.sign(), images).clamp(0, 1)
    return points
