"""What the commands share: how values are written, what a model and data may be, exit codes."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time

from robust.errors import InputError

GATE_FAILED, BAD_INPUT, INCONCLUSIVE, INTERRUPTED = 1, 2, 3, 130

MODEL_HELP = (
    "demo; file.py:factory; torchvision:NAME; a TorchScript (.pt) or torch.export (.pt2) file. "
    "Takes images in 0..1, gives logits."
)
DATA_HELP = (
    "demo; a folder with a sub-folder per class; an .npz with images and labels; torchvision:NAME@ROOT, such as "
    "torchvision:GTSRB@data."
)


def command_line() -> str:
    return shlex.join(["robust", *sys.argv[1:]])


def first_process() -> bool:
    """Whether this is the first of those that torchrun started, or the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def after_the_first() -> None:
    """Let the first of torchrun's processes say what is wrong with all; the others are ended while they wait."""
    if not first_process():
        time.sleep(30)


def seconds_of(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if match is None or float(match[1]) == 0:
        raise InputError(f"--budget {text}: write a time such as 90s, 10m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def size_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if match is None or "0" in (match[1], match[2]):
        raise InputError(f"--resize {text}: write HxW, such as 224x224")
    return int(match[1]), int(match[2])


def numbers_of(option: str, text: str | None, what: str = "one per channel") -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: write numbers separated by commas, {what}") from None
