"""torchvision's classifiers by name, with their default weights or a checkpoint."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InputError, unknown
from robust.models.files import put_weights, read_weights
from robust.models.wrappers import Normalized


def load_torchvision_model(name: str, weights: Path | None, *, normalized: bool, trust: bool) -> nn.Module:
    """The torchvision classifier ``name``, float32, on the CPU, in eval mode.

    With ``weights``, a checkpoint, the number of classes is that of its last layer. Without, torchvision's default
    weights, downloaded on first use, behind their own mean and std unless ``normalized`` says that the caller adds
    others. Raises InputError.
    """
    from torchvision import models

    valid = models.list_models(module=models)
    if name.lower() not in valid:
        raise unknown("torchvision model", name, valid)
    with torch.random.fork_rng(devices=[]):
        if weights is not None:
            return _with_checkpoint(name.lower(), weights, trust).float().eval()
        return _with_default_weights(name.lower(), normalized).float().eval()


def nearest_models(text: str) -> list[str]:
    """The model texts nearest to ``text``, for a name that was written without its kind or not quite right."""
    from torchvision import models

    names = [*models.list_models(module=models), "demo"]
    bare = text.rpartition(":")[2].lower()
    near = difflib.get_close_matches(bare, names, n=3, cutoff=0.6)
    return [match if match == "demo" else f"torchvision:{match}" for match in near]


def _with_default_weights(name: str, normalized: bool) -> nn.Module:
    from torchvision import models

    default = models.get_model_weights(name).DEFAULT
    try:
        model: nn.Module = models.get_model(name, weights=default, progress=False)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"torchvision:{name}: its weights could not be downloaded ({reason}): connect to the network for the first "
            "use, or give a checkpoint with --weights"
        ) from error
    if normalized:
        return model
    preset = default.transforms()
    return Normalized(model, preset.mean, preset.std)


def _with_checkpoint(name: str, file: Path, trust: bool) -> nn.Module:
    from torchvision import models

    weights = read_weights(file, trust=trust)
    options = _options(models.get_model_builder(name), weights)
    with torch.device("meta"):
        last = _last_layer(models.get_model(name, weights=None, **options))
    found = [value for key, value in weights.items() if key.endswith(f"{last}.weight") and isinstance(value, Tensor)]
    classes = {"num_classes": int(found[0].shape[0])} if found else {}
    model: nn.Module = models.get_model(name, weights=None, **classes, **options)
    put_weights(model, weights, file)
    return model


def _options(builder: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """GoogLeNet and Inception alone have auxiliary heads and an initialization of minutes."""
    network = inspect.signature(builder).return_annotation
    if getattr(network, "__name__", str(network)) not in ("GoogLeNet", "Inception3"):
        return {}
    return {"aux_logits": any("aux" in key.lower() for key in weights), "init_weights": False}


def _last_layer(model: nn.Module) -> str:
    layers = [str(name) for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    return [name for name in layers if "aux" not in name.lower()][-1]
