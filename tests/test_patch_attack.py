"""Patches made and measured, on models whose best patch and whose readings are known by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Linear
from PIL import Image
from torch import Tensor, nn

from robust import load_model
from robust.attacks.patch import (
    Anywhere,
    Conditions,
    OnSign,
    PatchAttack,
    choose_layout,
    control,
    default_palette,
    from_file,
    layouts,
    measure_patch,
    non_printability,
    octagon,
    placement_map,
    total_variation,
    train_patch,
)
from robust.errors import InputError, NoGradientError
from robust.stats import clopper_pearson

SIZE = 8
QUICK = PatchAttack(steps=40, batch=4)


def middle(side: int = 4) -> Tensor:
    mask = torch.zeros(SIZE, SIZE)
    low = (SIZE - side) // 2
    mask[low : low + side, low : low + side] = 1
    return mask


@pytest.fixture
def linear() -> Linear:
    generator = torch.Generator().manual_seed(3)
    return Linear(torch.randn(3, 3 * SIZE * SIZE, generator=generator), torch.tensor([20.0, 0, 0])).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Corner(nn.Module):
    """Class 1 where the top left quarter is brighter than ``level``, else class 0."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        excess = (images[:, :, :half, :half].mean((1, 2, 3)) - self.level) * 50
        return torch.stack([-excess, excess], dim=1)


