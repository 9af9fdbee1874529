"""Attacks on a patch: exact where the optimum is known, and where it is not, no weaker than trying every place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import inside
from oracles import Linear, TinyNet, patch_gain
from torch import Tensor, nn

from robust.attacks import FGSM, PGD, Attack, Auto, PatchSearch
from robust.attacks.auto_patch import _apart, _better_half, _Rows
from robust.attacks.base import Goal

SHAPE, SIDE = (3, 8, 7), 3
AREA = SIDE**2 / 56


def linear(classes: int = 4) -> nn.Module:
    weights = torch.randn(classes, 168, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return Linear(weights, torch.zeros(classes, dtype=torch.float64)).eval()


def pictures(n: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def breakable(model: nn.Module, images: Tensor, labels: Tensor, side: int) -> list[list[bool]]:
    """For each image, to which class but its label the best patch of that side can lift a logit above the label's."""
    weights = model.weights.detach().numpy().reshape(-1, *images.shape[1:])
    with torch.no_grad():
        logits = model(images).numpy()

    def beats(k: int, label: int, image: Tensor, logit: np.ndarray) -> bool:
        return k != label and patch_gain(weights[k] - weights[label], image.numpy(), side) > logit[label] - logit[k]

    return [
        [beats(k, label, image, logit) for k in range(len(weights))]
        for image, label, logit in zip(images, labels.tolist(), logits, strict=True)
    ]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_on_a_linear_model_every_image_that_can_be_broken_is(side: int) -> None:
    model, images = linear(), pictures(60)
    labels = labels_of(model, images)
    expected = [any(classes) for classes in breakable(model, images, labels, side)]
    found = Auto(side**2 / 56, norm="patch")(model, images, labels)
    assert inside(found, images, "patch", side**2 / 56).all()
    assert (labels_of(model, found) != labels).tolist() == expected
    assert sum(expected) > 5
    if side < 3:
        assert sum(expected) < 60


def test_of_two_classes_pgd_and_fgsm_are_exact_too() -> None:
    model, images = linear(2), pictures(60, 1)
    labels = labels_of(model, images)
    expected = [any(classes) for classes in breakable(model, images, labels, 2)]
    for attack in (PGD(4 / 56, norm="patch", steps=6), FGSM(4 / 56, norm="patch")):
        assert (labels_of(model, attack(model, images, labels)) != labels).tolist() == expected
    assert 5 < sum(expected) < 55


def every_place(model: nn.Module, images: Tensor, labels: Tensor, side: int, steps: int) -> Tensor:
    """Whether any of all places broke an image, (N,): plain signed steps at each, as LaVAN does at one."""
    broken = torch.zeros(len(images), dtype=torch.bool)
    for top in range(images.shape[2] - side + 1):
        for left in range(images.shape[3] - side + 1):
            mask = torch.zeros_like(images[:1])
            mask[:, :, top : top + side, left : left + side] = 1
            points = images.clone()
            for step in range(steps):
                points.requires_grad_()
                logits = model(points)
                broken |= logits.argmax(1) != labels
                others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
                (slope,) = torch.autograd.grad((others - logits.gather(1, labels[:, None])[:, 0]).sum(), points)
                size = 0.5 * (1 - step / steps)
                points = (points.detach() + size * slope.sign() * mask).clamp(0, 1)
    return broken


@pytest.mark.parametrize(("seed", "side"), [(0, 2), (1, 1), (3, 1)])
def test_no_weaker_than_every_place_on_a_curved_model(seed: int, side: int) -> None:
    model, images = TinyNet(size=8, seed=seed).double().eval(), pictures(30, seed, (3, 8, 8))
    labels = labels_of(model, images)
    reference = every_place(model, images, labels, side, 15)
    found = labels_of(model, Auto(side**2 / 64, norm="patch")(model, images, labels)) != labels
    assert 3 < int(reference.sum()) < 30
    assert int(found.sum()) >= int(reference.sum())
    assert int((reference & ~found).sum()) <= 1


def test_more_effort_finds_no_less() -> None:
    model, images = TinyNet(size=8, seed=2).double().eval(), pictures(40, 3, (3, 8, 8))
    labels = labels_of(model, images)
    found = [
        int((labels_of(model, Auto(1 / 64, norm="patch", effort=effort)(model, images, labels)) != labels).sum())
        for effort in ("quick", "standard", "exhaustive")
    ]
    assert found == sorted(found)


def test_targets_on_a_linear_model_are_reached_where_a_patch_suffices() -> None:
    """The margin of the target over the label alone must be beaten; the others are held far below."""
    model, images = linear(3), pictures(60, 5)
    model.bias.data[2] = -1e3
    labels = labels_of(model, images)
    reach = breakable(model, images, labels, SIDE)
    expected = [classes[1 - label] for classes, label in zip(reach, labels, strict=True)]
    for attack in (Auto(AREA, norm="patch"), PGD(AREA, norm="patch", steps=8, loss="margin")):
        found = attack(model, images, labels, 1 - labels)
        assert (labels_of(model, found) == 1 - labels).tolist() == expected


class TestSearch:
    def test_a_brightness_sum_is_found_without_gradients(self) -> None:
        """Class 1 wins where a bright square covers a marked corner: place and paint must both be found."""
        weights = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
        weights[1, 0, 1:4, 5:8] = 1
        model = Linear(weights.flatten(1), torch.tensor([7.5, 0.0], dtype=torch.float64)).eval()
        images = torch.zeros(8, 1, 9, 9, dtype=torch.float64) + torch.arange(8).view(-1, 1, 1, 1) * 1e-3
        labels = torch.zeros(8, dtype=torch.long)
        attack = PatchSearch(9 / 81, queries=600)
        asked = attack.queried(model, images, labels)
        assert (labels_of(model, asked.points) == 1).all()
        assert inside(asked.points, images, "patch", 9 / 81).all()
        assert (asked.spent <= 600).all()
        assert (asked.broken_at == asked.spent).all()

    @pytest.mark.parametrize("share", [0.0, 1.5])
    def test_a_share_out_of_range_is_said(self, share: float) -> None:
        with pytest.raises(ValueError, match="share"):
            PatchSearch(0.1, share=share)


def test_places_lie_apart_and_the_best_comes_first() -> None:
    scores = torch.zeros(2, 6, 6, dtype=torch.float64)
    scores[0, 2, 2], scores[0, 2, 3], scores[0, 5, 5] = 9, 8, 7
    scores[1, :, :] = -torch.inf
    scores[1, 1, 4] = 1
    places = _apart(scores, torch.tensor([4, 4]), 2)
    assert places.tolist() == [[2 * 6 + 2, 5 * 6 + 5], [1 * 6 + 4, 1 * 6 + 4]]


def test_the_better_half_is_taken_image_by_image() -> None:
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    highest = torch.tensor([1.0, 3.0, 2.0, -5.0, -4.0, -9.0])
    blank = torch.zeros(6)
    rows = _Rows(owner, owner, Goal(owner), blank, blank.bool(), blank, blank, highest)
    assert _better_half(rows).tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize("attack", [Auto(AREA, norm="patch"), PatchSearch(AREA), PGD(AREA, norm="patch")])
def test_images_without_rows_and_columns_are_said(attack: Attack) -> None:
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        attack(linear(), torch.rand(2, 168, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
