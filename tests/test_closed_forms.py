"""Attacks on linear models, where the best that any attacker can do is known: how far, and which images fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from contract import inside, predictions
from oracles import Linear, Recording, linear_gain
from torch import Tensor, nn

from robust.attacks import APGD, FGSM, PGD, Attack
from robust.attacks.base import Goal, loss_and_gradient
from robust.attacks.losses import cross_entropy, dlr, margin

DIMENSIONS = 48
SHAPE = (3, 4, 4)
NORMS = ["linf", "l2", "l1", "l0"]
# Away from the box's ends no value can leave it; at them most of the ball lies outside.
INTERIOR = {"linf": 0.1, "l2": 0.3, "l1": 0.3, "l0": 5.0}
CLIPPED = {"linf": 0.4, "l2": 2.0, "l1": 6.0, "l0": 12.0}


@dataclass(frozen=True)
class Problem:
    """Two classes divided by one hyperplane; all images have label 0. ``slope`` climbs towards class 1."""

    model: nn.Module
    slope: np.ndarray
    images: Tensor
    eps: float

    @property
    def labels(self) -> Tensor:
        return torch.zeros(len(self.images), dtype=torch.long)

    def climbed(self, points: Tensor) -> np.ndarray:
        """How much of the margin of class 0 an attack has taken, per image."""
        return ((points - self.images).flatten(1).numpy() * self.slope).sum(1)

    def best(self, norm: str) -> np.ndarray:
        flat = self.images.flatten(1).numpy()
        return np.array([linear_gain(norm, self.slope, image, self.eps) for image in flat])


def problem(norm: str, clipped: bool, lead: float = 4.0, count: int = 8) -> Problem:
    """``lead``: how far class 0 is ahead at the image nearest to the hyperplane.

    The best climb is 2 at most: the cross-entropy of an image much further ahead no longer changes in float numbers.
    """
    generator = torch.Generator().manual_seed(7)
    slope = torch.randn(DIMENSIONS, generator=generator, dtype=torch.float64)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    if clipped:
        images[:, 0] = images[:, 0].round()
    else:
        images = 0.4 + 0.2 * images
    eps = (CLIPPED if clipped else INTERIOR)[norm]
    slope *= 2 / max(linear_gain(norm, slope.numpy(), image.flatten().numpy(), eps) for image in images)
    weights = torch.stack([-slope / 2, slope / 2])
    start = ((images - 0.5).flatten(1) @ slope).max()
    bias = -weights.sum(1) / 2 + torch.tensor([1.0, -1.0], dtype=torch.float64) * (lead + start) / 2
    return Problem(Linear(weights, bias), slope.numpy(), images, eps)


def attacks(norm: str, eps: float) -> dict[str, Attack]:
    found: dict[str, Attack] = {
        "fgsm": FGSM(eps, norm=norm),
        "pgd-margin": PGD(eps, norm=norm, steps=60, loss="margin"),
        "pgd-ce": PGD(eps, norm=norm, steps=60),
        "pgd-from-image": PGD(eps, norm=norm, steps=60, random_start=False),
    }
    if norm in APGD.norms:
        found |= {
            "apgd-ce": APGD(eps, norm=norm, steps=60),
            "apgd-dlr": APGD(eps, norm=norm, steps=60, loss="dlr"),
            "apgd-t": APGD(eps, norm=norm, steps=60, loss="dlr", n_targets=1),
        }
    return found


def reach(norm: str, name: str, clipped: bool) -> float:
    """The share of the best climb that an attack must reach; all of it where its method has nothing in the way."""
    kind = name.split("-")[0]
    if norm == "l2":
        # Scaling and then clipping gives up length at the box's ends; later steps win most of it back.
        return {"fgsm": 0.7, "pgd": 0.95, "apgd": 0.95}[kind] if clipped else 1 - 1e-6
    if norm == "l1" and kind == "apgd":
        return 0.9  # its sparse steps move at least two of 48 values alike
    if norm == "l1" and kind == "pgd" and clipped and name != "pgd-from-image":
        return 0.9  # each projection takes from the filled values what the step then gives back
    if norm == "l0" and kind == "pgd" and name != "pgd-from-image":
        return 0.5  # the largest changes are kept, and those of the random start may be large
    return 1.0


EACH = [(norm, name) for norm in NORMS for name in attacks(norm, 1.0)]


def test_the_oracle_by_hand() -> None:
    slope, image = np.array([3.0, -2.0, 0.5]), np.array([0.9, 0.5, 0.2])
    assert linear_gain("linf", slope, image, 0.2) == pytest.approx(3 * 0.1 + 2 * 0.2 + 0.5 * 0.2)
    assert linear_gain("l1", slope, image, 0.4) == pytest.approx(3 * 0.1 + 2 * 0.3)
    assert linear_gain("l0", slope, image, 1) == pytest.approx(2 * 0.5)
    assert linear_gain("l2", slope, np.full(3, 0.5), 0.1) == pytest.approx(0.1 * np.linalg.norm(slope))
    # The first value is stopped by the box at 0.1; the rest of the length goes along (-2, 0.5).
    rest = np.sqrt(0.2**2 - 0.1**2)
    assert linear_gain("l2", slope, image, 0.2) == pytest.approx(3 * 0.1 + rest * np.hypot(2, 0.5))


@pytest.mark.parametrize(("norm", "name"), EACH)
class TestClimb:
    def test_reaches_the_dual_norm_inside_the_box(self, norm: str, name: str) -> None:
        at = problem(norm, clipped=False)
        found = attacks(norm, at.eps)[name](at.model, at.images, at.labels)
        dual = {
            "linf": at.eps * np.abs(at.slope).sum(),
            "l2": at.eps * np.linalg.norm(at.slope),
            "l1": at.eps * np.abs(at.slope).max(),
        }
        best = np.full(8, dual[norm]) if norm in dual else at.best(norm)
        np.testing.assert_allclose(at.best(norm), best)
        assert (at.climbed(found) <= best * (1 + 1e-9)).all()
        assert (at.climbed(found) >= best * reach(norm, name, False) * (1 - 1e-9)).all()

    def test_reaches_the_best_point_of_ball_and_box(self, norm: str, name: str) -> None:
        at = problem(norm, clipped=True)
        found = attacks(norm, at.eps)[name](at.model, at.images, at.labels)
        assert inside(found, at.images, norm, at.eps).all()
        assert (at.climbed(found) <= at.best(norm) * (1 + 1e-9)).all()
        assert (at.climbed(found) >= at.best(norm) * reach(norm, name, True) * (1 - 1e-9)).all()

    @pytest.mark.parametrize("clipped", [False, True], ids=["interior", "clipped"])
    def test_exactly_the_images_fall_that_can(self, norm: str, name: str, clipped: bool) -> None:
        """Image by image, each with a lead of half to one and a half of its best climb; 1 % around it is left out."""
        at = problem(norm, clipped, count=16)
        share = np.linspace(0.5, 1.5, 16)
        fell = []
        for i in range(16):
            image, label = at.images[i : i + 1], at.labels[:1]
            lead = float((at.model(image)[0, 0] - at.model(image)[0, 1]).detach())
            more = torch.tensor([0.5, -0.5], dtype=torch.float64) * (at.best(norm)[i] * share[i] - lead)
            model = Linear(at.model.weights.detach(), at.model.bias.detach() + more)
            assert predictions(model, image) == label
            fell.append(bool(predictions(model, attacks(norm, at.eps)[name](model, image, label)) != label))
        assert not np.array(fell)[share > 1].any()
        assert np.array(fell)[share < reach(norm, name, clipped) - 0.01].all()


@pytest.mark.parametrize(
    ("norm", "name"), [case for case in EACH if case[1] in ("pgd-margin", "apgd-ce", "apgd-dlr", "apgd-t")]
)
def test_many_classes_fall_to_the_nearest(norm: str, name: str) -> None:
    """With five classes an image can fall where any of four hyperplanes is within reach."""
    generator = torch.Generator().manual_seed(11)
    weights = torch.randn(5, DIMENSIONS, generator=generator, dtype=torch.float64)
    model = Linear(weights, -weights.sum(1) / 2)
    images = torch.rand(40, *SHAPE, generator=generator, dtype=torch.float64)
    labels = predictions(model, images)
    eps = {"linf": 0.02, "l2": 0.15, "l1": 0.5, "l0": 1.0}[norm]
    settings: dict[str, Any] = {
        "pgd-margin": {"loss": "margin", "steps": 40},
        "apgd-ce": {"loss": "ce", "steps": 60},
        "apgd-dlr": {"loss": "dlr", "steps": 60},
        "apgd-t": {"loss": "dlr", "n_targets": 4, "steps": 40},
    }[name]
    attack = (PGD if name == "pgd-margin" else APGD)(eps, norm=norm, **settings)
    fell = (predictions(model, attack(model, images, labels)) != labels).numpy()

    logits = model(images).detach().numpy()
    within = np.empty(40)
    for i, label in enumerate(labels.tolist()):
        flat = images[i].flatten().numpy()
        within[i] = max(
            linear_gain(norm, (weights[j] - weights[label]).numpy(), flat, eps) / (logits[i, label] - logits[i, j])
            for j in range(5)
            if j != label
        )
    assert 4 <= (within > 1).sum() <= 36
    assert not fell[within < 1 - 1e-9].any()
    # Only the attack that tries each target in turn is sure to find the nearest class.
    missed = (~fell & (within > 1.05)).sum()
    assert missed == 0 if name == "apgd-t" else missed <= 2


class TestLosses:
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, -1.0, 4.0]])
    labels = torch.tensor([0, 1])
    targets = torch.tensor([2, 0])

    def test_margin_by_hand(self) -> None:
        torch.testing.assert_close(margin(self.logits, Goal(self.labels)), torch.tensor([-2.0, 2.0]))
        torch.testing.assert_close(margin(self.logits, Goal(self.labels, self.targets)), torch.tensor([-2.5, -4.0]))

    def test_dlr_by_hand(self) -> None:
        torch.testing.assert_close(dlr(self.logits, Goal(self.labels)), torch.tensor([-2 / 2.5, 2 / 4.0]))
        # Targeted: (z_t - z_y) / (z_1 - (z_3 + z_4) / 2).
        expected = torch.tensor([-2.5 / (3 - (0.5 - 1) / 2), -2 / (4 - (0 - 1) / 2)])
        torch.testing.assert_close(dlr(self.logits, Goal(self.labels, self.targets)), expected)

    def test_dlr_does_not_depend_on_shift_and_scale(self) -> None:
        for goal in (Goal(self.labels), Goal(self.labels, self.targets)):
            torch.testing.assert_close(dlr(self.logits * 100 + 7, goal), dlr(self.logits, goal))

    @pytest.mark.parametrize("classes", [2, 3])
    def test_dlr_with_few_classes_is_finite_and_has_a_gradient(self, classes: int) -> None:
        logits = torch.tensor([[1.0, 0.2, -0.4][:classes]], requires_grad=True)
        for goal in (Goal(torch.tensor([0])), Goal(torch.tensor([0]), torch.tensor([1]))):
            value = dlr(logits, goal)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert value.isfinite().all()
            assert (gradient != 0).any()

    def test_cross_entropy_by_hand(self) -> None:
        expected = [-3 + np.log(np.exp([3, 1, 0.5, -1]).sum()), -2 + np.log(np.exp([0, 2, -1, 4]).sum())]
        np.testing.assert_allclose(cross_entropy(self.logits, Goal(self.labels)), expected, rtol=1e-6)
        expected = [0.5 - np.log(np.exp([3, 1, 0.5, -1]).sum()), 0 - np.log(np.exp([0, 2, -1, 4]).sum())]
        np.testing.assert_allclose(cross_entropy(self.logits, Goal(self.labels, self.targets)), expected, rtol=1e-6)

    @pytest.mark.parametrize("loss", [margin, dlr])
    def test_its_sign_says_whether_an_image_is_fooled(self, loss) -> None:
        logits = torch.randn(200, 5)
        labels = torch.randint(0, 5, (200,))
        goal = Goal(labels)
        assert torch.equal(loss(logits, goal) > 0, goal.met(logits))
        if loss is margin:
            aimed = Goal(labels, (labels + 1) % 5)
            assert torch.equal(loss(logits, aimed) > 0, aimed.met(logits))


class TestGoal:
    def test_any_other_class_or_exactly_the_target(self) -> None:
        logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0]])
        labels = torch.tensor([0, 0, 0])
        assert Goal(labels).met(logits).tolist() == [False, True, True]
        assert Goal(labels, torch.tensor([1, 1, 1])).met(logits).tolist() == [False, False, True]

    def test_nan_is_never_met(self) -> None:
        logits = torch.tensor([[torch.nan, 1.0], [0.0, torch.nan], [0.0, 1.0]])
        labels = torch.tensor([0, 0, 0])
        assert Goal(labels).met(logits).tolist() == [False, False, True]
        assert Goal(labels, labels + 1).met(logits).tolist() == [False, False, True]

    def test_indexing_keeps_labels_and_targets_together(self) -> None:
        goal = Goal(torch.arange(4), torch.arange(4) + 1)[torch.tensor([2, 0])]
        assert goal.labels.tolist() == [2, 0]
        assert goal.targets is not None
        assert goal.targets.tolist() == [3, 1]


def test_the_gradient_is_that_of_each_image_alone_and_no_other_is_computed() -> None:
    at = problem("l2", clipped=False)
    model = Recording(at.model)
    values, logits, gradient = loss_and_gradient(model, at.images, Goal(at.labels), margin)
    np.testing.assert_allclose(gradient.flatten(1).numpy(), np.tile(at.slope, (8, 1)))
    torch.testing.assert_close(values, logits[:, 1] - logits[:, 0])
    assert not values.requires_grad
    assert not logits.requires_grad
    assert at.model.weights.grad is None
    assert model.calls == 1
