"""Float32 that is float32: what decides is not left to the settings of the hardware.

PyTorch lets cuDNN multiply in TF32 (10 bits kept of 23) unless it is told otherwise, and lets programs allow the same,
or bfloat16, for any product. cuDNN may also choose algorithms that add in another order from run to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

# What PyTorch calls precisions where one is set for all products, and where each kind of product has its own.
_NAMES = {"highest": "ieee", "high": "tf32", "medium": "bf16", True: "tf32", False: "ieee", "none": "ieee"}
_UNITS = {"ieee": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class _Setting:
    """A setting of PyTorch, how to read and to change it, its exact value, and the kind of device that it is for."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    exact: Any
    device: str

    @property
    def precision(self) -> str:
        return str(_NAMES.get(self.get(), self.get()))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 are made in float32 inside, by algorithms of cuDNN that repeat; afterwards all is as before.

    The settings are those of the process: other threads meanwhile see them too. Serves as a decorator.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    changed: list[tuple[_Setting, Any]] = []
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        for setting in _settings():
            if setting.precision != "ieee":
                changed.append((setting, setting.get()))
                setting.set(setting.exact)
        yield
    finally:
        for setting, value in reversed(changed):
            setting.set(value)
        cudnn.benchmark, cudnn.deterministic = before


def rounding_unit(device: torch.device) -> float:
    """By how much the factors of float32 products may be rounded on ``device``, as things stand; 0 in float32."""
    kinds = {setting.precision for setting in _settings() if setting.device in ("all", device.type)}
    return max(_UNITS.get(kind, _UNITS["bf16"]) for kind in kinds)


def _settings() -> list[_Setting]:
    cudnn: Any = torch.backends.cudnn
    old = [
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", "all"),
        _Setting(partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False, "cuda"),
    ]
    try:
        for setting in old:
            setting.get()
    except RuntimeError:  # a program has used the new ones, and PyTorch refuses to tell them in the old ones' words
        old = []
    new = [
        _Setting(partial(getattr, owner, "fp32_precision"), partial(setattr, owner, "fp32_precision"), "ieee", device)
        for owner, device in _owners()
    ]
    return old + new


def _owners() -> list[tuple[Any, str]]:
    """Where newer versions of PyTorch (from 2.9 on) keep the precision of each kind of product."""
    backends: Any = torch.backends
    # What others inherit from comes first: once it is exact they are, and have nothing of their own to be put back.
    owners = [(backends, "all"), (backends.cudnn, "cuda"), (backends.mkldnn, "cpu"), (backends.cuda.matmul, "cuda")]
    owners += [(getattr(backends.cudnn, name, None), "cuda") for name in ("conv", "rnn")]
    owners += [(getattr(backends.mkldnn, name, None), "cpu") for name in ("matmul", "conv", "rnn")]
    return [(owner, device) for owner, device in owners if _has_precision(owner)]


def _has_precision(owner: Any) -> bool:
    try:
        return isinstance(owner.fp32_precision, str)
    except (AttributeError, RuntimeError):  # so does an older ``matmul`` of CUDA refuse
        return False
