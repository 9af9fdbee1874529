"""Data from every kind of source, against pixels computed by hand, and one clear line for each bad input."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import random
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from robust.data import ImageSet, load_data, parse_size
from robust.errors import InputError


def picture(seed: int, height: int = 6, width: int = 5, mode: str = "RGB") -> Image.Image:
    """A picture of noise."""
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    shape = (height, width) if bands == 1 else (height, width, bands)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(array, mode) if mode == "LA" else Image.fromarray(array)


def chw(image: Image.Image) -> np.ndarray:
    """What (C, H, W) float32 pixels an opaque L or RGB picture has, by NumPy alone."""
    array = np.asarray(image)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return array.astype(np.float32) / np.float32(255)


def put(file: Path, image: Image.Image, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, six PNG pictures of 6x5."""
    root = tmp_path / "signs"
    for seed, name in enumerate(["yield/b.png", "stop/a.png", "stop/c.PNG", "stop/deep/z.png", "no entry/1.png"]):
        put(root / name, picture(seed))
    put(root / "yield" / "a.png", picture(9))
    return root


def one_line(failed: pytest.ExceptionInfo[InputError]) -> str:
    text = str(failed.value)
    assert "\n" not in text
    assert len(text) < 500
    return text


def read_all(spec: Any, **options: Any) -> None:
    data = load_data(spec, **options)
    data.batch(range(len(data)))


def refused(*mentions: str, **options: Any) -> str:
    """The one line of the InputError that loading (and reading every image) ends in."""
    with pytest.raises(InputError) as failed:
        read_all(options.pop("spec"), **options)
    text = one_line(failed)
    for mention in mentions:
        assert mention in text
    return text


# An image set


