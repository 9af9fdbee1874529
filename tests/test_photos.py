"""Photographs of signs: where the sign lies, the light on it, a print composed there, and what a camera sees of it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from robust.errors import InputError
from robust.models import load_model
from robust.photos import Print, centered, composed, load_photographs, photograph, pieces, try_photographs
from robust.photos.animation import LARGEST, approach, as_gif
from robust.photos.camera import Camera, View, crop, fitted, scene, window
from robust.photos.outline import RIM, Floats, corners, flat_corners, homography, moved, red_mask
from robust.photos.photographs import Photograph, inside
from robust.photos.printable import raster, write_pdf, write_png
from robust.photos.sheet import Look, contact_sheet
from robust.photos.trial import readings, with_prints

_SIDE = 160
_RED, _WHITE, _GREEN = (0.8, 0.1, 0.15), (0.9, 0.9, 0.9), (0.3, 0.5, 0.25)
# A stop sign that leans and is seen from the side.
_TURNED = np.array([[110.0, -9.0, 28.0], [6.0, 116.0, 20.0], [0.0006, 0.0002, 1.0]])
_STRAIGHT = np.array([[120.0, 0.0, 20.0], [0.0, 120.0, 20.0], [0.0, 0.0, 1.0]])
_NO_LOSS = Camera(blur=0, noise=0, quality=0)


def _drawn(place: Floats, light: Floats | float = 1.0, letters: bool = True) -> Floats:
    """A stop sign before grass: white rim, red, and a white bar for letters; four samples along a pixel."""
    steps = (np.arange(4) + 0.5) / 4
    total = np.zeros((_SIDE, _SIDE, 3))
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    for down in steps:
        for along in steps:
            flat = moved(np.linalg.inv(place), np.stack([columns.ravel() + along, rows.ravel() + down], 1))
            colors = np.broadcast_to(_GREEN, (len(flat), 3)).copy()
            colors[inside(flat, "octagon")] = _WHITE
            colors[inside((flat - 0.5) * RIM + 0.5, "octagon")] = _RED
            bar = (np.abs(flat[:, 0] - 0.5) < 0.3) & (np.abs(flat[:, 1] - 0.5) < 0.1)
            if letters:
                colors[bar] = _WHITE
            total += colors.reshape(_SIDE, _SIDE, 3)
    lit = total / 16 * (light[..., None] if isinstance(light, np.ndarray) else light)
    return np.asarray(np.rint(255 * lit) / 255)


def _photograph(place: Floats = _STRAIGHT, light: Floats | float = 1.0) -> Photograph:
    pixels = _drawn(place, light)
    return photograph("drawn", pixels, red_mask(pixels), "octagon", RIM)


def _plain(color: tuple[float, float, float], share: float, middle: tuple[float, float] = (0.5, 0.5)) -> Print:
    return Print(np.broadcast_to(np.array(color), (4, 4, 3)).copy(), np.ones((4, 4)), centered(share, middle))


class _Redness(nn.Module):
    """Reads class 0 where the middle is red, class 1 where it is blue."""

    def forward(self, images: Tensor) -> Tensor:
        middle = images[:, :, 12:20, 12:20].mean((2, 3))
        return 20 * torch.stack([middle[:, 0], middle[:, 2]], 1)


@pytest.mark.parametrize("light", [1.0, 0.2])
@pytest.mark.parametrize("place", [_STRAIGHT, _TURNED], ids=["straight", "turned"])
def test_a_sign_is_found_by_its_red_to_two_pixels(place: Floats, light: float) -> None:
    found = _photograph(place, light)
    flat = flat_corners("octagon")
    assert np.abs(moved(found.place, flat) - moved(place, flat)).max() < 2


@pytest.mark.parametrize("shape", ["octagon", "rectangle", "circle"])
def test_corners_of_a_mask_give_back_the_homography(shape: str) -> None:
    place = np.array([[110.0, -5.0, 28.0], [0.0, 116.0, 20.0], [0.0, 0.0, 1.0]])
    rows, columns = np.mgrid[0:_SIDE, 0:_SIDE]
    flat = moved(np.linalg.inv(place), np.stack([columns.ravel(), rows.ravel()], 1) + 0.5)
    found = corners(inside(flat, shape).reshape(_SIDE, _SIDE), shape)
    assert found is not None
    assert np.abs(found - moved(place, flat_corners(shape))).max() < 2


def test_a_homography_of_four_points_is_exact() -> None:
    source = flat_corners("rectangle")
    assert np.allclose(homography(source, moved(_TURNED, source)), _TURNED, atol=1e-6)


def test_a_print_lies_where_the_homography_says_and_nowhere_else() -> None:
    held = _photograph(_TURNED)
    seen = composed(held, _plain((0.0, 0.0, 1.0), 0.2, (0.7, 0.75)))
    changed = np.abs(seen - held.pixels).max(2)
    rows, columns = np.nonzero(changed > 0.3)
    middle = moved(held.place, np.array([[0.7, 0.75]]))[0]
    assert np.hypot(columns.mean() + 0.5 - middle[0], rows.mean() + 0.5 - middle[1]) < 1
    determinant = np.linalg.det(held.place) / np.power((held.place @ [0.7, 0.75, 1])[2], 3)
    assert len(rows) == pytest.approx(0.2**2 * determinant, rel=0.08)


def test_a_print_is_cut_at_the_edge_of_the_sign() -> None:
    held = _photograph()
    changed = np.abs(composed(held, _plain((0, 0, 0), 0.4, (0.0, 0.0))) - held.pixels).max(2) > 0.02
    assert changed.any()
    from scipy import ndimage

    assert not (changed & ~ndimage.binary_dilation(held.sign, iterations=2)).any()


def test_white_paper_looks_like_the_signs_own_white_in_shade_and_sun() -> None:
    shade = np.tile(np.linspace(0.3, 1.0, _SIDE), (_SIDE, 1))
    held = _photograph(light=shade)
    for x in (0.25, 0.75):
        seen = composed(held, _plain((1, 1, 1), 0.1, (x, 0.8)))
        column, row = moved(held.place, np.array([[x, 0.8]]))[0].astype(int)
        assert seen[row, column].mean() == pytest.approx(0.9 * shade[row, column], rel=0.1)


def test_the_sign_is_as_wide_on_the_sensor_as_optics_say() -> None:
    held = scene(_photograph(), [_drawn(_STRAIGHT)])
    for distance in (6.0, 20.0):
        image = window(held, _NO_LOSS, View(distance), 256, 256, None, np.random.default_rng(0))[0].numpy()
        sign = red_mask(image.transpose(1, 2, 0).astype(float))
        across = np.ptp(np.nonzero(sign.any(0))[0]) + 1
        assert across == pytest.approx(_NO_LOSS.width(distance) / RIM, abs=1.5)


def test_a_turned_sign_is_narrower_by_the_cosine() -> None:
    held = scene(_photograph(), [_drawn(_STRAIGHT)])
    image = window(held, _NO_LOSS, View(8.0, 50.0), 256, 256, None, np.random.default_rng(0))[0].numpy()
    sign = red_mask(image.transpose(1, 2, 0).astype(float))
    across, down = (np.ptp(np.nonzero(sign.any(axis))[0]) + 1 for axis in (0, 1))
    assert across / down == pytest.approx(np.cos(np.deg2rad(50)), abs=0.03)


def test_far_pixels_average_the_light_of_their_area() -> None:
    stripes = _photograph()
    pixels = stripes.pixels.copy()
    pixels[:, ::2], pixels[:, 1::2] = 0.2, 0.6
    held = scene(stripes, [pixels])
    image = window(held, _NO_LOSS, View(60.0), 12, 12, None, np.random.default_rng(0))
    assert image.mean() == pytest.approx(0.4, abs=0.02)
    assert image.std() < 0.03


def test_from_very_far_the_sign_is_the_mean_of_all() -> None:
    held = scene(_photograph(), [_drawn(_STRAIGHT)])
    image = crop(held, _NO_LOSS, View(1e6), 0.8, np.random.default_rng(0))
    assert image.shape == (1, 3, 4, 4)
    assert float((image - held.pixels.mean((2, 3))[..., None, None]).abs().max()) < 0.01


def test_the_sign_takes_its_share_of_the_models_input() -> None:
    held = scene(_photograph(), [_drawn(_STRAIGHT)])
    for share in (0.5, 0.9):
        image = fitted(crop(held, _NO_LOSS, View(10.0), share, np.random.default_rng(0)), (64, 64))[0].numpy()
        sign = red_mask(image.transpose(1, 2, 0).astype(float))
        assert np.ptp(np.nonzero(sign.any(0))[0]) + 1 == pytest.approx(64 * share / RIM, abs=2)


def test_a_trial_counts_and_repeats() -> None:
    held = _photograph()
    given = {"patch": _plain((0, 0, 1), 0.6), "bare": _plain((1, 0, 0), 0.1, (0.9, 0.5))}
    trials = [
        try_photographs(
            _Redness(), [held], given, size=(32, 32), share=0.8, distances=(10, 40), angles=(0, 30), seed=-3
        )
        for _ in range(2)
    ]  # fmt: skip
    first, second = trials
    assert first.classes["patch"].shape == (1, 2, 2)
    assert (first.classes["clean"] == 0).all()
    assert (first.classes["patch"] == 1).all()
    assert (first.classes["bare"] == 0).all()
    assert first.counted(0).all()
    assert not first.counted(1).any()
    assert (first.confidences["patch"] == second.confidences["patch"]).all()


def test_the_animation_ends_near_and_is_small() -> None:
    held = with_prints(_photograph(), {"patch": _plain((0, 0, 1), 0.6)})
    pictures, read = approach(held, _Redness(), ["red", "blue"], source=0, size=(32, 32), share=0.8, frames=4)
    data = as_gif(pictures)
    assert len(data) < LARGEST
    with Image.open(io.BytesIO(data)) as gif:
        assert (gif.n_frames, gif.size) == (4, pictures[0].size)
    assert (round(read[0][0]), round(read[-1][0])) == (60, 5)
    assert all(clean.startswith("red") and patched.startswith("blue") for _, clean, patched in read)


def test_the_contact_sheet_holds_every_photograph() -> None:
    pixels = _drawn(_STRAIGHT)
    pair = ("photograph", Look(pixels, "stop", True), Look(1 - pixels, "speed limit 30, which is a long name", False))
    small, large = (contact_sheet("title", "note", [pair] * count) for count in (4, 5))
    assert small.width == large.width
    assert large.height > small.height
    assert np.asarray(small).std() > 20


def test_prints_have_their_size_on_paper(tmp_path: Path) -> None:
    cover = np.zeros((40, 40))
    cover[4:12, 10:30] = cover[28:36, 10:30] = 1
    found = pieces(Print(np.random.default_rng(0).random((40, 40, 3)), cover, np.eye(3)), 60)
    assert [(p.width, p.height, p.across, p.down) for p in found] == [(30, 12, 30, 12), (30, 12, 30, 48)]
    write_png(found[0], 100, tmp_path / "piece.png")
    with Image.open(tmp_path / "piece.png") as png:
        assert png.size == (round(30 / 2.54 * 100), round(12 / 2.54 * 100))
        assert png.info["dpi"] == pytest.approx((100, 100), abs=0.1)
    write_pdf(found, 100, "stickers", tmp_path / "pieces.pdf")
    data = (tmp_path / "pieces.pdf").read_bytes()
    boxes = [[float(number) for number in box.split()] for box in re.findall(rb"/MediaBox \[([^\]]+)\]", data)]
    assert len(boxes) == 2
    # 30 cm and two margins of 1.5 cm across; an A4 sheet down.
    assert boxes[0][2:] == pytest.approx([33 / 2.54 * 72, 29.7 / 2.54 * 72], abs=0.5)


def test_what_is_not_printed_is_paper() -> None:
    cover = np.array([[1.0, 1.0], [1.0, 0.0]])
    (piece,) = pieces(Print(np.zeros((2, 2, 3)), cover, np.eye(3)), 2.54)
    assert np.asarray(raster(piece, 2))[..., 0].tolist() == [[0, 0], [0, 255]]


def _saved(folder: Path, *parts: str, pixels: Floats | None = None) -> Path:
    file = folder.joinpath(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    array = _drawn(_STRAIGHT) if pixels is None else pixels
    Image.fromarray(np.rint(255 * array).astype(np.uint8)).save(file)
    return file


def test_photographs_come_in_natural_order_with_their_masks(tmp_path: Path) -> None:
    for name in ("10.png", "9.png"):
        _saved(tmp_path, "highres", name)
    assert [photo.name for photo in load_photographs(tmp_path)] == ["9", "10"]
    mask = np.zeros((_SIDE, _SIDE, 3))
    mask[30:130, 40:140] = 1
    _saved(tmp_path, "masks", "10.png", pixels=mask)
    (tmp_path / "highres" / "9.png").unlink()
    (square,) = load_photographs(tmp_path, "rectangle")
    assert np.abs(moved(square.place, np.array([[0.0, 0.0], [1.0, 1.0]])) - [[40, 30], [140, 130]]).max() < 0.6


def test_a_picture_that_says_how_to_turn_it_is_turned(tmp_path: Path) -> None:
    upright = Image.fromarray(np.rint(255 * _drawn(_STRAIGHT)).astype(np.uint8))
    notes = Image.Exif()
    notes[0x0112] = 6  # to be shown a quarter turn to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "telephone.png", exif=notes)
    (held,) = load_photographs(tmp_path)
    assert np.array_equal(np.rint(255 * held.pixels).astype(np.uint8), np.asarray(upright))


def test_bad_folders_and_photographs_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_photographs(tmp_path / "none")
    with pytest.raises(InputError, match="no photographs"):
        load_photographs(tmp_path)
    _saved(tmp_path, "grass.png", pixels=np.broadcast_to(np.array(_GREEN), (_SIDE, _SIDE, 3)))
    with pytest.raises(InputError, match=r"grass.*no octagon sign found"):
        load_photographs(tmp_path)
    (tmp_path / "grass.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read as a picture"):
        load_photographs(tmp_path)
    (tmp_path / "grass.png").unlink()
    _saved(tmp_path, "stop.png")
    _saved(tmp_path, "masks", "stop.png", pixels=np.ones((8, 8, 3)))
    with pytest.raises(InputError, match=r"8x8 pixels, but stop\.png has 160x160"):
        load_photographs(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Camera(field=180), "field"),
        (lambda: Camera(quality=101), "JPEG"),
        (lambda: View(0.5), "at least 1 m"),
        (lambda: View(5, 90), "less than 80"),
        (lambda: pieces(_plain((0, 0, 0), 0.2), 0), "give its width in cm"),
        (lambda: raster(pieces(_plain((0, 0, 0), 0.2), 75)[0], 0), "--dpi 0"),
        (lambda: raster(pieces(_plain((0, 0, 0), 0.9), 2000)[0], 2400), "too large"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(make: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()  # type: ignore[operator]


def test_real_stop_signs_are_all_found(robust_data: Path) -> None:
    found = load_photographs(robust_data / "us_stop_signs")
    assert len(found) == 40
    for held in found:
        # They are cut close around the sign, which therefore takes most of the frame.
        assert 0.9 < held.width / max(held.pixels.shape[:2]) < 1.05, held.name


def test_published_perturbations_read_as_published(robust_data: Path) -> None:
    """Eykholt et al. (CVPR 2018) on their own photographs: stickers fool 36 of 40, the poster all of them."""
    folder, stop, speed_limit_45 = robust_data / "us_stop_signs", 14, 12
    model = load_model(f"{robust_data / 'zoo.py'}:lisa_cnn")

    def picture(file: Path) -> Tensor:
        with Image.open(file) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255

    signs = torch.stack([picture(file) for file in sorted((folder / "px32").glob("*.png"))])
    assert len(signs) == 40
    assert (readings(model, signs)[0] == stop).all()
    for name, mask, fooled in (("sticker", "uniform_rectangles_32", 36), ("poster", "octagon_32", 40)):
        noise = torch.from_numpy(np.load(folder / "lisa_cnn" / f"{name}_noise_hwc.npy")).permute(2, 0, 1)
        seen = (signs + noise * picture(folder / "masks" / f"{mask}.png")).clamp(0, 1).float()
        assert (readings(model, seen)[0] == speed_limit_45).sum() == fooled
