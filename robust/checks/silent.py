"""Watches what an attack passes on its way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust.threats import ThreatModel


class Watched(nn.Module):
    """A model that notes for which of its images any point inside the threat model ever fooled it.

    ``fooled`` (N,) bool. A point belongs to the image whose ball it lies in, or the nearest of these.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> None:
        super().__init__()
        self.model, self.images, self.labels, self.threat = model, images, labels, threat
        self.fooled = torch.zeros_like(labels, dtype=torch.bool)

    def forward(self, points: Tensor) -> Tensor:
        logits: Tensor = self.model(points)
        with torch.no_grad():
            owner = torch.cdist(points.detach().flatten(1), self.images.flatten(1), p=torch.inf).argmin(1)
            inside = self.threat.geometry.contains(points.detach(), self.images[owner], self.threat.eps)
            wrong = (logits.detach().argmax(1) != self.labels[owner]) & ~logits.detach().isnan().any(1)
            self.fooled[owner[inside & wrong]] = True
        return logits
