"""Images held in memory: `.npz` files and pairs of tensors or arrays. 8-bit images stay 8-bit until they are read."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robust.data.folders import Size, resize_bytes, resized
from robust.data.image_set import ImageSet, as_labels, names_or_numbers
from robust.errors import InputError


def load_npz(file: Path, size: Size | None, class_names: Sequence[str] | None) -> ImageSet:
    """Images and labels from an ``.npz`` file.

    ``images``: uint8 (N, H, W, C) or (N, H, W), or floats in [0, 1] (N, C, H, W); ``labels``: (N,) class numbers;
    ``class_names``: optional strings. Pickled contents are refused. Raises InputError.
    """
    arrays = _arrays(file)
    names = class_names if class_names is not None else _names(arrays.get("class_names"), file)
    return from_arrays(arrays["images"], arrays["labels"], file.name, size, names)


def from_arrays(images: Any, labels: Any, name: str, size: Size | None, class_names: Sequence[str] | None) -> ImageSet:
    """Images and labels from tensors or arrays, kept as they are.

    Tensors are (N, C, H, W), uint8 arrays (N, H, W, C) and float arrays (N, C, H, W), unless only the other order gives
    1 or 3 channels; (N, H, W) is grayscale. uint8 is 0 to 255, floats lie in [0, 1]. Raises InputError.
    """
    stored = channels_first(images, name)
    numbers = as_labels(labels, name)
    if len(stored) != len(numbers):
        raise InputError(f"{name}: {len(stored)} images but {len(numbers)} labels: give one label per image")
    if len(stored) == 0:
        raise InputError(f"{name}: holds no images")
    channels, height, width = stored.shape[1:]

    def read(positions: Sequence[int]) -> Tensor:
        return floats(stored[torch.as_tensor(positions, dtype=torch.int64)], size)

    shape = (channels, *(size or (height, width)))
    return ImageSet(name, numbers, names_or_numbers(class_names, numbers), shape, len(stored), read)


def floats(images: Tensor, size: Size | None) -> Tensor:
    """uint8 or float images (n, C, H, W) as float32 in [0, 1], stretched to ``size``."""
    if images.dtype != torch.uint8:
        wide = images.to(torch.float32).contiguous()
        return wide if size is None or wide.shape[2:] == size else resized(wide, size)
    if size is not None and images.shape[2:] != size:
        images = torch.stack([_resized_bytes(image, size) for image in images])
    return images.to(torch.float32, memory_format=torch.contiguous_format).div(255)


def channels_first(images: Any, name: str) -> Tensor:
    """Images of either order as a (N, C, H, W) view on the CPU, uint8 or float. Raises InputError."""
    is_tensor = isinstance(images, Tensor)
    tensor = images.detach().cpu() if is_tensor else _from_numpy(images, name)
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"{name}: images have dtype {dtype}: give uint8 in 0 to 255 or floats in [0, 1]")
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    elif tensor.ndim == 4 and _channels_last(tensor, is_tensor):
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise InputError(
            f"{name}: images have shape {tuple(images.shape)}: give uint8 (N, H, W, C) or floats (N, C, H, W)"
        )
    return tensor


def _channels_last(images: Tensor, is_tensor: bool) -> bool:
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first != last:
        return last
    return images.dtype == torch.uint8 and not is_tensor


def _from_numpy(images: Any, name: str) -> Tensor:
    if not isinstance(images, np.ndarray):
        raise InputError(f"{name}: images are a {type(images).__name__}: give a tensor or an array")
    if images.dtype == np.uint8 or images.dtype.kind == "f":
        wide = images if images.dtype in (np.uint8, np.float16, np.float32) else images.astype(np.float32)
        return torch.from_numpy(np.require(wide, requirements=["C", "W"]))
    raise InputError(f"{name}: images have dtype {images.dtype}: give uint8 in 0 to 255 or floats in [0, 1]")


def _resized_bytes(image: Tensor, size: Size) -> Tensor:
    # Pillow plane by plane: exact to the bit on every machine, and any number of channels.
    planes = [resize_bytes(Image.fromarray(plane.contiguous().numpy()), size)[:, :, 0] for plane in image]
    return torch.from_numpy(np.stack(planes))


def _arrays(file: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file}: not an .npz file, or a damaged one: save it with numpy.savez")
    try:
        with np.load(file, allow_pickle=False) as archive:
            held = list(archive.files)
            arrays = {key: archive[key] for key in ("images", "labels", "class_names") if key in held}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{file}: holds pickled objects, which are not loaded: save plain arrays (class names as strings)"
            ) from error
        raise InputError(f"{file}: a damaged .npz file: save it again") from error
    for key in ("images", "labels"):
        if key not in arrays:
            found = ", ".join(held) or "nothing"
            raise InputError(f"{file}: no array {key!r} (it holds {found}): save it with images= and labels=")
    return arrays


def _names(array: NDArray[Any] | None, file: Path) -> tuple[str, ...] | None:
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise InputError(f"{file}: class_names are {array.dtype} of shape {array.shape}: give one string per class")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist())
