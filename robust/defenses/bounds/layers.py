"""Modules as operations. Exact types: a subclass may do anything.

Each function takes a module and an example of its input, and gives an operation, None where the module passes its
input on, or in words what about the module is not supported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from robust.defenses.bounds.operations import (
    Convolution,
    Dense,
    MaxPool,
    Operation,
    Pair,
    Positive,
    Relu,
    Reshape,
    Scale,
)

Made = Operation | str | None


def pair(value: Any) -> Pair:
    first, second = (value, value) if isinstance(value, int) else value
    return int(first), int(second)


def average_pool(function: Callable[[Tensor], Tensor], kernel: Any, stride: Any = None) -> Positive:
    """Averages over windows: ``function`` computes them."""
    size, step = pair(kernel), pair(stride or kernel)
    overlap = (-(-size[0] // step[0])) * (-(-size[1] // step[1]))
    return Positive(function, (size[0] * size[1] + 1, overlap))


def adaptive_average_pool(function: Callable[[Tensor], Tensor], example: Tensor) -> Positive:
    """Averages over windows that share the plane between a given number of outputs."""
    sides = zip(example.shape[-2:], function(example).shape[-2:], strict=True)
    height, width = (-(-whole // parts) + 1 for whole, parts in sides)
    return Positive(function, (height * width + 1, 4))


def _convolution(module: nn.Conv2d, example: Tensor) -> Made:
    if module.padding_mode != "zeros":
        return f"with {module.padding_mode} padding"
    padding: Any = module.padding
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if any(size % 2 for size in reach):
            return "with uneven padding"
        padding = (reach[0] // 2, reach[1] // 2)
    return Convolution(
        module.weight.detach(), None if module.bias is None else module.bias.detach(), pair(module.stride),
        pair(padding), pair(module.dilation), module.groups,
    )  # fmt: skip


def _linear(module: nn.Linear, example: Tensor) -> Made:
    if example.dim() != 2:
        return "over other than vectors"
    return Dense(module.weight.detach(), None if module.bias is None else module.bias.detach())


def _batch_norm(module: Any, example: Tensor) -> Made:
    if module.running_mean is None or module.running_var is None or module.training:
        return "without running statistics"
    factor = (module.running_var.double() + module.eps).rsqrt()
    if module.weight is not None:
        factor = factor * module.weight.detach().double()
    shift = -module.running_mean.double() * factor
    if module.bias is not None:
        shift = shift + module.bias.detach().double()
    shape = (-1, *[1] * (example.dim() - 2))
    # The model rounds the variance, its root, the factor and the shift before it uses them.
    return _Normalization(
        factor.to(example.dtype).view(shape), shift.to(example.dtype).view(shape), 10,
        spread=(module.running_mean.double() * factor).abs().to(example.dtype).view(shape),
    )  # fmt: skip


class _Normalization(Scale):
    """Batch normalization, whose roundings are relative to the mean too: mean and bias may cancel in the shift."""

    def __init__(self, factor: Tensor, shift: Tensor, roundings: int, spread: Tensor) -> None:
        super().__init__(factor, shift, roundings)
        self.spread = spread

    def magnitude(self, *inputs: Tensor) -> Tensor:
        return super().magnitude(*inputs) + self.spread


def _max_pool(module: nn.MaxPool2d, example: Tensor) -> Made:
    if pair(module.dilation) != (1, 1) or module.ceil_mode or module.return_indices:
        return "with dilation, ceil_mode or indices"
    return MaxPool(pair(module.kernel_size), pair(module.stride or module.kernel_size), pair(module.padding))


def _reshaped(module: nn.Module, example: Tensor) -> Made:
    found = module(example)
    if len(found) != len(example) or found[0].numel() != example[0].numel():
        return "over the batch"
    return Reshape(tuple(found.shape[1:]))


LAYERS: dict[type[nn.Module], Callable[[Any, Tensor], Made]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.ReLU: lambda module, example: Relu(),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: lambda module, example: average_pool(module, module.kernel_size, module.stride),
    nn.AdaptiveAvgPool2d: adaptive_average_pool,
    nn.ZeroPad2d: lambda module, example: Positive(module, (1, 1)),
    nn.Flatten: _reshaped,
    nn.Unflatten: _reshaped,
    nn.Identity: lambda module, example: None,
    nn.Dropout: lambda module, example: None,
    nn.Dropout2d: lambda module, example: None,
}
