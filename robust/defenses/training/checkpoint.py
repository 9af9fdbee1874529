"""Checkpoints: all that a run needs to go on after it was killed, in one file that holds tensors and numbers only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from robust.errors import InputError
from robust.places import written_whole

FILE = "checkpoint.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write in one step: a kill leaves the old checkpoint or the new one."""
    with written_whole(path) as partial:
        torch.save(content, partial)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint at ``path``, on the CPU; None where there is none.

    Raises InputError where it cannot be read, or belongs to a run with another identity (settings, model, data).
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = content["identity"]
    except (RuntimeError, EOFError, KeyError, TypeError, OSError, pickle.UnpicklingError):
        raise InputError(f"{path}: no checkpoint that this version reads; remove it or give another folder") from None
    differing = [key for key in identity if found.get(key) != identity[key]]
    if differing:
        raise InputError(
            f"{path.parent}: holds a training with another {' and '.join(differing)}; give another folder to --out"
        )
    return content
