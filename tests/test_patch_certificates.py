"""Certified patch defenses against every patch there is, on images small enough to try them all."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robust.defenses.patch import BandSmoothing, MaskedClassifier, patch_size
from robust.defenses.patch.attacking import cleansing_attack
from robust.defenses.patch.masking import cover, kept, masks
from robust.errors import InputError

SIDE = 4


class Reader(nn.Module):
    """A fixed nonlinear reader of 4x4 images into 3 classes; ``bias`` decides how easily it is turned."""

    def __init__(self, seed: int, bias: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(16, 12, generator=generator)
        self.head = torch.randn(12, 3, generator=generator)
        self.bias = torch.tensor([bias, 0.0, 0.0])

    def forward(self, images: Tensor) -> Tensor:
        return ((images - 0.5).flatten(1) @ self.weights).relu() @ self.head + self.bias


def every_patch(image: Tensor, height: int, width: int) -> Tensor:
    """The image with every binary patch in every place."""
    made = []
    for top, left in itertools.product(range(SIDE - height + 1), range(SIDE - width + 1)):
        for values in itertools.product((0.0, 1.0), repeat=height * width):
            patched = image.clone()
            patched[:, top : top + height, left : left + width] = torch.tensor(values).view(height, width)
            made.append(patched)
    return torch.stack(made)


def binary_images(n: int) -> Tensor:
    return torch.randint(0, 2, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).float()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 8))
def test_masks_cover_every_placement(length: int, patch: int, count: int) -> None:
    patch = min(length, patch)
    starts, size = cover(length, patch, count)
    assert len(starts) <= count
    assert all(start >= 0 and start + size <= length for start in starts)
    for place in range(length - patch + 1):
        assert any(start <= place and place + patch <= start + size for start in starts)


def test_masks_of_the_paper() -> None:
    """32 pixels, a patch of 5, 6 masks an axis: step 5, masks of 9, starts 0, 5, ... and the last at 23."""
    assert cover(32, 5, 6) == ([0, 5, 10, 15, 20, 23], 9)
    assert len(masks((32, 32), (5, 5), 6)) == 36


@pytest.mark.parametrize("patch", [1, (2, 1), 2])
def test_no_patch_turns_what_double_masking_certifies(patch: int | tuple[int, int]) -> None:
    height, width = (patch, patch) if isinstance(patch, int) else patch
    images, certified, turned = binary_images(6), 0, 0
    for seed, bias in itertools.product(range(3), (0.0, 3.0)):
        defended = MaskedClassifier(Reader(seed, bias), patch, count=2)
        found = defended.certify(images)
        assert torch.equal(found.predicted, defended(images).argmax(1))
        for image, label, holds in zip(images, found.predicted, found.certified, strict=True):
            changed = bool((defended(every_patch(image, height, width)).argmax(1) != label).any())
            assert not (holds and changed)
            certified, turned = certified + int(holds), turned + int(changed)
    assert certified >= 3, "the case must certify something"
    assert turned >= 3, "the case must leave something that can be turned"


@pytest.mark.parametrize(("kind", "patch", "size"), [("columns", 1, 1), ("rows", (1, 2), 2), ("blocks", 1, 2)])
def test_no_patch_turns_what_ablations_certify(kind: str, patch: int | tuple[int, int], size: int) -> None:
    height, width = (patch, patch) if isinstance(patch, int) else patch
    images, certified, turned = binary_images(8), 0, 0
    for seed, bias in itertools.product(range(4), (0.0, 1.5)):
        defended = BandSmoothing(Reader(seed, bias), patch, size, 0.5, kind)  # type: ignore[arg-type]
        found = defended.certify(images)
        for image, label, holds in zip(images, found.predicted, found.certified, strict=True):
            changed = bool((defended(every_patch(image, height, width)).argmax(1) != label).any())
            assert not (holds and changed)
            certified, turned = certified + int(holds), turned + int(changed)
    assert certified >= 3
    if kind != "blocks":
        assert turned >= 1


def test_ties_and_margins_of_ablations_by_hand() -> None:
    """Bands of one column on a 1x6 image, a patch of one column: one vote moves, so a lead of 2 decides by index."""

    class Bright(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            first = images.amax((1, 2, 3)) > 0.75
            return torch.stack([first * 9.0, ~first * 9.0], 1)

    def certified(bright: int) -> tuple[int, bool]:
        image = torch.full((1, 1, 1, 6), 0.6)
        image[..., :bright] = 1.0
        found = BandSmoothing(Bright(), 1, 1).certify(image)
        return int(found.predicted), bool(found.certified)

    # Votes for class 0 and 1: 4 to 2 holds (a tie would go to class 0), 2 to 4 does not, 1 to 5 does, 3 to 3 does not.
    assert [certified(bright) for bright in (4, 2, 1, 3)] == [(0, True), (1, False), (1, True), (0, False)]


@settings(max_examples=8)
@given(st.integers(0, 2**16), st.sampled_from([0.0, 1.0, 3.0]))
def test_stopping_early_changes_no_verdict_and_saves_passes(seed: int, bias: float) -> None:
    images, model = binary_images(10), Reader(seed, bias)
    early, whole = MaskedClassifier(model, 1, count=3), MaskedClassifier(model, 1, count=3, early=False)
    for quick, slow in ((early.predict(images), whole.predict(images)), (early.certify(images), whole.certify(images))):
        assert torch.equal(quick.predicted, slow.predicted)
        assert torch.equal(quick.certified, slow.certified)
        assert (quick.passes <= slow.passes).all()
    # Three masks of 2 would overlap needlessly on a side of 4: there are 2 an axis, so 4 and 6 pairs of them.
    assert (whole.certify(images).passes == 4 + 6).all()


def test_bad_settings_are_named() -> None:
    model, image = Reader(0, 0.0), torch.rand(1, 1, 4, 4)
    for make, name in (
        (lambda: MaskedClassifier(model, 1, count=1), "count"),
        (lambda: MaskedClassifier(model, 1, fill=2.0), "fill"),
        (lambda: MaskedClassifier(model, 5).certify(image), "patch"),
        (lambda: BandSmoothing(model, 0).certify(image), "patch"),
        (lambda: BandSmoothing(model, 1, kind="column"), "columns"),  # type: ignore[arg-type]
        (lambda: BandSmoothing(model, 1, size=0), "size"),
        (lambda: BandSmoothing(model, 1, threshold=0.0), "threshold"),
    ):
        with pytest.raises(InputError, match=name):
            make()


def as_written(model: nn.Module, image: Tensor, patch: int, count: int) -> int:
    """Algorithm 1 line by line: one view at a time, no stopping but where it says so."""
    keep = kept((SIDE, SIDE), masks((SIDE, SIDE), (patch, patch), count))

    def read(*chosen: Tensor) -> int:
        left = torch.stack(chosen).all(0)
        return int(model(torch.where(left, image, 0.5)[None]).argmax(1))

    first = [read(mask) for mask in keep]
    majority = max(sorted(set(first)), key=first.count)
    if len(set(first)) == 1:
        return majority
    for mask, label in zip(keep, first, strict=True):
        if label != majority and {read(mask, other) for other in keep} == {label}:
            return label
    return majority


def test_the_masked_classifier_is_the_published_algorithm() -> None:
    rescued = 0
    for seed, bias, count in itertools.product(range(6), (0.0, 2.0), (2, 3)):
        model, images = Reader(seed, bias), torch.rand(12, 1, SIDE, SIDE)
        defended = MaskedClassifier(model, 1, count=count)
        wanted = [as_written(model, image, 1, count) for image in images]
        scores = defended(images)
        assert scores.argmax(1).tolist() == wanted
        assert defended.predict(images).predicted.tolist() == wanted
        majority = torch.tensor([_majority(model, image, count) for image in images])
        rescued += int((torch.tensor(wanted) != majority).sum())
    assert rescued > 10, "the second round must overrule some majority"


def _majority(model: nn.Module, image: Tensor, count: int) -> int:
    keep = kept((SIDE, SIDE), masks((SIDE, SIDE), (1, 1), count))
    return int(model(torch.where(keep, image, 0.5)).argmax(1).mode().values)


def test_gradients_see_through_the_masks_and_through_the_votes() -> None:
    """One step along the gradient lowers the mean margin of the views, and the gradient reaches every pixel."""
    model, images = Reader(1, 0.0), torch.rand(5, 1, SIDE, SIDE)
    for defended in (MaskedClassifier(model, 1, count=2), BandSmoothing(model, 1, 1)):
        leaf = images.clone().requires_grad_()
        scores = defended(leaf)
        own = scores.argmax(1, keepdim=True)
        (gradient,) = torch.autograd.grad(scores.gather(1, own).sum(), leaf)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()
        assert all(parameter.grad is None for parameter in defended.parameters())


def test_the_attack_that_knows_the_masks_never_turns_a_certified_image_and_turns_others() -> None:
    images, kinds = torch.rand(24, 1, SIDE, SIDE), {True: 0, False: 0}
    for seed, bias in itertools.product(range(3), (0.0, 3.0)):
        defended = MaskedClassifier(Reader(seed, bias), 2, count=2)
        found = defended.certify(images)
        labels = found.predicted
        points = cleansing_attack(defended, images, labels, steps=10)
        changed = (points != images).any(1).flatten(1)
        rows, columns = changed.view(-1, SIDE, SIDE).any(2).sum(1), changed.view(-1, SIDE, SIDE).any(1).sum(1)
        assert max(int(rows.max()), int(columns.max())) <= 2
        assert torch.equal(points, points.clamp(0, 1))
        turned = defended(points).argmax(1) != labels
        assert not (turned & found.certified).any()
        kinds[True] += int(found.certified.sum())
        kinds[False] += int(turned.sum())
        assert torch.equal(defended.strong_masks(images, labels).all(1), found.certified)
    assert min(kinds.values()) >= 5


class Bright(nn.Module):
    """Reads class 0 where the pixels add up to more than 43.5, else class 1."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.flatten(1).sum(1)
        return torch.stack([total - 43.5, torch.zeros_like(total)], 1)


