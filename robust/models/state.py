"""What is fixed in a model: its weights as an identity, and a guard that leaves it as it was found."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robust.models.wrappers import CallableModel

# Running statistics are kept by copy; a larger buffer (a table, a mask) is no statistic and would make the guard slow.
_STATISTIC = 65536


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode and frozen parameters inside; afterwards the model is as it was, also where the body raises.

    Given back are each module's training flag, each parameter's ``requires_grad`` and ``grad`` (None inside, so that
    nothing can add to it or zero it), and the values of buffers of up to 65,536 elements. Flags are set directly:
    ``train`` and ``eval`` of the model, which may do more, are not called. Anything but a module passes unguarded.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modules = list(model.modules())
    flags = [module.training for module in modules]
    parameters = _parameters(modules)
    buffers = _buffers(modules)
    try:
        for module, training in zip(modules, flags, strict=True):
            if training:
                module.training = False
        for parameter, required, gradient in parameters:
            if required:
                parameter.requires_grad = False
            if gradient is not None:
                parameter.grad = None
        yield
    finally:
        for module, training in zip(modules, flags, strict=True):
            if module.training != training:
                module.training = training
        for parameter, required, gradient in parameters:
            if parameter.requires_grad != required:
                parameter.requires_grad = required
            if parameter.grad is not gradient:
                parameter.grad = gradient
        _restore(buffers)


def identify(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all weights and buffers; of its name where it has none."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    for name, buffer in model.named_buffers(remove_duplicate=False):
        tensors.setdefault(name, buffer)
    if not tensors:
        return hashlib.sha256(_qualified_name(model).encode()).hexdigest()
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, each shared one counted once; buffers are not parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


_Kept = tuple[Tensor, bool, "Tensor | None"]
_Buffer = tuple[nn.Module, str, Tensor, "Tensor | None"]


def _parameters(modules: list[nn.Module]) -> list[_Kept]:
    """Each parameter once with its flag and gradient. Results of computations cannot be frozen and are left out."""
    found: dict[int, _Kept] = {}
    for module in modules:
        for _, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in found and parameter.is_leaf:
                found[id(parameter)] = (parameter, parameter.requires_grad, parameter.grad)
    return list(found.values())


def _buffers(modules: list[nn.Module]) -> list[_Buffer]:
    return [
        (module, name, buffer, buffer.detach().clone() if buffer.numel() <= _STATISTIC else None)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _restore(buffers: list[_Buffer]) -> None:
    # Every time: batch normalization changes its statistics without counting it as a change (`_version`). By `data`,
    # which does not count either, so that a graph made inside can still be walked backward.
    for module, name, buffer, values in buffers:
        if module._buffers[name] is not buffer:
            module._buffers[name] = buffer
        if values is None:
            continue
        if buffer.is_inference():
            with torch.inference_mode():
                buffer.copy_(values)
        else:
            buffer.data.copy_(values)


def _bytes(tensor: Tensor) -> bytes:
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _qualified_name(model: nn.Module) -> str:
    function: Any = model.function if isinstance(model, CallableModel) else model
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