def numbered(count: int = 10) -> ImageSet:
    """Images whose every pixel tells the position, labels alternating."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 3, 2, 2)
    return load_data((images, torch.arange(count) % 2))


def positions(data: ImageSet) -> list[int]:
    return [round(float(pixel) * 255) for pixel in data.batch(range(len(data)))[:, 0, 0, 0]]


def test_take_reorders_images_labels_and_source_positions() -> None:
    data = numbered().take([7, 2, 4]).take([2, 0])
    assert positions(data) == [4, 7]
    assert data.labels.tolist() == [0, 1]
    assert data.positions is not None
    assert data.positions.tolist() == [4, 7]
    assert (len(data), data.available) == (2, 10)


@pytest.mark.parametrize("index", [-1, 10])
def test_batch_refuses_positions_outside_the_set(index: int) -> None:
    with pytest.raises(IndexError):
        numbered().batch([0, index])


def test_empty_batch_has_the_shape_of_images() -> None:
    assert numbered().batch([]).shape == (0, 3, 2, 2)


def test_limit_keeps_the_sources_order_and_knows_how_many_there_were() -> None:
    data = numbered(100).limited(7, seed=3)
    found = positions(data)
    assert found == sorted(set(found))
    assert (len(data), data.available) == (7, 100)


def test_limit_depends_on_the_seed_alone() -> None:
    first = positions(numbered(100).limited(20, seed=1))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state()
    assert positions(numbered(100).limited(20, seed=1)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert positions(numbered(100).limited(20, seed=2)) != first


def test_larger_limit_contains_the_smaller() -> None:
    small, large = (set(positions(numbered(100).limited(limit, seed=4))) for limit in (20, 40))
    assert small < large


def test_limit_is_a_fair_sample() -> None:
    # Each of 20 positions is in a sample of 5 with probability 1/4: over 2,000 seeds 500 times, sd 19.4.
    data, counts = numbered(20), [0] * 20
    for seed in range(2000):
        kept = data.limited(5, seed).positions
        assert kept is not None
        for position in kept.tolist():
            counts[position] += 1
    assert max(abs(count - 500) for count in counts) < 5 * 19.4


@pytest.mark.parametrize("limit", [None, 10, 11])
def test_limit_at_or_above_the_number_of_images_keeps_all(limit: int | None) -> None:
    data = numbered()
    assert data.limited(limit, seed=0) is data


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"limit {limit}: give at least 1 image"):
        numbered().limited(limit, seed=0)


def test_hash_is_of_shape_float32_pixels_and_labels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    labels = np.array([0, 1, 1, 0, 2], dtype=np.int32)
    pixels = images.transpose(0, 3, 1, 2).astype("<f4") / np.float32(255)
    expected = hashlib.sha256(b"5 3 4 3\n" + pixels.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    assert load_data((images, labels)).sha256() == expected
    assert load_data((torch.from_numpy(pixels), labels)).sha256() == expected


def test_hash_streams_and_notices_order_pixels_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = numbered()
    whole = data.sha256()
    monkeypatch.setattr("robust.data.image_set._HASH_BYTES", 3 * 12 * 4)
    sizes: list[int] = []
    read = data.read

    def watched(wanted: Sequence[int]) -> Tensor:
        sizes.append(len(wanted))
        return read(wanted)

    streamed = ImageSet(data.name, data.labels, data.class_names, data.shape, data.available, watched)
    assert streamed.sha256() == whole
    assert sizes == [3, 3, 3, 1]
    others = [data.take(range(9, -1, -1)), data.take(range(9)), load_data((torch.zeros(10, 3, 2, 2), data.labels))]
    others.append(ImageSet(data.name, 1 - data.labels, data.class_names, data.shape, 10, data.read))
    assert len({whole, *(other.sha256() for other in others)}) == 5


def test_image_set_refuses_what_a_reader_may_not_give() -> None:
    data = numbered()
    wrong = ImageSet(
        "x", data.labels, data.class_names, data.shape, 10, lambda wanted: torch.zeros(len(wanted), 3, 2, 1)
    )
    with pytest.raises(InputError, match=r"x: read torch.float32 images of shape \(2, 3, 2, 1\)"):
        wrong.batch([0, 1])


# Pixel values


@pytest.mark.parametrize(
    ("pixel", "mentions"),
    [
        (255.0, ["values from 0.5 to 255", "divide by 255"]),
        (4000.0, ["4000", "divide by 65535"]),
        (-2.0, ["values from -2 to 0.5", "undo the normalization", "mean and std"]),
        (float("nan"), ["holds NaN"]),
        (float("inf"), ["holds infinite values"]),
    ],
)
def test_pixels_outside_zero_to_one_are_refused(pixel: float, mentions: list[str]) -> None:
    images = torch.full((6, 3, 2, 2), 0.5)
    images[4, 1, 1, 0] = pixel
    data = load_data((images, torch.arange(6) % 2))
    assert data.batch([0, 1, 2, 3, 5]).shape[0] == 5
    with pytest.raises(InputError) as failed:
        data.take([3, 4]).batch([0, 1])
    text = one_line(failed)
    assert "tensors: image 4 " in text
    assert all(mention in text for mention in mentions)


def test_rounding_errors_of_pixels_are_clipped() -> None:
    images = torch.tensor([-1e-6, 1 + 1e-6]).view(2, 1, 1, 1)
    assert load_data((images, [0, 1])).batch([0, 1]).flatten().tolist() == [0, 1]


def test_every_byte_becomes_the_float_k_over_255() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    read = load_data((images, [0, 1])).batch([0, 1])
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert read.dtype == torch.float32
    assert np.array_equal(read.flatten().numpy(), expected)


# Tensors and arrays


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_become_float32(dtype: torch.dtype) -> None:
    images = torch.rand(3, 2, 4, 4).to(dtype)
    read = load_data((images, [0, 1, 1])).batch([2, 0])
    assert torch.equal(read, images[[2, 0]].float())


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64"])
def test_float_arrays_are_channels_first(dtype: str) -> None:
    images = np.random.default_rng(0).random((3, 2, 4, 5)).astype(dtype)
    data = load_data((images, [0, 1, 1]))
    assert data.shape == (2, 4, 5)
    assert np.array_equal(data.batch([0, 1, 2]).numpy(), images.astype(np.float32))


def test_layout_is_that_of_the_kind_unless_only_the_other_makes_sense() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 7, 3), dtype=np.uint8)
    first = np.ascontiguousarray(image.transpose(0, 3, 1, 2))
    expected = torch.from_numpy(first).float() / 255
    for images in (image, first, torch.from_numpy(image), torch.from_numpy(first)):
        assert torch.equal(load_data((images, [0, 1, 0, 1])).batch(range(4)), expected)
    square = np.random.default_rng(1).integers(0, 256, (2, 3, 3, 3), dtype=np.uint8)
    as_array, as_tensor = (load_data((images, [0, 1])).batch([0, 1]) for images in (square, torch.from_numpy(square)))
    assert torch.equal(as_array.permute(0, 2, 3, 1), as_tensor)


def test_arrays_that_cannot_be_written_or_run_backwards_are_taken() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    images.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = load_data((images[::-1], [0, 1, 0, 1])).batch([3])
    assert np.array_equal(read[0, 0].numpy(), images[0].astype(np.float32) / np.float32(255))


def test_bytes_stay_bytes_in_memory() -> None:
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    data = load_data((images, [0, 1, 0, 1]))
    images[2] = 255
    assert float(data.batch([2]).min()) == 1  # the same storage: nothing was converted or copied


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64"])
def test_labels_of_any_integer_kind_become_int64(dtype: str) -> None:
    for labels in (np.array([0, 2, 1], dtype=dtype), np.array([[0], [2], [1]], dtype=dtype)):
        data = load_data((torch.rand(3, 1, 2, 2), labels))
        assert data.labels.dtype == torch.int64
        assert data.labels.tolist() == [0, 2, 1]
        assert data.class_names == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    ("images", "labels", "mentions"),
    [
        (torch.rand(3, 1, 2, 2), [0, 1], ["3 images but 2 labels"]),
        (torch.rand(2, 1, 2, 2), [0, -1], ["label -1 of image 1 is negative"]),
        (torch.rand(2, 1, 2, 2), [0, 0.5], ["label 0.5 of image 1", "not a whole number"]),
        (torch.rand(2, 1, 2, 2), [0, float("nan")], ["label nan of image 1"]),
        (torch.rand(2, 1, 2, 2), ["a", "b"], ["labels have dtype", "class numbers"]),
        (torch.rand(2, 1, 2, 2), torch.eye(2), ["labels have shape (2, 2)", "one class number per image"]),
        (torch.rand(2, 1, 2, 2), [0, 0], ["only one class", "at least 2 classes"]),
        (torch.rand(0, 1, 2, 2), [], ["holds no images"]),
        (torch.rand(2, 4), [0, 1], ["images have shape (2, 4)"]),
        (torch.rand(2, 1, 0, 2), [0, 1], ["images have shape (2, 1, 0, 2)"]),
        (torch.rand(2, 1, 1, 2, 2), [0, 1], ["images have shape (2, 1, 1, 2, 2)"]),
        (torch.zeros(2, 1, 2, 2, dtype=torch.int64), [0, 1], ["images have dtype int64", "uint8 in 0 to 255"]),
        (np.zeros((2, 2, 2), dtype=np.int32), [0, 1], ["images have dtype int32"]),
        (np.array([["a"]]), [0], ["images have dtype <U1"]),
    ],
)
def test_bad_tensors_are_refused(images: Any, labels: Any, mentions: list[str]) -> None:
    refused(*mentions, spec=(images, labels))


def test_class_names_must_cover_the_labels() -> None:
    refused("label 2 has no class name (there are 2", spec=(torch.rand(2, 1, 2, 2), [0, 2]), class_names=["a", "b"])
    data = load_data((torch.rand(2, 1, 2, 2), [0, 0]), class_names=["a", "b"])
    assert data.class_names == ("a", "b")
    assert load_data(data, class_names=["c", "d"]).class_names == ("c", "d")
    assert load_data(data) is data
    assert load_data(data, resize=(2, 2)) is data
    refused("already loaded with images of (1, 2, 2)", spec=data, resize=(3, 3))


# .npz files


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def save(**arrays: Any) -> Path:
        file = tmp_path / "set.npz"
        np.savez(file, **arrays)
        return file

    return save


@pytest.mark.parametrize("names", [["stop", "été"], np.array([b"stop", "été".encode()])])
def test_npz_of_bytes(npz: Callable[..., Path], names: Any) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    data = load_data(npz(images=images, labels=[0, 1, 1, 0], class_names=names))
    assert (data.name, data.shape, data.available) == ("set.npz", (3, 6, 5), 4)
    assert data.class_names == ("stop", "été")
    assert np.array_equal(
        data.batch([3, 1]).numpy(), images[[3, 1]].transpose(0, 3, 1, 2).astype("f4") / np.float32(255)
    )


def test_npz_of_floats_and_of_grayscale(npz: Callable[..., Path]) -> None:
    floats = np.random.default_rng(0).random((2, 3, 6, 5))
    assert np.array_equal(load_data(npz(images=floats, labels=[0, 1])).batch([0, 1]).numpy(), floats.astype(np.float32))
    gray = np.random.default_rng(0).integers(0, 256, (2, 6, 5), dtype=np.uint8)
    data = load_data(str(npz(images=gray, labels=[0, 1])))
    assert data.shape == (1, 6, 5)
    assert np.array_equal(data.batch([0]).numpy()[0, 0], gray[0].astype("f4") / np.float32(255))


def test_bad_npz_files_are_refused(npz: Callable[..., Path], tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.array([0, 1])
    refused("set.npz: no array 'images' (it holds x, labels)", spec=npz(x=images, labels=labels))
    refused("set.npz: no array 'labels' (it holds images)", spec=npz(images=images))
    refused("2 images but 3 labels", spec=npz(images=images, labels=[0, 1, 0]))
    refused("images have shape (2, 4, 4, 3, 1)", spec=npz(images=images[..., None], labels=labels))
    refused("images have dtype int16", spec=npz(images=images.astype(np.int16), labels=labels))
    refused("label 2 has no class name", spec=npz(images=images, labels=[0, 2], class_names=["a", "b"]))
    refused("give one string per class", spec=npz(images=images, labels=labels, class_names=[1, 2]))
    refused("pickled objects", spec=npz(images=images, labels=labels, class_names=np.array(["a", None], dtype=object)))
    refused("pickled objects", spec=npz(images=np.array([images, None], dtype=object), labels=labels))
    good = npz(images=np.random.default_rng(0).random((9, 3, 8, 8)), labels=[0, 1, 0] * 3).read_bytes()
    for name, content in {"text": b"not a zip", "empty": b"", "cut": good[: len(good) // 2]}.items():
        file = tmp_path / f"{name}.npz"
        file.write_bytes(content)
        refused(f"{name}.npz", "damaged", spec=file)
    flipped = bytearray(good)
    flipped[500] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    refused("flipped.npz", "damaged", spec=tmp_path / "flipped.npz")


def test_npz_never_unpickles(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "bomb.npz", images=np.array([Bomb()], dtype=object), labels=[0])
    refused("bomb.npz", spec=tmp_path / "bomb.npz")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    refused("raw.npz", spec=tmp_path / "raw.npz")
    assert not (tmp_path / "exploded").exists()


# Folders


def test_folder_gives_sorted_classes_and_exact_pixels(folder: Path) -> None:
    for junk in (".DS_Store", "stop/.DS_Store", "stop/.hidden/x.txt", "stop/Thumbs.db", ".git/config", "notes.txt"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_text("junk")
    data = load_data(str(folder))
    assert data.name == "signs"
    assert data.class_names == ("no entry", "stop", "yield")
    assert data.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert (data.shape, data.available) == ((3, 6, 5), 6)
    seeds = [4, 1, 2, 3, 9, 0]
    expected = np.stack([chw(picture(seed)) for seed in seeds])
    assert np.array_equal(data.batch(range(6)).numpy(), expected)
    assert np.array_equal(data.batch([5, 0]).numpy(), expected[[5, 0]])


def test_folder_is_read_batch_by_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    load = PngImageFile.load

    def watched(image: PngImageFile) -> Any:
        decoded.append(Path(str(image.filename)).name)
        return load(image)

    monkeypatch.setattr(PngImageFile, "load", watched)
    data = load_data(folder)
    assert decoded == []  # headers alone
    data.batch([1, 4])
    assert set(decoded) == {"a.png"}
    data.batch([3])
    assert set(decoded) == {"a.png", "z.png"}


def test_numbers_sort_by_value_and_gaps_are_told(tmp_path: Path) -> None:
    for name in ("10", "2", "00", "1"):
        put(tmp_path / name / "x.png", picture(int(name)))
    with pytest.warns(UserWarning, match="folders 00 to 10 are numbered otherwise than 0 to 3"):
        data = load_data(tmp_path)
    assert data.class_names == ("00", "1", "2", "10")
    named = load_data(tmp_path, class_names=["00", "1", "2", *map(str, range(3, 12))])
    assert named.labels.tolist() == [0, 1, 2, 10]


def test_contiguous_numbers_and_words_bring_no_warning(folder: Path, tmp_path: Path) -> None:
    for name in ("0", "1", "2"):
        put(tmp_path / "numbers" / name / "x.png", picture(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(tmp_path / "numbers")
        load_data(folder)


def test_class_names_for_a_folder_rename_or_number_its_classes(folder: Path) -> None:
    assert load_data(folder, class_names=["x", "y", "z"]).labels.tolist() == [0, 1, 1, 1, 2, 2]
    ordered = load_data(folder, class_names=["yield", "unused", "stop", "no entry"])
    assert ordered.labels.tolist() == [3, 2, 2, 2, 0, 0]
    refused("2 class names for 3 class folders", "'no entry'", spec=folder, class_names=["stop", "yield"])


@pytest.mark.parametrize(("suffix", "options"), [("bmp", {}), ("tiff", {}), ("ppm", {}), ("webp", {"lossless": True})])
def test_lossless_formats(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    for seed in (0, 1):
        put(tmp_path / str(seed) / f"x.{suffix}", picture(seed), **options)
    assert np.array_equal(load_data(tmp_path).batch([1])[0].numpy(), chw(picture(1)))


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    files = [put(tmp_path / str(seed) / "x.JPeG", picture(seed, 16, 16), quality=80) for seed in (0, 1)]
    assert np.array_equal(load_data(tmp_path).batch([0])[0].numpy(), chw(Image.open(files[0])))


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    clear.putpixel((1, 0), (10, 20, 30, 0))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    put(tmp_path / "a" / "alpha.png", clear)
    put(tmp_path / "b" / "palette.png", palette, transparency=1)
    data = load_data(tmp_path)
    expected = torch.tensor([[10.0, 255], [20, 255], [30, 255]]).view(3, 1, 2).div(255)
    for image in data.batch([0, 1]):
        assert torch.equal(image, expected)


def test_palette_images_become_color(tmp_path: Path) -> None:
    colors = picture(0).quantize(16)
    put(tmp_path / "a" / "x.png", colors)
    put(tmp_path / "b" / "x.gif", colors)
    assert np.array_equal(load_data(tmp_path).batch([0])[0].numpy(), chw(colors.convert("RGB")))


def test_grayscale_stays_one_channel_if_all_images_are(tmp_path: Path) -> None:
    put(tmp_path / "a" / "gray.png", picture(0, mode="L"))
    put(tmp_path / "b" / "bits.png", picture(1, mode="L").convert("1"))
    put(tmp_path / "b" / "alpha.png", picture(2, mode="LA"))
    data = load_data(tmp_path)
    assert data.shape == (1, 6, 5)
    assert np.array_equal(data.batch([0])[0].numpy(), chw(picture(0, mode="L")))
    assert set(data.batch([2]).unique().tolist()) == {0, 1}
    gray, alpha = np.asarray(picture(2, mode="LA")).astype(float).transpose(2, 0, 1)
    blended = (gray * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(data.batch([1])[0, 0].numpy() * 255 - blended).max() <= 1

    put(tmp_path / "a" / "color.png", picture(3))  # sorts first; the last is gray
    mixed = load_data(tmp_path)
    assert mixed.shape == (3, 6, 5)
    assert np.array_equal(mixed.batch([0])[0].numpy(), chw(picture(3)))
    assert np.array_equal(mixed.batch([1])[0].numpy(), np.repeat(chw(picture(0, mode="L")), 3, axis=0))


def test_sixteen_bits_keep_their_precision(tmp_path: Path) -> None:
    values = np.array([[0, 1], [32768, 65535]], dtype=np.uint16)
    for name in "ab":
        put(tmp_path / name / "x.png", Image.fromarray(values))
    data = load_data(tmp_path)
    assert data.shape == (1, 2, 2)
    assert np.array_equal(data.batch([0])[0, 0].numpy(), values.astype(np.float32) / np.float32(65535))


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / name / "x.tiff", Image.fromarray(np.ones((2, 2), dtype=np.float32)))
    refused("x.tiff: pixels of mode F have no fixed range", spec=tmp_path)


def test_mixed_sizes_name_the_first_file_that_differs(folder: Path) -> None:
    put(folder / "stop" / "b.png", picture(0, 9, 8))
    put(folder / "yield" / "z.png", picture(0, 9, 8))
    text = refused(str(folder / "stop" / "b.png"), "9x8", "6x5", "--resize HxW", spec=folder)
    assert "z.png" not in text
    assert load_data(folder, resize=(6, 5)).batch(range(8)).shape == (8, 3, 6, 5)


def test_folder_without_the_layout_is_refused(tmp_path: Path) -> None:
    refused("the folder is empty", spec=tmp_path)
    (tmp_path / "readme.txt").write_text("x")
    refused("no class sub-folders (it holds no images)", spec=tmp_path)
    put(tmp_path / "loose.JPG", picture(0))
    refused("no class sub-folders", "loose.JPG", spec=tmp_path)
    (tmp_path / "a").mkdir()
    refused("loose.JPG: an image outside the class sub-folders", spec=tmp_path)
    (tmp_path / "loose.JPG").unlink()
    refused("no images in its class folders (a)", spec=tmp_path)
    put(tmp_path / "a" / "x.png", picture(0))
    refused("only one class ('a')", "at least 2 classes", spec=tmp_path)
    (tmp_path / "b").mkdir()
    assert load_data(tmp_path).class_names == ("a", "b")  # an empty class keeps its number


def test_non_images_are_named(folder: Path) -> None:
    (folder / "stop" / "notes.txt").write_text("hello")
    refused("notes.txt: not an image", spec=folder)
    (folder / "stop" / "notes.txt").unlink()
    (folder / "stop" / "b.png").write_bytes(b"")
    refused("b.png: not an image", spec=folder)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_truncated_images_are_named(folder: Path, suffix: str) -> None:
    file = put(folder / "stop" / f"cut.{suffix}", picture(0, 64, 64))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(f"truncated image {file}", "replace or remove it", spec=folder, resize=(64, 64))


def test_vanished_and_monstrous_images_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data(folder)
    (folder / "stop" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: no such file"):
        data.batch([1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused("over 20 pixels", spec=folder)


# Resizing


def test_resize_stretches_bytes_by_pillows_bilinear_filter(folder: Path) -> None:
    for size in [(3, 7), "3x7"]:
        data = load_data(folder, resize=size)
        assert data.shape == (3, 3, 7)
        expected = picture(1).resize((7, 3), Image.Resampling.BILINEAR)
        assert np.array_equal(data.batch([1])[0].numpy(), chw(expected))


def test_resize_is_the_same_for_files_arrays_and_tensors(folder: Path) -> None:
    bytes_ = np.stack([np.asarray(picture(seed)) for seed in (4, 1, 2)])
    files = load_data(folder, resize=(12, 4)).batch([0, 1, 2])
    assert torch.equal(load_data((bytes_, [0, 1, 1]), resize=(12, 4)).batch([0, 1, 2]), files)
    floats = torch.from_numpy(bytes_).permute(0, 3, 1, 2) / 255
    assert (load_data((floats, [0, 1, 1]), resize=(12, 4)).batch([0, 1, 2]) - files).abs().max() <= 1.5 / 255


def test_resize_of_floats_and_of_sixteen_bits_keeps_constants(tmp_path: Path) -> None:
    images = torch.full((2, 2, 4, 4), 0.3)
    assert load_data((images, [0, 1]), resize=(3, 9)).batch([0, 1]).sub(0.3).abs().max() < 1e-6
    for name in "ab":
        put(tmp_path / name / "x.png", Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)))
    data = load_data(tmp_path, resize=(2, 5))
    assert data.shape == (1, 2, 5)
    assert data.batch([0]).sub(1000 / 65535).abs().max() < 1e-6


@pytest.mark.parametrize("size", ["32", "32x", "x32", "0x5", "-1x5", "3.5x4", "32x32x3", "axb", (3,), (0, 4), (2.5, 3)])
def test_malformed_sizes_are_refused(size: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"resize {size!r}: write HEIGHTxWIDTH")):
        parse_size(size)


@pytest.mark.parametrize("size", ["24x32", " 24 X 32 ", (24, 32), [24, 32]])
def test_sizes(size: Any) -> None:
    assert parse_size(size) == (24, 32)


# torch data sets


class Listed(Dataset[Any]):
    """Items from a list; ``reads`` counts accesses."""

    def __init__(self, items: Sequence[Any], **attributes: Any) -> None:
        self.items = items
        self.reads = 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.items[index]


def test_data_set_of_pictures() -> None:
    data = load_data(Listed([(picture(seed), seed % 2) for seed in range(5)], classes=["even", ("odd", "strange")]))
    assert (data.name, data.shape, data.class_names) == ("Listed", (3, 6, 5), ("even", "odd, strange"))
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert np.array_equal(data.batch([4, 1]).numpy(), np.stack([chw(picture(4)), chw(picture(1))]))


@pytest.mark.parametrize("label", [int, np.int64, np.uint8, torch.tensor, lambda k: torch.tensor([k]), float])
def test_data_set_labels_of_any_kind(label: Callable[[int], Any]) -> None:
    data = load_data(Listed([(picture(seed), label(seed % 3)) for seed in range(4)]))
    assert data.labels.tolist() == [0, 1, 2, 0]
    assert data.batch(range(4)).shape == (4, 3, 6, 5)


def test_data_set_of_tensors_and_arrays() -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
    expected = torch.from_numpy(bytes_).permute(0, 3, 1, 2) / 255
    kinds = [bytes_, torch.from_numpy(bytes_).permute(0, 3, 1, 2), expected, expected.numpy()]
    for images in kinds:
        data = load_data(Listed([(image, at % 2) for at, image in enumerate(images)]))
        assert torch.equal(data.batch(range(4)), expected)
    gray = load_data(TensorDataset(torch.rand(3, 4, 4), torch.tensor([0, 1, 0])))
    assert gray.shape == (1, 4, 4)


def test_labels_come_from_the_data_sets_list_without_decoding_all() -> None:
    items = [(picture(0), at % 3) for at in range(400)]
    for attribute, values in {
        "targets": [at % 3 for at in range(400)],
        "labels": np.arange(400) % 3,
        "_labels": torch.arange(400) % 3,
        "_samples": [(f"{at}.png", at % 3) for at in range(400)],
    }.items():
        dataset = Listed(items, **{attribute: values})
        assert load_data(dataset).labels.tolist() == [at % 3 for at in range(400)]
        assert dataset.reads < 40


def test_list_that_disagrees_with_the_items_is_not_used() -> None:
    items = [(picture(0), at % 3) for at in range(40)]
    for values in ([0] * 40, [[0, 1]] * 40, ["x"] * 40, list(range(39))):
        dataset = Listed(items, targets=values)
        assert load_data(dataset).labels.tolist() == [at % 3 for at in range(40)]


def test_subset_keeps_labels_and_names() -> None:
    whole = Listed([(picture(at), at % 3) for at in range(60)], targets=[at % 3 for at in range(60)], classes="abc")
    whole.classes = ["a", "b", "c"]  # type: ignore[attr-defined]
    data = load_data(Subset(whole, [5, 1, 33]))
    assert data.labels.tolist() == [2, 1, 0]
    assert data.class_names == ("a", "b", "c")
    assert np.array_equal(data.batch([2])[0].numpy(), chw(picture(33)))


def test_gray_and_color_pictures_become_color_but_late_color_is_named() -> None:
    mixed = load_data(Listed([(picture(0, mode="L"), 0), (picture(1), 1)]))
    assert mixed.shape == (3, 6, 5)
    items = [(picture(at, mode="L"), at % 2) for at in range(100)]
    items[50] = (picture(50), 0)
    refused("Listed: image 50 is in color", spec=Listed(items))


def test_mixed_sizes_of_a_data_set_are_named() -> None:
    items = [(picture(at, 6, 5 + (at == 50)), at % 2) for at in range(100)]
    refused("Listed: image 50 is 6x6 pixels but the first is 6x5", "--resize HxW", spec=Listed(items))
    assert load_data(Listed(items), resize=(4, 4)).batch([49, 50]).shape == (2, 3, 4, 4)
    channels = [(torch.rand(3 + (at == 50), 4, 4), at % 2) for at in range(100)]
    refused("image 50 has 4 channels, the first 3", spec=Listed(channels))


def test_random_transforms_are_noticed() -> None:
    class Flickering(Listed):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 4, 4), index % 2

    refused("Flickering: two reads of image 0 differ", spec=Flickering(range(6)))


def test_labels_that_change_are_noticed() -> None:
    class Drifting(Listed):
        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            return torch.zeros(3, 4, 4), int(self.reads > 100)

    dataset = Drifting(range(40))
    data = load_data(dataset, class_names=["a", "b"])
    assert dataset.reads < 99
    assert data.batch([3]).shape == (1, 3, 4, 4)
    dataset.reads = 100
    with pytest.raises(InputError, match="image 3 had label 0 and now has 1"):
        data.batch([3])


class Failing(Listed):
    def __getitem__(self, index: int) -> Any:
        if index == 30:
            raise OSError("image file is truncated")
        return torch.zeros(3, 4, 4), index % 2


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(3, 4, 4), 0)])


@pytest.mark.parametrize(
    ("dataset", "mentions"),
    [
        (Failing(range(40)), ["image 30 cannot be read (OSError: image file is truncated)"]),
        (Stream(), ["no length or no order"]),
        (Listed([]), ["holds no images"]),
        (Listed([torch.zeros(3, 4, 4)]), ["item 0 is a Tensor", "a pair (image, label)"]),
        (Listed([("x.png", 0), ("y.png", 1)]), ["image 0 is a str"]),
        (Listed([(picture(0), "cat")]), ["image 0: labels have dtype"]),
        (Listed([(picture(0), None)]), ["image 0: labels have dtype"]),
        (Listed([(picture(0), -1)]), ["is negative"]),
        (Listed([(picture(0), torch.eye(3)[0])]), ["one class number per image"]),
        (Listed([(picture(0), 0)]), ["only one class"]),
        (Listed([(Image.new("F", (2, 2)), 0)]), ["cannot be read (pixels of mode F"]),
        (Listed([(torch.zeros(2, 2, dtype=torch.int64), 0)]), ["image 0: images have dtype int64"]),
    ],
)
def test_bad_data_sets_are_refused(dataset: Any, mentions: list[str]) -> None:
    refused(*mentions, spec=dataset)


# torchvision by name


def idx(file: Path, array: np.ndarray) -> None:
    """MNIST's format: a magic number that gives the number of dimensions, big-endian sizes, bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes())


