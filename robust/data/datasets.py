"""Images from any map-style `torch.utils.data` data set, read item by item."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from robust.data.arrays import channels_first, floats
from robust.data.folders import Size, is_gray, pixels
from robust.data.image_set import ImageSet, as_labels, names_or_numbers
from robust.errors import InputError

_PROBES = 16
_STEADY = 4
# Where torchvision's data sets keep their labels; each is compared with what the data set returns before it is used.
_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y", "samples", "_samples")


def from_dataset(dataset: Dataset[Any], name: str, size: Size | None, class_names: Sequence[str] | None) -> ImageSet:
    """A map-style data set that gives (image, label), read item by item.

    An image is a Pillow image, a tensor (C, H, W) or an array (H, W, C) of uint8, or a float tensor or array (C, H, W)
    in [0, 1]; (H, W) is grayscale. Labels are taken from the data set's own list where that agrees with its items, else
    read in one pass. Raises InputError, also where two reads of one image differ.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise InputError(f"{name}: the data set has no length or no order: give one that can be indexed")
    count = len(dataset)
    if count == 0:
        raise InputError(f"{name}: holds no images")
    items = _Items(dataset, name, size)
    known = items.probe(sorted({round(at * (count - 1) / (_PROBES - 1)) for at in range(_PROBES)}))
    labels = _labels(items, count, known)
    channels, height, width = items.shape

    def read(positions: Sequence[int]) -> Tensor:
        return torch.stack([items.image(position, int(labels[position])) for position in positions])

    names = names_or_numbers(class_names if class_names is not None else _names(dataset), labels)
    return ImageSet(name, labels, names, (channels, height, width), count, read)


class _Items:
    """A data set's items, checked one by one."""

    def __init__(self, dataset: Any, name: str, size: Size | None) -> None:
        self.dataset = dataset
        self.name = name
        self.size = size
        self.channels: int | None = None  # that Pillow images are converted to
        self.shape: tuple[int, ...] = ()

    def probe(self, positions: Sequence[int]) -> dict[int, int]:
        """Learn the images' kind and shape from a few items; their labels."""
        found = {at: self.item(at) for at in positions}
        pictures = [image for image, _ in found.values() if isinstance(image, Image.Image)]
        if pictures:
            self.channels = 1 if all(is_gray(picture) for picture in pictures) else 3
        self.shape = tuple(self.pixels(positions[0], found[positions[0]][0]).shape)
        for at in positions[:_STEADY]:
            first, again = (self.pixels(at, raw).nan_to_num() for raw in (found[at][0], self.item(at)[0]))
            if not torch.equal(first, again):
                raise InputError(f"{self.name}: two reads of image {at} differ: remove random transforms")
        return {at: label for at, (_, label) in found.items()}

    def item(self, at: int) -> tuple[Any, int]:
        """Item ``at`` as (image, label). Raises InputError where the data set fails or gives something else."""
        try:
            item = self.dataset[at]
        except Exception as error:
            raise self._unreadable(at, f"{type(error).__name__}: {error}") from error
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise InputError(f"{self.name}: item {at} is a {type(item).__name__}: it must be a pair (image, label)")
        label = item[1]
        if isinstance(label, (Tensor, np.ndarray)):
            array = np.asarray(label.cpu() if isinstance(label, Tensor) else label)
            label = array.item() if array.size == 1 else array
        return item[0], int(as_labels([label], f"{self.name}, image {at}")[0])

    def image(self, at: int, label: int) -> Tensor:
        """Image ``at``, float32 (C, H, W). Raises InputError for another shape or label."""
        raw, now = self.item(at)
        if now != label:
            raise InputError(f"{self.name}: image {at} had label {label} and now has {now}: labels must not change")
        image = self.pixels(at, raw)
        if image.shape[0] != self.shape[0]:
            raise InputError(
                f"{self.name}: image {at} has {image.shape[0]} channels, the first {self.shape[0]}: "
                "convert all to one kind"
            )
        if tuple(image.shape) != self.shape:
            height, width = image.shape[1:]
            raise InputError(
                f"{self.name}: image {at} is {height}x{width} pixels but the first is {self.shape[1]}x{self.shape[2]} "
                "(HxW): all images must have one size; give --resize HxW"
            )
        return image

    def pixels(self, at: int, image: Any) -> Tensor:
        """An item's image as float32 (C, H, W)."""
        if not isinstance(image, Image.Image):
            if not isinstance(image, (Tensor, np.ndarray)):
                kind = type(image).__name__
                raise InputError(f"{self.name}: image {at} is a {kind}: give a Pillow image, a tensor or an array")
            return floats(channels_first(image[None], f"{self.name}: image {at}"), self.size)[0]
        if self.channels == 1 and not is_gray(image):
            raise InputError(f"{self.name}: image {at} is in color, others are grayscale: convert all to one kind")
        try:
            return pixels(image, self.channels or 3, self.size)
        except (OSError, ValueError) as error:
            raise self._unreadable(at, str(error)) from error

    def _unreadable(self, at: int, reason: str) -> InputError:
        short = " ".join(reason.split())[:160].strip(" .:")
        return InputError(f"{self.name}: image {at} cannot be read ({short}): replace or remove it")


def _labels(items: _Items, count: int, known: dict[int, int]) -> Tensor:
    """All labels: from the data set's own list if it has one that agrees with ``known``, else by one pass."""
    listed = _listed(items.dataset, count)
    if listed is not None and all(int(listed[at]) == label for at, label in known.items()):
        return listed
    return torch.tensor([known[at] if at in known else items.item(at)[1] for at in range(count)])


def _listed(dataset: Any, count: int) -> Tensor | None:
    if isinstance(dataset, Subset):
        whole = _listed(dataset.dataset, len(dataset.dataset)) if isinstance(dataset.dataset, Sized) else None
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    for attribute in _LABEL_ATTRIBUTES:
        values = getattr(dataset, attribute, None)
        if attribute.endswith("samples") and isinstance(values, list):
            values = [pair[1] for pair in values if isinstance(pair, tuple) and len(pair) == 2]
        if not isinstance(values, (list, np.ndarray, Tensor)) or len(values) != count:
            continue
        try:
            return as_labels(values, attribute)
        except (InputError, ValueError, TypeError):
            continue
    return None


def _names(dataset: Any) -> tuple[str, ...] | None:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if isinstance(names, (list, tuple)) and names:
            # ImageNet names a class by a tuple of synonyms.
            return tuple(", ".join(map(str, name)) if isinstance(name, (list, tuple)) else str(name) for name in names)
    return None
