"""Whether a model and its images fit together, in one line where they do not."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InputError
from robust.models.state import evaluating
from robust.models.wrappers import CallableModel, Normalized

_BATCH = 8


def check_model(model: nn.Module, images: Tensor, labels: Tensor, n_classes_named: int | None) -> int:
    """The number of classes K that ``model`` tells apart, from the logits of at most 8 images.

    ``images``: float32 (N, C, H, W) in [0, 1], moved to the model's device; ``labels``: int64, all that will be used;
    ``n_classes_named``: how many classes the data names. Raises InputError for weights, outputs or labels that cannot
    be audited, and where the model fails on the images.
    """
    _require_finite_weights(model)
    _require_channels(model, images)
    outputs = _logits(model, images[:_BATCH])
    classes = _classes(outputs, len(images[:_BATCH]))
    if len(labels) and int(labels.max()) >= classes:
        raise InputError(
            f"label {int(labels.max())} is outside the model's {classes} logits (classes 0 to {classes - 1}): "
            "give the model for these classes, or the data with its labels"
        )
    if n_classes_named is not None and n_classes_named > classes:
        raise InputError(
            f"the data names {n_classes_named} classes but the model gives {classes} logits: "
            "give the model for these classes, or the data with its class names"
        )
    return classes


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer, or the one a plain function was moved to; else the CPU."""
    weights = (tensor.device for tensor in chain(model.parameters(), model.buffers()))
    functions = (module.place for module in model.modules() if isinstance(module, CallableModel))
    return next(chain(weights, functions), torch.device("cpu"))


def _require_finite_weights(model: nn.Module) -> None:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not tensor.is_floating_point() or tensor.is_quantized:
            continue
        if bool(tensor.isnan().any()):
            raise InputError(f"the model's weights hold NaN (first in {name!r}): train it again or load a sound file")
        # A buffer may hold infinity on purpose, a mask for one; running statistics may not.
        counts = isinstance(tensor, nn.Parameter) or name.rpartition(".")[2].startswith("running_")
        if counts and bool(tensor.isinf().any()):
            raise InputError(
                f"the model's weights hold infinite values (first in {name!r}): train it again or load a sound file"
            )


def _require_channels(model: nn.Module, images: Tensor) -> None:
    channels = images.shape[1]
    for module in model.modules():
        if isinstance(module, Normalized) and module.channels not in (1, channels):
            raise InputError(
                f"mean and std have {module.channels} numbers but the images {channels} channel(s): "
                "give one number per channel, or one for all"
            )


def _logits(model: nn.Module, images: Tensor) -> Any:
    try:
        with evaluating(model), torch.no_grad():
            return model(images.to(device_of(model)))
    except InputError:
        raise
    except Exception as error:
        shape = tuple(images.shape[1:])
        raise InputError(
            f"the model failed on images of shape {shape}: {_reason(error)}; {_remedy(model, images, str(error))}"
        ) from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # TorchScript puts its own traceback first and the message last.
    line = lines[-1] if "TorchScript" in lines[0] else lines[0]
    return line[:200].strip(" .:")


def _remedy(model: nn.Module, images: Tensor, told: str) -> str:
    if device_of(model).type != "cpu" and any(sign in told for sign in ("same device", "device type", ".numpy()")):
        return "keep its tensors as buffers, which move with it, or give --device cpu"
    taken, given = _input_channels(model), images.shape[1]
    if taken is None or taken == given:
        return "give --resize HxW with the size that the model was trained on"
    kind = {1: "grayscale images, 1 channel", 3: "color images, 3 channels"}
    return f"it takes {kind.get(taken, f'{taken} channels')}, these have {given}: give images with {taken} channel(s)"


def _input_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution takes, by its module or by the first 4-D weight."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return next((int(weight.shape[1]) for weight in model.parameters() if weight.ndim == 4), None)


def _classes(outputs: Any, count: int) -> int:
    remedy = "it must return logits, floats of shape (N, K)"
    if not isinstance(outputs, Tensor):
        raise InputError(f"the model returns a {type(outputs).__name__}, not a tensor: {remedy}")
    if not outputs.is_floating_point():
        dtype = str(outputs.dtype).removeprefix("torch.")
        raise InputError(f"the model returns {dtype} numbers (predicted classes?): {remedy}")
    if outputs.ndim != 2 or len(outputs) != count:
        raise InputError(f"the model returns shape {tuple(outputs.shape)} for {count} image(s): {remedy}")
    if outputs.shape[1] < 2:
        raise InputError("the model returns one number per image: give one logit per class, for example (-z, z) / 2")
    if not bool(outputs.isfinite().all()):
        kind = "NaN" if bool(outputs.isnan().any()) else "infinite"
        raise InputError(f"the model returns {kind} logits on the first images: check its weights and its input range")
    return int(outputs.shape[1])