def fashion(root: Path, name: str = "FashionMNIST") -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        idx(root / name / "raw" / f"{part}-images-idx3-ubyte", images if part == "t10k" else 255 - images)
        idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(6, dtype=np.uint8) % 4)
    return images


def test_torchvision_set_with_train_and_test(tmp_path: Path) -> None:
    images = fashion(tmp_path)
    test = load_data(f"torchvision:FashionMNIST@{tmp_path}")
    assert (test.name, test.shape, len(test)) == ("torchvision:FashionMNIST:test", (1, 28, 28), 6)
    assert test.class_names[:2] == ("T-shirt/top", "Trouser")
    assert np.array_equal(test.batch([2])[0, 0].numpy(), images[2].astype("f4") / np.float32(255))
    for train in (
        load_data(f"torchvision:FashionMNIST:train@{tmp_path}"),
        load_data(f"torchvision:fashionmnist@{tmp_path}", split="train"),
    ):
        assert train.name == "torchvision:FashionMNIST:train"
        assert np.array_equal(train.batch([2])[0, 0].numpy(), (255 - images[2]).astype("f4") / np.float32(255))
    refused("no split 'val': choose train or test", spec=f"torchvision:FashionMNIST:val@{tmp_path}")
    refused("'train'", "'test'", "give one", spec=f"torchvision:FashionMNIST:train@{tmp_path}", split="test")


