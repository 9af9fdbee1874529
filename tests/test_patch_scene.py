"""Where a patch lies and how it is seen: regions, pasting, conditions, printing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from robust.attacks.patch import (
    PRESETS,
    Anywhere,
    Conditions,
    OnSign,
    apply,
    circle,
    default_palette,
    from_file,
    in_pixels,
    layouts,
    light_on,
    load_palette,
    non_printability,
    octagon,
    paste,
    printed,
    rectangle,
    stickers,
    total_variation,
    whole,
)
from robust.errors import InputError
from robust.randomness import image_seeds

PHYSICAL = Conditions.named("physical")


@pytest.fixture
def images() -> Tensor:
    """Six smooth pictures (6, 3, 32, 32)."""
    coarse = torch.rand(6, 3, 5, 5)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


class TestRegions:
    def test_areas(self) -> None:
        assert float(octagon(200, 200, 1.0).mean()) == pytest.approx(2 * math.sqrt(2) - 2, abs=0.002)
        assert float(circle(200, 200).mean()) == pytest.approx(math.pi / 4, abs=0.002)
        assert float(rectangle(32, 32, 0.07, (0.4, 0.6), 1.7).mean()) == pytest.approx(0.07, abs=1e-6)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_stickers_share_the_signs_area_and_stay_on_it(self, count: int) -> None:
        sign = octagon(64, 64, 0.8)
        found = stickers(sign, 0.1, count)
        assert float(found.sum() / sign.sum()) == pytest.approx(0.1, rel=1e-4)
        assert float((found * (sign < 0.5)).sum()) <= 0.02 * float(found.sum())
        rows = (found > 0).any(1).int()
        assert int((rows.diff() == 1).sum()) == count

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_layouts_lie_on_the_sign(self, count: int) -> None:
        sign = octagon(32, 32, 0.9)
        found = layouts(sign, 0.1, count)
        assert len(found) > 5
        for mask in found:
            assert float(mask.sum() / sign.sum()) == pytest.approx(0.1, rel=1e-3)
            assert float((mask * (sign < 0.5)).sum()) <= 0.02 * float(mask.sum())

    def test_a_patch_anywhere_stays_inside_and_is_the_same_in_any_batch(self, images: Tensor) -> None:
        region = Anywhere(area=0.1, rotation=45, scale=(0.5, 1.5))
        seeds = image_seeds(torch.rand(500, 1, 2, 2), 3)
        placed = region.draw(seeds)
        assert float(placed.corners.min()) >= -1e-6
        assert float(placed.corners.max()) <= 1 + 1e-6
        assert torch.equal(region.draw(seeds[7:9]).corners, placed.corners[7:9])
        sides = (placed.corners[:, 1] - placed.corners[:, 0]).norm(dim=1)
        assert torch.allclose(sides.square(), 0.1 * placed.scale.square(), atol=1e-5)
        # Independent of each other from turn to turn, and spread over the whole frame.
        assert not torch.equal(region.draw(seeds, 1).corners, placed.corners)
        middles = placed.corners.mean(1)
        assert float(middles.min()) < 0.25
        assert float(middles.max()) > 0.75

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Anywhere(area=0.9, scale=(1.0, 1.2)), "larger than the image"),
            (lambda: Anywhere(area=1.5), "share between 0 and 1"),
            (lambda: Anywhere(shape="squid"), "did you mean square"),
            (lambda: OnSign(torch.zeros(8, 8)), "empty"),
            (lambda: OnSign(torch.ones(8)), "two dimensions"),
            (lambda: OnSign(torch.full((8, 8), 255.0)), "divide"),
            (lambda: OnSign(torch.ones(8, 16)).cover((32, 32)), "do not fit"),
            (lambda: stickers(octagon(32, 32), 0.95), "do not fit"),
            (lambda: layouts(octagon(32, 32), 0.95, 2), "do not fit"),
            (lambda: rectangle(8, 8, 0.5, (0.1, 0.1)), "larger than what holds it"),
            (lambda: Conditions(distance=(0.5, 1)), "distance"),
            (lambda: Conditions.named("fysical"), "physical"),
            (lambda: from_file("no/such.png"), "no such mask"),
        ],
    )
    def test_what_does_not_fit_is_said_in_one_line(self, make: object, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            make()  # type: ignore[operator]
        assert "\n" not in str(caught.value)

    def test_masks_from_files(self, tmp_path: Path) -> None:
        picture = Image.new("L", (20, 20))
        picture.paste(255, (5, 5, 15, 15))
        picture.save(tmp_path / "mask.png")
        mask = from_file(tmp_path / "mask.png", (40, 40))
        assert mask.shape == (40, 40)
        assert float(mask.mean()) == pytest.approx(0.25, abs=0.01)
        Image.new("L", (20, 20)).save(tmp_path / "black.png")
        (tmp_path / "text.png").write_text("no picture")
        for name, words in (("black.png", "empty"), ("text.png", "not a readable mask")):
            with pytest.raises(InputError, match=words):
                from_file(tmp_path / name)


class TestPasting:
    def test_where_it_lies_the_patch_is_seen_and_nothing_else_changes(self, images: Tensor) -> None:
        patch, cover = torch.rand(3, 4, 4), torch.ones(4, 4)
        corners = torch.tensor([[8.0, 12], [12, 12], [12, 16], [8, 16]]).expand(6, 4, 2)
        pasted = paste(images, patch, cover, corners)
        expected = images.clone()
        expected[:, :, 12:16, 8:12] = patch
        assert torch.allclose(pasted, expected, atol=1e-5)

    def test_a_turned_patch_is_the_turned_texture(self, images: Tensor) -> None:
        patch = torch.rand(3, 4, 4)
        quarter = torch.tensor([[12.0, 12], [12, 16], [8, 16], [8, 12]]).expand(6, 4, 2)
        pasted = paste(images, patch, torch.ones(4, 4), quarter)
        assert torch.allclose(pasted[:, :, 12:16, 8:12], patch.rot90(-1, (1, 2)).expand(6, 3, 4, 4), atol=1e-5)

    def test_the_covered_area_is_that_of_the_corners(self) -> None:
        region = Anywhere(area=0.1, scale=(0.7, 1.3), rotation=45)
        black = torch.zeros(50, 1, 32, 32)
        placed = region.draw(image_seeds(torch.rand(50, 1, 2, 2), 0))
        cover = region.cover((32, 32))
        white = paste(black, torch.ones(1, *cover.shape), cover, in_pixels(placed.corners, whole(black)))
        ratios = white.mean((1, 2, 3)) / (0.1 * placed.scale.square())
        # One sample a pixel: a few per cent for one image, nothing in the mean.
        assert float((ratios - 1).abs().max()) < 0.04
        assert float(ratios.mean()) == pytest.approx(1, abs=0.005)

    def test_a_share_of_each_box(self) -> None:
        mask = rectangle(32, 32, 0.1, (0.5, 0.5), 2.0)
        boxes = torch.tensor([[0.0, 0, 32, 32], [4, 6, 28, 30], [10.5, 3.25, 30, 28]])
        black = torch.zeros(3, 1, 32, 32)
        corners = in_pixels(OnSign(mask).draw(torch.arange(3)).corners, boxes)
        areas = paste(black, torch.ones(1, 32, 32), mask, corners).sum((1, 2, 3))
        boxed = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert torch.allclose(areas, 0.1 * boxed, rtol=0.04)

    def test_one_patch_per_image(self, images: Tensor) -> None:
        patches, cover = torch.rand(6, 3, 32, 32), octagon(32, 32)
        pasted = paste(images, patches, cover)
        for row in range(6):
            assert torch.equal(pasted[row : row + 1], paste(images[row : row + 1], patches[row], cover))

    def test_lit_like_the_sign(self, images: Tensor) -> None:
        dark = images * 0.2
        light = light_on(dark)
        assert float(light[:, 1].max()) <= 0.2 + 1e-6
        pasted = paste(dark, torch.ones(3, 32, 32), torch.ones(32, 32), light=light)
        assert torch.allclose(pasted, light[:, 1].view(-1, 1, 1, 1).expand_as(pasted), atol=1e-6)

    def test_the_gradient_is_that_of_the_difference_quotient(self) -> None:
        images = torch.rand(2, 1, 8, 8, dtype=torch.float64)
        corners = torch.tensor([[2.2, 1.7], [6.1, 2.3], [5.8, 6.4], [1.6, 5.9]], dtype=torch.float64).expand(2, 4, 2)
        patch = torch.rand(1, 3, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: paste(images, p, torch.ones(3, 3), corners), patch)


class TestConditions:
    def test_none_changes_nothing(self, images: Tensor) -> None:
        assert torch.equal(apply(images, PRESETS["none"].draw(image_seeds(images, 0))), images)

    def test_same_seed_same_picture_in_whatever_batch(self, images: Tensor) -> None:
        seeds = image_seeds(images, 5)
        together = apply(images, PHYSICAL.draw(seeds))
        for row in range(len(images)):
            alone = apply(images[row : row + 1], PHYSICAL.draw(seeds[row : row + 1]))
            # JPEG turns a last digit into a step of some k/255 now and then.
            assert float((alone - together[row]).abs().mean()) < 1e-3
        again = apply(images[[4, 1]], PHYSICAL.draw(seeds)[torch.tensor([4, 1])])
        assert float((again - together[[4, 1]]).abs().mean()) < 1e-3
        assert not torch.equal(apply(images, PHYSICAL.draw(seeds, 1)), together)

    def test_pictures_are_pictures(self, images: Tensor) -> None:
        seen = apply(images, PHYSICAL.draw(image_seeds(images, 0)))
        assert seen.shape == images.shape
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1
        assert torch.allclose(seen * 255, (seen * 255).round(), atol=1e-4)

    def test_numbers_stay_in_their_ranges(self) -> None:
        drawn = PHYSICAL.draw(torch.arange(4000))
        for name in ("distance", "yaw", "roll", "zoom", "brightness", "blur", "noise", "jpeg"):
            low, high = getattr(PHYSICAL, name)
            values = getattr(drawn, name)
            assert low <= float(values.min()) < low + 0.01 * (high - low)
            assert high - 0.01 * (high - low) < float(values.max()) <= high
        assert drawn.shift.shape == (4000, 2)
        assert abs(float(torch.corrcoef(torch.stack([drawn.yaw, drawn.distance]))[0, 1])) < 0.1

    def test_a_quarter_turn(self, images: Tensor) -> None:
        seen = apply(images, Conditions(roll=(90, 90)).draw(torch.arange(6)))
        assert torch.allclose(seen, images.rot90(-1, (2, 3)), atol=1e-4)

    def test_seen_from_the_side_a_sign_is_narrower_by_the_cosine(self) -> None:
        board = octagon(129, 129, 0.5).expand(1, 1, 129, 129)
        seen = apply(board, Conditions(yaw=(40, 40)).draw(torch.arange(1)))[0, 0] > 0.5
        columns = seen.any(0).nonzero()
        # Half a width of 0.5 on either side, at depths of 4 -+ 0.5 sin(40 degrees) half frames.
        sine, cosine = math.sin(math.radians(40)), math.cos(math.radians(40))
        reach = sum(0.5 * cosine * 4 / (4 + sign * 0.5 * sine) for sign in (1, -1))
        assert int(columns[-1] - columns[0] + 1) == pytest.approx(reach * 129 / 2, abs=1.5)

    def test_further_away_fine_detail_goes_and_the_mean_stays(self) -> None:
        stripes = torch.zeros(1, 1, 32, 32)
        stripes[..., ::2] = 1
        seen = apply(stripes, Conditions(distance=(2, 2)).draw(torch.arange(1)))
        assert torch.allclose(seen, torch.full_like(seen, 0.5), atol=1e-6)

    def test_lighting_in_closed_form(self, images: Tensor) -> None:
        given = Conditions(brightness=(1.2, 1.2), contrast=(0.8, 0.8), gamma=(1.5, 1.5))
        expected = (((images.clamp(1e-4, 1) ** 1.5 - 0.5) * 0.8 + 0.5) * 1.2).clamp(0, 1)
        assert torch.allclose(apply(images, given.draw(torch.arange(6))), expected, atol=1e-6)

    def test_noise_has_its_deviation(self) -> None:
        grey = torch.full((4, 3, 32, 32), 0.5)
        noisy = apply(grey, Conditions(noise=(0.05, 0.05)).draw(torch.arange(4)))
        assert float((noisy - grey).std()) == pytest.approx(0.05, rel=0.05)

    def test_jpeg_is_the_librarys(self, images: Tensor) -> None:
        from torchvision.io import decode_jpeg, encode_jpeg

        seen = apply(images[:1], Conditions(jpeg=(40, 40)).draw(torch.arange(1)))
        pixels = (images[0] * 255).round().to(torch.uint8)
        assert torch.equal((seen[0] * 255).round().to(torch.uint8), decode_jpeg(encode_jpeg(pixels, quality=40)))
        with pytest.raises(InputError, match="one or three channels"):
            apply(images[:, :2], Conditions(jpeg=(40, 40)).draw(torch.arange(6)))

    @pytest.mark.parametrize("name", ["mild", "physical"])
    def test_the_gradient_arrives(self, images: Tensor, name: str) -> None:
        leaf = images.requires_grad_()
        drawn = Conditions.named(name).draw(image_seeds(images, 0))
        (gradient,) = torch.autograd.grad(apply(leaf, drawn).sum(), leaf)
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().mean()) > 0.1

    def test_smooth_conditions_have_the_gradient_of_the_difference_quotient(self) -> None:
        smooth = replace(PHYSICAL, jpeg=None, eight_bit=False, noise=(0.0, 0.0), contrast=(0.8, 0.9), brightness=(1, 1))
        drawn = smooth.draw(torch.arange(1))
        images = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 0.4 + 0.3
        assert torch.autograd.gradcheck(lambda x: apply(x, drawn), images.requires_grad_(), atol=1e-4)


class TestPrinting:
    def test_palette_colors_are_printable_and_others_are_not(self) -> None:
        palette = default_palette()
        assert palette.shape == (65, 3)
        cover = torch.ones(5, 13)
        own = palette.T.reshape(3, 5, 13)
        assert float(non_printability(own, cover, palette)) < 1e-3
        neon = torch.tensor([0.0, 1, 0])[:, None, None].expand(3, 5, 13)
        assert float(non_printability(neon, cover, palette)) > 0.3
        assert torch.equal(printed(own, palette), own)
        assert float(non_printability(printed(torch.rand(3, 5, 13), palette), cover, palette)) < 1e-3

    def test_total_variation(self) -> None:
        checks = (torch.arange(6)[:, None] + torch.arange(6)[None]).remainder(2).float().expand(3, 6, 6)
        assert float(total_variation(checks, torch.ones(6, 6))) == pytest.approx(2.0)
        assert float(total_variation(torch.full((3, 6, 6), 0.3), torch.ones(6, 6))) == 0

    def test_palettes_from_files(self, tmp_path: Path) -> None:
        (tmp_path / "unit.txt").write_text("0.1,0.2,0.3\n1,1,1\n\n")
        (tmp_path / "bytes.txt").write_text("255,0,51\n")
        (tmp_path / "bad.txt").write_text("red,green,blue\n")
        assert torch.allclose(load_palette(tmp_path / "unit.txt"), torch.tensor([[0.1, 0.2, 0.3], [1, 1, 1]]))
        assert torch.allclose(load_palette(tmp_path / "bytes.txt"), torch.tensor([[1.0, 0, 0.2]]))
        for name in ("bad.txt", "none.txt"):
            with pytest.raises(InputError, match=name):
                load_palette(tmp_path / name)
