"""FAB: its projection against an oracle for linear functions, its distances on linear models, its cost and peers."""

from __future__ import annotations

import math
from typing import Any

import contract
import numpy as np
import pytest
import torch
from oracles import EPS, Linear, Recording, linear_gain
from torch import Tensor

from robust.attacks import FAB
from robust.attacks.fab import nearest_hyperplane
from robust.attacks.hyperplane import way_to_hyperplane
from robust.errors import InputError
from robust.threats import NORMS

SHAPE = (3, 4, 4)
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
EACH_NORM = pytest.mark.parametrize("norm", list(ORDER))


@EACH_NORM
class TestWayToHyperplane:
    def random(self, norm: str) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        points = torch.rand(40, 30, generator=generator, dtype=torch.float64)
        points[:, :5] = points[:, :5].round()
        normals = torch.randn(40, 30, generator=generator, dtype=torch.float64)
        normals[:, 5:8] = 0
        # From a hair's breadth to the full reach of the box, both ways.
        share = torch.linspace(0.001, 0.999, 40, dtype=torch.float64)
        sides = [(np.sign(s) * normals[i].numpy(), s) for i, s in enumerate([1, -1] * 20)]
        reach = [linear_gain("linf", w, points[i].numpy(), 1.0) * s for i, (w, s) in enumerate(sides)]
        return points, normals, torch.tensor(reach) * share

    def test_it_is_reached_inside_the_box_by_the_shortest_way(self, norm: str) -> None:
        points, normals, needed = self.random(norm)
        moves = way_to_hyperplane(points, normals, needed, norm)
        torch.testing.assert_close((normals * moves).sum(1), needed)
        assert (points + moves).min() >= -1e-12
        assert (points + moves).max() <= 1 + 1e-12
        lengths = torch.linalg.vector_norm(moves, ORDER[norm], dim=1).tolist()
        for i, length in enumerate(lengths):
            # No ball that is any smaller holds a point of the hyperplane.
            slope = normals[i].numpy() * np.sign(float(needed[i]))
            most = linear_gain(norm, slope, points[i].numpy(), length * (1 - 1e-6))
            assert most < abs(float(needed[i])) * (1 - 1e-9)

    def test_beyond_the_box_it_goes_to_the_corner(self, norm: str) -> None:
        points, normals, needed = self.random(norm)
        moves = way_to_hyperplane(points, normals, 1e4 * needed.sign(), norm)
        up = normals * needed.sign()[:, None]
        corner = torch.where(up > 0, 1.0, torch.where(up < 0, 0.0, points))
        torch.testing.assert_close(points + moves, corner)

    def test_scale_does_not_matter_and_no_normal_no_move(self, norm: str) -> None:
        points, normals, needed = (part.float() for part in self.random(norm))
        moves = way_to_hyperplane(points, normals, needed, norm)
        tiny = way_to_hyperplane(points, normals * 1e-30, needed * 1e-30, norm)
        torch.testing.assert_close(tiny, moves, rtol=1e-3, atol=1e-5)
        assert (way_to_hyperplane(points, 0 * normals, needed, norm) == 0).all()


def linear(classes: int) -> tuple[Linear, Tensor, Tensor]:
    """A linear model of unequal slopes and 12 images, some values of which lie at the box's ends."""
    generator = torch.Generator().manual_seed(classes)
    weights = torch.randn(classes, 48, generator=generator, dtype=torch.float64)
    images = torch.rand(12, *SHAPE, generator=generator, dtype=torch.float64)
    images[:, 0] = images[:, 0].round()
    model = Linear(weights, -weights.sum(1) / 2)
    return model, images, contract.predictions(model, images)


def least(model: Linear, image: Tensor, label: int, norm: str) -> float:
    """The distance to the nearest other class inside the box, by bisection over the oracle."""
    weights, logits = model.weights.detach().numpy(), model(image[None])[0].detach().numpy()
    distances = []
    for other in set(range(len(logits))) - {label}:
        slope, gap = weights[other] - weights[label], logits[label] - logits[other]
        low, high = 0.0, {"linf": 1.0, "l2": 7.0, "l1": 48.0}[norm]
        if linear_gain(norm, slope, image.flatten().numpy(), high) < gap:
            continue
        for _ in range(60):
            middle = (low + high) / 2
            reached = linear_gain(norm, slope, image.flatten().numpy(), middle) >= gap
            low, high = (low, middle) if reached else (middle, high)
        distances.append(high)
    return min(distances)


