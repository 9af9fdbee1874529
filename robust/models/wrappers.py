"""Modules that make something else a model from images in [0, 1], shape (N, C, H, W), to logits (N, K)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from robust.errors import InputError, NoGradientError

_Exported = TypeVar("_Exported", bound="ExportedModel")


class Normalized(nn.Module):
    """A model behind its per-channel standardization: ``model((images - mean) / std)``.

    ``mean`` and ``std`` are in [0, 1] pixel units, one number per channel or one for all. Both are buffers that no
    checkpoint holds. Raises InputError for numbers that are no standardization.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        _require_standardization(mean, std)
        self.model = model
        self.register_buffer("mean", torch.tensor([float(m) for m in mean]).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([float(s) for s in std]).view(1, -1, 1, 1), persistent=False)

    @property
    def channels(self) -> int:
        """How many channels the numbers are for; 1 fits any image."""
        return max(self.mean.numel(), self.std.numel())

    def forward(self, images: Tensor) -> Any:
        # Expanding fails where the counts differ (broadcasting would turn gray images into color), and unlike an `if`
        # it can be traced.
        count = images.shape[1]
        mean, std = self.mean.expand(1, count, 1, 1), self.std.expand(1, count, 1, 1)
        return self.model((images - mean) / std)


class CallableModel(nn.Module):
    """A plain function from images to logits as a module without weights.

    ``place``: the device that it was last moved to, and that its images are sent to.
    Raises NoGradientError where the function leaves torch (for NumPy, say) although a gradient is asked for.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.place = torch.device("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CallableModel:
        self.place = fn(torch.empty(0, device=self.place)).device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, images: Tensor) -> Any:
        try:
            return self.function(images)
        except RuntimeError as error:
            if images.requires_grad and "requires grad" in str(error):
                raise NoGradientError("no gradient reaches the model's input: the function leaves torch") from error
            raise


class ExportedModel(nn.Module):
    """An exported program as a module that takes any number of images.

    ``smallest`` and ``largest`` are the batch sizes that the program takes (``largest`` None: no bound). Larger batches
    are split, smaller ones filled up with copies of the last image, whose logits are dropped. The program's mode was
    fixed when it was exported: ``train`` and ``eval`` change nothing but the flag.
    """

    def __init__(self, program: nn.Module, smallest: int, largest: int | None) -> None:
        super().__init__()
        self.program = program
        self.smallest = smallest
        self.largest = largest
        for module in self.modules():
            module.training = False

    def train(self: _Exported, mode: bool = True) -> _Exported:
        self.training = mode
        return self

    def forward(self, images: Tensor) -> Any:
        parts = torch.split(images, self.largest) if self.largest is not None else (images,)
        outputs = [self._padded(part) for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _padded(self, images: Tensor) -> Any:
        missing = self.smallest - len(images)
        if missing <= 0:
            return self.program(images)
        return self.program(torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]))[: len(images)]


def _require_standardization(mean: Sequence[float], std: Sequence[float]) -> None:
    numbers = [float(number) for number in (*mean, *std)]
    if not mean or not std or not all(math.isfinite(number) for number in numbers):
        raise InputError(f"mean {list(mean)} and std {list(std)}: give one finite number per channel, or one for all")
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise InputError(f"mean has {len(mean)} numbers, std {len(std)}: give one per channel, or one for all")
    if any(number <= 0 for number in std):
        raise InputError(f"std {list(std)}: every number must be above 0")
    if any(abs(number) > 1.5 for number in mean):
        raise InputError(f"mean {list(mean)}: mean and std are for pixels in [0, 1]; divide both by 255")
