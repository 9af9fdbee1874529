"""A patch on its way, kept in its folder, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robust.counting import CountedModel
from robust.errors import InputError, OtherAuditError
from robust.places import written_whole

STATE = "patch-state.safetensors"


def fingerprint(settings: Mapping[str, Any], *tensors: Tensor) -> str:
    """What makes one patch and no other: all settings, and the images it is made on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Meter:
    """What a patch has cost so far, what an earlier run spent on it included."""

    def __init__(self, model: CountedModel, earlier: Mapping[str, float]) -> None:
        self._model, self._earlier = model, earlier
        self._before, self._started = model.passes, time.perf_counter()

    def read(self) -> dict[str, float]:
        """Images passed ``forward`` and ``backward``, and ``seconds``."""
        passes = self._model.passes - self._before
        now = {
            "forward": passes.forward, "backward": passes.backward, "seconds": time.perf_counter() - self._started
        }  # fmt: skip
        return {name: self._earlier.get(name, 0) + value for name, value in now.items()}


def save_state(state: Mapping[str, Any], mark: str, folder: Path) -> None:
    """Write the optimizer's state, tensors and numbers, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    rest = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    with written_whole(folder / STATE) as partial:
        save_file(tensors, partial, {"mark": mark, "rest": json.dumps(rest)})


def load_state(mark: str, folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The state in a folder, None where there is none. Raises OtherAuditError where it is of another patch."""
    file = folder / STATE
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as held:
            notes = held.metadata() or {}
            tensors = {name: held.get_tensor(name).to(device) for name in held.keys()}  # noqa: SIM118
        rest = json.loads(notes.get("rest", ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({error}); remove it to start afresh") from error
    if notes.get("mark") != mark:
        raise OtherAuditError(
            f"--out {folder}: holds a patch made with other settings, images or weights; give a new or empty folder"
        )
    return {**tensors, **rest}
