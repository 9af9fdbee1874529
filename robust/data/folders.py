"""Image files: a folder with a sub-folder per class, and what a Pillow image is as pixels."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robust.data.image_set import ImageSet
from robust.errors import InputError

Size = tuple[int, int]  # (H, W)

# Raster formats only: Pillow would hand others (EPS) to outside programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")
_EXTENSIONS = {
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff", ".webp", ".avif",
}  # fmt: skip
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
_GRAY_MODES = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"}
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def load_folder(folder: Path, size: Size | None, class_names: Sequence[str] | None) -> ImageSet:
    """The images below ``folder``, one sub-folder per class, read from disk batch by batch.

    Classes are the sub-folders in sorted order, names of digits by number. With ``class_names`` that contain every
    folder name, a folder's label is its place there; otherwise they rename the classes in order. Only the files'
    headers are read here. Hidden files are left out.

    Color: one channel where every image is grayscale, else three. Transparent parts lie on white. Without ``size``
    all images must have one size. Raises InputError.
    """
    folders = _class_folders(folder)
    labels_of, names = _numbered([entry.name for entry in folders], class_names, folder)
    files: list[Path] = []
    labels: list[int] = []
    for entry, label in zip(folders, labels_of, strict=True):
        found = list(_files(entry))
        files += found
        labels += [label] * len(found)
    if not files:
        raise InputError(f"{folder}: no images in its class folders ({', '.join(e.name for e in folders[:5])})")
    channels, common = _scan(files, size)

    def read(positions: Sequence[int]) -> Tensor:
        return torch.stack([read_file(files[position], channels, size) for position in positions])

    name = folder.resolve().name or str(folder)
    return ImageSet(name, torch.tensor(labels), names, (channels, *common), len(files), read)


def read_file(file: Path, channels: int, size: Size | None) -> Tensor:
    """One image file as float32 (C, H, W) in [0, 1]. Raises InputError where it is damaged."""
    with _opened(file) as image:
        try:
            image.load()
        except _DECODE_ERRORS as error:
            raise InputError(f"truncated image {file}: replace or remove it") from error
        try:
            return pixels(image, channels, size)
        except ValueError as error:
            raise InputError(f"{file}: {error}") from error


def pixels(image: Image.Image, channels: int, size: Size | None) -> Tensor:
    """A Pillow image as float32 (C, H, W) in [0, 1], with 1 or 3 channels; transparent parts lie on white.

    ``size`` (H, W) stretches it by Pillow's bilinear filter, in 8 bits. 16-bit grayscale keeps its 16 bits. Raises
    ValueError for modes that have no [0, 1] range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        gray = torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(65535))[None]
        return (gray if size is None else resized(gray[None], size)[0]).expand(channels, -1, -1)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range: save it with 8 or 16 bits")
    flat = _on_white(image).convert("L" if channels == 1 else "RGB")
    return to_float(resize_bytes(flat, size))


def is_gray(image: Image.Image) -> bool:
    return image.mode in _GRAY_MODES or (image.mode == "I" and image.format == "PNG")


def resize_bytes(image: Image.Image, size: Size | None) -> NDArray[np.uint8]:
    """An L or RGB image as uint8 (H, W, C), stretched to ``size`` by Pillow's bilinear filter."""
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    array = np.array(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def to_float(array: NDArray[np.uint8]) -> Tensor:
    """uint8 (H, W, C) as float32 (C, H, W) in [0, 1]: k / 255."""
    return torch.from_numpy(array).permute(2, 0, 1).to(torch.float32).div(255).contiguous()


def resized(images: Tensor, size: Size) -> Tensor:
    """Float images (n, C, H, W) stretched to ``size`` by an antialiased bilinear filter."""
    return torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)


def _on_white(image: Image.Image) -> Image.Image:
    if not (image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info):
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


@dataclass(frozen=True)
class _Header:
    size: Size
    gray: bool


def _scan(files: Sequence[Path], size: Size | None) -> tuple[int, Size]:
    """Channels and size of all files, from their headers. Raises InputError for a non-image or mixed sizes."""
    gray, first = True, None
    for file in files:
        with _opened(file) as image:
            header = _Header((image.height, image.width), is_gray(image))
        gray = gray and header.gray
        first = first or header
        if size is None and header.size != first.size:
            raise InputError(
                f"{file} is {_by(header.size)} pixels but {files[0].name} is {_by(first.size)} (HxW): "
                "all images must have one size; give --resize HxW"
            )
    assert first is not None
    return (1 if gray else 3), size or first.size


def _opened(file: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_formats())
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: over {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down or remove it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{file}: not an image; remove it or move it out of the class folders") from error
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{file}: no permission to read it") from error
    except _DECODE_ERRORS as error:
        raise InputError(f"truncated image {file}: replace or remove it") from error


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _class_folders(folder: Path) -> list[Path]:
    """Sub-folders of ``folder`` in class order. Raises InputError where the layout is another."""
    layout = "put each class's images in a sub-folder of its own"
    entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    loose = [entry for entry in entries if entry.suffix.lower() in _EXTENSIONS and entry.is_file()]
    if not entries:
        raise InputError(f"{folder}: the folder is empty; {layout}")
    if not folders:
        found = f"images such as {loose[0].name} lie directly in it" if loose else "it holds no images"
        raise InputError(f"{folder}: no class sub-folders ({found}); {layout}")
    if loose:
        raise InputError(f"{loose[0]}: an image outside the class sub-folders; {layout}")
    return sorted(folders, key=lambda entry: _order(entry.name))


def _order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _numbered(
    folders: Sequence[str], class_names: Sequence[str] | None, folder: Path
) -> tuple[list[int], tuple[str, ...]]:
    """The label of each class folder, and the class names."""
    if class_names is None:
        _warn_of_gaps(folders, folder)
        return list(range(len(folders))), tuple(folders)
    names = tuple(class_names)
    if set(folders) <= set(names):
        return [names.index(name) for name in folders], names
    if len(names) == len(folders):
        return list(range(len(folders))), names
    missing = next(name for name in folders if name not in names)
    raise InputError(
        f"{folder}: {len(names)} class names for {len(folders)} class folders, and no name for {missing!r}: "
        "name the classes as the folders are named, or give one name per folder"
    )


def _warn_of_gaps(folders: Sequence[str], folder: Path) -> None:
    numbers = [int(name) if name.isdecimal() else -1 for name in folders]
    if len(folders) > 1 and min(numbers) >= 0 and numbers != list(range(len(folders))):
        warnings.warn(
            f"{folder}: class folders {folders[0]} to {folders[-1]} are numbered otherwise than 0 to "
            f"{len(folders) - 1}; they become labels 0 to {len(folders) - 1} in order (give class names if the model "
            "counts otherwise)",
            stacklevel=5,
        )


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (Path(root, name) for name in sorted(names) if not _hidden(name))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _by(size: Any) -> str:
    return "x".join(str(number) for number in size)
