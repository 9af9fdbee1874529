"""Constructed models, and the best that an attacker can do on them, worked out without the package's own code."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Vector = NDArray[np.float64]

# A radius per norm that leaves room on both sides: attacks succeed on some images of TinyNet and fail on others.
EPS = {"linf": 0.05, "l2": 0.4, "l1": 2.0, "l0": 6.0, "patch": 4 / 36}


class TinyNet(nn.Module):
    """A nonlinear classifier with batch normalization and dropout; weights from a seed, not from the global state."""

    def __init__(self, channels: int = 3, size: int = 6, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8 * size * size, classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
        self.norm.weight.data = torch.rand(8, generator=generator) + 0.5
        self.norm.running_mean = torch.randn(8, generator=generator) * 0.1
        self.norm.running_var = torch.rand(8, generator=generator) + 0.5

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.head(self.drop(self.norm(self.conv(images - 0.5)).tanh().flatten(1)))
        return hidden


class Linear(nn.Module):
    """Logits W x + b; weights (K, D), bias (K,)."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weights, self.bias = nn.Parameter(weights), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weights.T + self.bias


class Wrapped(nn.Module):
    """Base of models that watch or spoil another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


class Recording(Wrapped):
    """Remembers every image that passes forward, and how many pass backward."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.seen: list[Tensor] = []
        self.backward_images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.inner(images)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._passed(len(gradient)))
        return logits

    def _passed(self, count: int) -> None:
        self.backward_images += count

    @property
    def calls(self) -> int:
        return len(self.seen)

    @property
    def forward_images(self) -> int:
        return sum(len(batch) for batch in self.seen)


class FailsOnCall(Wrapped):
    """Raises on its n-th call, like a device that runs out of memory midway."""

    def __init__(self, inner: nn.Module, call: int) -> None:
        super().__init__(inner)
        self.left = call

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of memory")
        return super().forward(images)


class Detached(Wrapped):
    """No gradient reaches the input."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach())


class Rounding(Wrapped):
    """A gradient exists and is zero everywhere: the input is quantized."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 16).round() / 16)


def linear_gain(norm: str, slope: Vector, image: Vector, eps: float) -> float:
    """The most that ``slope @ (p - image)`` can be for p in the ball of radius ``eps`` and in the box [0, 1]."""
    room = np.where(slope > 0, 1 - image, image)
    if norm == "linf":
        return float(np.abs(slope) @ np.minimum(room, eps))
    if norm == "l2":
        return float(np.abs(slope) @ _l2_best(np.abs(slope), room, eps))
    if norm == "l1":
        gain, left = 0.0, eps
        for size, most in sorted(zip(np.abs(slope), room, strict=True), reverse=True):
            gain, left = gain + size * min(most, left), max(left - most, 0.0)
        return gain
    if norm == "patch":
        raise AssertionError("a patch needs the image's shape: see patch_gain")
    gains = np.sort(np.abs(slope) * room)[::-1]
    return float(gains[: int(eps)].sum())


def _l2_best(size: Vector, room: Vector, eps: float) -> Vector:
    """The maximizer of size @ d, 0 <= d <= room, ||d|| <= eps: d = min(t * size, room), t by bisection."""
    if np.linalg.norm(room[size > 0]) <= eps:
        return np.where(size > 0, room, 0)
    low, high = 0.0, 1.0
    while np.linalg.norm(np.minimum(high * size, room)) < eps:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(np.minimum(middle * size, room)) < eps else (low, middle)
    return np.asarray(np.minimum(low * size, room))


def patch_gain(slope: Vector, image: Vector, side: int) -> float:
    """The same for a patch: ``slope`` and ``image`` (C, H, W); every place of a square of ``side`` pixels is tried."""
    gain = (np.abs(slope) * np.where(slope > 0, 1 - image, image)).sum(0)
    height, width = gain.shape
    rows, columns = min(side, height), min(side, width)
    return max(
        float(gain[top : top + rows, left : left + columns].sum())
        for top in range(height - rows + 1)
        for left in range(width - columns + 1)
    )


def brute_force_l0_gain(slope: Vector, image: Vector, count: int) -> float:
    """The same as linear_gain("l0", ...), by trying every choice of values and both ends of the box."""
    best = 0.0
    for chosen in itertools.combinations(range(len(slope)), count):
        best = max(best, sum(max(slope[i] * (1 - image[i]), slope[i] * (0 - image[i])) for i in chosen))
    return best


@dataclass(frozen=True)
class Vulnerable:
    """A linear model and images that the best attacker breaks with half of eps, and random noise practically never."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    eps: float


def vulnerable(norm: str, dtype: torch.dtype = torch.float32) -> Vulnerable:
    """Ten images (10, 3, 6, 6), four classes. Weights are alike in each half, so that coarse patterns work too."""
    generator = torch.Generator().manual_seed(1)
    eps = {"linf": 0.1, "l2": 1.0, "l1": 8.0, "l0": 20.0, "patch": 9 / 36}[norm]
    half = torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64)
    size = 1 + 0.3 * torch.rand(3, 6, 6, generator=generator, dtype=torch.float64)
    slope = (torch.tensor([1.0, -1, 1]).view(3, 1, 1) * half * size).reshape(-1)
    images = 0.4 + 0.2 * torch.rand(10, 108, generator=generator, dtype=torch.float64)
    if norm == "patch":
        cube = (3, 6, 6)
        best = [patch_gain(-slope.numpy().reshape(cube), image.numpy().reshape(cube), 3) for image in images]
    else:
        best = [linear_gain(norm, -slope.numpy(), image.numpy(), eps) for image in images]
    # Each image is moved along the weights to where the label leads by half of what the best attacker can take.
    lead = torch.tensor(best, dtype=torch.float64) / 2
    images = images + ((lead - (images - 0.5) @ slope) / (slope @ slope))[:, None] * slope
    assert images.min() > 0
    assert images.max() < 1
    weights = torch.stack([slope / 2, -slope / 2, 0.01 * slope, -0.01 * slope])
    bias = -weights @ torch.full((108,), 0.5, dtype=torch.float64) - torch.tensor([0.0, 0.0, 1e3, 1e3])
    model = Linear(weights.to(dtype), bias.to(dtype)).eval()
    return Vulnerable(model, images.view(10, 3, 6, 6).to(dtype), torch.zeros(10, dtype=torch.long), eps)


def brightest_channel() -> tuple[nn.Module, Tensor, Tensor]:
    """A model that names the brightest of three channels, with nine images (9, 3, 6, 6) and their classes.

    The channels differ by little, so that any class can be reached with a small change.
    """
    weights = torch.eye(3).repeat_interleave(36, dim=1) / 3
    labels = torch.arange(9) % 3
    images = 0.45 + 0.1 * torch.rand(9, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    images -= images.mean((2, 3), keepdim=True) - 0.5
    images[torch.arange(9), labels] += 0.02
    return Linear(weights, torch.zeros(3)).eval(), images, labels


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a call must leave alone, as comparable values."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()
        },
    }


def same(first: Any, second: Any) -> bool:
    """Equality of nested dictionaries that may hold tensors; NaN equals NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first.nan_to_num(7e7), second.nan_to_num(7e7))
    return bool(first == second)
