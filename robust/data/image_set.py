"""Images with labels, read in batches: what every part of an audit takes as data."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust.errors import InputError

Reader = Callable[[Sequence[int]], Tensor]

# Resampling and float16 leave values this far outside [0, 1]; they are clipped, anything beyond is an error.
_SLACK = 1e-5
_HASH_BYTES = 16 * 2**20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels, read in batches.

    ``labels``: int64 (N,), on the CPU, each a position in ``class_names``. ``shape``: (C, H, W) of every image.
    ``available``: images in the source before any limit. ``read``: positions 0..N-1 to float32 (n, C, H, W) in [0, 1]
    on the CPU. ``positions``: int64 (N,), where each image stands in the source (None: 0..N-1), so that messages name
    the source's image after :meth:`take`.

    Raises InputError where a label is negative or has no class name, or where there are fewer than 2 classes.
    """

    name: str
    labels: Tensor = field(repr=False)
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]
    available: int
    read: Reader = field(repr=False)
    positions: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            only = f" ({self.class_names[0]!r})" if self.class_names else ""
            raise InputError(f"{self.name}: only one class{only}; an audit needs at least 2 classes")
        if len(self.labels) == 0:
            return
        largest = int(self.labels.max())
        if largest >= len(self.class_names):
            raise InputError(
                f"{self.name}: label {largest} has no class name (there are {len(self.class_names)}, for labels 0 to "
                f"{len(self.class_names) - 1}): name every class or correct the labels"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """Images at ``indices``, float32 (n, C, H, W) in [0, 1], on the CPU.

        Raises InputError for pixels outside [0, 1], NaN, a shape other than ``shape``, or an unreadable image.
        """
        chosen = [int(index) for index in indices]
        for index in chosen:
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of {len(self)}")
        if not chosen:
            return torch.empty((0, *self.shape))
        return self._checked(self.read(chosen), chosen)

    def take(self, indices: Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        chosen = [int(index) for index in indices]
        read = self.read
        at = torch.tensor(chosen, dtype=torch.int64)
        return ImageSet(
            self.name,
            self.labels[at],
            self.class_names,
            self.shape,
            self.available,
            lambda wanted: read([chosen[index] for index in wanted]),
            at if self.positions is None else self.positions[at],
        )

    def limited(self, limit: int | None, seed: int) -> ImageSet:
        """A simple random sample of ``limit`` images without replacement, in the source's order.

        Images are ranked by a hash of (seed, position): the sample depends on nothing else, on no library's generator,
        and a larger limit with the same seed contains the smaller sample. None, or a limit that is not below N, gives
        all images. Raises InputError for a limit below 1.
        """
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit}: give at least 1 image")
        if limit is None or limit >= len(self):
            return self

        def rank(position: int) -> bytes:
            return hashlib.sha256(f"{seed}:{position}".encode()).digest()

        return self.take(sorted(heapq.nsmallest(limit, range(len(self)), key=rank)))

    def sha256(self) -> str:
        """Hash of the shape (N, C, H, W), the pixels as little-endian float32, and the labels, in order.

        One pass over the images in pieces of at most 16 MiB; 8-bit sources hash like their float images k / 255.
        """
        channels, height, width = self.shape
        digest = hashlib.sha256(f"{len(self)} {channels} {height} {width}\n".encode())
        step = max(1, _HASH_BYTES // (4 * channels * height * width))
        for start in range(0, len(self), step):
            pixels = self.batch(range(start, min(start + step, len(self)))).contiguous().numpy()
            digest.update(pixels.astype("<f4", copy=False).tobytes())
        digest.update(self.labels.numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def _checked(self, images: Tensor, chosen: Sequence[int]) -> Tensor:
        if images.dtype != torch.float32 or tuple(images.shape) != (len(chosen), *self.shape):
            raise InputError(
                f"{self.name}: read {images.dtype} images of shape {tuple(images.shape)}, "
                f"not float32 of shape {(len(chosen), *self.shape)}"
            )
        low, high = (float(value) for value in images.aminmax())
        if low >= 0 and high <= 1:
            return images
        if low >= -_SLACK and high <= 1 + _SLACK:
            return images.clamp(0, 1)
        flat = images.flatten(1)
        # Written so that NaN counts as wrong.
        wrong = ~((flat >= -_SLACK) & (flat <= 1 + _SLACK)).all(dim=1)
        first = int(wrong.nonzero()[0])
        raise _pixel_error(self.name, self._source(chosen[first]), flat[first])

    def _source(self, index: int) -> int:
        return index if self.positions is None else int(self.positions[index])


def _pixel_error(name: str, position: int, pixels: Tensor) -> InputError:
    if not bool(pixels.isfinite().all()):
        kind = "NaN" if bool(pixels.isnan().any()) else "infinite values"
        return InputError(f"{name}: image {position} holds {kind}: replace or remove it")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0:
        remedy = "undo the normalization (robust wants pixels in [0, 1]; give mean and std with the model)"
    else:
        remedy = f"divide by {255 if high <= 255 else 65535}"
    return InputError(f"{name}: image {position} has values from {low:.4g} to {high:.4g}, outside [0, 1]: {remedy}")


def as_labels(values: Any, name: str) -> Tensor:
    """Class numbers of any integer kind, shape (N,) or (N, 1), as int64 (N,) on the CPU.

    Raises InputError for another shape, fractions, NaN, negative numbers, or values that are no numbers.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{name}: labels have shape {array.shape}, not (N,): give one class number per image")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: labels have dtype {array.dtype}: give class numbers 0, 1, 2, ...")
    if array.dtype.kind == "f":
        fractional = np.flatnonzero(~(np.isfinite(array) & (array == np.rint(array))))
        if len(fractional):
            at = int(fractional[0])
            raise InputError(f"{name}: label {array[at]} of image {at} is not a whole number: give class numbers")
    labels = array.astype(np.int64)
    negative = np.flatnonzero(labels < 0)
    if len(negative):
        at = int(negative[0])
        raise InputError(f"{name}: label {array[at]} of image {at} is negative: classes count from 0")
    return torch.from_numpy(labels)


def names_or_numbers(names: Sequence[str] | None, labels: Tensor) -> tuple[str, ...]:
    """The class names, or "class 0", "class 1", ... up to the largest label where there are none."""
    if names is not None:
        return tuple(names)
    count = int(labels.max()) + 1 if len(labels) else 0
    return tuple(f"class {number}" for number in range(count))
