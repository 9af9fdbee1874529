"""Bounds against exact minima, sampled points, float32 rounding, and attacks."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import LinearModel, distances, images_of
from torch import Tensor, nn
from torch.nn import functional as F

from robust import load_data, load_model
from robust.attacks import PGD
from robust.defenses.bounds import Unsupported, prove
from robust.defenses.bounds.intervals import intervals
from robust.defenses.bounds.operations import Network, Relu
from robust.defenses.bounds.proving import EFFORTS, tightened
from robust.defenses.bounds.regions import region_of
from robust.defenses.bounds.tracing import trace
from robust.threats import ThreatModel


class Mixed(nn.Module):
    """Every supported kind of layer: strides, groups, batch normalization, pooling, padding, slices, sums, products."""

    def __init__(self, pooling: str) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 2, 1, 1))
        self.first = nn.Conv2d(2, 4, 3, stride=1, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.shrink = nn.Conv2d(4, 6, 2, stride=2, dilation=1)
        self.pool: nn.Module = {
            "max": nn.MaxPool2d(3, 2, 1), "average": nn.AvgPool2d(2), "adaptive": nn.AdaptiveAvgPool2d(2)
        }[pooling]  # fmt: skip
        self.drop = nn.Dropout(0.5)
        self.head = nn.LazyLinear(3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first((images - self.mean) / 0.25)))
        x = torch.relu(self.second(x) + x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = self.pool((self.shrink(x) - 0.5 * short).relu())
        return self.head(self.drop(x.view(x.size(0), -1)))


def mixed(pooling: str, seed: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model = Mixed(pooling).eval()
    images = torch.rand(3, 2, 6, 6)
    images[:, :, 0] = 0
    model(images)
    return model, images


def activations(network: Network, points: Tensor) -> list[Tensor]:
    values: list[Tensor] = []
    for node in network.nodes:
        values.append(node.operation.forward(*(values[i] for i in node.inputs)) if node.inputs else points)
    return values


@settings(max_examples=25)
@given(
    st.sampled_from(["max", "average", "adaptive"]), st.integers(0, 2**20),
    st.sampled_from(["linf:0.02", "linf:0.2", "l2:0.3"]),
)  # fmt: skip
@torch.no_grad()
def test_every_activation_stays_inside_its_bounds(pooling: str, seed: int, text: str) -> None:
    model, images = mixed(pooling, seed)
    threat, network = ThreatModel.parse(text), trace(model, images)
    region = region_of(images, threat)
    plain, tight = intervals(network, region), tightened(network, region)[0].bounds
    seeds = torch.arange(len(images))
    for draw in range(12):
        points = threat.geometry.random(images, threat.eps, seeds, draw)
        if draw % 2:  # corners, where extremes are
            points = threat.geometry.project(images + (points - images).sign() * 9, images, threat.eps)
        for bounds in (plain, tight):
            for value, bound in zip(activations(network, points), bounds, strict=True):
                assert (value >= bound.lower).all()
                assert (value <= bound.upper).all()


@settings(max_examples=15)
@given(st.sampled_from(["max", "average"]), st.integers(0, 2**20), st.sampled_from(["linf:0.03", "l2:0.2"]))
def test_no_attack_gets_below_a_margin(pooling: str, seed: int, text: str) -> None:
    model, images = mixed(pooling, seed)
    threat = ThreatModel.parse(text)
    with torch.no_grad():
        labels = model(images).argmax(1)
    found = PGD(threat.eps, norm=threat.norm, steps=30, restarts=2, loss="margin")(model, images, labels)
    with torch.no_grad():
        logits = model(found)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        attacked = own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    margins = [prove(model, images, labels, threat, effort).margin for effort in EFFORTS]
    for margin in margins:
        assert (margin <= attacked + 1e-6).all()
    assert (margins[2] >= margins[1]).all(), "a later method never loses what an earlier one had"
    assert (margins[1] >= margins[0]).all()


def exact_minimum(first: nn.Linear, second: nn.Linear, low: np.ndarray, high: np.ndarray, c: np.ndarray) -> float:
    """The least c . (V max(W x + b, 0) + d) over a box in the plane: it lies where two of the neurons' lines and the
    box's edges cross."""
    w, b = first.weight.detach().double().numpy(), first.bias.detach().double().numpy()
    v, d = second.weight.detach().double().numpy(), second.bias.detach().double().numpy()
    edges = [(np.eye(2)[k], end[k]) for k in range(2) for end in (low, high)]
    straight = [(w[k], -b[k]) for k in range(len(w))] + edges
    best = np.inf
    for (p, s), (q, t) in itertools.combinations(straight, 2):
        matrix = np.stack([p, q])
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        x = np.linalg.solve(matrix, [s, t])
        if (x >= low - 1e-9).all() and (x <= high + 1e-9).all():
            best = min(best, float(c @ (v @ np.maximum(w @ x + b, 0) + d)))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_margins_are_below_the_exact_minimum_and_near_it(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = nn.Linear(2, 6), nn.Linear(6, 3)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval()
    images = torch.rand(6, 1, 1, 2) * 0.8 + 0.1
    with torch.no_grad():
        labels = model(images).argmax(1)
    for eps, gap in ((1e-4, 2e-4), (0.05, 0.1)):
        margin = prove(model, images, labels, ThreatModel("linf", eps)).margin
        for image, label, bound in zip(images, labels.tolist(), margin.tolist(), strict=True):
            x = image.flatten().double().numpy()
            exact = min(
                exact_minimum(first, second, x - eps, x + eps, np.eye(3)[label] - np.eye(3)[k])
                for k in range(3) if k != label
            )  # fmt: skip
            assert exact - gap <= bound <= exact


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_models_are_proven_up_to_their_exact_distance(norm: str) -> None:
    model = LinearModel()
    images, labels = images_of(model, wrong=0)
    exact = torch.from_numpy(distances(model, images, labels, norm))
    # The region holds the evidence's tolerance of 1e-6, the margin the worst rounding of a sum of 108 products.
    reserve = {"linf": 1e-5, "l2": 2e-4}[norm]
    for share, less, expected in ((0.999, reserve, True), (1.001, 0.0, False)):
        for image, label, distance in zip(images, labels, exact, strict=True):
            proofs = prove(model, image[None], label[None], ThreatModel(norm, max(0.0, float(distance * share) - less)))
            assert bool(proofs.proven) is expected


def test_the_box_helps_an_l2_ball() -> None:
    """On a black image only the positive half of the ball is left: -w . d is at most the length of w's negative part
    times eps."""
    weight = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    model[1].weight.data, model[1].bias.data = weight, torch.tensor([1.0, 0.0])
    image, label = torch.zeros(1, 1, 1, 2), torch.zeros(1, dtype=torch.long)
    margin = float(prove(model, image, label, ThreatModel("l2", 0.2)).margin)
    assert 1 - 0.2 * 4 - 1e-4 <= margin <= 1 - 0.2 * 4


def test_a_wrong_image_is_never_proven() -> None:
    model = LinearModel()
    images, labels = images_of(model, n=8, wrong=8)
    assert not prove(model, images, labels, ThreatModel("linf", 0.0)).proven.any()


def test_rounding_of_the_model_is_part_of_the_proof() -> None:
    """Two sums that cancel: exactly, the first class wins by 0.1, but in float32 a sum of 4,096 products of 7 is only
    sure to be within 4,096 * 2 ** -24 * 28,672 = 7 of that."""
    size = 4096
    first, second = nn.Linear(size, 2), nn.Linear(2, 2)
    first.weight.data, first.bias.data = torch.full((2, size), 10.0), torch.zeros(2)
    second.weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    second.bias.data = torch.tensor([0.1, 0.0])
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).eval()
    image, label = torch.full((1, 1, 64, 64), 0.7), torch.zeros(1, dtype=torch.long)
    threat = ThreatModel("linf", 0.0)
    assert not prove(model, image, label, threat).proven.any()
    second.bias.data[0] = 100.0
    assert prove(model, image, label, threat).proven.all()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.GELU(), nn.Linear(8, 4)), "GELU"),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(72, 4)),
         "reflect"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(),
                       nn.Linear(32, 4)), "BatchNorm2d without running statistics"),
    ],
)  # fmt: skip
def test_an_unsupported_layer_is_named(model: nn.Module, name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        prove(model.eval(), torch.rand(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1))


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(108, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        if self.how == "branch":
            return self.head(x) if x.sum() > 0 else self.head(-x)
        if self.how == "product":
            return self.head(x * x)
        if self.how == "batch":
            return self.head(x - x.mean(0, keepdim=True))
        if self.how == "dropout":
            return self.head(F.dropout(x, 0.5))
        return self.head(x.sigmoid())


@pytest.mark.parametrize(
    ("how", "name"),
    [("branch", "traced"), ("product", "mul"), ("batch", "batch"), ("dropout", "dropout"), ("sigmoid", "sigmoid")],
)
def test_an_unsupported_operation_is_named(how: str, name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        prove(Odd(how).eval(), torch.rand(2, 3, 6, 6), torch.zeros(2, dtype=torch.long), ThreatModel("linf", 0.1))


def test_an_unsupported_norm_is_named() -> None:
    with pytest.raises(Unsupported, match="l1"):
        prove(LinearModel(), torch.rand(1, 3, 6, 6), torch.zeros(1, dtype=torch.long), ThreatModel("l1", 1.0))


def test_bounds_do_not_depend_on_the_batch_and_leave_the_model_alone() -> None:
    model, images = mixed("max", 3)
    model.train()
    threat = ThreatModel("linf", 0.01)
    labels = trace(model, images).forward(images).argmax(1).detach()
    together = prove(model, images, labels, threat).margin
    alone = torch.cat([prove(model, images[i : i + 1], labels[i : i + 1], threat).margin for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_relu_of_a_real_network_is_bounded(robust_data: Path) -> None:
    model = load_model(f"{robust_data / 'zoo.py'}:cifar_cnn_a_adv")
    data = load_data(robust_data / "cifar10_sdp200.npz")
    images, labels = data.batch(range(6)), data.labels[:6]
    threat = ThreatModel.parse("linf:2/255")
    network = trace(model, images)
    assert sum(isinstance(node.operation, Relu) for node in network.nodes) == 3
    proofs = prove(model, images, labels, threat)
    assert proofs.proven.any()
    found = PGD(threat.eps, steps=40, loss="margin")(model, images, labels)
    with torch.no_grad():
        assert (model(found).argmax(1) == labels)[proofs.proven].all()
