"""What a record says of its subject: which model, which data, when, where and with what."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust.data import ImageSet
from robust.models import identify, parameter_count
from robust.summary import DataRecord, ModelRecord

_PACKAGES = ("robust", "torch", "torchvision", "adversarial-robustness-toolbox", "foolbox", "numpy")


def describe_model(given: object, network: nn.Module, classes: int, name: str | None = None) -> ModelRecord:
    """The record of ``network``, called ``name``, or after what was ``given`` for it."""
    return ModelRecord(
        name=name or name_of(given), sha256=identify(network), parameters=parameter_count(network), classes=classes
    )


def name_of(given: object) -> str:
    """What to call a model that was given as a text, a module or a function."""
    if isinstance(given, (str, Path)):
        return str(given)
    return type(given).__name__ if isinstance(given, nn.Module) else getattr(given, "__name__", type(given).__name__)


def describe_data(images: ImageSet, available: int) -> DataRecord:
    """The record of ``images``, drawn from ``available`` ones."""
    return DataRecord(
        name=images.name, n=len(images), available=available, sha256=images.sha256(), shape=images.shape,
        class_names=list(images.class_names),
    )  # fmt: skip


def circumstances() -> dict[str, Any]:
    """The fields of a summary that say when, where and with what it was made."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "robust_version": versions["robust"], "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {device}", "versions": versions,
    }  # fmt: skip