def gtsrb(root: Path) -> None:
    test = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    for at in range(4):
        put(test / f"{at:05}.ppm", picture(at, 20 + at, 20))
    rows = "\n".join(f"{at:05}.ppm;{at % 3}" for at in range(4))
    (root / "gtsrb" / "GT-final_test.csv").write_text("Filename;ClassId\n" + rows)
    for label in range(3):
        put(root / "gtsrb" / "GTSRB" / "Training" / f"{label:05}" / "x.ppm", picture(label))


def test_torchvision_set_with_split_and_mixed_sizes(tmp_path: Path) -> None:
    gtsrb(tmp_path)
    refused("torchvision:GTSRB:test: image 1 is 21x20 pixels but", spec=f"torchvision:GTSRB@{tmp_path}")
    data = load_data(f"torchvision:GTSRB@{tmp_path}", resize=(16, 16))
    assert data.labels.tolist() == [0, 1, 2, 0]
    expected = picture(3, 23, 20).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(data.batch([3])[0].numpy(), chw(expected))
    assert len(load_data(f"torchvision:GTSRB:train@{tmp_path}")) == 3
    refused("torchvision:GTSRB: Unknown value 'tset'", "test", spec=f"torchvision:GTSRB:tset@{tmp_path}")


def test_torchvision_set_without_a_test_split_gives_its_validation_split(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"):
        put(tmp_path / "imagenette2" / "val" / wnid / "x.JPEG", picture(0, 8, 8))
    data = load_data(f"torchvision:Imagenette@{tmp_path}")
    assert data.name == "torchvision:Imagenette:val"
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.class_names[0] == "tench, Tinca tinca"


def test_torchvision_sets_without_splits(folder: Path, tmp_path: Path) -> None:
    data = load_data(f"torchvision:ImageFolder@{folder}")
    assert data.name == "torchvision:ImageFolder"
    assert data.sha256() == load_data(folder).sha256()
    refused("has no splits, but 'test'", spec=f"torchvision:ImageFolder:test@{folder}")
    refused("torchvision.datasets.ImageFolder documents", spec=f"torchvision:ImageFolder@{folder / 'stop' / 'deep'}")


def test_emnist_takes_a_subset_and_reads_its_test_part(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 5)):
        for kind, array in (("images-idx3", np.zeros((count, 28, 28))), ("labels-idx1", np.arange(1, count + 1))):
            idx(tmp_path / "EMNIST" / "raw" / f"emnist-letters-{part}-{kind}-ubyte", array.astype(np.uint8))
    data = load_data(f"torchvision:EMNIST:letters@{tmp_path}")
    assert data.labels.tolist() == [1, 2, 3, 4, 5]
    assert data.class_names[1] == "a"
    refused("Unknown value 'leters'", "letters", spec=f"torchvision:EMNIST:leters@{tmp_path}")


