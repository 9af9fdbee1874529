"""A faster copy of a model: frozen, folded, in another memory layout, and in bfloat16 where asked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robust.folding import fold, has_hooks, replace, watch
from robust.models import CallableModel, ExportedModel

# A forward pass of so many images shows how the layers run.
_PROBE = 2


@dataclass(frozen=True)
class Recipe:
    """What a copy is made of: precision of its layers, memory layout of images and convolutions.

    In bfloat16 the first layer computes in float32, because rounding 8-bit images and small perturbations to
    bfloat16 loses the last bit of both; its result is rounded unless ``wide``. Rounded values tie, and max-pooling
    then sends the gradient elsewhere: that is where ``wide`` is needed.
    """

    dtype: torch.dtype
    layout: torch.memory_format
    wide: bool = False

    @property
    def kind(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}, folded"

    @property
    def title(self) -> str:
        notes = [self.kind] + ["first activations float32"] * self.wide
        return ", ".join(notes + ["not channels-last"] * (self.layout != torch.channels_last))


def unfit(model: nn.Module) -> str:
    """Why this model must not be copied, or nothing."""
    for module in model.modules():
        if isinstance(module, CallableModel):
            return "a function, not a module of its own"
        if isinstance(module, ExportedModel):
            return "an exported program"
        if isinstance(module, torch.jit.ScriptModule):
            return "TorchScript"
        if type(module).__name__ == "OptimizedModule":
            return "compiled already"
        if has_hooks(module):
            return f"hooks on {type(module).__name__}"
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in model.parameters()):
        return "its weights are not float32"
    return ""


def fast_copy(model: nn.Module, recipe: Recipe, images: Tensor, logits: Tensor) -> tuple[nn.Module, int]:
    """A copy from float32 images to float32 logits, and how many normalizations were folded.

    ``model`` is frozen and in eval mode, and so will the copy be; ``logits`` (N, K) are its own for ``images``
    (N, C, H, W), to tell whether folding changed anything. Raises whatever the model raises when it is copied.
    """
    network, folded = _folded(model, images, logits)
    _convert(network, recipe, images[:_PROBE])
    return _Fast(network, recipe.dtype, recipe.layout), folded


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal to ``tolerance`` times the largest logit of ``b``."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


def _folded(model: nn.Module, images: Tensor, logits: Tensor) -> tuple[nn.Module, int]:
    """A folded copy where folding changes no logit, else one as it is."""
    network = _independent_copy(model)
    try:
        folded = fold(network, images[:_PROBE])
        # Other devices round convolutions to TF32, each algorithm in its own way.
        tolerance = 1e-4 if images.device.type == "cpu" else 5e-3
        if not folded or close(network(images).float(), logits, tolerance):
            return network, folded
    except Exception:  # whatever the model does with a layer that is no longer there
        pass
    return _independent_copy(model), 0


def _independent_copy(model: nn.Module) -> nn.Module:
    made = copy.deepcopy(model)
    own = {id(part) for part in _parts(model)}
    if any(id(part) in own for part in _parts(made)):
        raise RuntimeError("its copy shares parts with it")
    return made


def _parts(model: nn.Module) -> Iterator[Any]:
    yield from model.modules()
    yield from model.parameters()
    yield from model.buffers()


def _convert(network: nn.Module, recipe: Recipe, probe: Tensor) -> None:
    """Layers by the recipe. The last one stays float32 too: rounded logits would hide small steps."""
    seen = watch(network, probe)
    ends = [seen.first, seen.last] if recipe.dtype != torch.float32 else []
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or type(module) not in (nn.Conv2d, nn.Linear):
            continue
        dtype = torch.float32 if any(module is end for end in ends) else recipe.dtype
        if isinstance(module, nn.Conv2d):
            module.weight = _frozen(module.weight.to(dtype, memory_format=recipe.layout))
        else:
            module.weight = _frozen(module.weight.to(dtype))
        if module.bias is not None:
            module.bias = _frozen(module.bias.to(dtype))
    for end in ends:
        if end is not None:
            rounds = end is not seen.last and not recipe.wide
            replace(network, end, _Float32(end, recipe.dtype if rounds else torch.float32))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class _Fast(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
        super().__init__()
        self.network, self.dtype, self.layout = network, dtype, layout
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        images = _Layout.apply(images, self.layout)  # type: ignore[no-untyped-call]
        # Autocast rather than a bfloat16 module: what stands before the first layer, normalization above all, stays
        # in float32, and so does every operation that needs it.
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            logits: Tensor = self.network(images).float()
        return logits


class _Float32(nn.Module):
    """A layer that computes in float32 whatever surrounds it."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype
        self.training = False

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, enabled=False):
            result: Tensor = self.layer(inputs.float())
        return result.to(self.dtype)


class _Layout(torch.autograd.Function):
    """Images in another memory layout, their gradient in the ordinary one: attacks do arithmetic with both."""

    @staticmethod
    def forward(context: Any, images: Tensor, layout: torch.memory_format) -> Tensor:
        return images.contiguous(memory_format=layout).view_as(images)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].contiguous(), None
