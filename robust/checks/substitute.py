"""A substitute model, trained on nothing but a model's answers, as a source of transferred adversarial images.

Source: Papernot et al., AsiaCCS 2017, sections 4 and 5, with noise in the ball in place of Jacobian augmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.attacks import PGD
from robust.checks.sample import Sample, fooled, logits_of
from robust.randomness import image_seeds, own_random
from robust.threats import NORMS

_COPIES = 4
_STEPS = 60
_BATCH = 64
_SIDE = 32


def transferred(sample: Sample) -> Tensor:
    """Which images, (N,) as :func:`~robust.checks.sample.fooled` says, fall to PGD on the substitute."""
    with own_random(sample.images.device, sample.seed), torch.inference_mode(False), torch.enable_grad():
        substitute = _trained(sample)
    threat = sample.threat
    attack = PGD(threat.eps, norm=threat.norm, seed=sample.seed, steps=20, loss="margin")
    return fooled(sample, attack(substitute, sample.images, sample.labels))


def _trained(sample: Sample) -> nn.Module:
    """A net fitted to the model's probabilities on the images and on points around them."""
    seeds = image_seeds(sample.images, sample.seed)
    wide = torch.full_like(sample.labels, max(2 * _dense(sample), 16 / 255), dtype=sample.images.dtype)
    points = [sample.images] + [
        NORMS["linf"].random(sample.images, wide, seeds, 8 * copy) for copy in range(1, _COPIES)
    ]  # fmt: skip
    images = torch.cat(points).detach()
    answers = torch.cat([logits_of(sample.model, part) for part in torch.split(images, sample.batch_size)])
    scale = answers.std().clamp_min(1e-12)
    wanted = (answers / scale).softmax(1)
    net = _Substitute(images.shape[1], answers.shape[1])
    net(images[:2].cpu())  # shapes its lazy layers: here, so that their weights are the same on every device
    net.to(images.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(_STEPS):
        batch = torch.randint(len(images), (_BATCH,)).to(images.device)
        loss = F.cross_entropy(net(images[batch]), wanted[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


def _dense(sample: Sample) -> float:
    return float(sample.threat.eps) if sample.threat.norm == "linf" else 8 / 255


class _Substitute(nn.Module):
    """Two convolutions beside a linear map, on images of at most 32 pixels a side."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.LazyLinear(classes)
        self.linear = nn.LazyLinear(classes)

    def forward(self, images: Tensor) -> Tensor:
        centered = images - 0.5
        if max(centered.shape[2:]) > _SIDE:
            centered = F.adaptive_avg_pool2d(centered, _SIDE)
        hidden = F.relu(self.second(F.relu(self.first(centered))))
        logits: Tensor = self.head(hidden.flatten(1)) + self.linear(centered.flatten(1))
        return logits