def test_cifar10_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        (home / name).write_bytes(pickle.dumps({"data": pixels, "labels": [3, 1, 0, 2]}))
    (home / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile", "bird", "cat"]}))
    refused("no complete data set", "CIFAR10(", "train=False", "download=True", spec=f"torchvision:CIFAR10@{tmp_path}")
    for attribute in ("train_list", "test_list"):
        unchecked = [[name, None] for name, _ in getattr(datasets.CIFAR10, attribute)]
        monkeypatch.setattr(datasets.CIFAR10, attribute, unchecked)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})
    data = load_data(f"torchvision:CIFAR10@{tmp_path}")
    assert data.labels.tolist() == [3, 1, 0, 2]
    assert data.class_names[3] == "cat"
    assert np.array_equal(data.batch([1])[0].numpy(), pixels[1].reshape(3, 32, 32).astype("f4") / np.float32(255))


def test_missing_and_unknown_torchvision_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def offline(*_: Any, **__: Any) -> Any:
        raise AssertionError("went to the network")

    monkeypatch.setattr(socket, "create_connection", offline)
    refused(
        f"torchvision:GTSRB (test): no complete data set in {tmp_path} (Dataset not found): fetch it once",
        f"torchvision.datasets.GTSRB({str(tmp_path)!r}, split='test', download=True)",
        spec=f"torchvision:GTSRB@{tmp_path}",
    )
    refused("MNIST(", "train=False, download=True", spec=f"torchvision:MNIST@{tmp_path}")
    refused("SEMEION(", "download=True", spec=f"torchvision:SEMEION@{tmp_path}")
    refused("unknown torchvision data set 'GSTRB': did you mean GTSRB?", spec=f"torchvision:GSTRB@{tmp_path}")
    refused("unknown torchvision data set 'CocoDetection'", spec=f"torchvision:CocoDetection@{tmp_path}")
    refused("no such folder", spec=f"torchvision:GTSRB@{tmp_path}/nowhere")
    refused("write torchvision:NAME@ROOT", spec="torchvision:GTSRB")
    assert not list(tmp_path.iterdir())


