"""In which precision a model is trained."""

from __future__ import annotations

import torch

from robust.errors import unknown

PRECISIONS = ("auto", "bfloat16", "float32")


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the convolutions and products; weights, losses and normalization stay float32.

    ``auto`` is bfloat16 where the hardware multiplies it itself: a rule, not a timing, because the same seed must give
    the same model however busy the machine is. Raises InputError for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "auto":
        return torch.bfloat16 if _native_bfloat16(device) else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in names)
