"""What every attack shares: its contract, its goal, and the one place where gradients are taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from robust.counting import CountedModel
from robust.errors import InputError, NoGradientError
from robust.models import evaluating
from robust.randomness import image_seeds
from robust.threats import NORMS, TOLERANCE, Norm

Model = Callable[[Tensor], Tensor]
Knowledge = Literal["none", "white-box", "score", "decision"]


@dataclass(frozen=True)
class Goal:
    """What counts as success for each image of a batch.

    Without ``targets``: any class but the label. With: exactly the target. Both are int64 of shape (N,).
    """

    labels: Tensor
    targets: Tensor | None = None

    def met(self, logits: Tensor) -> Tensor:
        """Whether each image is fooled, (N,) bool, from logits (N, K). A NaN among an image's logits fools nobody."""
        highest, prediction = logits.max(1)  # NaN where one of them is
        reached = prediction != self.labels if self.targets is None else prediction == self.targets
        return reached & (highest == highest)

    def __getitem__(self, index: Tensor | slice) -> Goal:
        return Goal(self.labels[index], None if self.targets is None else self.targets[index])


@dataclass(frozen=True)
class Attack(ABC):
    """An attack: its settings, called like a function.

    ``adversarial = PGD(eps=8/255, steps=40)(model, images, labels)``

    Settings common to all:
        eps: radius of the norm ball in [0, 1] pixel units, of a patch the share of the area; one number or one per
            image, shape (N,).
        norm: ``linf``, ``l2``, ``l1``, ``l0`` or ``patch``; which of them an attack supports stands in ``norms``.
        seed: the same seed and images give the same result, however the images are batched.

    The call takes
        model: images (N, C, H, W) in [0, 1] to logits (N, K);
        images: float tensor (N, C, H, W) in [0, 1];
        labels: the true classes, integers of shape (N,);
        targets: classes to reach, shape (N,). Passing it is what makes the attack targeted.
    and returns adversarial images of the same shape, inside ball and box to 1e-6. Images that are fooled already come
    back untouched, as does everything at eps = 0; for an image that could not be fooled the iterate of highest loss
    comes back. The model's weights, ``.grad``, flags and the global random state are as before.

    Raises InputError for images outside [0, 1], shapes that do not fit, an unsupported norm, targets where the attack
    has none, and a target equal to its label; NoGradientError where a white-box attack finds no path to the input.
    """

    eps: float | Tensor
    _: KW_ONLY
    norm: str = "linf"
    seed: int = 0

    name: ClassVar[str]
    norms: ClassVar[tuple[str, ...]]
    knowledge: ClassVar[Knowledge]
    source: ClassVar[str]
    targetable: ClassVar[bool] = True
    # Whether it takes gradients from a fast copy of the model, where there is one, and confirms with `fooled`. All
    # others are given the model itself.
    uses_lane: ClassVar[bool] = False

    def __call__(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        goal, eps = self._checked(images, labels, targets)
        if not len(images):
            return images.clone()
        with torch.inference_mode(False), evaluating(model), torch.no_grad():
            own = images.clone() if images.is_inference() else images.detach()
            given = model if self.uses_lane else exact(model)
            return self.run(given, own, goal, eps, image_seeds(own, self.seed))

    @abstractmethod
    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        """The attack itself, on checked arguments: eps and seeds (N,), gradients off, the model guarded."""

    @property
    def geometry(self) -> Norm:
        return NORMS[self.norm]

    def _checked(self, images: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Goal, Tensor]:
        if self.norm not in self.norms:
            raise InputError(f"{self.name} has no {self.norm} form; it supports {', '.join(self.norms)}")
        if targets is not None and not self.targetable:
            raise InputError(f"{self.name} cannot be targeted: call it without targets")
        if not images.is_floating_point() or images.dim() < 2:
            raise InputError(
                f"images must be floats of shape (N, C, H, W), not {images.dtype} of shape {tuple(images.shape)}"
            )
        if self.norm == "patch" and images.dim() != 4:
            raise InputError(f"a patch needs images of shape (N, C, H, W), not {tuple(images.shape)}")
        if len(images) and not (images.min() >= -TOLERANCE and images.max() <= 1 + TOLERANCE):
            raise InputError(
                f"images must lie in [0, 1], not [{images.min():.4g}, {images.max():.4g}]: divide 8-bit images by 255, "
                "and put normalization into the model"
            )
        given = _classes("labels", labels, images)
        goal = Goal(given, None if targets is None else _classes("targets", targets, images))
        if goal.targets is not None and bool((goal.targets == goal.labels).any()):
            raise InputError("a target equals the true label; choose another target class for that image")
        try:
            eps = torch.as_tensor(self.eps, dtype=images.dtype, device=images.device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"eps must be a number such as 8/255, not {self.eps!r}") from None
        if eps.dim() and eps.shape != (len(images),):
            raise InputError(f"eps must be one number or one per image, not shape {tuple(eps.shape)}")
        if len(images) and not bool((eps >= 0).all()):
            raise InputError("eps must be at least 0")
        return goal, eps.expand(len(images))


def _classes(name: str, values: Tensor, images: Tensor) -> Tensor:
    classes = torch.as_tensor(values, device=images.device)
    if classes.is_floating_point() or classes.dtype == torch.bool or classes.shape != (len(images),):
        raise InputError(
            f"{name} must be {len(images)} class numbers, not {classes.dtype} of shape {tuple(classes.shape)}"
        )
    return classes.long()


Loss = Callable[[Tensor, Goal], Tensor]


def loss_and_gradient(model: Model, points: Tensor, goal: Goal, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Per-image loss (N,), logits (N, K) and the loss's gradient at ``points``; no other gradient is computed."""
    leaf = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        values = loss(logits, goal)
        gradient = _slope(values, leaf)
    return values.detach(), logits.detach(), gradient


def _slope(values: Tensor, leaf: Tensor, again: bool = False) -> Tensor:
    """The gradient of ``values`` (N,) at the input ``leaf``; ``again`` where more will be taken of the same pass."""
    if not values.requires_grad:
        raise NoGradientError("no gradient reaches the model's input: it detaches, quantizes or runs without grad")
    gradient: Tensor | None = torch.autograd.grad(values.sum(), leaf, retain_graph=again, allow_unused=True)[0]
    if gradient is None:
        raise NoGradientError("no gradient reaches the model's input: the output does not depend on it")
    return gradient


def linear_distances(model: Model, points: Tensor, goal: Goal, classes: Tensor, norm: Norm) -> Tensor:
    """How far the boundary to each of ``classes`` (N, k) would be from ``points`` if the model were linear, (N, k).

    (z_y - z_t) over the dual norm of its gradient (linf, l2); no number counts as infinitely far. One forward pass, and
    a backward pass for each column. Source: MALT, Melamed et al., NeurIPS 2024, equation of the linear ranking.
    """
    leaf, columns = points.detach().requires_grad_(), []
    with torch.enable_grad():
        logits = model(leaf)
        for column in classes.T:
            gap = (logits.gather(1, goal.labels[:, None]) - logits.gather(1, column[:, None])).squeeze(1)
            columns.append((gap.detach() / dual_length(_slope(gap, leaf, again=True), norm)).nan_to_num(torch.inf))
    return torch.stack(columns, 1)


def dual_length(gradient: Tensor, norm: Norm) -> Tensor:
    """The gradient's length in the dual of linf or l2, (N,), never zero."""
    length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), ord=1 if norm.name == "linf" else 2, dim=1)
    return length.clamp_min(1e-30)


