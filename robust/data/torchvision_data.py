"""torchvision's image-classification data sets by name and root folder, never downloaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from robust.data.datasets import from_dataset
from robust.data.folders import Size
from robust.data.image_set import ImageSet
from robust.errors import InputError, unknown

CLASSIFICATION = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "INaturalist", "ImageFolder",
    "ImageNet", "Imagenette", "KMNIST", "LFWPeople", "MNIST", "OxfordIIITPet", "PCAM", "Places365", "QMNIST",
    "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
)  # fmt: skip


def load_torchvision(spec: str, split: str | None, size: Size | None, class_names: Sequence[str] | None) -> ImageSet:
    """The data set ``torchvision:NAME@ROOT`` or ``torchvision:NAME:SPLIT@ROOT``, never downloaded.

    SPLIT is what the torchvision class takes as ``split`` (train or test where it takes ``train=``); the default is the
    test split, the validation split where there is no test split. EMNIST's SPLIT names its subset (letters, digits,
    ...), whose test part is taken. Raises InputError.
    """
    matched = re.fullmatch(r"torchvision:(?P<name>\w+)(:(?P<split>[\w-]+))?@(?P<root>.+)", spec)
    if matched is None:
        raise InputError(f"{spec}: write torchvision:NAME@ROOT or torchvision:NAME:SPLIT@ROOT")
    name, root = _known(matched["name"]), Path(matched["root"]).expanduser()
    if split is not None and matched["split"] not in (None, split):
        raise InputError(f"{spec}: names the split {matched['split']!r}, but split={split!r} is asked for: give one")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder ({spec})")
    dataset, part = _opened(name, root, matched["split"] or split)
    return from_dataset(dataset, f"torchvision:{name}" + (f":{part}" if part else ""), size, class_names)


def _known(name: str) -> str:
    from torchvision import datasets

    valid = [candidate for candidate in CLASSIFICATION if hasattr(datasets, candidate)]
    by_folded = {candidate.lower(): candidate for candidate in valid}
    if name.lower() not in by_folded:
        raise unknown("torchvision data set", name, valid)
    return by_folded[name.lower()]


def _opened(name: str, root: Path, split: str | None) -> tuple[Dataset[Any], str | None]:
    """The torchvision data set, and the split it was opened with (None where it has no splits)."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    reasons: list[str] = []
    for part, options in _options(name, kind, split):
        try:
            return kind(str(root), **options), part
        except (ValueError, KeyError) as error:
            reasons.append(str(error))  # no such split: the next candidate may be one
        except Exception as error:
            raise _incomplete(name, root, part, options, error) from error
    raise InputError(f"torchvision:{name}: {_short(reasons[0])}: write torchvision:{name}:SPLIT@ROOT")


def _options(name: str, kind: type, split: str | None) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Splits to try with the arguments that open them, likeliest first."""
    parameters = inspect.signature(kind).parameters
    rest = {"download": False} if "download" in parameters else {}
    if name == "EMNIST":
        subset = split or "balanced"
        yield subset, {"split": subset, "train": False, "download": False}
    elif "train" in parameters:
        if split not in (None, "train", "test"):
            raise InputError(f"torchvision:{name}: no split {split!r}: choose train or test")
        yield split or "test", {"train": split == "train", **rest}
    elif "split" in parameters or "version" in parameters:
        key = "split" if "split" in parameters else "version"
        for part in [split] if split else ["test", "val", "2021_valid"]:
            yield part, {key: part, **rest}
    elif split is not None:
        raise InputError(f"torchvision:{name}: has no splits, but {split!r} is asked for: leave it out")
    else:
        yield None, rest


def _incomplete(name: str, root: Path, part: str | None, options: dict[str, Any], error: Exception) -> InputError:
    shown = [repr(str(root)), *(f"{key}={value!r}" for key, value in options.items() if key != "download")]
    if "download" in options:
        call = f"torchvision.datasets.{name}({', '.join([*shown, 'download=True'])})"
        remedy = f"fetch it once in Python with {call}"
    else:
        remedy = f"lay it out there as torchvision.datasets.{name} documents"
    reason = _short(str(error).replace("You can use download=True to download it", ""))
    of = f" ({part})" if part else ""
    return InputError(f"torchvision:{name}{of}: no complete data set in {root} ({reason}): {remedy}")


def _short(text: str) -> str:
    return " ".join(text.split())[:200].strip(" .")
