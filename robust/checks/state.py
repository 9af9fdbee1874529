"""Traces that a forward pass leaves in a model, and gradients that it walks on its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from robust.models import evaluating

_LARGEST = 65536
_LONGEST = 64


def remembered(model: nn.Module, images: Tensor, *, tensors: bool) -> list[str]:
    """The names of what a second pass over the same images changes inside ``model``: buffers, numbers and texts kept as
    attributes and, with ``tensors``, tensors too.

    The pass before belongs to the caller: caches that the first pass fills are no memory of images. To be called under
    :func:`~robust.models.evaluating`.
    """
    before = dict(_values(model, tensors))
    model(images)
    after = dict(_values(model, tensors))
    return sorted(name for name, value in after.items() if name not in before or not _same(before[name], value))


def _values(model: nn.Module, tensors: bool) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        kept = vars(module) if hasattr(module, "__dict__") else {}
        buffers = ((name, value) for name, value in module._buffers.items() if value is not None)
        plain = ((name, value) for name, value in kept.items() if not name.startswith("_"))
        for name, value in chain(buffers, plain):
            yield from _copied(
                f"{prefix.removeprefix('model').lstrip('.')}.{name}".lstrip("."),
                value,
                tensors or name in module._buffers,
            )


def _copied(name: str, value: Any, tensors: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        if tensors and value.numel() <= _LARGEST:
            yield name, value.detach().clone()
    elif isinstance(value, bool | int | float | str):
        yield name, value
    elif isinstance(value, Collection) and not isinstance(value, nn.Module):
        yield f"{name} (length)", len(value)
        if type(value) in (list, tuple, dict) and len(value) <= _LONGEST:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                if isinstance(item, bool | int | float | str) or (tensors and isinstance(item, Tensor)):
                    yield from _copied(f"{name}[{key}]", item, tensors)


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if not before.is_floating_point():
            return bool(torch.equal(before, after))
        return bool(torch.allclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True))
    return type(before) is type(after) and bool(before == after)


def inner_backward(model: nn.Module, images: Tensor) -> int:
    """How many tensors a forward pass without gradients reads in order to walk a gradient backward on its own.

    Counted by the hooks that autograd calls for what it saves. Nothing is saved outside of `enable_grad`, so an honest
    pass reads none. `torch.func` refuses such hooks, which tells as much: then 1 comes back.
    """
    reads = 0

    def unpack(value: Tensor) -> Tensor:
        nonlocal reads
        reads += 1
        return value

    try:
        with evaluating(model), torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda value: value, unpack):
            model(images)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return 1
    return reads