def exact(model: Model) -> Model:
    """The model that decides: behind a fast copy the model itself, else ``model``."""
    return model.evidence if isinstance(model, CountedModel) else model


def fooled(model: Model, points: Tensor, goal: Goal, logits: Tensor) -> Tensor:
    """Whether each of ``points`` fools the model, (N,) bool, by the ``logits`` that ``model`` gave for it.

    What a fast copy shows is only a claim and is run again on the model itself: an image that left the batch on the
    copy's word alone would make the model look more robust than it is.
    """
    claimed = goal.met(logits)
    deciding = exact(model)
    if deciding is model or not bool(claimed.any()):
        return claimed
    held = claimed.clone()
    held[claimed] = goal[claimed].met(deciding(points[claimed]))
    return held


def still_open(logits: Tensor, goal: Goal, eps: Tensor) -> Tensor:
    """Positions of the images that are not fooled unattacked, by their clean logits, and may be changed at all."""
    check_classes(logits, goal)
    return ((eps > 0) & ~goal.met(logits)).nonzero().squeeze(1)


def check_classes(logits: Tensor, goal: Goal) -> None:
    """Raises InputError for labels or targets that the logits (N, K) have no place for."""
    for name, classes in (("labels", goal.labels), ("targets", goal.targets)):
        if classes is not None and bool(((classes < 0) | (classes >= logits.shape[1])).any()):
            raise InputError(
                f"{name} run from {int(classes.min())} to {int(classes.max())}, but the model knows classes 0 to "
                f"{logits.shape[1] - 1}"
            )
