"""The Square attack: its algorithms against literal ones, closed forms, accounting, and ART's implementation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Linear, Recording, TinyNet, Vector, linear_gain
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from robust.attacks import Square
from robust.attacks.base import Goal
from robust.attacks.losses import margin
from robust.attacks.square import _bump, _Bumps, _Faces, _Spikes
from robust.errors import InputError
from robust.threats import NORMS

NORM_NAMES = ("linf", "l2", "l1")
EPS = {"linf": 0.05, "l2": 0.5, "l1": 3.0}


class Stubborn(nn.Module):
    """Always class 0, whatever the image: no trial is ever kept."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), 3)


class Scripted(nn.Module):
    """Gives the same prepared scores to every image of a call, the last ones for ever."""

    def __init__(self, *scores: list[float]) -> None:
        super().__init__()
        self.scores, self.seen = list(scores), list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return torch.tensor(self.scores[min(len(self.seen), len(self.scores)) - 1]).expand(len(images), -1)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def trials(attack: Square, images: Tensor) -> tuple[Tensor, Tensor]:
    """The starting points (N, C, H, W) and the trials (queries, N, C, H, W) where nothing is ever kept.

    ``queries`` of ``attack`` counts windows here: the clean image and the start are added.
    """
    model, attack = Recording(Stubborn()), replace(attack, queries=attack.queries + 2)
    attack(model, images, torch.zeros(len(images), dtype=torch.long))
    assert torch.equal(model.seen[0], images)
    return model.seen[1], torch.stack(model.seen[2:])


# The schedule and the windows

# Queries of 100 with the window sides on 20 x 20 pixels, by hand: round(sqrt(400 p)), where p is 0.8 at first and has
# halved 2, 3, 4, ... times after 0.5, 2, 5, 10, 20, 40, 60 and 80 % of the budget.
SIDES = [18, 9, 9, 6, 6, 6, *[4] * 5, *[3] * 10, *[2] * 40, *[1] * 39]


def extent(changed: Tensor) -> Tensor:
    """From the first to the last True of each row (N, L), as a length (N,); 0 where there is none."""
    places = torch.arange(changed.shape[1])
    last = torch.where(changed, places, -1).amax(1)
    first = torch.where(changed, places, changed.shape[1]).amin(1)
    return (last - first + 1).clamp_min(0)


def test_linf_windows_follow_the_published_schedule() -> None:
    start, tried = trials(Square(0.1, queries=100), 0.4 + 0.2 * torch.rand(40, 1, 20, 20))
    assert len(tried) == len(SIDES) == 100
    for side, trial in zip(SIDES, tried, strict=True):
        changed = (trial != start).squeeze(1)
        # Stripes are vertical, so a window changes whole columns of itself, or none where it finds its own sign.
        heights = extent(changed.any(2))
        assert set(heights.tolist()) <= {0, side}
        assert (heights == side).any()
        assert extent(changed.any(1)).max() <= side


def test_l2_windows_are_odd_and_at_least_three_wide() -> None:
    start, tried = trials(Square(0.5, norm="l2", queries=100), 0.4 + 0.2 * torch.rand(8, 1, 20, 20))
    for side, trial in zip(SIDES, tried, strict=True):
        odd = max(side + 1 - side % 2, 3)
        changed = ((trial - start).abs() > 1e-5).flatten(1).sum(1)
        assert changed.max() <= 2 * odd**2
        if odd == 3:
            assert changed.max() > 9  # two windows


