"""Adversarial training on patches, laid where the loss is steepest."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.defenses.patch.certificates import Size, window
from robust.defenses.patch.masking import placed
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.validation import Held
from robust.errors import InputError


@dataclass(frozen=True)
class OcclusionTraining(Defense):
    """Cross-entropy at images with one square patch each: the rectangular occlusion attack (ROA).

    Of the ``candidates`` placements with the largest gradient a gray square raises the loss most at one; there the
    patch is optimized from random colors in ``steps`` signed steps of ``step_size``. candidates 1 takes the placement
    of the largest gradient itself, 0 a random one.

    Source: Wu, Tong and Vorobeychik, ICLR 2020, section 4 and algorithm 2 (gradient-based search).
    """

    _: KW_ONLY
    candidates: int = 5
    steps: int = 7
    step_size: float = 0.2

    name: ClassVar[str] = "roa"
    source: ClassVar[str] = "Wu, Tong and Vorobeychik, ICLR 2020"
    norms: ClassVar[tuple[str, ...]] = ("patch",)
    guarded: ClassVar[bool] = False
    measure: ClassVar[str] = "ROA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < 0 or self.steps < 1 or not self.step_size > 0:
            raise InputError(
                f"roa needs candidates of at least 0, steps of at least 1 and a step_size above 0, not "
                f"{self.candidates}, {self.steps} and {self.step_size:g}"
            )

    def attack(self, batch: Batch) -> Tensor:
        images = batch.images
        shape = (int(images.shape[2]), int(images.shape[3]))
        size = window(batch.threat.eps, shape)
        with batch.network.still():
            inside = placed(self._places(batch, size), size, shape)
            points = torch.where(inside, batch.drawn(torch.rand_like), images)
            for _ in range(self.steps):
                (gradient,) = torch.autograd.grad(batch.cross_entropy(points.requires_grad_()), points)
                points = torch.where(inside, points.detach() + self.step_size * gradient.sign(), images).clamp_(0, 1)
        return points

    def _places(self, batch: Batch, size: Size) -> Tensor:
        """Where each image's patch lies: (N,), counted along rows of placements."""
        images = batch.images
        count = (images.shape[2] - size[0] + 1) * (images.shape[3] - size[1] + 1)
        if self.candidates == 0:
            return batch.drawn(lambda like: torch.randint(count, (len(like),), device=like.device))
        leaf = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(batch.cross_entropy(leaf), leaf)
        energy = F.avg_pool2d(gradient.square().sum(1, keepdim=True), size, stride=1).flatten(1)
        places = energy.topk(min(self.candidates, count), 1).indices
        if places.shape[1] == 1:
            return places[:, 0]
        with torch.no_grad():
            losses = torch.stack([self._gray(batch, place, size) for place in places.unbind(1)], 1)
        return places.gather(1, losses.argmax(1, keepdim=True)).squeeze(1)

    def _gray(self, batch: Batch, place: Tensor, size: Size) -> Tensor:
        """Each image's loss with a gray square at its place, (N,)."""
        hidden = placed(place, size, (int(batch.images.shape[2]), int(batch.images.shape[3])))
        logits = batch.network(torch.where(hidden, 0.5, batch.images))
        return F.cross_entropy(logits, batch.labels, reduction="none")

    def robust_accuracy(self, held: Held, network: Network) -> float:
        return held.standing(
            network, lambda model, images, labels: self.attack(Batch(network, images, labels, self.ball)), held.sample
        )