def test_every_listed_torchvision_set_reports_missing_data_in_one_line(tmp_path: Path) -> None:
    from robust.data.torchvision_data import CLASSIFICATION

    for name in CLASSIFICATION:
        refused(f"torchvision:{name}", spec=f"torchvision:{name}@{tmp_path}")


# Which kind a text names


def test_demo() -> None:
    data = load_data("demo")
    assert data.name == "demo"
    assert data.shape == (3, 32, 32)
    assert len(data.class_names) >= 12
    assert int(data.labels.max()) < len(data.class_names)
    assert data.batch(range(3)).shape == (3, 3, 32, 32)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    refused("nowhere: no such file or folder", "demo", spec=str(tmp_path / "nowhere"))
    refused("set.npz: no such file or folder", spec=tmp_path / "set.npz")
    refused("dmeo: no such file or folder", spec="dmeo")
    (tmp_path / "a.csv").write_text("1,2")
    refused("a.csv: not data that robust reads", spec=tmp_path / "a.csv")
    refused("data of type int", spec=3)
    refused("data of type tuple", spec=(torch.rand(2, 1, 2, 2),))
    refused("split 'test': only torchvision data sets have splits", spec=tmp_path, split="test")


# Real images


def test_real_mnist_by_torchvision_equals_its_bytes(robust_data: Path, tmp_path: Path) -> None:
    raw = robust_data / "mnist" / "MNIST" / "raw"
    plain = tmp_path / "MNIST" / "raw"
    plain.mkdir(parents=True)
    for file in raw.glob("*.gz"):
        (plain / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    data = load_data(f"torchvision:MNIST@{tmp_path}")
    assert (len(data), data.shape, data.class_names[7]) == (10_000, (1, 28, 28), "7 - seven")
    images = np.frombuffer(gzip.decompress((raw / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((raw / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    assert np.array_equal(data.labels.numpy(), labels)
    kept = data.limited(200, seed=0)
    assert kept.positions is not None
    expected = images.reshape(-1, 1, 28, 28)[kept.positions.numpy()].astype("f4") / np.float32(255)
    assert np.array_equal(kept.batch(range(200)).numpy(), expected)


def test_real_photographs_as_a_folder(robust_data: Path, tmp_path: Path) -> None:
    files = sorted((robust_data / "us_stop_signs" / "px32").glob("*.png"))[:6]
    for file in files:
        put(tmp_path / "stop" / file.name, Image.open(file))
    put(tmp_path / "yield" / "x.png", Image.new("RGB", (32, 32)))
    data = load_data(tmp_path)
    assert data.shape == (3, 32, 32)
    assert np.array_equal(data.batch([0])[0].numpy(), chw(Image.open(files[0]).convert("RGB")))
