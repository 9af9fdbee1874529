"""A cheap fixed measure of robustness on held-out images, taken while a model trains. No evidence: the audit is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust.attacks import FGSM, PGD
from robust.defenses.patch.certificates import CertifiesPatches
from robust.defenses.training.batch import Network
from robust.defenses.training.images import Images
from robust.threats import ThreatModel

STEPS = 10
ROBUST_IMAGES = 512  # at most, and at least the guard's; in between a fortieth of the training images
GUARD_IMAGES = 128
_BATCH = 128


@dataclass(frozen=True)
class Gap:
    """Accuracy under one step of size eps (fgsm) and under ten small ones (pgd), shares of the same images."""

    fgsm: float
    pgd: float

    @property
    def width(self) -> float:
        return self.fgsm - self.pgd


class Held:
    """The held-out images, a fixed random sample of them for each measure."""

    def __init__(self, images: Images, threat: ThreatModel, trained: int) -> None:
        self.images, self.threat = images, threat
        self.sample = max(GUARD_IMAGES, min(ROBUST_IMAGES, trained // 40))
        self.order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))

    def clean(self, network: Network) -> float:
        """Share classified right, of four times as many images as are attacked."""
        right, total = 0, 0
        with network.still(), torch.no_grad():
            for images, labels in self._batches(4 * self.sample):
                right += int((network(images).argmax(1) == labels).sum())
                total += len(labels)
        return right / total

    def under_pgd(self, network: Network, n: int | None = None) -> float:
        """Share of ``n`` images that withstand PGD-10, steps of eps / 4 from one random start.

        Of as many as fit the training by default: a fortieth of its images, 128 to 512, so that measuring stays cheap.
        """
        return self.standing(network, PGD(self.threat.eps, norm=self.threat.norm, steps=STEPS), n or self.sample)

    def gap(self, network: Network, n: int = GUARD_IMAGES) -> Gap:
        fgsm = FGSM(self.threat.eps, norm=self.threat.norm)
        return Gap(self.standing(network, fgsm, n), self.under_pgd(network, n))

    def under_noise(self, network: Network, sigma: float, draws: int = 4) -> float:
        """Mean share of up to 512 images classified right with Gaussian noise added; the same noise each time."""
        right, total = 0, 0
        generator = torch.Generator().manual_seed(0)
        with network.still(), torch.no_grad():
            for images, labels in self._batches(ROBUST_IMAGES):
                for _ in range(draws):
                    noise = torch.randn(images.shape, generator=generator).to(images.device)
                    right += int((network(images + sigma * noise).argmax(1) == labels).sum())
                    total += len(labels)
        return right / total

    def certified(self, deployed: Callable[[tuple[int, int]], nn.Module]) -> float:
        """Share of the guard's images that a patch defense, given their height and width, certifies and gets right."""
        right, total = 0, 0
        for images, labels in self._batches(GUARD_IMAGES):
            defended = deployed((int(images.shape[2]), int(images.shape[3])))
            assert isinstance(defended, CertifiesPatches)
            right += int(defended.certify(images).correct(labels.cpu()).sum())
            total += len(labels)
        return right / total

    def standing(self, network: Network, attack: Callable[[Network, Tensor, Tensor], Tensor], n: int) -> float:
        """Share of ``n`` images that withstand ``attack``, called with network, images and labels."""
        right, total = 0, 0
        with network.still():
            for images, labels in self._batches(n):
                found = attack(network, images, labels)
                with torch.no_grad():
                    right += int((network(found).argmax(1) == labels).sum())
                total += len(labels)
        return right / total

    def _batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        return [self.images.batch(index) for index in torch.split(self.order[:n], _BATCH)]
