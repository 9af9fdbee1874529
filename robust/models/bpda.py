"""Gradients past a step that has none: backward pass differentiable approximation (BPDA).

Source: Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, section 4.1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InputError, unknown
from robust.models.state import evaluating

Backward = Callable[[Tensor], Tensor]
# A front passes on no gradient, or one that has less than this cosine with the one it was given.
_PASSED_ON = 0.3
# Output and input correlate more than this where the gradient is missing or zero, and where it is only unrelated (which
# a convolution's is too).
_CLOSE, _VERY_CLOSE = 0.5, 0.95


def identity(images: Tensor) -> Tensor:
    return images


class BPDA(nn.Module):
    """``module`` forward, exactly; ``backward`` where gradients are taken. See :func:`bpda`."""

    def __init__(self, module: nn.Module, backward: Backward = identity) -> None:
        super().__init__()
        self.module = module
        self.backward_of = backward

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            exact: Tensor = self.module(images.detach())
        if not (torch.is_grad_enabled() and images.requires_grad):
            return exact
        stand_in = self.backward_of(images)
        if stand_in.shape != exact.shape:
            raise InputError(
                f"bpda: the backward function gives shape {tuple(stand_in.shape)}, the module {tuple(exact.shape)}: "
                "give a differentiable function whose output has the module's shape"
            )
        # Adds an exact zero that carries the gradient.
        return exact + (stand_in - stand_in.detach())


def bpda(module: nn.Module, backward: Backward = identity) -> BPDA:
    """``module`` with another gradient: forward it is exactly the module, backward it is ``backward``.

    Args:
        module: a step without a useful gradient, such as JPEG coding or quantization, from a tensor to a tensor.
        backward: a differentiable function of the module's input that comes near its output and has its shape; its
            gradient is used. By default the identity.
    """
    return BPDA(module, backward)


def check_fronts(model: nn.Module, fronts: Sequence[str] | Mapping[str, Backward]) -> dict[str, Backward]:
    """The sub-modules of ``model`` named in ``fronts`` with their backward functions, by default the identity.

    Names are those of ``model.named_modules()``, such as ``preprocess`` or ``model.0``. Raises InputError for a name
    that the model does not have.
    """
    given = [fronts] if isinstance(fronts, str) else fronts
    chosen: dict[str, Backward] = {name: given[name] if isinstance(given, Mapping) else identity for name in given}
    names = [name for name, _ in model.named_modules() if name]
    for name in chosen:
        if name not in names:
            raise (
                unknown("module (--bpda)", name, names)
                if names
                else InputError(
                    f"--bpda {name}: the model has no sub-modules; wrap the step by robust.models.bpda() in its code"
                )
            )
    return chosen


def with_bpda(model: nn.Module, fronts: Mapping[str, Backward]) -> nn.Module:
    """A copy of ``model`` whose sub-modules named in ``fronts`` have the given backward functions.

    Weights and buffers are shared with the model, which stays as it was. Raises InputError for a name that the model
    does not have, and where the model cannot be copied.
    """
    check_fronts(model, fronts)
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        copied = copy.deepcopy(model, shared)
    except Exception as error:
        raise InputError(
            f"--bpda: the model cannot be copied ({type(error).__name__}); wrap the step by bpda()"
        ) from error
    for name, backward in fronts.items():
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, BPDA(copied.get_submodule(name), backward))
    return copied


def hidden_fronts(model: nn.Module, images: Tensor) -> list[str]:
    """The sub-modules that keep the shape of what they are given, come near it, and pass no useful gradient back.

    Each is run on its own input: none, a zero or an unrelated gradient for a random one makes it a front. Outer modules
    go before inner ones, and nothing inside a front is named again. ``images``: a few (N, C, H, W), on the model's
    device.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_hook(_watch(name, seen)))
    found: list[str] = []
    try:
        with evaluating(model), torch.no_grad():
            model(images)
        for handle in handles:
            handle.remove()
        handles = []
        with evaluating(model):
            for name, module in model.named_modules():
                inside = any(name.startswith(f"{front}.") for front in found)
                if name in seen and not inside and _hides(module, seen[name]):
                    found.append(name)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(name: str, seen: dict[str, Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def watch(_: nn.Module, given: Any, output: Any) -> None:
        first = given[0] if len(given) == 1 else None
        if not isinstance(first, Tensor) or not isinstance(output, Tensor):
            return
        if first.is_floating_point() and first.shape == output.shape and first.dim() == 4:
            seen.setdefault(name, first.detach().clone())

    return watch


def _hides(module: nn.Module, given: Tensor) -> bool:
    leaf = given.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(given.shape, generator=generator).to(given)
    try:
        with torch.enable_grad():
            output = module(leaf)
            gradient = None
            if output.requires_grad:
                (gradient,) = torch.autograd.grad((output * direction).sum(), leaf, allow_unused=True)
    except RuntimeError:  # such as a call of numpy on what requires a gradient
        with torch.no_grad():
            output, gradient = module(given), None
    near = _cosine(output.detach() - output.detach().mean(), given - given.mean())
    if gradient is None or not bool(gradient.any()):
        return near > _CLOSE
    return near > _VERY_CLOSE and _cosine(gradient, direction) < _PASSED_ON


def _cosine(first: Tensor, second: Tensor) -> float:
    found = torch.cosine_similarity(first.flatten(1).double(), second.flatten(1).double()).nan_to_num(0.0)
    return float(found.median())
