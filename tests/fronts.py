"""Models that hide their gradient, remember, look at their batch or draw random numbers, and honest ones too."""

from __future__ import annotations

import torch
from subjects import LinearModel
from torch import Tensor, nn


class Front(nn.Module):
    """A classifier behind a step of its own: ``classifier(preprocess(images))``."""

    def __init__(self, preprocess: nn.Module, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.classifier = classifier or LinearModel()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.preprocess(images))
        return logits


class Quantize(nn.Module):
    """Rounds to so many levels a channel; the gradient is zero."""

    def __init__(self, levels: int = 16) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(images * (self.levels - 1)) / (self.levels - 1)


class Detach(nn.Module):
    """Changes nothing and passes no gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return images.detach()


class ThroughNumpy(nn.Module):
    """A step outside of torch, which refuses tensors that need a gradient."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(images.numpy().clip(0, 1))


class Ripple(nn.Module):
    """Adds a ripple too small to matter and too steep to see past: the slope is there and says nothing."""

    def __init__(self, height: float = 2e-4, slope: float = 40.0) -> None:
        super().__init__()
        self.height, self.slope = height, slope

    def forward(self, images: Tensor) -> Tensor:
        return images + self.height * torch.sin(images * (self.slope / self.height))


class Noise(nn.Module):
    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        return images + self.sigma * torch.randn_like(images)


class MomentumNorm(nn.Module):
    """Follows the mean of what it is shown, in eval mode too."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, images: Tensor) -> Tensor:
        shown = images.detach().mean((0, 2, 3), keepdim=True)
        self.mean.mul_(0.9).add_(0.1 * shown)
        return images - self.mean + 0.5


class Counter(nn.Module):
    """Answers otherwise from the thousandth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images if self.calls < 1000 else 1 - images


class Spotter(nn.Module):
    """Is robust where a gradient is taken, and only there."""

    def forward(self, images: Tensor) -> Tensor:
        return 0.5 + 0.1 * (images - 0.5) if images.requires_grad else images


class BatchMean(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - 0.3 * (images.mean(0, keepdim=True) - 0.5)


class Purifier(nn.Module):
    """Climbs to a more confident image before it answers, by a gradient of its own."""

    def __init__(self, classifier: nn.Module | None = None, size: float = 0.002) -> None:
        super().__init__()
        self.classifier, self.size = classifier or LinearModel(), size

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            top = self.classifier(leaf).tanh().amax(1).sum()
            (slope,) = torch.autograd.grad(top, leaf)
        logits: Tensor = self.classifier(images + self.size * slope.sign())
        return logits


class Caching(nn.Module):
    """Honest: fills a cache on its first call, keeps its last features, has batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.features: Tensor | None = None
        self.grid: Tensor | None = None
        self.classifier = LinearModel()

    def forward(self, images: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = torch.zeros(images.shape[1:])
        self.features = self.drop(self.norm(images)) + self.grid
        logits: Tensor = self.classifier(self.features)
        return logits


class TwoClasses(nn.Module):
    """A linear model of two classes, in noise: the chance of a right answer is known in closed form."""

    def __init__(self, sigma: float, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(108, generator=generator))
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        noisy = images + self.sigma * torch.randn_like(images)
        score = (noisy - 0.5).flatten(1) @ self.weight
        return torch.stack([-score, score], 1)

    def chance(self, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        """Probability (N,) of a right answer at the worst point of the linf ball, while the box does not bind."""
        signed = (2 * labels - 1) * ((images - 0.5).flatten(1) @ self.weight.detach())
        room = signed - eps * self.weight.detach().abs().sum()
        return torch.special.ndtr(room / (self.sigma * self.weight.detach().norm()))
