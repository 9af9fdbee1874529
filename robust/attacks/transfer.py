"""Transfer: adversarial images made on surrogate models, tried on the model under audit."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robust import randomness
from robust.attacks.base import Attack, Goal, Knowledge, Model, loss_and_gradient, still_open
from robust.attacks.losses import LOSSES
from robust.errors import InputError, NoGradientError, unknown
from robust.models import evaluating
from robust.threats import per_image

_ENSEMBLES = ("logits", "loss")
_SHRINK = 0.2  # a diverse input is at most so much smaller


@dataclass(frozen=True)
class Transfer(Attack):
    """Iterated gradient steps whose gradients come from surrogate models alone; the model is only asked for its answer.

    Each step takes the gradient of the surrogates' loss at a randomly shrunk and moved copy of the iterate (input
    diversity), smooths it over neighboring pixels (translation invariance), adds it to a running sum (momentum), and
    follows the sum. The model under audit sees every iterate, and an image leaves at the first one that fools it.

    Settings:
        surrogates: models like the one attacked: the same images to logits of the same classes. The command line takes
            them from ``--surrogate``.
        steps: gradient steps, each of twice eps over ``steps``.
        momentum: the weight of the gradients before; 0 for none.
        diversity: how often, in [0, 1], a surrogate sees the shrunk copy instead of the iterate itself.
        kernel: width in pixels of the Gaussian that smooths the gradient, odd; 1 for none.
        loss: ``ce``, ``margin`` or ``dlr``.
        ensemble: whether several surrogates are averaged in their ``logits`` or in their ``loss``.

    An image that is never fooled comes back as the last iterate, and costs ``steps`` + 1 forward passes of the model,
    no backward pass, and ``steps`` of each in each surrogate; the surrogates' are not counted.

    Raises InputError without surrogates, for surrogates of other classes or that fail on these images, for images that
    are not (N, C, H, W), and for settings out of range; NoGradientError for a surrogate without a gradient.

    Sources: Dong et al., CVPR 2018 (momentum, ensembles in logits); Xie et al., CVPR 2019 (input diversity); Dong et
    al., CVPR 2019 (translation invariance); Liu et al., ICLR 2017 (ensembles).
    """

    _: KW_ONLY
    surrogates: tuple[Model, ...] = ()
    steps: int = 50
    momentum: float = 1.0
    diversity: float = 0.5
    kernel: int = 3
    loss: str = "ce"
    ensemble: str = "logits"

    name: ClassVar[str] = "transfer"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    knowledge: ClassVar[Knowledge] = "none"
    source: ClassVar[str] = "Dong et al., CVPR 2018; Xie et al., CVPR 2019"

    def __post_init__(self) -> None:
        for kind, value, valid in (("loss", self.loss, LOSSES), ("ensemble", self.ensemble, _ENSEMBLES)):
            if value not in valid:
                raise unknown(kind, value, valid)
        if self.steps < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise InputError(f"transfer needs steps >= 1 and an odd kernel, not {self.steps} and {self.kernel}")
        if not (self.momentum >= 0 and 0 <= self.diversity <= 1):
            raise InputError(
                f"transfer needs momentum >= 0 and diversity in [0, 1], not {self.momentum:g} and {self.diversity:g}"
            )

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        if not self.surrogates:
            raise InputError("transfer needs a model to take gradients from: give --surrogate MODEL, or surrogates=")
        if images.dim() != 4:
            raise InputError(f"transfer needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        logits = model(images)
        index = still_open(logits, goal, eps)
        result = images.clone()
        with ExitStack() as stack:
            for number, surrogate in enumerate(self.surrogates, 1):
                stack.enter_context(evaluating(surrogate))
                _check(surrogate, number, images[index[:1]], logits.shape[1])
            self._climb(model, result, index, goal, eps, seeds)
        return result

    def _climb(self, model: Model, result: Tensor, index: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> None:
        """Moves the images of ``result`` at ``index`` in place."""
        images, points = result[index], result[index]
        total = torch.zeros_like(images)
        for step in range(self.steps):
            if not len(index):
                return
            gradient = self._gradient(points, goal[index], seeds[index], step)
            total = self.momentum * total + gradient / per_image(_mean(gradient), gradient).clamp_min(1e-38)
            moved = self.geometry.steepest(total, points, 2 * eps[index] / self.steps)
            points = self.geometry.project(moved, images, eps[index])
            result[index] = points
            keep = ~goal[index].met(model(points))
            if not bool(keep.all()):
                index, images, points, total = index[keep], images[keep], points[keep], total[keep]

    def _gradient(self, points: Tensor, goal: Goal, seeds: Tensor, step: int) -> Tensor:
        draws = randomness.uniform(seeds, step, (4,), points.dtype)

        def seen(points: Tensor) -> Tensor:
            return _shrunk(points, draws, self.diversity) if self.diversity else points

        def mean_logits(points: Tensor) -> Tensor:
            return torch.stack([surrogate(seen(points)) for surrogate in self.surrogates]).mean(0)

        models = [mean_logits] if self.ensemble == "logits" else [_behind(seen, one) for one in self.surrogates]
        try:
            found = [loss_and_gradient(one, points, goal, LOSSES[self.loss])[2].nan_to_num(0, 0, 0) for one in models]
        except NoGradientError as error:
            raise NoGradientError(f"surrogate: {error}") from None
        return _smoothed(torch.stack(found).mean(0), self.kernel)


def _check(surrogate: Model, number: int, images: Tensor, classes: int) -> None:
    """Raises InputError for a surrogate that does not take such images or tells other classes apart."""
    if not len(images):
        return
    try:
        shape = tuple(surrogate(images).shape)
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise InputError(
            f"surrogate {number} fails on images of shape {tuple(images.shape[1:])} ({str(error).splitlines()[0]}): "
            "give a model that takes the same images"
        ) from error
    if shape != (1, classes):
        raise InputError(
            f"surrogate {number} gives {shape[-1]} logits, the model under audit {classes}: give a surrogate of the "
            "same classes, in the same order"
        )


def _behind(change: Model, model: Model) -> Model:
    return lambda points: model(change(points))


def _shrunk(points: Tensor, draws: Tensor, share: float) -> Tensor:
    """Each image shrunk and moved inside a black frame of its old size; ``draws`` (N, 4) uniform in [0, 1).

    The first number says how much it shrinks, the next two where it lies, the last whether it is left alone.
    """
    zoom = 1 / (1 - _SHRINK * torch.where(draws[:, 3] < share, draws[:, 0], torch.zeros_like(draws[:, 0])))
    shift = (2 * draws[:, 1:3] - 1) * (zoom - 1)[:, None]
    turn = torch.eye(2, dtype=points.dtype, device=points.device) * zoom[:, None, None]
    grid = F.affine_grid(torch.cat([turn, shift[..., None]], 2), list(points.shape), align_corners=False)
    return F.grid_sample(points, grid, align_corners=False)


def _smoothed(gradient: Tensor, width: int) -> Tensor:
    """The gradient under a Gaussian of ``width`` pixels, of a third of half of it as standard deviation."""
    if width == 1:
        return gradient
    place = torch.arange(width, dtype=gradient.dtype, device=gradient.device) - width // 2
    bell = torch.exp(-((3 * place / (width // 2)) ** 2) / 2)
    channels = gradient.shape[1]
    kernel = (bell[:, None] * bell / bell.sum() ** 2).expand(channels, 1, width, width)
    return F.conv2d(gradient, kernel, padding=width // 2, groups=channels)


def _mean(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).abs().mean(1)