def test_the_schedule_is_scaled_to_the_budget() -> None:
    """So another budget is another run: ten times the queries has the same sides, each ten times as long."""
    images = 0.4 + 0.2 * torch.rand(12, 1, 20, 20)
    _, few = trials(Square(0.1, queries=20), images)
    start, many = trials(Square(0.1, queries=200), images)
    assert torch.equal(few[0], many[0])
    assert not torch.equal(few[19], many[19])
    for query in range(0, 200, 25):
        heights = extent((many[query] != start).squeeze(1).any(2)).max()
        assert heights == SIDES[query // 2]


def test_windows_lie_anywhere_with_equal_chance() -> None:
    images = torch.full((150, 1, 6, 6), 0.5) + 0.01 * torch.rand(150, 1, 6, 6)
    start, tried = trials(Square(0.1, queries=200), images)
    single = (tried[60:] != start).squeeze(2).flatten(2)  # sides are 1 from here on
    assert single.sum(2).max() == 1
    places = single.sum((0, 1))
    assert len(places) == 36
    assert stats.chisquare(places).pvalue > 1e-3
    # About half of the windows find their own sign: a fair coin.
    assert stats.binomtest(int(single.sum()), 140 * 150).pvalue > 1e-3


def test_windows_of_two_queries_and_two_images_are_independent() -> None:
    images = torch.full((60, 1, 6, 6), 0.5) + 0.01 * torch.rand(60, 1, 6, 6)
    start, tried = trials(Square(0.1, queries=200), images)
    changed = (tried != start).squeeze(2).flatten(2)[60:]
    place = torch.where(changed.any(2), changed.int().argmax(2), -1)
    for first, second in ((place[:-1], place[1:]), (place[:-64], place[64:]), (place[:, :-1], place[:, 1:])):
        both = (first >= 0) & (second >= 0)
        # Equal in 1 of 36 cases, as chance has it.
        assert stats.binomtest(int((first == second)[both].sum()), int(both.sum()), 1 / 36).pvalue > 1e-3


def test_channels_get_their_own_faces() -> None:
    images = torch.full((40, 3, 6, 6), 0.5) + 0.01 * torch.rand(40, 3, 6, 6)
    start, tried = trials(Square(0.1, queries=100), images)
    up = start > images
    assert torch.equal(up, up[:, :, :1].expand_as(up))  # vertical stripes
    assert {tuple(column) for column in up[:, :, 0].movedim(1, -1).flatten(0, 1).tolist()} == {
        (a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)
    }
    changed = (tried != start).flatten(3).any(3).sum(2)
    assert set(changed.flatten().tolist()) == {0, 1, 2, 3}


# The steps against literal ones


def literal_bump(side: int, order: int = 2) -> Vector:
    """eta: two stacks of squares, square by square; in l1 they fall off faster."""
    bump = np.zeros((side, side))
    for start, rows, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
        half = np.zeros((rows, side))
        for width in range(max(rows // 2, side // 2) + 1):
            top, left = rows // 2 - width, side // 2 - width
            half[max(top, 0) : top + 2 * width + 1, max(left, 0) : left + 2 * width + 1] += (
                1 / (width + 1) ** {2: 2, 1: 4}[order]
            )
        if rows:
            bump[start : start + rows] = sign * half / np.linalg.norm(half.flatten(), order)
    return bump / np.linalg.norm(bump.flatten(), order)


@pytest.mark.parametrize("order", [2, 1])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13, 25])
def test_the_bump_is_the_published_one(side: int, order: int) -> None:
    bump = _bump(side, torch.float64, torch.device("cpu"), order)
    np.testing.assert_allclose(bump.numpy(), literal_bump(side, order), atol=1e-12)


def corner(draw: Tensor, side: int, length: int) -> int:
    return math.floor(float(draw) * (length - side + 1))


@pytest.mark.parametrize("side", [9, 5, 2, 1])
def test_a_linf_step_is_algorithm_2_clipped(side: int) -> None:
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(6, 3, 9, 11, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.05, 0.4, 6, dtype=torch.float64)
    radius = eps.view(-1, 1, 1, 1)
    points = (images + radius * (2 * torch.rand(images.shape, generator=generator, dtype=torch.float64) - 1)).clamp(
        0, 1
    )
    draw = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    stepped = _Faces(images, eps).step(points, draw, side**2 / 99)
    for i in range(6):
        top, left = corner(draw[i, 0], side, 9), corner(draw[i, 1], side, 11)
        wanted = points[i].clone()
        for channel in range(3):
            sign = 1 if draw[i, 2 + channel] < 0.5 else -1
            wanted[channel, top : top + side, left : left + side] += sign * 2 * eps[i]
        wanted = wanted.clamp(images[i] - eps[i], images[i] + eps[i]).clamp(0, 1)
        torch.testing.assert_close(stepped[i], wanted, rtol=0, atol=1e-12)


def literal_l2_step(image: Vector, point: Vector, eps: float, draw: list[float], side: int) -> Vector:
    """Algorithm 3, channel by channel, with masks."""
    channels, height, width = image.shape
    first, second = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for window, down, across in ((first, draw[0], draw[2]), (second, draw[1], draw[3])):
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        window[top : top + side, left : left + side] = True
    eta = literal_bump(side).T if draw[4] < 0.5 else literal_bump(side)
    nu = point - image
    unused = max(eps**2 - (nu**2).sum(), 0)
    for channel in range(channels):
        old, sign = nu[channel][first], 1 if draw[5 + channel] < 0.5 else -1
        fresh = sign * eta.flatten() + old / max(np.linalg.norm(old), 1e-12)
        available = math.sqrt((nu[channel][first | second] ** 2).sum() + unused / channels)
        nu[channel][second] = 0
        nu[channel][first] = fresh / np.linalg.norm(fresh) * available
    return np.clip(image + nu / np.linalg.norm(nu) * eps, 0, 1)


@pytest.mark.parametrize("side", [9, 5, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_l2_step_is_algorithm_3(side: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(8, channels, 9, 11, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.2, 3, 8, dtype=torch.float64)
    moves = _Bumps(images, eps)
    points = moves.start(torch.arange(8) * 977, 0)
    for _ in range(3):
        draw = torch.rand(8, 5 + channels, generator=generator, dtype=torch.float64)
        stepped = moves.step(points, draw, side**2 / 99)
        for i in range(8):
            wanted = literal_l2_step(images[i].numpy(), points[i].numpy(), float(eps[i]), draw[i].tolist(), side)
            np.testing.assert_allclose(stepped[i].numpy(), wanted, rtol=0, atol=1e-9)
        points = stepped


def literal_l1_step(image: Vector, point: Vector, eps: float, draw: list[float], side: int) -> Vector:
    """The l1 step, channel by channel, up to the projection: images and perturbation (C, H, W)."""
    channels, height, width = image.shape
    first, second = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for window, down, across in ((first, draw[0], draw[2]), (second, draw[1], draw[3])):
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        window[top : top + side, left : left + side] = True
    eta = literal_bump(side, 1).T if draw[4] < 0.5 else literal_bump(side, 1)
    nu = point - image
    unused = max(eps - np.abs(nu).sum(), 0)
    for channel in range(channels):
        old, sign = nu[channel][first], 1 if draw[5 + channel] < 0.5 else -1
        fresh = sign * eta.flatten() + old / max(np.abs(old).sum(), 1e-12)
        available = (np.abs(nu[channel][first | second]).sum() + unused / channels) * channels
        nu[channel][second] = 0
        nu[channel][first] = fresh / np.abs(fresh).sum() * available
    return nu


def nearest_in_ball_and_box(image: Vector, nu: Vector, eps: float) -> Vector:
    """The l2-nearest point of the l1 ball and the box, its threshold by bisection."""
    room = np.where(nu >= 0, 1 - image, image)
    low, high = 0.0, float(np.abs(nu).max())
    if np.minimum(np.abs(nu), room).sum() <= eps:
        return np.clip(image + nu, 0, 1)
    for _ in range(100):
        middle = (low + high) / 2
        within = np.minimum(np.maximum(np.abs(nu) - middle, 0), room).sum() <= eps
        low, high = (low, middle) if within else (middle, high)
    return image + np.sign(nu) * np.minimum(np.maximum(np.abs(nu) - high, 0), room)


@pytest.mark.parametrize("side", [9, 5, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_l1_step_is_the_published_one(side: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(8, channels, 9, 11, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.5, 20, 8, dtype=torch.float64)
    moves = _Spikes(images, eps)
    points = moves.start(torch.arange(8) * 977, 0)
    for _ in range(3):
        draw = torch.rand(8, 5 + channels, generator=generator, dtype=torch.float64)
        stepped = moves.step(points, draw, side**2 / 99)
        for i in range(8):
            image, point = images[i].numpy(), points[i].numpy()
            moved = literal_l1_step(image, point, float(eps[i]), draw[i].tolist(), side)
            wanted = nearest_in_ball_and_box(image, moved, float(eps[i]))
            np.testing.assert_allclose(stepped[i].numpy(), wanted, rtol=0, atol=1e-9)
        points = stepped


def test_l2_starts_from_five_by_five_bumps() -> None:
    images = 0.4 + 0.2 * torch.rand(30, 2, 22, 27, dtype=torch.float64)
    start, _ = trials(Square(0.5, norm="l2", queries=2), images)
    delta = start - images
    inner = delta[:, :, 1:21, 1:25].unfold(2, 4, 4).unfold(3, 4, 4)  # five rows and six columns of tiles of side 4
    assert float(delta.abs().sum()) == pytest.approx(float(inner.abs().sum()), rel=1e-12)
    pattern = torch.from_numpy(literal_bump(4)) * 0.5 / math.sqrt(2 * 30)
    kinds = torch.stack([pattern, -pattern, pattern.T, -pattern.T])
    distance = (inner[..., None, :, :] - kinds).abs().amax((-1, -2))
    assert distance.amin(-1).max() < 1e-9
    assert stats.chisquare(distance.argmin(-1).flatten().bincount(minlength=4)).pvalue > 1e-3
    # A tile lies the same way in all channels.
    turned = distance.argmin(-1) // 2
    assert torch.equal(turned[:, 0], turned[:, 1])


# Closed forms on linear models


def linear(norm: str, lead: float) -> tuple[nn.Module, Tensor, Vector, Vector]:
    """A two-class model in which class 0 leads every image by ``lead`` times the best attacker's gain.

    Also the slope of class 1's lead and the best gain of each image.
    """
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(48, generator=generator, dtype=torch.float64)
    images = torch.rand(8, 3, 4, 4, generator=generator, dtype=torch.float64)
    best = np.array([linear_gain(norm, slope.numpy(), image.flatten().numpy(), EPS[norm]) for image in images])

    class PerImage(nn.Module):
        """Each image has its own bias, found by the image's nearest original."""

        def forward(self, points: Tensor) -> Tensor:
            distance = torch.cdist(points.flatten(1), images.flatten(1))
            own = distance.argmin(1)
            gain = ((points - images[own]).flatten(1) @ slope) - lead * torch.from_numpy(best)[own]
            return torch.stack([torch.zeros_like(gain), gain], 1)

    return PerImage(), images, slope.numpy(), best


def test_linf_finds_the_exact_optimum_of_a_linear_model() -> None:
    model, images, slope, best = linear("linf", 1.02)
    found = Square(EPS["linf"], queries=1500)(model, images, torch.zeros(8, dtype=torch.long))
    gain = (found - images).flatten(1).numpy() @ slope
    np.testing.assert_allclose(gain, best, rtol=1e-6)


@pytest.mark.parametrize(("norm", "lead"), [("linf", 0.9), ("l2", 0.3), ("l1", 0.3)])
def test_a_linear_model_falls_where_the_optimum_is_comfortable(norm: str, lead: float) -> None:
    model, images, _, _ = linear(norm, lead)
    labels = torch.zeros(8, dtype=torch.long)
    found = Square(EPS[norm], norm=norm, queries=600)(model, images, labels)
    assert (predictions(model, found) == 1).all()


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_no_linear_model_falls_beyond_the_optimum(norm: str) -> None:
    model, images, slope, best = linear(norm, 1.001)
    found = Square(EPS[norm], norm=norm, queries=400)(model, images, torch.zeros(8, dtype=torch.long))
    assert (predictions(model, found) == 0).all()
    gain = (found - images).flatten(1).numpy() @ slope
    assert (gain <= best * (1 + 1e-9)).all()
    assert (gain > 0.3 * best).all()


# The result


@pytest.mark.parametrize("norm", NORM_NAMES)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (1, 5, 9), (3, 9, 5), (2, 28, 28), (1, 1, 1), (3, 2, 7)])
def test_any_shape_stays_in_ball_and_box_and_moves(norm: str, shape: tuple[int, int, int]) -> None:
    images = torch.rand(5, *shape)
    images[0] = images[0].round()
    eps = torch.tensor([0.0, 0.01, 0.1, 0.5, 3.0]) * {"linf": 0.3, "l2": 1, "l1": 4}[norm]
    for model in (Stubborn(), Linear(torch.randn(3, math.prod(shape)), torch.tensor([1e3, 0, 0]))):
        watched = Recording(model)
        found = Square(eps, norm=norm, queries=25)(watched, images, torch.zeros(5, dtype=torch.long))
        geometry = NORMS[norm]
        assert geometry.contains(found, images, eps).all()
        assert torch.equal(found[0], images[0])
        assert (found != images)[1:].flatten(1).any(1).all()
        if isinstance(model, Stubborn):  # all four images are in every query
            for seen in watched.seen[1:]:
                assert geometry.contains(seen, images[1:], eps[1:]).all()


def test_l2_uses_all_of_eps_where_the_box_allows_it() -> None:
    images = 0.4 + 0.2 * torch.rand(6, 3, 16, 16)
    start, tried = trials(Square(0.8, norm="l2", queries=150), images)
    for points in (start, *tried):
        torch.testing.assert_close((points - images).flatten(1).norm(dim=1), torch.full((6,), 0.8), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_a_boundless_eps_is_the_whole_box(norm: str) -> None:
    images = torch.rand(4, 1, 6, 6)
    for eps in (1e20, math.inf):
        _, tried = trials(Square(eps, norm=norm, queries=30), images)
        assert tried.isfinite().all()
        assert tried.min() >= 0
        assert tried.max() <= 1


@pytest.mark.parametrize(("targeted", "loss"), [(False, None), (False, "ce"), (True, None), (True, "margin")])
def test_an_unbroken_image_comes_back_as_the_trial_of_highest_loss(targeted: bool, loss: str | None) -> None:
    """By default the loss is the margin, and with targets minus the target's cross-entropy."""
    model, images = TinyNet(seed=1).eval(), torch.rand(8, 3, 6, 6)
    labels = predictions(model, images)
    targets = (labels + 1) % 4 if targeted else None
    wanted: dict[tuple[bool, str | None], Callable[[Tensor, Goal], Tensor]] = {
        (False, None): margin,
        (False, "ce"): lambda logits, goal: F.cross_entropy(logits, goal.labels, reduction="none"),
        (True, None): lambda logits, goal: -F.cross_entropy(logits, goal.targets, reduction="none"),
        (True, "margin"): margin,
    }
    unbroken = 0
    for i in range(8):
        goal = Goal(labels[i : i + 1], None if targets is None else targets[i : i + 1])
        watched = Recording(model)
        found = Square(0.01, queries=60, loss=loss)(watched, images[i : i + 1], goal.labels, goal.targets)
        with torch.no_grad():
            values = torch.cat([wanted[targeted, loss](model(seen), goal) for seen in watched.seen[1:]])
            if bool(goal.met(model(found))):
                continue
            unbroken += 1
            torch.testing.assert_close(wanted[targeted, loss](model(found), goal), values.max()[None])
            assert (values[1:] > values[0]).any()
    assert unbroken >= 3


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_targets_are_reached(norm: str) -> None:
    model, images = TinyNet(seed=1).eval(), torch.rand(12, 3, 6, 6)
    targets = (predictions(model, images) + 2) % 4
    for loss in (None, "margin"):
        attack = Square({"linf": 0.3, "l2": 3.0, "l1": 20.0}[norm], norm=norm, queries=400, loss=loss)
        found = attack(model, images, predictions(model, images), targets)
        assert (predictions(model, found) == targets).sum() >= 11


def test_the_default_loss_is_the_published_one() -> None:
    model, images = TinyNet(seed=1).eval(), torch.rand(12, 3, 6, 6)
    labels = predictions(model, images)

    def run(loss: str | None, targets: Tensor | None) -> Tensor:
        return Square(0.02, queries=150, loss=loss)(model, images, labels, targets)

    targets = (labels + 1) % 4
    assert torch.equal(run(None, None), run("margin", None))
    assert torch.equal(run(None, targets), run("ce", targets))
    assert not torch.equal(run("margin", None), run("ce", None))
    assert not torch.equal(run("margin", targets), run("ce", targets))


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("loss", "targeted", "scores"),
    [
        # Fooled with a lower cross-entropy than the three near ties before.
        ("ce", False, ([1.0, 0, 0, 0], [0.01, 0, 0, 0], [0, 0.1, -100, -100])),
        # On target with a higher cross-entropy of the target than before.
        ("ce", True, ([1.0, 0, 0, 0], [0.1, 0, -100, -100], [0, 0.01, 0, 0])),
        ("margin", False, ([1.0, 0, 0, 0], [1.0, 0, 0, NAN], [0.0, 1, 0, 0])),
        ("margin", False, ([1.0, 0, 0, 0], [INF, 0, 0, 0], [0.0, 1, 0, 0])),
        # An infinite loss although the target is not reached.
        ("dlr", True, ([1.0, 0, 0, 0, 0], [-INF, 0, 1, 0, 0], [0.0, 1, 0, 0, 0])),
    ],
)
@pytest.mark.parametrize("norm", NORM_NAMES)
def test_the_trial_that_fools_comes_back_whatever_was_seen_before(
    norm: str, loss: str, targeted: bool, scores: tuple[list[float], ...]
) -> None:
    model, labels = Scripted(*scores), torch.zeros(2, dtype=torch.long)
    attack = Square(0.1, norm=norm, queries=5, loss=loss)
    found = attack(model, torch.rand(2, 1, 6, 6), labels, labels + 1 if targeted else None)
    assert len(model.seen) == 3
    assert torch.equal(found, model.seen[2])


def test_a_start_without_a_score_leaves_the_image_as_the_best_point() -> None:
    model, images = Scripted([1.0, 0], [NAN, 0]), torch.rand(2, 1, 6, 6)
    assert torch.equal(Square(0.1, queries=3)(model, images, torch.zeros(2, dtype=torch.long)), images)


def test_half_precision_keeps_its_type() -> None:
    images = torch.rand(3, 1, 6, 6, dtype=torch.bfloat16)
    model = Linear(torch.randn(3, 36, dtype=torch.bfloat16), torch.tensor([3.0, 0, 0], dtype=torch.bfloat16))
    for norm in NORM_NAMES:
        found = Square(0.1, norm=norm, queries=10)(model, images, predictions(model, images))
        assert found.dtype == torch.bfloat16
        assert (found != images).any()


# Cost and independence


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_an_unbroken_image_costs_its_queries(norm: str) -> None:
    model, images = Recording(Stubborn()), torch.rand(3, 1, 6, 6)
    Square(0.1, norm=norm, queries=70)(model, images, torch.zeros(3, dtype=torch.long))
    assert [len(seen) for seen in model.seen] == [3] * 70
    assert model.backward_images == 0


@pytest.mark.parametrize("norm", NORM_NAMES)
def test_a_batch_costs_what_its_images_cost_alone(norm: str) -> None:
    """And every image gets the same trials: one that is broken leaves at once, and the others do not notice."""
    model, images = TinyNet(seed=1).double().eval(), torch.rand(16, 3, 6, 6, dtype=torch.float64)
    labels = predictions(model, images)
    attack = Square(EPS[norm], norm=norm, queries=150, seed=4)
    together = Recording(model)
    found = attack(together, images, labels)
    costs = []
    for i in range(16):
        alone = Recording(model)
        single = attack(alone, images[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(single[0], found[i], rtol=0, atol=1e-12)
        costs.append(alone.calls)
    sizes = [len(seen) for seen in together.seen]
    assert sizes == [sum(cost > call for cost in costs) for call in range(max(costs))]
    assert 0 < sum(cost < 150 for cost in costs) < 16


def test_another_seed_is_another_run() -> None:
    images = torch.rand(2, 1, 6, 6)
    first, _ = trials(Square(0.1, queries=2), images)
    second, _ = trials(Square(0.1, queries=2, seed=1), images)
    assert not torch.equal(first, second)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "margn"}, "did you mean margin"),
        ({"queries": 1}, r"queries must be at least 2 .* not 1"),
        ({"p_init": 0.0}, r"in \(0, 1\], not 0"),
        ({"p_init": 1.5}, r"in \(0, 1\], not 1.5"),
        ({"p_init": math.nan}, r"in \(0, 1\], not nan"),
    ],
)
def test_settings_out_of_range_are_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Square(0.1, **settings)  # type: ignore[arg-type]


def test_vectors_and_other_norms_are_refused() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    with pytest.raises(InputError, match=r"square needs images of shape \(N, C, H, W\), not \(2, 36\)"):
        Square(0.1)(Stubborn(), torch.rand(2, 36), labels)
    with pytest.raises(InputError, match="square has no l0 form"):
        Square(1.0, norm="l0")(Stubborn(), torch.rand(2, 1, 6, 6), labels)


# Beside ART


def art_square(model: nn.Module, images: Tensor, labels: Tensor, eps: float, norm: str, queries: int) -> Tensor:
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(0)
    random.seed(0)
    classes = int(model(images[:1]).shape[1])
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), classes, clip_values=(0, 1))
    order = {"linf": np.inf, "l2": 2}[norm]
    attack = SquareAttack(
        classifier, norm=order, eps=eps, max_iter=queries, p_init=0.8, batch_size=len(images), verbose=False
    )
    return torch.from_numpy(attack.generate(images.numpy(), F.one_hot(labels, classes).numpy()))


def agrees(norm: str, ours: int, theirs: int, count: int) -> bool:
    """Whether two success counts of ``count`` differ by no more than sampling noise explains (p < 0.001).

    In l2 only fewer successes than ART count as a difference: its step divides by the norm available to the window,
    which Algorithm 3 multiplies with, and so it finds less.
    """
    table = [[ours, count - ours], [theirs, count - theirs]]
    side = "two-sided" if norm == "linf" else "less"
    return bool(stats.fisher_exact(table, alternative=side).pvalue >= 1e-3)


def real(folder: Path, name: str, count: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained model and the first ``count`` of the bundled CIFAR-10 test images that it classifies correctly."""
    from robust.data import load_data
    from robust.models import load_model

    model, data = load_model(f"{folder / 'zoo.py'}:{name}"), load_data(folder / "cifar10_sdp200.npz")
    images = data.batch(range(len(data)))
    right = (predictions(model, images) == data.labels).nonzero().squeeze(1)[:count]
    return model, images[right], data.labels[right]


@pytest.mark.filterwarnings("ignore::RuntimeWarning:art.*")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 2 / 255), ("l2", 0.5)])
def test_no_weaker_than_art_on_a_real_model(robust_data: Path, norm: str, eps: float) -> None:
    model, images, labels = real(robust_data, "cifar_cnn_a_mix", 64)
    ours = Square(eps, norm=norm, queries=150)(model, images, labels)
    theirs = art_square(model, images, labels, eps, norm, 150)
    counts = [int((predictions(model, found) != labels).sum()) for found in (ours, theirs)]
    assert 0 < counts[0] < 64
    assert agrees(norm, *counts, 64)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning:art.*")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 2 / 255), ("l2", 0.5)])
def test_no_weaker_than_art_on_an_undefended_resnet(robust_data: Path, norm: str, eps: float) -> None:
    model, images, labels = real(robust_data, "cifar_resnet20", 32)
    ours = Square(eps, norm=norm, queries=150)(model, images, labels)
    theirs = art_square(model, images, labels, eps, norm, 150)
    counts = [int((predictions(model, found) != labels).sum()) for found in (ours, theirs)]
    assert agrees(norm, *counts, 32)