class TestTraining:
    @pytest.mark.parametrize("target", [1, 2])
    def test_on_a_linear_model_it_finds_the_best_patch(self, linear: Linear, images: Tensor, target: int) -> None:
        labels, mask = torch.zeros(6, dtype=torch.long), middle()
        attack = PatchAttack(steps=60, batch=4, loss="margin", enough=1e9)
        # With the third class out of the way a linear model's best patch is a corner of the box.
        other = 3 - target
        weights = (linear.weights[target] - linear.weights[0]).view(3, SIZE, SIZE)
        linear.bias.data[other] = -1e6
        result = train_patch(linear, images, labels, target, OnSign(mask), attack=attack)
        best = (weights > 0).float()
        inside = mask.bool().expand(3, -1, -1)
        assert torch.allclose(result.patch[inside], best[inside], atol=1e-4)
        assert len(result.history) == len(result.gains) == 60
        assert result.gains[-1] > result.gains[0]

    def test_untargeted_it_leaves_the_label(self, linear: Linear, images: Tensor) -> None:
        labels = torch.zeros(6, dtype=torch.long)
        result = train_patch(linear, images, labels, None, OnSign(middle(6)), attack=QUICK)
        found = measure_patch(linear, images, labels, None, result.patch, result.cover, result.region, controls=False)
        assert found.patch.targeted is None
        assert found.patch.untargeted is not None
        assert found.patch.untargeted.value == 1

    def test_it_depends_on_nothing_but_its_seed(self, linear: Linear, images: Tensor) -> None:
        labels, region = torch.zeros(6, dtype=torch.long), Anywhere(area=0.2)
        weights, state = linear.weights.clone(), torch.get_rng_state()
        linear.train()
        first = train_patch(linear, images, labels, 1, region, Conditions.named("physical"), QUICK)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(linear.weights, weights)
        assert linear.training
        assert linear.weights.grad is None
        assert linear.weights.requires_grad
        torch.rand(5)
        second = train_patch(linear, images, labels, 1, region, Conditions.named("physical"), QUICK)
        assert torch.equal(first.patch, second.patch)
        other = train_patch(linear, images, labels, 1, region, Conditions.named("physical"), replace(QUICK, seed=1))
        assert not torch.equal(first.patch, other.patch)

    @pytest.mark.parametrize("per_image", [False, True])
    def test_broken_off_and_taken_up_again_it_ends_the_same(
        self, linear: Linear, images: Tensor, per_image: bool
    ) -> None:
        labels, region = torch.zeros(6, dtype=torch.long), Anywhere(area=0.2)
        attack = replace(QUICK, per_image=per_image, restarts=2)
        states: list[dict[str, Any]] = []
        arguments = (linear, images, labels, 1, region, Conditions.named("mild"), attack)
        whole = train_patch(*arguments, keep=states.append, keep_every=15)
        assert states
        again = train_patch(*arguments, state=states[0])
        assert torch.equal(whole.patch, again.patch)
        assert whole.history == again.history

    def test_of_several_starts_each_image_goes_on_from_its_own_best(self, images: Tensor) -> None:
        images[:, 0, 0, 0] = torch.tensor([1.0, 0, 0, 0, 0, 0])
        weights = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))

        def split(x: Tensor) -> Tensor:
            """What gains on images with a bright corner loses on the others."""
            value = (x[:, :, 2:6, 2:6] * weights[:, 2:6, 2:6]).sum((1, 2, 3)) * (2 * x[:, 0, 0, 0] - 1)
            return torch.stack([torch.zeros_like(value), value], dim=1)

        # So few and so small steps that the end shows the beginning.
        attack = PatchAttack(steps=2, rate=1e-3, enough=1e9, per_image=True, restarts=4)
        labels, region = torch.zeros(6, dtype=torch.long), OnSign(middle())
        together = train_patch(split, images, labels, 1, region, attack=replace(attack, batch=6)).patch
        apart = train_patch(split, images, labels, 1, region, attack=replace(attack, batch=1)).patch
        assert torch.allclose(together, apart, atol=1e-4)
        assert not torch.allclose(together[0], together[1], atol=0.1)

    def test_one_patch_per_image_does_not_depend_on_the_others(self, linear: Linear, images: Tensor) -> None:
        labels = torch.zeros(6, dtype=torch.long)
        region, attack = OnSign(middle()), replace(QUICK, per_image=True)
        together = train_patch(linear, images, labels, 1, region, attack=replace(attack, batch=6)).patch
        apart = train_patch(linear, images, labels, 1, region, attack=replace(attack, batch=2)).patch
        assert together.shape == (6, 3, SIZE, SIZE)
        assert torch.allclose(together, apart, atol=1e-4)

    def test_all_images_come_as_often(self, images: Tensor) -> None:
        seen: list[Tensor] = []

        class Watching(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(x.detach()[:, 0, 0, 0])
                return x.flatten(1)[:, :3] * x[:, 0, 4, 4].view(-1, 1)

        train_patch(
            Watching(), images, torch.zeros(6, dtype=torch.long), 1, OnSign(middle()), attack=PatchAttack(15, 4)
        )
        counts = [int((torch.cat(seen) == images[row, 0, 0, 0]).sum()) for row in range(6)]
        assert counts == [10] * 6

    def test_printability_and_smoothness_are_bought_with_their_weights(self, linear: Linear, images: Tensor) -> None:
        labels, region, palette = torch.zeros(6, dtype=torch.long), OnSign(middle()), default_palette()
        plain = train_patch(linear, images, labels, 1, region, attack=QUICK)
        attack = replace(QUICK, nps=500.0, palette=palette)
        kept = train_patch(linear, images, labels, 1, region, attack=attack)
        assert non_printability(kept.patch, kept.cover, palette) < 0.5 * non_printability(
            plain.patch, plain.cover, palette
        )
        smooth = train_patch(linear, images, labels, 1, region, attack=replace(QUICK, tv=500.0))
        assert total_variation(smooth.patch, smooth.cover) < 0.5 * total_variation(plain.patch, plain.cover)

    def test_the_layout_that_matters_is_found(self) -> None:
        images = torch.rand(5, 3, 16, 16) * 0.2
        labels = torch.zeros(5, dtype=torch.long)
        masks = layouts(octagon(16, 16, 1.0), 0.1)
        region, _ = choose_layout(Corner(), images, labels, 1, masks, attack=PatchAttack(batch=5))
        overlap = [float(mask[:8, :8].sum()) for mask in masks]
        assert float(region.mask[:8, :8].sum()) == pytest.approx(max(overlap), rel=1e-3)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"target": 0}, "source's own class"),
            ({"labels": torch.zeros(5, dtype=torch.long)}, "6 class numbers"),
            ({"images": torch.rand(6, 3, 8, 8) * 255}, "divide 8-bit"),
            ({"boxes": torch.zeros(6, 4)}, "a box is empty"),
            ({"boxes": torch.zeros(2, 4)}, "boxes must have the shape"),
            ({"initial": torch.zeros(3, 2, 2)}, "initial patch must have the shape"),
            ({"region": OnSign(torch.ones(8, 3))}, "do not fit"),
        ],
    )
    def test_bad_input(self, linear: Linear, images: Tensor, change: dict[str, Any], words: str) -> None:
        given = {"images": images, "labels": torch.zeros(6, dtype=torch.long), "target": 1, "region": OnSign(middle())}
        with pytest.raises(InputError, match=words):
            train_patch(linear, attack=QUICK, **{**given, **change})

    @pytest.mark.parametrize(
        "make",
        [
            lambda: PatchAttack(steps=0),
            lambda: PatchAttack(rate=-1),
            lambda: PatchAttack(loss="hinge"),
            lambda: PatchAttack(nps=0.1),
        ],
    )
    def test_bad_settings(self, make: Callable[[], PatchAttack]) -> None:
        with pytest.raises(InputError):
            make()

    def test_a_model_without_gradients_is_named(self, images: Tensor) -> None:
        labels = torch.zeros(6, dtype=torch.long)
        with pytest.raises(NoGradientError):
            train_patch(lambda x: x.detach().flatten(1)[:, :3], images, labels, 1, OnSign(middle()), attack=QUICK)


