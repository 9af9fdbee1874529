"""Images to audit: from the bundled demo, a folder, an `.npz` file, torchvision by name, or objects in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from robust.data.arrays import from_arrays, load_npz
from robust.data.datasets import from_dataset
from robust.data.folders import load_folder
from robust.data.image_set import ImageSet
from robust.data.torchvision_data import load_torchvision
from robust.errors import InputError

__all__ = ["ImageSet", "load_data", "parse_size"]

_KINDS = "a folder with a sub-folder per class, an .npz file, torchvision:NAME@ROOT, or demo"


def load_data(
    spec: str | Path | ImageSet | Dataset[Any] | tuple[Any, Any],
    *,
    split: str | None = None,
    resize: tuple[int, int] | str | None = None,
    class_names: Sequence[str] | None = None,
) -> ImageSet:
    """Images with labels from whatever ``spec`` names.

    Text or path: ``demo``; a folder with a sub-folder per class; an ``.npz`` file with ``images`` (N, H, W, C) uint8 or
    (N, C, H, W) float in [0, 1], ``labels`` and optional ``class_names``; ``torchvision:NAME@ROOT`` or
    ``torchvision:NAME:SPLIT@ROOT`` (never downloaded). Objects: any map-style ``torch.utils.data.Dataset`` that gives
    (image, label), or a pair (images, labels) of tensors or arrays. Folders and data sets are read batch by batch.

    ``split`` picks the part of a torchvision data set. ``resize`` (H, W) or "HxW" stretches every image; without it all
    must have one size. ``class_names`` replace those of the source; for a folder they also give each sub-folder that
    they name its label. Raises InputError.
    """
    size = None if resize is None else parse_size(resize)
    names = None if class_names is None else tuple(str(name) for name in class_names)
    if split is not None and not (isinstance(spec, str) and spec.startswith("torchvision:")):
        raise InputError(f"split {split!r}: only torchvision data sets have splits; name the part's own folder or file")
    if isinstance(spec, (str, Path)):
        return _named(spec, split, size, names)
    if isinstance(spec, ImageSet):
        if size is not None and size != spec.shape[1:]:
            raise InputError(f"{spec.name}: already loaded with images of {spec.shape}: resize where it is loaded")
        return spec if names is None else replace(spec, class_names=names)
    if isinstance(spec, Dataset):
        return from_dataset(spec, type(spec).__name__, size, names)
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and isinstance(spec[0], (Tensor, np.ndarray)):
        return from_arrays(spec[0], spec[1], "tensors" if isinstance(spec[0], Tensor) else "arrays", size, names)
    raise InputError(f"data of type {type(spec).__name__}: give {_KINDS}, a Dataset, or a pair (images, labels)")


def parse_size(size: str | Sequence[int]) -> tuple[int, int]:
    """(H, W) from "HxW" or from two whole numbers. Raises InputError."""
    if isinstance(size, str):
        matched = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", size)
        numbers = [int(matched[1]), int(matched[2])] if matched else []
    else:
        numbers = [side for side in size if isinstance(side, int) and not isinstance(side, bool)]
        numbers = numbers if len(numbers) == len(size) else []
    if len(numbers) != 2 or not all(1 <= side <= 16384 for side in numbers):
        raise InputError(f"resize {size!r}: write HEIGHTxWIDTH in pixels, for example 32x32")
    return numbers[0], numbers[1]


def _named(spec: str | Path, split: str | None, size: tuple[int, int] | None, names: Sequence[str] | None) -> ImageSet:
    text = str(spec)
    if text == "demo":
        return _demo(size, names)
    if text.startswith("torchvision:"):
        return load_torchvision(text, split, size, names)
    path = Path(text).expanduser()
    if path.is_dir():
        return load_folder(path, size, names)
    if path.suffix.lower() == ".npz" and path.exists():
        return load_npz(path, size, names)
    if path.exists():
        raise InputError(f"{text}: not data that robust reads: give {_KINDS}")
    raise InputError(f"{text}: no such file or folder: give {_KINDS}")


def _demo(size: tuple[int, int] | None, names: Sequence[str] | None) -> ImageSet:
    from robust import demo

    images, labels, demo_names = demo.data()
    return from_arrays(np.asarray(images), labels, "demo", size, names or tuple(demo_names))
