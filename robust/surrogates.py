"""Surrogate models: what transfer attacks take their gradients from in place of the model under audit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robust.errors import InputError
from robust.models import check_model, load_model

ModelSource: TypeAlias = str | Path | nn.Module | Callable[[Tensor], Tensor]


def load_surrogates(
    given: Sequence[ModelSource], images: Tensor, classes: int, device: torch.device, trust: bool = False
) -> tuple[nn.Module, ...]:
    """The surrogates that ``given`` names, as :func:`robust.load_model` takes them, on the device.

    ``images``: float32 (N, C, H, W) of the audit, on the device; ``classes``: those of the model under audit. Raises
    InputError, with the surrogate's name in front, for one that cannot be loaded, fails on the images or tells another
    number of classes apart.
    """
    if isinstance(given, (str, Path, nn.Module)) or callable(given):
        raise InputError("surrogates: give a list of models, even where there is but one")
    return tuple(_load(source, images, classes, device, trust) for source in given)


def _load(source: ModelSource, images: Tensor, classes: int, device: torch.device, trust: bool) -> nn.Module:
    name = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    try:
        model = load_model(source, trust=trust).to(device)
        found = check_model(model, images, torch.empty(0, dtype=torch.long), None)
    except InputError as error:
        raise InputError(f"--surrogate {name}: {error}") from error
    if found != classes:
        raise InputError(
            f"--surrogate {name}: gives {found} logits, the model under audit {classes}; give a surrogate of the same "
            "classes, in the same order"
        )
    return model
