"""Models to audit: the bundled demo, a Python factory, torchvision by name, a file, or an object in memory.

A model is an ``nn.Module`` from images in [0, 1], shape (N, C, H, W), to logits (N, K).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from robust.errors import InputError
from robust.models.bpda import BPDA, Backward, bpda, check_fronts, hidden_fronts, identity, with_bpda
from robust.models.check import check_model, device_of
from robust.models.factory import load_factory
from robust.models.files import MODEL_SUFFIXES, load_model_file, load_weights
from robust.models.state import evaluating, identify, parameter_count
from robust.models.torchvision_models import load_torchvision_model, nearest_models
from robust.models.wrappers import CallableModel, ExportedModel, Normalized

__all__ = [
    "BPDA", "Backward", "CallableModel", "ExportedModel", "Normalized", "bpda", "check_fronts", "check_model",
    "device_of", "evaluating", "hidden_fronts", "identify", "identity", "load_model", "parameter_count", "with_bpda",
]  # fmt: skip

_KINDS = "demo, FILE.py:NAME, torchvision:NAME, a TorchScript file or a torch.export file (.pt2)"


def load_model(
    spec: str | Path | nn.Module | Callable[[Tensor], Any],
    *,
    weights: str | Path | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    trust: bool = False,
) -> nn.Module:
    """The model that ``spec`` names, from images in [0, 1] to logits: float32, on the CPU, in eval mode.

    ``demo``; ``path/file.py:name``, a function without arguments that returns a module or a callable (or a module
    itself); ``torchvision:NAME``, with its default weights (downloaded on first use; their mean and std become part of
    the model) or with ``weights``; a TorchScript or ``torch.export`` file. A module given as an object is used as it
    is: neither copied nor moved nor switched to eval mode. A callable becomes a module.

    ``weights``: a checkpoint for a factory or a torchvision name, safetensors or unpickled safely. ``mean`` and ``std``
    (pixel units in [0, 1], one number per channel or one for all) become part of the model: images go in as they are.
    ``trust``: also unpickle files that hold more than tensors, which may run code. Raises InputError.
    """
    if (mean is None) != (std is None):
        raise InputError(f"{'mean' if std is None else 'std'} is given without {'std' if std is None else 'mean'}")
    file = None if weights is None else Path(weights).expanduser()
    if isinstance(spec, nn.Module):
        model = spec
        if file is not None:
            load_weights(model, file, trust=trust)
    elif isinstance(spec, (str, Path)):
        model = _named(str(spec), file, mean is not None, trust)
    else:
        model = _called(spec, file)
    if mean is None or std is None:
        return model
    behind = Normalized(model, _numbers(mean), _numbers(std))
    behind.training = model.training
    return behind


def _named(text: str, weights: Path | None, normalized: bool, trust: bool) -> nn.Module:
    if text.startswith("torchvision:"):
        return load_torchvision_model(text.partition(":")[2], weights, normalized=normalized, trust=trust)
    if text == "demo":
        model = _demo()
    elif text.lower().endswith(".py") or text.rpartition(":")[0].lower().endswith(".py"):
        model = load_factory(text)
    else:
        return _from_file(text, weights, trust)
    if weights is not None:
        load_weights(model, weights, trust=trust)
    return _ready(model)


def _called(function: Any, weights: Path | None) -> nn.Module:
    if not callable(function) or isinstance(function, type):
        kind = f"the class {function.__name__}" if isinstance(function, type) else f"a {type(function).__name__}"
        raise InputError(f"the model is {kind}: give {_KINDS}, a module or a function of images")
    if weights is not None:
        raise InputError("weights are given for a function, which has none: give the module")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise InputError(f"the model is a function that does not take images alone ({error}): give a module") from error
    except ValueError:
        pass  # a builtin without a signature: calling it will tell
    return CallableModel(function).eval()


def _from_file(text: str, weights: Path | None, trust: bool) -> nn.Module:
    file = Path(text).expanduser()
    if file.is_dir() or not file.exists():
        raise _unknown(text, file)
    if weights is not None:
        raise InputError(f"{text}: a model file has its own weights: leave --weights out, or name a FILE.py:NAME")
    model = load_model_file(file, trust=trust)
    return model if isinstance(model, ExportedModel) else _ready(model)


def _ready(model: nn.Module) -> nn.Module:
    return model.float().cpu().eval()


def _demo() -> nn.Module:
    from robust import demo

    return demo.load_model()


def _numbers(value: Sequence[float] | float) -> list[float]:
    return [float(value)] if isinstance(value, (int, float)) else [float(number) for number in value]


def _unknown(text: str, file: Path) -> InputError:
    if file.is_dir():
        return InputError(f"{text}: a folder: the model is {_KINDS}")
    if (file.suffix.lower() in MODEL_SUFFIXES or "/" in text or "\\" in text) and "://" not in text:
        return InputError(f"{text}: no such file")
    near = nearest_models(text)
    hint = f"did you mean {' or '.join(near)}?" if near else f"a model is {_KINDS}"
    return InputError(f"unknown model {text!r}: {hint}")
