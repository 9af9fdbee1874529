"""Fast gradient sign method, and its forms in the other norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.base import Attack, Goal, Knowledge, Model, loss_and_gradient
from robust.attacks.losses import cross_entropy


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of size eps along the steepest ascent of the cross-entropy (FGM in norms other than linf).

    Source: Goodfellow, Shlens and Szegedy, ICLR 2015, section 4. In l1 and l0 the step is the exact maximizer of the
    linearized loss in ball and box.
    """

    name: ClassVar[str] = "fgsm"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Goodfellow et al., ICLR 2015"

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        _, logits, gradient = loss_and_gradient(model, images, goal, cross_entropy)
        moved = self.geometry.project(self.geometry.steepest(gradient, images, eps), images, eps)
        done = goal.met(logits) | (eps == 0)
        return torch.where(done.view(-1, *[1] * (images.dim() - 1)), images, moved)
