"""The cascade in l1 and l0: exact on linear models, and no weaker than the attacks that stood in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import inside, predictions
from oracles import Linear, Recording, TinyNet, linear_gain
from torch import Tensor, nn

from robust.attacks import APGD, FMN, PGD, Attack, Auto, SigmaZero

EPS = {"l1": 2.0, "l0": 5.0}


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor, np.ndarray]:
    """A hyperplane, images on one side of it, and by how much each one's margin leads."""
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(48, generator=generator, dtype=torch.float64)
    images = torch.rand(40, 3, 4, 4, generator=generator, dtype=torch.float64)
    height = images.flatten(1) @ slope
    model = Linear(torch.stack([-slope / 2, slope / 2]), torch.tensor([1.0, -1.0], dtype=torch.float64) * height.max())
    return model.eval(), images, torch.zeros(40, dtype=torch.long), slope.numpy()


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_on_a_linear_model_exactly_those_fall_that_can_fall(
    problem: tuple[nn.Module, Tensor, Tensor, np.ndarray], norm: str
) -> None:
    model, images, labels, slope = problem
    with torch.no_grad():
        logits = model(images)
    lead = (logits[:, 0] - logits[:, 1]).numpy()
    reach = np.array([linear_gain(norm, slope, image, EPS[norm]) for image in images.flatten(1).numpy()])
    within_reach = reach > 1.001 * lead
    assert 5 < within_reach.sum() < 40
    found = Auto(EPS[norm], norm=norm)(model, images, labels)
    assert inside(found, images, norm, EPS[norm]).all()
    fooled = (predictions(model, found) != labels).numpy()
    assert fooled[within_reach].all()
    assert not fooled[reach < 0.999 * lead].any()


def standing(model: nn.Module, attacks: list[Attack], images: Tensor, labels: Tensor) -> int:
    left = torch.ones(len(labels), dtype=torch.bool)
    for attack in attacks:
        left &= predictions(model, attack(model, images, labels)) == labels
    return int(left.sum())


@pytest.mark.parametrize(
    ("norm", "eps", "longer"),
    [
        ("l1", 0.6, [APGD(0.6, norm="l1", steps=100, loss="dlr", n_targets=3), FMN(0.6, norm="l1", steps=200)]),
        ("l0", 3.0, [SigmaZero(3.0, steps=300), PGD(3.0, norm="l0", steps=100, restarts=3)]),
    ],
    ids=["l1", "l0"],
)
def test_it_misses_nothing_that_longer_attacks_find(norm: str, eps: float, longer: list[Attack]) -> None:
    model = TinyNet().eval()
    images = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(4))
    labels = predictions(model, images)
    reference = standing(model, longer, images, labels)
    assert 4 < reference < 36, "the case must leave something to break and something to stand"
    assert standing(model, [Auto(eps, norm=norm)], images, labels) <= reference


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_more_effort_spends_more_and_loses_nothing(norm: str) -> None:
    model = TinyNet().eval()
    images = torch.rand(12, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    labels = predictions(model, images)
    left, spent = [], []
    for effort in ("quick", "standard", "exhaustive"):
        counting = Recording(model)
        left.append(standing(counting, [Auto(EPS[norm] / 4, norm=norm, effort=effort)], images, labels))
        spent.append(counting.backward_images)
    assert left == sorted(left, reverse=True)
    assert spent == sorted(spent)
