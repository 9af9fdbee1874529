"""How many images to send through a model at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust.models import evaluating

# Tensors of 32 MiB and more are mapped and unmapped on every use by glibc: batches that stay below run up to twice as
# fast.
_CPU_BYTES = 30 * 2**20
_LARGEST_BATCH = 512


def comfortable_batch(model: nn.Module, image: Tensor) -> int:
    """A batch size, 4 to 512, at which no activation exceeds 30 MiB on a CPU or 480 MiB on another device.

    ``image`` is one image (1, C, H, W) on the model's device. Modules that cannot be watched (TorchScript) count with
    their input and output alone.
    """
    largest = image.numel()

    def watch(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel())

    handles = []
    try:
        if not isinstance(model, torch.jit.ScriptModule):
            handles = [module.register_forward_hook(watch) for module in model.modules()]
    except (RuntimeError, AttributeError):
        pass
    try:
        with evaluating(model), torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    allowed = _CPU_BYTES if image.device.type == "cpu" else 16 * _CPU_BYTES
    return max(4, min(_LARGEST_BATCH, allowed // (4 * largest)))


def batches(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