@EACH_NORM
@pytest.mark.parametrize("n_targets", [0, 9], ids=["fab", "fab-t"])
@pytest.mark.parametrize("classes", [2, 5])
def test_on_a_linear_model_it_finds_the_least_distance(norm: str, n_targets: int, classes: int) -> None:
    model, images, labels = linear(classes)
    found = FAB(50.0, norm=norm, steps=30, n_targets=n_targets)(model, images, labels)
    assert (contract.predictions(model, found) != labels).all()
    distance = NORMS[norm].length(found - images).numpy()
    best = np.array([least(model, image, int(label), norm) for image, label in zip(images, labels, strict=True)])
    assert (distance >= best * (1 - 1e-9)).all()
    # FAB takes the nearest class without regard to the box, so that it may miss it now and then; FAB-T tries each.
    exact = distance <= best * 1.01
    assert exact.all() if n_targets or classes == 2 else exact.mean() >= 0.75


def test_the_nearest_hyperplane_by_hand() -> None:
    weights = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]])
    model, point = Linear(weights, torch.tensor([0.0, -2.0, -1.2])), torch.tensor([[0.5, 0.1]])
    # Gaps -0.5 and -0.6; divided by the dual norms: l1 of the slope in linf, l2 in l2, its largest value in l1.
    for norm, gap, normal in (("linf", -0.5, [3, 0]), ("l2", -0.5, [3, 0]), ("l1", -0.5, [3, 0])):
        found = nearest_hyperplane(model, point, torch.tensor([0]), torch.tensor([[1, 2]]), norm)
        torch.testing.assert_close(found, (torch.tensor([gap]), torch.tensor([normal], dtype=torch.float32)))
    # Gaps -0.5 and -0.58, dual norms 1 and 1.2 in linf, 1 and 0.85 in l2, 1 and 0.6 in l1.
    model = Linear(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.6, 0.6]]), torch.tensor([0.0, -1.0, -0.94]))
    chosen = {
        norm: float(nearest_hyperplane(model, point, torch.tensor([0]), torch.tensor([[1, 2]]), norm)[0])
        for norm in ORDER
    }
    assert chosen == {"linf": pytest.approx(-0.58), "l2": pytest.approx(-0.5), "l1": pytest.approx(-0.5)}


@EACH_NORM
@pytest.mark.parametrize("most", [0.1, 0.02])
def test_two_steps_by_hand(norm: str, most: float) -> None:
    """On one hyperplane at distance d: over it by a twentieth, back to 0.945 d, over it again from there and from 0."""
    slope = torch.linspace(1, 3, 48, dtype=torch.float64)
    images = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    model = Linear(torch.stack([-slope, slope]), torch.tensor([0.05, -0.05], dtype=torch.float64) - slope.sum() / 2)
    model.bias.data[0] += slope.sum()
    watched = Recording(model)
    FAB(50.0, norm=norm, steps=2, alpha_max=most)(watched, images, torch.tensor([0]))
    # The gap is 0.1 with a slope of 2 * slope: the shortest way in each norm.
    way = {
        "linf": torch.full_like(slope, 0.05 / slope.sum()),
        "l2": 0.05 * slope / (slope @ slope),
        "l1": torch.where(slope == 3, 0.05 / slope, 0),
    }[norm].view(SHAPE)
    back = 0.9 * 1.05
    weight = min((1 - back) / (2 - back), most)
    second = (back + 1.05 * (1 - back)) * (1 - weight) + 1.05 * weight
    expected = [0.0, 0.0, 1.05, back, second]  # the clean pass, then gradient and test of each step
    assert len(watched.seen) == 5
    for seen, times in zip(watched.seen, expected, strict=True):
        torch.testing.assert_close(seen - images, times * way[None], rtol=0, atol=1e-9)


def test_any_misclassification_counts_on_the_way_to_a_target() -> None:
    """Class 1 is second at the image and so the only target, but the way there leads into class 2."""
    model = Linear(torch.tensor([[0.0], [10.0], [100.0]]), torch.tensor([0.0, -8.0, -70.0]))
    watched = Recording(model)
    found = FAB(0.4, steps=3, n_targets=1, minimize=False)(watched, torch.tensor([[0.5]]), torch.tensor([0]))
    assert contract.predictions(model, found).tolist() == [2]
    assert watched.calls == 3