class TestMeasuring:
    def test_only_what_is_read_right_counts(self) -> None:
        images = torch.full((8, 3, SIZE, SIZE), 0.2)
        images[:3] = 0.9  # These three read as class 1 without any patch.
        labels = torch.zeros(8, dtype=torch.long)
        region = OnSign(middle(8))
        white = torch.ones(3, SIZE, SIZE)
        found = measure_patch(Corner(), images, labels, 1, white, region.mask, region, draws=3)
        assert found.read.value == pytest.approx(5 / 8)
        assert found.read.n == 8
        assert found.patch.targeted is not None
        assert (found.patch.targeted.value, found.patch.targeted.n) == (1.0, 5)
        assert found.patch.targeted.low == pytest.approx(clopper_pearson(5, 5)[0])
        assert found.patch.draws == 15
        assert found.outcomes[:, :, 0].sum() == 15
        assert not found.outcomes[:3].any()
        # Mid grey and below do not cross the level; a mostly white sticker does.
        assert found.controls["grey"].targeted is not None
        assert found.controls["grey"].targeted.value == 0
        assert found.controls["sticker"].targeted is not None
        assert found.controls["sticker"].targeted.value == 1

    def test_conditions_that_mislead_by_themselves_do_not_count(self) -> None:
        images, labels = torch.full((40, 3, SIZE, SIZE), 0.4), torch.zeros(40, dtype=torch.long)
        images += torch.arange(40).view(-1, 1, 1, 1) / 4000
        # From a factor of 1.25 up, light alone makes class 1 of it; a grey patch of 0.4 changes nothing.
        bright = Conditions(brightness=(0.5, 2.0))
        region = OnSign(middle(2))
        found = measure_patch(
            Corner(), images, labels, 1, torch.full((3, SIZE, SIZE), 0.4), region.mask, region, bright, draws=5
        )
        assert 0.3 < found.read.value < 0.7
        assert found.patch.targeted is not None
        assert found.patch.targeted.value == 0
        assert found.patch.draws == int(found.outcomes[..., 0].sum())

    def test_strata_follow_what_was_drawn(self) -> None:
        images, labels = torch.rand(60, 3, 16, 16) * 0.02 + 0.1, torch.zeros(60, dtype=torch.long)
        # A white patch on a tenth of the quarter's area lifts it above 0.19 only where it is large.
        region = Anywhere(area=0.05, scale=(0.5, 1.5), rotation=0, center=(0.25, 0.25))
        white = torch.ones(3, *region.cover((16, 16)).shape)
        found = measure_patch(
            Corner(0.25), images, labels, 1, white, region.cover((16, 16)), region, draws=4, bins=4, controls=False
        )
        strata = [part for part in found.strata if part.of == "scale"]
        assert [part.of for part in found.strata] == ["scale"] * 4
        assert all(before.high == after.low for before, after in itertools.pairwise(strata))
        rates = [part.success.targeted.value for part in strata if part.success.targeted is not None]
        assert rates[0] == 0
        assert rates[-1] == 1
        assert rates == sorted(rates)
        assert sum(part.success.draws for part in strata) == found.patch.draws

    def test_a_patch_of_noise_is_no_better_than_noise(self, linear: Linear, images: Tensor) -> None:
        labels = torch.zeros(6, dtype=torch.long)
        region = OnSign(middle())
        noise = control("noise", 3, (SIZE, SIZE), 1)
        found = measure_patch(linear, images, labels, 1, noise, region.mask, region, seed=1)
        assert found.patch.draws > 0
        assert found.patch == found.controls["noise"]

    def test_nan_misleads_nobody(self, images: Tensor) -> None:
        def broken(x: Tensor) -> Tensor:
            logits = torch.tensor([[1.0, 0, 0]]).repeat(len(x), 1)
            logits[x[:, 0, 4, 4] == 1] = float("nan")
            return logits

        region, labels = OnSign(middle()), torch.zeros(6, dtype=torch.long)
        white = torch.ones(3, SIZE, SIZE)
        found = measure_patch(broken, images, labels, 1, white, region.mask, region, controls=False)
        assert found.patch.untargeted is not None
        assert found.patch.untargeted.value == 0

    def test_nothing_read_right_has_no_rate(self, images: Tensor) -> None:
        region, labels = OnSign(middle()), torch.full((6,), 2)
        found = measure_patch(Corner(), images, labels, 1, torch.ones(3, SIZE, SIZE), region.mask, region)
        assert found.read.value == 0
        assert found.patch.targeted is None
        assert found.patch.untargeted is None

    def test_the_map_shows_where_it_works(self) -> None:
        images, labels = torch.rand(4, 3, 16, 16) * 0.02, torch.zeros(4, dtype=torch.long)
        region = Anywhere(area=0.06, scale=(1, 1), rotation=0)
        cover = region.cover((16, 16))
        rates, middles = placement_map(
            Corner(0.2), images, labels, 1, torch.ones(3, *cover.shape), cover, region, grid=3
        )
        assert rates.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert float(middles[0]) == pytest.approx(region.side / 2)

    def test_controls_are_pictures_of_the_patchs_shape(self) -> None:
        for name, channels in itertools.product(("noise", "grey", "sticker"), (1, 3, 4)):
            picture = control(name, channels, (12, 17), 3)
            assert picture.shape == (channels, 12, 17)
            assert float(picture.min()) >= 0
            assert float(picture.max()) <= 1

    def test_a_patch_for_every_image_or_one_for_all(self, linear: Linear, images: Tensor) -> None:
        region, labels = OnSign(middle()), torch.zeros(6, dtype=torch.long)
        with pytest.raises(InputError, match="2 patches do not fit 6 images"):
            measure_patch(linear, images, labels, 1, torch.rand(2, 3, SIZE, SIZE), region.mask, region)


def test_stickers_on_photographs_of_stop_signs(robust_data: Path) -> None:
    """Stickers where RP2 put them, made on half of the photographs, turn the other half."""
    model = load_model(f"{robust_data / 'zoo.py'}:lisa_cnn")
    files = sorted((robust_data / "us_stop_signs" / "px32").glob("*.png"))
    pictures = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    labels = torch.full((len(images),), 14)
    mask = from_file(robust_data / "us_stop_signs" / "masks" / "uniform_rectangles_32.png")
    made = train_patch(model, images[::2], labels[::2], 12, OnSign(mask), attack=PatchAttack(steps=60, batch=10))
    found = measure_patch(model, images[1::2], labels[1::2], 12, made.patch, made.cover, made.region)
    assert found.read.value == 1
    assert found.patch.targeted is not None
    assert found.patch.targeted.value > 0.7
    assert all(one.targeted is None or one.targeted.value <= 0.2 for one in found.controls.values())
