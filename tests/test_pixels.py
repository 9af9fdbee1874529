"""Images survive the way into bytes and back without loss."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robust.pixels import FloatImage, decode, encode, is_eight_bit

SHAPES = [(1, 1, 1), (1, 5, 7), (3, 6, 6), (3, 1, 9), (2, 4, 4), (4, 3, 3)]


def eight_bit(shape: tuple[int, int, int], seed: int = 0) -> FloatImage:
    whole = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return whole.astype(np.float32) / np.float32(255)


def identical(first: FloatImage, second: FloatImage) -> bool:
    return first.dtype == second.dtype == np.float32 and np.array_equal(first, second, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
class TestRoundTrip:
    def test_eight_bit_images(self, shape: tuple[int, int, int]) -> None:
        image = eight_bit(shape)
        encoding, data = encode(image)
        assert encoding == ("png" if shape[0] in (1, 3) else "float32")
        assert identical(decode(encoding, data, shape), image)

    def test_any_float_image(self, shape: tuple[int, int, int]) -> None:
        image = np.random.default_rng(1).random(shape, dtype=np.float32)
        image.flat[0] = 0.5
        encoding, data = encode(image)
        assert encoding == "float32"
        assert identical(decode(encoding, data, shape), image)

    def test_memory_layouts(self, shape: tuple[int, int, int]) -> None:
        channels_last = np.ascontiguousarray(eight_bit(shape).transpose(1, 2, 0)).transpose(2, 0, 1)
        for image in (channels_last, channels_last * np.float32(0.7)):
            encoding, data = encode(image)
            assert identical(decode(encoding, data, shape), np.ascontiguousarray(image))


class TestEightBit:
    def test_every_level_is_eight_bit_and_its_neighbor_floats_are_not(self) -> None:
        levels = np.arange(256, dtype=np.uint8).astype(np.float32) / np.float32(255)
        for level in levels:
            assert is_eight_bit(np.full((1, 1, 1), level, np.float32))
            if 0 < level < 1:
                for side in (0, 1):
                    off = np.nextafter(level, np.float32(side))
                    assert not is_eight_bit(np.full((1, 1, 1), off, np.float32))

    def test_one_value_off_keeps_the_whole_image_in_float(self) -> None:
        image = eight_bit((3, 8, 8))
        image[2, 7, 7] = np.float32(0.5)
        assert not is_eight_bit(image)
        encoding, data = encode(image)
        assert encoding == "float32"
        assert identical(decode(encoding, data, (3, 8, 8)), image)

    def test_torchs_division_by_255_is_the_same(self) -> None:
        torch = pytest.importorskip("torch")
        image = (torch.arange(256).float() / 255).view(1, 16, 16).numpy()
        assert encode(image)[0] == "png"

    @settings(max_examples=40, deadline=None)
    @given(value=st.floats(0, 1, width=32))
    def test_no_value_is_lost(self, value: float) -> None:
        image = np.full((3, 2, 2), value, np.float32)
        encoding, data = encode(image)
        assert identical(decode(encoding, data, (3, 2, 2)), image)

    def test_nan_is_kept_and_not_taken_for_eight_bit(self) -> None:
        image = np.full((1, 2, 2), np.nan, np.float32)
        encoding, data = encode(image)
        assert encoding == "float32"
        assert identical(decode(encoding, data, (1, 2, 2)), image)


def test_png_is_a_picture_that_other_programs_read() -> None:
    image = eight_bit((3, 4, 6))
    encoding, data = encode(image)
    assert encoding == "png"
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (6, 4))
    assert (np.asarray(picture)[1, 2] == np.rint(image[:, 1, 2] * 255)).all()


def test_decoded_images_may_be_written_to() -> None:
    for image in (eight_bit((3, 4, 4)), np.full((3, 4, 4), 0.5, np.float32)):
        encoding, data = encode(image)
        decode(encoding, data, (3, 4, 4))[0, 0, 0] = 0
