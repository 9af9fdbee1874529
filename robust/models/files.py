"""Models and weights in files: TorchScript, exported programs, checkpoints, safetensors."""

from __future__ import annotations

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust.errors import InputError
from robust.models.wrappers import ExportedModel
from robust.silence import quiet

Kind = Literal["torchscript", "exported", "compiled", "checkpoint", "safetensors", "unknown"]

MODEL_SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".ckpt", ".bin", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_FORCE = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


def load_model_file(file: Path, *, trust: bool) -> nn.Module:
    """The model that a TorchScript or ``torch.export`` file holds, or with ``trust`` a pickled module.

    Both formats are programs: like a Python file they run what is in them. Raises InputError.
    """
    kind = file_kind(file)
    if kind == "torchscript":
        return _torchscript(file)
    if kind == "exported":
        return _exported(file, trust)
    if kind == "compiled":
        raise InputError(f"{file}: holds a compiled package, which has no gradients: save it with torch.export.save")
    if kind == "unknown":
        raise _unreadable(file)
    if kind == "checkpoint":
        content = _unpickled(file, trust)
        if isinstance(content, nn.Module):
            return content
    raise InputError(
        f"{file}: holds weights alone: name the architecture (FILE.py:NAME or torchvision:NAME) "
        "and give this file with --weights"
    )


def load_weights(model: nn.Module, file: Path, *, trust: bool) -> None:
    """Load a checkpoint into ``model``, every key. Raises InputError that names what does not fit."""
    put_weights(model, read_weights(file, trust=trust), file)


def put_weights(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Load ``weights``, read from ``file``, into ``model``, every key. Raises InputError."""
    own = model.state_dict()
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in weights) and not any(key.startswith(prefix) for key in own):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{file}: the weights do not fit the model: {_mismatch(own, weights, error)}") from error


def read_weights(file: Path, *, trust: bool) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: safetensors, or what ``torch.save`` wrote, unpickled safely.

    A dictionary under "state_dict", "model_state_dict", "model" or "net" is taken in place of the whole. With ``trust``
    pickles of any content are read, which may run code. Raises InputError.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file (weights)")
    kind = file_kind(file)
    if kind in ("torchscript", "exported", "compiled"):
        raise InputError(f"{file}: holds a whole model, not weights: give it as the model itself")
    if kind == "unknown":
        raise _unreadable(file)
    content = _safetensors(file) if kind == "safetensors" else _unpickled(file, trust)
    if isinstance(content, nn.Module):
        return dict(content.state_dict())
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), (dict, nn.Module)):
            inner = content[key]
            content = inner.state_dict() if isinstance(inner, nn.Module) else inner
            break
    tensors = {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    if not any(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{file}: holds no weights by name: save it with torch.save(model.state_dict(), FILE)")
    return tensors


def file_kind(file: Path) -> Kind:
    """What a file holds, by its content."""
    if file.suffix.lower() == ".safetensors":
        return "safetensors"
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            # torch.save's format before 2020 is a bare pickle, of protocol 2 or later.
            return "checkpoint" if opened.read(1) == b"\x80" else "unknown"
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2] or name for name in archive.namelist()} | set(archive.namelist())
    if any("data/aotinductor/" in name for name in names):
        return "compiled"
    if "serialized_exported_program.json" in names or "archive_format" in names:
        return "exported"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    return "checkpoint" if "data.pkl" in names else "unknown"


def _torchscript(file: Path) -> nn.Module:
    try:
        with quiet(logging.CRITICAL):
            model: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
            return model.eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise _damaged(file, error) from error


def _exported(file: Path, trust: bool) -> nn.Module:
    try:
        with quiet(logging.CRITICAL), _safe_pickles(not trust):
            program = torch.export.load(str(file))
            module = program.module()
    except pickle.UnpicklingError as error:
        raise _refused(file, error) from error
    except Exception as error:
        raise _damaged(file, error) from error
    _require_eval_mode(program, file)
    smallest, largest = _batch_bounds(program, file)
    return ExportedModel(module, smallest, largest)


def _require_eval_mode(program: torch.export.ExportedProgram, file: Path) -> None:
    for node in program.graph.nodes:
        name, arguments = str(node.target), node.args
        # The training flag is the third argument of dropout, the sixth of batch normalization.
        trains = (".dropout." in name and arguments[2:3] == (True,)) or (
            ".batch_norm." in name and arguments[5:6] == (True,)
        )
        if trains:
            raise InputError(f"{file}: was exported in training mode: call model.eval() before torch.export.export")


def _batch_bounds(program: torch.export.ExportedProgram, file: Path) -> tuple[int, int | None]:
    """Smallest and largest batch that the program takes."""
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), Tensor) or inputs[0].meta["val"].ndim != 4:
        raise InputError(f"{file}: the program takes other inputs than one tensor of images (N, C, H, W)")
    size = inputs[0].meta["val"].shape[0]
    if isinstance(size, int):
        return size, size
    bounds = program.range_constraints.get(size.node.expr)
    if bounds is None:
        return 1, None
    largest = int(bounds.upper) if str(bounds.upper).isdecimal() else None
    return max(1, int(bounds.lower)), largest


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        loaded: dict[str, Tensor] = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, error) from error
    return loaded


def _unpickled(file: Path, trust: bool) -> Any:
    try:
        with quiet(logging.CRITICAL):
            return torch.load(file, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise (_damaged if trust else _refused)(file, error) from error
    except (AttributeError, ModuleNotFoundError) as error:
        raise InputError(f"{file}: needs code that is not here ({error}): save the state_dict instead") from error
    except Exception as error:
        raise _damaged(file, error) from error


def _refused(file: Path, error: Exception) -> InputError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    what = f" ({named[1]})" if named else ""
    return InputError(
        f"{file}: a pickle with more than tensors{what}, which could run code: save the state_dict or safetensors "
        "instead, or give --trust if you trust its source"
    )


def _damaged(file: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:120].strip(" .:") or type(error).__name__
    return InputError(f"{file}: cannot be loaded ({reason}): the file is damaged or incomplete; save it again")


def _unreadable(file: Path) -> InputError:
    return InputError(
        f"{file}: not a model file: give TorchScript, a torch.export file, or weights as safetensors or from torch.save"
    )


def _mismatch(own: dict[str, Any], given: dict[str, Any], error: Exception) -> str:
    def shape(tensors: dict[str, Any], key: str) -> tuple[int, ...] | None:
        return tuple(tensors[key].shape) if isinstance(tensors[key], Tensor) else None

    missing = [key for key in own if key not in given]
    foreign = [key for key in given if key not in own]
    differing = [
        f"{key} is {shape(given, key)}, not {shape(own, key)}"
        for key in own
        if key in given and shape(own, key) != shape(given, key)
    ]
    found = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in (("missing", missing), ("foreign", foreign), ("of another shape", differing))
        if keys
    ]
    return "; ".join(found) or " ".join(str(error).split())[:200]


@contextmanager
def _safe_pickles(on: bool) -> Iterator[None]:
    """torch.load unpickles tensors alone, also where torch itself calls it with ``weights_only=False``."""
    before = {name: os.environ.pop(name, None) for name in _FORCE} if on else {}
    if on:
        os.environ[_FORCE[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
