"""Images as bytes and back: PNG where an image is exactly 8-bit, compressed float32 otherwise."""

from __future__ import annotations

import io
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Encoding = Literal["png", "float32"]
FloatImage = NDArray[np.float32]


def is_eight_bit(image: FloatImage) -> bool:
    """Whether every value of a (C, H, W) image in [0, 1] is k/255 in float32, so that PNG keeps it exactly."""
    return bool(np.array_equal(image, np.rint(image * 255).astype(np.float32) / np.float32(255)))


def encode(image: FloatImage) -> tuple[Encoding, bytes]:
    """Encode a (C, H, W) float32 image in [0, 1] without loss."""
    channels = image.shape[0]
    if channels in (1, 3) and is_eight_bit(image):
        array = np.rint(image * 255).astype(np.uint8)
        picture = Image.fromarray(array[0] if channels == 1 else array.transpose(1, 2, 0))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return "png", buffer.getvalue()
    return "float32", zlib.compress(np.ascontiguousarray(image, dtype="<f4").tobytes(), 1)


def decode(encoding: str, data: bytes, shape: tuple[int, int, int]) -> FloatImage:
    """The (C, H, W) float32 image that :func:`encode` was given."""
    if encoding == "float32":
        return np.frombuffer(zlib.decompress(data), dtype="<f4").reshape(shape).astype(np.float32)
    array = np.asarray(Image.open(io.BytesIO(data)))
    chw = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    image: FloatImage = chw.astype(np.float32) / np.float32(255)
    return image
