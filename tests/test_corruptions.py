"""Common corruptions: closed forms, the published procedures step by step, and what must hold for every image."""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.stats import poisson as poisson_law
from torch import Tensor

from robust.corruptions import FAMILIES, NAMES, SEVERITIES, corrupt
from robust.corruptions.blur import disk, scattered
from robust.corruptions.draws import Draws
from robust.corruptions.noise import poisson
from robust.corruptions.severity import constants
from robust.corruptions.textures import ice, plasma
from robust.corruptions.warping import moved, trailed, wavy, zoomed
from robust.errors import InputError

# Where the published constants trade one kind of damage against another (glass), or leave brightness to the picture of
# frost and the cloud of fog, a higher severity may lie nearer to the image; so may two directions of motion.
UNEVEN = ("glass_blur", "motion_blur", "snow", "frost", "fog")


def scenes(n: int, channels: int, height: int, width: int) -> Tensor:
    """Images with smooth shades, textures and hard edges, in 8-bit color."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(n):
        shades = ndimage.gaussian_filter(rng.standard_normal((channels, height, width)), (0, height / 6, width / 6))
        fine = ndimage.gaussian_filter(rng.standard_normal((channels, height, width)), (0, 1, 1))
        image = 0.45 + 0.2 * shades / shades.std() + 0.08 * fine / fine.std()
        for _ in range(6):
            top, left = rng.integers(0, height), rng.integers(0, width)
            image[:, top : top + height // 3, left : left + width // 3] *= rng.uniform(0.3, 1.6, (channels, 1, 1))
        found.append(np.clip(image, 0, 1))
    return torch.from_numpy(np.round(np.stack(found) * 255) / 255).float()


def psnr(images: Tensor, others: Tensor) -> float:
    return float((-10 * (images - others).square().flatten(1).mean(1).clamp_min(1e-10).log10()).mean())


# What must hold for every corruption


@settings(max_examples=60)
@given(
    name=st.sampled_from(NAMES),
    severity=st.sampled_from(SEVERITIES),
    channels=st.integers(1, 4),
    height=st.integers(16, 70),
    width=st.integers(16, 70),
    kind=st.sampled_from(["random", "black", "white"]),
    seed=st.integers(0, 2**31),
)
def test_range_shape_and_seeds(
    name: str, severity: int, channels: int, height: int, width: int, kind: str, seed: int
) -> None:
    shape = (3, channels, height, width)
    images = {"random": torch.rand(shape), "black": torch.zeros(shape), "white": torch.ones(shape)}[kind]
    before, state = images.clone(), torch.get_rng_state()
    found = corrupt(images, name, severity, seed)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert bool(found.isfinite().all())
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert torch.equal(images, before), "the images given are left as they are"
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left as it is"
    assert torch.equal(corrupt(images, name, severity, seed), found)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_corrupted_alike_in_any_batch(name: str) -> None:
    images, seeds = scenes(5, 3, 33, 40), torch.tensor([3, 1, 4, 1, 5])
    together = corrupt(images, name, 4, seeds)
    alone = torch.cat([corrupt(images[i : i + 1], name, 4, seeds[i : i + 1]) for i in range(5)])
    backwards = corrupt(images.flip(0), name, 4, seeds.flip(0)).flip(0)
    assert torch.allclose(together, alone, atol=1e-6)
    assert torch.allclose(together, backwards, atol=1e-6)
    pixels = corrupt(images, name, 4, 7)
    assert torch.allclose(pixels[2:3], corrupt(images[2:3], name, 4, 7), atol=1e-6), (
        "a seed from the image's own pixels"
    )


def test_random_numbers_differ_by_seed_corruption_and_severity() -> None:
    images = torch.full((1, 1, 32, 32), 0.5)
    noise = [
        corrupt(images, name, severity, seed) - 0.5
        for name, severity, seed in (("gaussian_noise", 1, 0), ("gaussian_noise", 1, 1), ("gaussian_noise", 2, 0),
                                     ("shot_noise", 1, 0))
    ]  # fmt: skip
    correlations = np.corrcoef(torch.stack(noise).flatten(1).numpy())
    assert np.abs(correlations - np.eye(4)).max() < 0.15
    for name in ("glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "impulse_noise"):
        scene = scenes(1, 3, 48, 48)
        assert psnr(corrupt(scene, name, 3, 0), corrupt(scene, name, 3, 1)) < 40


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 96), (3, 224)])
@pytest.mark.parametrize("name", NAMES)
def test_severity_takes_an_image_ever_farther(name: str, channels: int, side: int) -> None:
    images = scenes(16 if side < 100 else 4, channels, side, side)
    levels = [psnr(images, corrupt(images, name, severity)) for severity in SEVERITIES]
    assert levels[0] > levels[4]
    if name not in UNEVEN:
        assert levels == sorted(levels, reverse=True)
        assert len(set(levels)) == 5
    assert 5 < levels[4] < levels[0] < 60


def test_constants_are_the_published_ones_and_lie_between_them_in_between() -> None:
    assert [constants("gaussian_noise", s, 32, 32) for s in SEVERITIES] == [(0.04,), (0.06,), (0.08,), (0.09,), (0.10,)]
    assert constants("gaussian_noise", 5, 28, 28) == (0.10,)
    assert [constants("shot_noise", s, 224, 224)[0] for s in SEVERITIES] == pytest.approx([60, 25, 12, 5, 3])
    assert constants("gaussian_noise", 1, 85, 200)[0] == pytest.approx(math.sqrt(0.04 * 0.08), rel=0.01)
    assert constants("defocus_blur", 2, 448, 600) == pytest.approx((8, 0.5)), "lengths grow, the rest stays"
    for name in NAMES:
        for severity in SEVERITIES:
            ends = [constants(name, severity, side, side) for side in (32, 224)]
            middle = constants(name, severity, 96, 96)
            assert all(min(a, b) - 1e-9 <= m <= max(a, b) + 1e-9 for a, b, m in zip(*ends, middle, strict=True))
    assert sum(map(len, FAMILIES.values())) == len(set(NAMES)) == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "foggy"}, "fog"),
        ({"severity": 0}, "1 to 5"),
        ({"severity": 6}, "1 to 5"),
        ({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}, "floating point"),
        ({"images": torch.zeros(3, 32, 32)}, "(N, C, H, W)"),
        ({"images": torch.zeros(2, 3, 12, 40)}, "at least 16x16"),
        ({"seeds": torch.tensor([1, 2, 3])}, "one for each of the 2 images"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, object], message: str) -> None:
    given = {"images": torch.zeros(2, 3, 32, 32), "name": "fog", "severity": 1, "seeds": 0, **change}
    with pytest.raises(InputError) as raised:
        corrupt(**given)  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_images_are_no_trouble() -> None:
    assert corrupt(torch.zeros(0, 3, 32, 32), "snow", 3).shape == (0, 3, 32, 32)


# Noise


def test_poisson_is_the_quantile() -> None:
    rate, uniform = 400 * torch.rand(20000, dtype=torch.float64) ** 2, torch.rand(20000, dtype=torch.float64)
    apart = np.abs(poisson(rate, uniform).numpy() - poisson_law.ppf(uniform.numpy(), rate.numpy()))
    assert apart[rate.numpy() <= 50].max() == 0
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.005
    assert poisson(torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, 0.5, 0.999]).double()).tolist() == [0, 0, 0]


def test_noise_has_the_stated_strength() -> None:
    gray = torch.full((64, 3, 32, 32), 0.5)
    gaussian = corrupt(gray, "gaussian_noise", 5, torch.arange(64)) - gray
    assert float(gaussian.std()) == pytest.approx(0.10, rel=0.01)
    assert abs(float(gaussian.mean())) < 1e-3
    shot = corrupt(gray, "shot_noise", 5, torch.arange(64)) - gray
    assert float(shot.std()) == pytest.approx(math.sqrt(0.5 / 50), rel=0.01)
    impulse = corrupt(gray, "impulse_noise", 5, torch.arange(64))
    assert float((impulse != gray).float().mean()) == pytest.approx(0.07, abs=0.003)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.035, abs=0.002)
    assert set(impulse.unique().tolist()) == {0, 0.5, 1}


# Blur


def test_defocus_is_the_mean_over_a_disk() -> None:
    kernel = disk(3, 0.1)[0]
    assert int((kernel > 1e-6).sum()) == 29, "the points of the grid within 3 of the middle"
    scene = scenes(1, 1, 224, 224)
    expected = ndimage.convolve(scene[0, 0].numpy(), kernel.numpy(), mode="mirror")
    assert np.allclose(corrupt(scene, "defocus_blur", 1)[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("farthest", [1, 2, 4])
def test_glass_moves_pixels_as_the_published_loop_does(farthest: int) -> None:
    height, width = 20, 24
    draws = Draws(torch.tensor([7, 8]), 100)
    found = scattered(torch.Size((2, 1, height, width)), farthest, draws, 0)
    down, right = (draws.integers(stream, -farthest, farthest, height, width) for stream in (0, 1))
    for image in range(2):
        held = np.arange(height * width).reshape(height, width).copy()
        for row in range(height - farthest, farthest, -1):
            for column in range(width - farthest, farthest, -1):
                held[row, column] = held[row + int(down[image, row, column]), column + int(right[image, row, column])]
        assert np.array_equal(found[image].numpy(), held)


def test_a_point_in_motion_is_half_a_gaussian_along_its_way() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    found = trailed(point, 6, 2.0, torch.tensor([0.0]))[0, 0]
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    weights = weights[weights >= 1e-4]
    line = found[20].numpy()
    trail = line[line > 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float(found[20].sum()) == pytest.approx(1, abs=1e-5), "on one row"
    assert np.allclose(np.sort(trail)[::-1], weights / weights.sum(), atol=1e-6)
    upright = trailed(point, 6, 2.0, torch.tensor([90.0]))[0, 0]
    assert float(upright[:, 20].sum()) == pytest.approx(1, abs=1e-5)


def test_moving_repeats_the_border() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    assert moved(ramp, torch.tensor([0]), torch.tensor([2]))[0, 0, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert moved(ramp, torch.tensor([0]), torch.tensor([-2]))[0, 0, 0].tolist() == [2, 3, 4, 5, 5, 5]


def test_zooming_keeps_the_middle_and_magnifies() -> None:
    columns = torch.arange(40.0).expand(1, 1, 40, 40)
    found = zoomed(columns, 1.25)[0, 0, 0]
    assert found.shape == (40,)
    assert float(found.mean()) == pytest.approx(19.5, abs=0.1)
    assert float(found[30] - found[10]) == pytest.approx(20 / 1.25, rel=0.05)
    assert torch.equal(zoomed(columns, 1.0), columns)


@pytest.mark.parametrize("name", [*FAMILIES["blur"], "pixelate", "contrast", "elastic_transform"])
def test_an_even_image_stays(name: str) -> None:
    even = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 40, 50)
    for severity in SEVERITIES:
        assert torch.allclose(corrupt(even, name, severity), even, atol=1e-5)


# Weather


def test_brightness_is_the_value_of_hsv() -> None:
    image = torch.rand(1, 3, 16, 16)
    image[..., 0, 0] = 0
    found = corrupt(image, "brightness", 5)[0].permute(1, 2, 0).flatten(0, 1).tolist()
    for pixel, result in zip(image[0].permute(1, 2, 0).flatten(0, 1).tolist(), found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        assert result == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)), abs=1e-5)
    assert torch.allclose(corrupt(torch.full((1, 1, 16, 16), 0.4), "brightness", 1), torch.tensor(0.45))


def test_fog_lightens_black_and_keeps_white_as_its_white() -> None:
    scene = torch.zeros(1, 1, 32, 32)
    scene[..., 0] = 1
    thickness = 1.5
    cloud = plasma(Draws.of(torch.tensor([9]), "fog", 5), 32, 1.75)
    assert float(cloud.min()) == 0
    assert float(cloud.max()) == 1
    expected = (scene[0, 0] + thickness * cloud[0]) / (1 + thickness)
    assert torch.allclose(corrupt(scene, "fog", 5, torch.tensor([9]))[0, 0], expected, atol=1e-6)


def test_fog_is_smooth_on_every_level() -> None:
    """Without wobble a diamond-square map is the mean of its neighbors; with it, finer levels vary less."""
    cloud = plasma(Draws(torch.arange(30), 0), 128, 3.0)
    near, far = ((cloud[:, :, step:] - cloud[:, :, :-step]).abs().mean() for step in (1, 32))
    assert float(near) < 0.25 * float(far)


def test_snow_only_adds_light_and_frost_is_the_stated_mixture() -> None:
    scene = 0.6 * scenes(4, 3, 64, 64)
    for severity in SEVERITIES:
        assert bool((corrupt(scene, "snow", severity) >= scene - 1e-6).all())
    black = torch.zeros(4, 3, 32, 32)
    layer = ice(Draws.of(torch.arange(4), "frost", 3), 32, 32)
    assert torch.allclose(corrupt(black, "frost", 3, torch.arange(4)), 0.4 * layer, atol=1e-6)


def test_ice_has_the_tones_of_photographs_of_frost() -> None:
    layer = ice(Draws(torch.arange(60), 0), 64, 64)
    means = layer.mean((1, 2, 3))
    assert 0.40 < float(means.min()) < 0.5
    assert 0.72 < float(means.max()) < 0.85
    red, green, blue = layer.mean((0, 2, 3)).tolist()
    assert 0.5 < red < green < blue < 0.75
    assert 0.05 < float(layer.mean(1).flatten(1).std(1).mean()) < 0.15


# Digital faults


def test_contrast_keeps_the_means() -> None:
    scene = scenes(2, 3, 32, 32)
    found, mean = corrupt(scene, "contrast", 5), scene.mean((2, 3), keepdim=True)
    assert torch.allclose(found, mean + 0.15 * (scene - mean), atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("shape", [(32, 32), (28, 44), (224, 224)])
def test_pixelate_is_the_box_filter_of_pillow(shape: tuple[int, int], severity: int) -> None:
    height, width = shape
    image = scenes(1, 1, height, width)
    block = constants("pixelate", severity, height, width)[0]
    size = (int(width / block + 1e-9), int(height / block + 1e-9))
    picture = Image.fromarray((image[0, 0].numpy() * 255).round().astype(np.uint8))
    small = picture.resize(size, Image.Resampling.BOX).resize((width, height), Image.Resampling.NEAREST)
    expected = np.asarray(small).astype(np.float32) / 255
    found = corrupt(image, "pixelate", severity)[0, 0].numpy()
    assert np.abs(found - expected).max() < 1.6 / 255, "Pillow rounds to 8 bits after each of two passes"


def test_jpeg_is_that_of_pillow() -> None:
    for channels in (1, 3):
        image = scenes(1, channels, 32, 40)
        pixels = (image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(buffer, "JPEG", quality=58)
        expected = np.asarray(Image.open(buffer)).reshape(32, 40, channels)
        found = corrupt(image, "jpeg_compression", 3)[0].permute(1, 2, 0).numpy()
        assert np.array_equal((found * 255).round(), expected)


def test_elastic_moves_by_the_stated_distance() -> None:
    columns = (torch.arange(64.0) / 64).expand(20, 1, 64, 64)
    found = wavy(columns, 1.5, 2.0, Draws(torch.arange(20), 0))
    inside = ((found - columns) * 64)[..., 8:-8]
    assert float(inside.std()) == pytest.approx(1.5, rel=0.05)
    assert abs(float(inside.mean())) < 0.1
    alike = [float((inside[..., 1:] * inside[..., :-1]).mean()), float((inside[..., 9:] * inside[..., :-9]).mean())]
    assert alike[0] > 0.85 * float(inside.square().mean())
    assert abs(alike[1]) < 0.2 * float(inside.square().mean())
