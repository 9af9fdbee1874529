"""Minimum-norm attacks: the optimum on linear models, what ``smallest`` promises, and a peer on the same images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import batch, inside, net, predictions
from oracles import Linear, Recording, linear_gain
from torch import Tensor, nn

from robust.attacks import DDN, FMN, SigmaZero
from robust.attacks.minimum import MinimumNorm
from robust.threats import NORMS

ATTACKS: list[MinimumNorm] = [*(FMN(norm=norm) for norm in ("linf", "l2", "l1", "l0")), DDN(), SigmaZero()]
EACH = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.name}-{attack.norm}")
SHAPE, DIMENSIONS = (3, 4, 4), 48


def linear(clipped: bool, classes: int, count: int = 12) -> tuple[Linear, Tensor, Tensor]:
    """A linear model whose classes are about as likely, and images of one class that are not far from the others."""
    generator = torch.Generator().manual_seed(classes + clipped)
    weights = torch.randn(classes, DIMENSIONS, generator=generator, dtype=torch.float64)
    images = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    images = images.round() * 0.9 + 0.05 if clipped else 0.35 + 0.3 * images
    model = Linear(weights, -weights.sum(1) / 2)
    return model, images, predictions(model, images)


def optimum(norm: str, model: Linear, image: Tensor, label: int) -> float:
    """The distance to the nearest point of the box that is not of class ``label``, by bisection of the best climb."""
    logits = model(image[None])[0].detach().numpy()
    weights, flat = model.weights.detach().numpy(), image.flatten().numpy()
    nearest = math.inf
    for other in set(range(len(weights))) - {label}:
        slope, lead = weights[other] - weights[label], logits[label] - logits[other]
        if norm == "l0":
            counts = (k for k in range(1, flat.size + 1) if linear_gain(norm, slope, flat, k) >= lead)
            nearest = min(nearest, next(counts, math.inf))
            continue
        low, high = 0.0, {"linf": 1.0, "l2": math.sqrt(flat.size), "l1": float(flat.size)}[norm]
        if linear_gain(norm, slope, flat, high) < lead:
            continue
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if linear_gain(norm, slope, flat, middle) < lead else (low, middle)
        nearest = min(nearest, high)
    return nearest


def test_the_optimum_by_hand() -> None:
    model = Linear(torch.tensor([[0.0, 0.0], [3.0, 4.0]]).double(), torch.tensor([0.0, -5.0]).double())
    image = torch.tensor([[[0.5, 0.5]]]).double()  # class 0 leads by 1.5
    assert optimum("linf", model, image, 0) == pytest.approx(1.5 / 7)
    assert optimum("l2", model, image, 0) == pytest.approx(1.5 / 5)
    assert optimum("l1", model, image, 0) == pytest.approx(1.5 / 4)
    assert optimum("l0", model, image, 0) == 1


# DDN starts at distance 1, beyond most of five hyperplanes that are much nearer, and may come back to any of them.
PROBLEMS = [(attack, classes) for attack in ATTACKS for classes in (2, 5) if (attack.name, classes) != ("ddn", 5)]


@pytest.mark.parametrize(
    ("attack", "classes"), PROBLEMS, ids=[f"{attack.name}-{attack.norm}-{classes}" for attack, classes in PROBLEMS]
)
@pytest.mark.parametrize("clipped", [False, True], ids=["interior", "clipped"])
def test_finds_the_distance_to_the_nearest_hyperplane(attack: MinimumNorm, clipped: bool, classes: int) -> None:
    model, images, labels = linear(clipped, classes)
    best = np.array([optimum(attack.norm, model, *pair) for pair in zip(images, labels.tolist(), strict=True)])
    points, distance = attack.smallest(model, images, labels)
    assert np.isfinite(best).all()
    assert (best > 0).all()
    assert (predictions(model, points) != labels).all()
    found = distance.numpy()
    assert (found >= best * (1 - 1e-9)).all()
    near = best + 1 if attack.norm == "l0" else best * {"linf": 1.02, "l2": 1.02, "l1": 1.05}[attack.norm]
    # With several classes an attack may end on the hyperplane of one that is not the nearest, unless it ranks them.
    ranks = attack.name == "fmn" and attack.norm in ("linf", "l2")
    assert (found > near).sum() <= (0 if classes == 2 or ranks else 2)


@EACH
class TestSmallest:
    def test_gives_points_that_hold_at_their_distance(self, attack: MinimumNorm) -> None:
        model, images = net(), batch(8)
        labels = predictions(model, images)
        points, distance = attack.smallest(model, images, labels)
        assert distance.shape == (8,)
        assert (predictions(model, points) != labels).all()
        torch.testing.assert_close(distance, NORMS[attack.norm].length(points - images))
        assert inside(points, images, attack.norm, distance).all()

    def test_fooled_images_are_at_distance_zero(self, attack: MinimumNorm) -> None:
        model, images = net(), batch(6)
        labels = predictions(model, images)
        labels[2] = (labels[2] + 1) % 4
        points, distance = attack.smallest(model, images, labels)
        assert torch.equal(points[2], images[2])
        assert (distance == 0).tolist() == [False, False, True, False, False, False]

    def test_what_cannot_be_fooled_is_infinitely_far(self, attack: MinimumNorm) -> None:
        inner, images, _ = linear(clipped=False, classes=2)
        # A lead of 25: no image in the box makes up for it, and the cross-entropy still has a gradient.
        model = Linear(inner.weights.detach() / 2, torch.tensor([25.0, 0.0], dtype=torch.float64))
        labels = predictions(model, images)
        points, distance = attack.smallest(model, images, labels)
        assert distance.isinf().all()
        logits = model(points).detach()
        assert (logits[:, 1] - logits[:, 0] > (model(images)[:, 1] - model(images)[:, 0]).detach()).all()

    def test_eps_only_says_what_the_call_may_return(self, attack: MinimumNorm) -> None:
        model, images = net(dtype=torch.float64), batch(8, dtype=torch.float64)
        labels = predictions(model, images)
        points, distance = attack.smallest(model, images, labels)
        assert torch.equal(type(attack)(norm=attack.norm)(model, images, labels), points)
        assert torch.equal(type(attack)(distance, norm=attack.norm)(model, images, labels), points)
        less = (distance - 1) if attack.norm == "l0" else 0.99 * distance
        nearer = type(attack)(less, norm=attack.norm)(model, images, labels)
        assert inside(nearer, images, attack.norm, less).all()
        again = type(attack)(less, norm=attack.norm).smallest(model, images, labels)
        assert torch.equal(again[0], points)
        assert torch.equal(again[1], distance)

    def test_a_target_is_reached_and_farther_than_any_class(self, attack: MinimumNorm) -> None:
        model, images = net(), batch(6)
        labels = predictions(model, images)
        _, anywhere = attack.smallest(model, images, labels)
        distances = []
        for step in (1, 2, 3):
            targets = (labels + step) % 4
            points, distance = attack.smallest(model, images, labels, targets)
            assert predictions(model, points).tolist() == targets.tolist()
            distances.append(distance)
        slack = 1 if attack.norm == "l0" else 0.05 * anywhere
        assert (torch.stack(distances).amin(0) >= anywhere - slack).all()

    def test_no_images_give_none(self, attack: MinimumNorm) -> None:
        points, distance = attack.smallest(net(), torch.zeros(0, 3, 6, 6), torch.zeros(0, dtype=torch.long))
        assert points.shape == (0, 3, 6, 6)
        assert distance.shape == (0,)

    def test_takes_one_gradient_a_step(self, attack: MinimumNorm) -> None:
        images = batch(5)
        model = Recording(net())
        attack.smallest(model, images, predictions(model.inner, images))
        assert model.backward_images == 5 * 100
        if attack.norm == "l0":  # what it takes to drop values depends on the image
            assert 5 * 101 < model.forward_images <= 5 * 120
        else:  # FMN's steps over the boundary take two each
            more = {"linf": 19, "l2": 55, "l1": 0}[attack.norm] if attack.name == "fmn" else 0
            assert model.forward_images == 5 * (112 + more)


@pytest.mark.parametrize("kind", [FMN, DDN, SigmaZero])
def test_impossible_settings_are_said(kind: type[MinimumNorm]) -> None:
    with pytest.raises(ValueError, match="steps"):
        kind(steps=0)


def _peers(norm: str, model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> dict[str, Tensor]:
    adv = pytest.importorskip("adv_lib.attacks", reason="adv-lib is not installed: no peer to compare with")
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    found = {"fmn": adv.fmn(model, images, labels, order, steps=steps)}
    if norm == "l2":
        found["ddn"] = adv.ddn(model, images, labels, steps=steps, levels=None)
    if norm == "l0":
        found["sigma-zero"] = adv.sigma_zero(model, images, labels, num_steps=steps)
    else:
        found["pdpgd"] = adv.pdpgd(model, images, labels, order, num_steps=steps)
    return {
        name: torch.where(predictions(model, points) != labels, NORMS[norm].length(points.detach() - images), torch.inf)
        for name, points in found.items()
    }


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_is_as_near_as_a_peer_with_the_same_number_of_gradients(norm: str) -> None:
    model, images = net(), batch(24)
    labels = predictions(model, images)
    peers = _peers(norm, model, images, labels, steps=60)
    attack = SigmaZero(steps=60) if norm == "l0" else FMN(norm=norm, steps=60)
    _, distance = attack.smallest(model, images, labels)
    best = min(float(found.median()) for found in peers.values())
    assert float(distance.median()) <= 1.02 * best


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fmn_aims_at_the_nearest_boundary_though_eight_logits_stand_higher(norm: str) -> None:
    """Nine classes with six values each: the farther a logit is, the steeper it rises, the last one ten times so."""
    gaps = torch.arange(1.0, 10.0)
    rises = torch.where(gaps == 9, 10 * gaps, gaps)

    def model(images: torch.Tensor) -> torch.Tensor:
        moved = (images - 0.5).flatten(1).view(-1, 9, 6).sum(2) / 6**0.5
        return torch.cat([torch.zeros(len(images), 1), rises * moved - gaps], 1)

    images = torch.full((1, 1, 9, 6), 0.5)
    _, distance = FMN(norm=norm).smallest(model, images, torch.zeros(1, dtype=torch.long))
    nearest = 0.1 if norm == "l2" else 0.1 / 6**0.5
    assert float(distance) == pytest.approx(nearest, rel=0.02)