@EACH_NORM
@pytest.mark.parametrize("settings", [{}, {"n_targets": 3}, {"restarts": 3}], ids=["fab", "fab-t", "restarts"])
def test_leaving_early_changes_no_verdict(norm: str, settings: dict[str, Any]) -> None:
    model, images = contract.net(), contract.batch(40)
    labels = contract.predictions(model, images)
    eps = EPS[norm] / 2
    searched = FAB(eps, norm=norm, steps=15, **settings)(model, images, labels)
    left = FAB(eps, norm=norm, steps=15, minimize=False, **settings)(model, images, labels)
    broken = contract.predictions(model, searched) != labels
    assert 3 < int(broken.sum()) < 37
    if "restarts" not in settings:  # a random start depends on what was found before it
        assert torch.equal(contract.predictions(model, left) != labels, broken)
    length = NORMS[norm].length
    assert (length(searched - images)[broken] <= length(left - images)[broken] + 1e-6).all()
    assert (length(searched - images)[broken] < length(left - images)[broken] - 1e-6).any()


def test_a_step_costs_two_forward_passes_and_one_backward_pass_per_class() -> None:
    model, images, labels = linear(5)
    for settings, backward, runs in (({}, 4, 1), ({"n_targets": 9}, 1, 4), ({"n_targets": 2, "restarts": 3}, 1, 6)):
        watched = Recording(model)
        FAB(1e-6, steps=7, **settings)(watched, images, labels)
        assert watched.forward_images == 12 * (1 + runs * 7 * 2)
        assert watched.backward_images == 12 * runs * 7 * backward


def test_restarts_begin_at_half_of_eps_or_of_what_was_found() -> None:
    model, images, labels = linear(2)
    watched = Recording(model)
    FAB(1e-6, norm="l2", steps=3, restarts=2)(watched, images, labels)
    first, again = watched.seen[1], watched.seen[1 + 6]
    assert torch.equal(first, images)
    distance = NORMS["l2"].length(again - images)
    assert (distance <= 0.5e-6 * (1 + 1e-9)).all()
    assert (distance > 0.2e-6).all()
    watched = Recording(model)
    found = FAB(50.0, norm="l2", steps=3, restarts=2)(watched, images, labels)
    once = FAB(50.0, norm="l2", steps=3)(model, images, labels)
    distance = NORMS["l2"].length(watched.seen[1 + 6] - images)
    assert (distance <= NORMS["l2"].length(once - images) / 2 * (1 + 1e-9)).all()
    assert (NORMS["l2"].length(found - images) <= NORMS["l2"].length(once - images)).all()


@EACH_NORM
def test_without_a_bound_restarts_stay_in_the_box(norm: str) -> None:
    model, images, labels = linear(2)
    never = Linear(0 * model.weights.detach(), torch.tensor([1.0, 0.0], dtype=torch.float64))
    watched = Recording(never)
    FAB(math.inf, norm=norm, steps=2, restarts=2)(watched, images, torch.zeros_like(labels))
    seen = torch.cat(watched.seen)
    assert seen.shape[0] == 12 * 9
    assert seen.min() >= 0
    assert seen.max() <= 1


def test_what_is_out_of_reach_comes_back_projected() -> None:
    model, images, labels = linear(2)
    free = FAB(50.0, steps=10)(model, images, labels)
    bound = FAB(0.001, steps=10)(model, images, labels)
    assert (contract.predictions(model, bound) == labels).all()
    torch.testing.assert_close(bound, NORMS["linf"].project(free, images, 0.001))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"restarts": 0}, {"n_targets": -1}, {"alpha_max": 1.5}, {"eta": 0.9}, {"beta": 1.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_out_of_range_are_said(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        FAB(0.1, **settings)


@EACH_NORM
@pytest.mark.parametrize("targeted", [False, True], ids=["fab", "fab-t"])
def test_beside_adv_lib(norm: str, targeted: bool) -> None:
    """The same attack by another hand: distances agree, image by image, up to rounding on a curved boundary."""
    peer = pytest.importorskip("adv_lib.attacks", reason="adv-lib is not installed")
    model, images = contract.net(), contract.batch(60)
    labels = contract.predictions(model, images)
    ours = FAB(50.0, norm=norm, steps=30, n_targets=3 if targeted else 0)(model, images, labels)
    theirs = peer.fab(
        model, images, labels, norm=ORDER[norm], n_iter=30, restarts=3 if targeted else 1, targeted_restarts=targeted
    )
    assert (contract.predictions(model, theirs) != labels).all()
    length = NORMS[norm].length
    ratio = length(ours - images) / length(theirs.detach() - images)
    assert float(ratio.median()) == pytest.approx(1, abs=0.002)
    assert float(((ratio - 1).abs() < 0.01).float().mean()) >= 0.9