def test_the_attack_that_knows_the_masks_finds_what_only_a_whole_dark_patch_does() -> None:
    # 8x8 bright pixels under 5x5 grey masks: 51.5 under one, 41 under two opposite ones, so nothing is certified. A
    # dark 3x3 patch takes 9 more where it is seen, which is enough; a random grey one about half of that, which is not.
    images, labels = 1 - 0.002 * torch.rand(6, 1, 8, 8), torch.zeros(6, dtype=torch.long)
    defended = MaskedClassifier(Bright(), 3, count=2)
    assert not defended.certify(images).certified.any()
    assert (defended(images).argmax(1) == 0).all()
    grey = images.clone()
    grey[:, :, :3, :3] = torch.rand(6, 1, 3, 3)
    assert (defended(grey).argmax(1) == 0).all()
    assert (defended(cleansing_attack(defended, images, labels)).argmax(1) == 1).all()


@pytest.mark.parametrize(("gap", "certified"), [(1e-6, False), (0.01, True)])
def test_what_rounding_could_turn_is_not_certified(gap: float, certified: bool) -> None:
    class Even(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([1.0, 1.0 - gap]).expand(len(images), 2)

    image = torch.rand(2, 1, SIDE, SIDE)
    assert MaskedClassifier(Even(), 1).certify(image).certified.tolist() == [certified] * 2
    threshold = float(torch.tensor([1.0, 1.0 - gap]).softmax(0)[0]) - gap / 4
    smoothed = BandSmoothing(Even(), 1, 1, threshold, "blocks")
    assert smoothed(image).argmax(1).tolist() == [0, 0]
    assert smoothed.certify(image).certified.tolist() == [certified] * 2


def test_sizes_of_patches() -> None:
    assert patch_size("5%", (32, 32)) == (7, 7)
    assert patch_size("25%", (32, 32)) == (16, 16)
    assert patch_size("5x7", (32, 32)) == (5, 7)
    for text in ("0%", "120%", "5", "0.01%", "33x2"):
        with pytest.raises(InputError, match="patch"):
            patch_size(text, (32, 32))
