"""Batch normalization folded into the convolutions before it, by what a forward pass did, not by where modules stand.

The order in which modules are registered is not the order in which they run, and tracing gives up on models that
branch. So the model is watched once: a normalization that received, unchanged, what a convolution had returned is
folded into it. Whoever folds must still compare logits before and after, since a convolution's output may have been
read by something that is no module.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Exact types: a subclass may do anything.
_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)


@dataclass
class Watched:
    """One forward pass: how often each layer ran (by id) and which pairs met.

    ``first`` is the layer that ran first, ``last`` the one that gave the result; None where that is no convolution or
    linear layer, or ran more than once.
    """

    calls: Counter[int] = field(default_factory=Counter)
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = field(default_factory=list)
    first: nn.Module | None = None
    last: nn.Module | None = None


def fold(model: nn.Module, images: Tensor) -> int:
    """Fold in place; returns the number of batch normalizations that are gone.

    ``model`` is a copy in eval mode that nobody else uses; ``images`` (N, C, H, W) show how it runs. Modules that run
    more than once, carry hooks or have no running statistics stay as they are. Nothing is folded in a model with layers
    that did not run: it chooses between them, and what it would do with other images was not seen.
    """
    watched = watch(model, images)
    if any(type(layer) in _LAYERS and not watched.calls[id(layer)] for layer in model.modules()):
        return 0
    found = 0
    for convolution, norm in watched.pairs:
        alone = watched.calls[id(convolution)] == watched.calls[id(norm)] == 1
        if alone and _absorb(convolution, norm):
            replace(model, norm, nn.Identity())
            found += 1
    return found


def watch(model: nn.Module, images: Tensor) -> Watched:
    """Run ``model`` once on ``images`` without gradients and note what its layers did."""
    seen = Watched()
    # The version tells an output that was changed in place (a ReLU between the two) from one that was handed on as is.
    outputs: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}
    results: dict[int, tuple[nn.Module, Tensor]] = {}

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.calls[id(module)] += 1
        seen.first = seen.first or module
        if isinstance(module, nn.BatchNorm2d) and inputs and id(inputs[0]) in outputs:
            convolution, tensor, version = outputs[id(inputs[0])]
            if tensor._version == version:
                seen.pairs.append((convolution, module))
        if isinstance(output, Tensor):
            results[id(output)] = (module, output)
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = (module, output, output._version)

    handles = [layer.register_forward_hook(hook) for layer in model.modules() if type(layer) in _LAYERS]
    try:
        with torch.no_grad():
            result = model(images)
    finally:
        for handle in handles:
            handle.remove()
    seen.last = results[id(result)][0] if id(result) in results else None
    seen.first, seen.last = (_only(end, seen.calls) for end in (seen.first, seen.last))
    return seen


def _only(layer: nn.Module | None, calls: Counter[int]) -> nn.Module | None:
    return layer if isinstance(layer, nn.Conv2d | nn.Linear) and calls[id(layer)] == 1 else None


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is registered inside ``model``, under every name."""
    new.training = old.training
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent._modules[name] = new


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches or changes this module's passes from outside."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


def _absorb(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """Give ``convolution`` the weights of both; False where it cannot have them."""
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or norm.training or has_hooks(convolution) or has_hooks(norm):
        return False
    # New parameters, never the old ones changed: another convolution may share them.
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    return True
