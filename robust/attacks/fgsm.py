"""Fast gradient sign method, and its forms in the other norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, check_classes, fooled, loss_and_gradient
from robust.attacks.losses import cross_entropy


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of size eps along the steepest ascent of the cross-entropy (FGM in norms other than linf).

    Source: Goodfellow, Shlens and Szegedy, ICLR 2015, section 4. In l1 and l0 the step is the exact maximizer of the
    linearized loss in ball and box.
    """

    name: ClassVar[str] = "fgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Goodfellow et al., ICLR 2015"
    uses_lane: ClassVar[bool] = True

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        _, logits, gradient = loss_and_gradient(model, images, goal, _checked_cross_entropy)
        index = ((eps > 0) & ~fooled(model, images, goal, logits)).nonzero().squeeze(1)
        moved = self.geometry.project(self.geometry.steepest(gradient, images, eps), images, eps)
        result = images.clone()
        result[index] = moved[index]
        return result


def _checked_cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    # The only forward pass is the gradient's, so the classes are checked on it, before the loss trips over them.
    check_classes(logits, goal)
    return cross_entropy(logits, goal)
