"""What a training method is given: one batch, the network that trains, and steps along the gradient of any loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.threats import ThreatModel, per_image

PointLoss = Callable[[Tensor], Tensor]


class Network:
    """The training model as a function: images (N, C, H, W) in [0, 1] to float32 logits (N, K), in its precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, images: Tensor) -> Tensor:
        if self.dtype == torch.float32:
            logits: Tensor = self.model(images)
            return logits
        images = images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
        with torch.autocast(images.device.type, self.dtype):
            logits = self.model(images)
        return logits.float()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Eval mode inside: normalization by the running statistics, which stay as they are, and no dropout."""
        training = [module for module in self.model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


@dataclass(frozen=True)
class Batch:
    """Images (N, C, H, W) in [0, 1], labels (N,), and all that a method may use to attack and to judge them.

    network: to logits, differentiable, as the model stands now.
    threat: the ball that the inner attack must stay in.
    step_scale, noise_scale: the guard's factors on the length of a single step and on the noise before it; 1 at first.
    memory: tensors that a method keeps from batch to batch; part of the checkpoint. Their rows are those of the whole
        batch, of which each process keeps its own.
    whole, start: where several processes share a batch, the images of all of them, and the place of the first of these.
    """

    network: Network
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    step_scale: float = 1.0
    noise_scale: float = 1.0
    memory: dict[str, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None
    start: int = 0

    def drawn(self, draw: Callable[[Tensor], Tensor], dim: int = 0) -> Tensor:
        """The part for these images of what ``draw`` makes, at random, for the images of the whole batch.

        ``dim``: along which the images are counted. So the noise does not depend on how many processes there are.
        """
        if self.whole is None:
            return draw(self.images)
        return draw(self.whole).narrow(dim, self.start, len(self.images))

    def noise(self, radius: float) -> Tensor:
        """The images moved to a random point of the ball of ``radius`` in the threat's norm, inside the box.

        Uniform in linf and l2. In l1 a random point has spent the ball on the wrong values: the images themselves.
        """
        images = self.images
        if self.threat.norm == "linf":
            return (images + self.drawn(lambda like: torch.empty_like(like).uniform_(-radius, radius))).clamp_(0, 1)
        if self.threat.norm == "l2":
            direction = self.drawn(torch.randn_like)
            dimensions = images[0].numel()
            share = self.drawn(lambda like: torch.rand(len(like), device=like.device))
            reach = radius * share ** (1 / dimensions)
            length = torch.linalg.vector_norm(direction.flatten(1), dim=1).clamp_min(1e-12)
            return (images + direction * per_image(reach / length, images)).clamp_(0, 1)
        return images.clone()

    def cross_entropy(self, points: Tensor) -> Tensor:
        """The cross-entropy of the labels at ``points``, summed over the batch: what most inner attacks climb."""
        return F.cross_entropy(self.network(points), self.labels, reduction="sum")

    def ascend(self, points: Tensor, loss: PointLoss, steps: int, size: float, *, inside: bool = True) -> Tensor:
        """``steps`` steps of length ``size`` up the gradient of ``loss`` (points to one number), in eval mode.

        Each step ends in the box, and in the ball of the threat where ``inside``. Nothing is kept of the way: no best
        iterate, no success; that is what makes it cheaper than an attack for evidence.
        """
        geometry = self.threat.geometry
        with self.network.still():
            for _ in range(steps):
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(points), points)
                with torch.no_grad():
                    points = geometry.steepest(gradient, points.detach(), size)
                    points = geometry.project(points, self.images, self.threat.eps) if inside else points.clamp(0, 1)
        return points.detach()
