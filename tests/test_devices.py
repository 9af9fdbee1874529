"""The package on a device that is not the CPU: everything stays there, and comes out as it does on the CPU.

The device is simulated (see :mod:`second_device`): what is shown is that no two devices meet and nothing is read from
the wrong one. That CUDA itself computes the same is not.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import contract
import pytest
import second_device
import torch
from contract import Case
from oracles import EPS
from second_device import NAME, Elsewhere, alike, there
from shortened import SelfTransfer
from subjects import LinearModel, Masked, Unproven, images_of
from test_attacks import EACH
from torch import Tensor, nn

import robust
from robust.attacks import FGSM, PGD, Auto
from robust.attacks.base import Goal, Model
from robust.auditing import verify_audit
from robust.counting import CountedModel
from robust.errors import InputError
from robust.lane import make_lane
from robust.summary import AuditSummary

pytestmark = pytest.mark.skipif(bool(second_device.MISSING), reason=f"NO DEVICE IS SIMULATED: {second_device.MISSING}")


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", second_device.Generator)


# Attacks


@pytest.mark.parametrize(("case", "norm"), EACH)
def test_an_attack_finds_there_what_it_finds_here(case: Case, norm: str) -> None:
    images = contract.batch(4)
    labels = contract.predictions(contract.net(), images)
    labels[1] = (labels[1] + 1) % 4
    eps = EPS[norm] * torch.tensor([1.0, 1.0, 0.0, 2.0])
    expected = case(eps, norm)(contract.net(), images, labels)
    found = case(eps, norm)(there(contract.net()), images.to(NAME), labels.to(NAME))
    assert isinstance(found, Elsewhere)
    assert torch.equal(found.cpu(), expected)
    assert (expected != images).any()


AIMED = [
    pytest.param(*case.values, id=case.id)
    for case in EACH
    if case.values[0].kind.targetable and case.values[0].kind is not Auto
]


@pytest.mark.parametrize(("case", "norm"), AIMED)
def test_an_attack_with_a_target_finds_the_same(case: Case, norm: str) -> None:
    images = contract.batch(6)
    labels = contract.predictions(contract.net(), images)
    targets = (labels + 1) % 4

    def run(device: str) -> Any:
        model, given = contract.net().to(device), (images.to(device), labels.to(device), targets.to(device))
        return case(EPS[norm], norm)(model, *given).tolist()

    alike(run)


@pytest.mark.parametrize("norm", Auto.norms)
def test_a_cascade_that_must_work_for_it_finds_the_same(norm: str) -> None:
    """Small balls, in which the later of its attacks have something left to do."""
    images = contract.batch(3)
    labels = contract.predictions(contract.net(), images)
    eps = {"l0": 1.0, "patch": 1 / 36}.get(norm, EPS[norm] / 4)

    def run(device: str) -> Any:
        given = images.to(device), labels.to(device)
        blurred = SelfTransfer(eps, norm=norm, steps=3) if norm in SelfTransfer.norms else None
        return [
            attack(contract.net().to(device), *given).tolist()
            for attack in (Auto(eps, norm=norm), blurred)
            if attack is not None
        ]

    alike(run)


class Careless(FGSM):
    """FGSM with one tensor left on the CPU, in the way that ``how`` says."""

    how = ""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        n = len(images)
        if self.how == "arithmetic":
            images = images + torch.zeros(n, 1, 1, 1)
        elif self.how == "indices":
            images = images.gather(0, torch.zeros(images.shape, dtype=torch.long))
        elif self.how == "assignment":
            torch.zeros(n)[goal.labels >= 0] = 1
        elif self.how == "labels":
            nn.functional.cross_entropy(model(images), goal.labels.cpu())
        elif self.how == "generator":
            images = images + torch.randn(n, 1, 1, 1, device=images.device, generator=torch.Generator())
        elif self.how == "joined":
            images = torch.cat([images, torch.zeros(images.shape)])[:n]
        elif self.how == "in place":
            torch.zeros(images.shape).add_(images)
        elif self.how == "number":
            torch.zeros(()).add_(images.sum())
        elif self.how == "numpy":
            images.numpy()
        return super().run(model, images, goal, eps, seeds)


@pytest.mark.parametrize(
    "how", ["arithmetic", "indices", "assignment", "labels", "generator", "joined", "in place", "number", "numpy"]
)
def test_the_device_refuses_what_cuda_refuses(how: str) -> None:
    """Each of these runs on the CPU, and on CUDA raises what it raises here."""
    attack = type("Careless", (Careless,), {"how": how})(EPS["linf"])
    images = contract.batch(4)
    labels = contract.predictions(contract.net(), images)
    attack(contract.net(), images, labels)
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device type for generator|numpy"):
        attack(there(contract.net()), images.to(NAME), labels.to(NAME))


def test_the_device_takes_what_cuda_takes() -> None:
    images = torch.rand(4, 3)
    far = images.to(NAME)
    assert torch.equal((far * torch.tensor(2.0)).cpu(), images * 2)
    assert torch.equal(far[torch.tensor([2, 0])].cpu(), images[[2, 0]])
    far[torch.tensor([True, False, False, True])] = torch.tensor(0.5)
    far[1] = torch.ones(3)
    assert far[0].tolist() == [0.5] * 3
    assert far[1].tolist() == [1.0] * 3
    assert torch.zeros(4, 3).copy_(far).sum() == far.sum().item()


# Audits


def _told(summary: AuditSummary) -> Any:
    """All of an audit but times and places."""
    threats = [
        (
            result.threat.text, result.robust_accuracy, result.certified_accuracy, result.verdict, result.curve,
            [run.model_copy(update={"seconds": 0}) for run in result.attacks],
            [(check.name, check.passed, check.detail) for check in result.checks],
        )
        for result in summary.threats
    ]  # fmt: skip
    grid = summary.corruptions and [(cell.corruption, cell.accuracy) for cell in summary.corruptions.cells]
    return threats, grid, summary.clean_accuracy


def _audit(model: Any, threat: str, device: str, **settings: Any) -> AuditSummary:
    images, labels = images_of(LinearModel(), 6, 1)
    settings = {"batch_size": 4, "effort": "quick", "precision": "plain", **settings}
    return robust.audit(copy.deepcopy(model), (images, labels), [threat], device=device, **settings)


@pytest.mark.parametrize("threat", ["linf:0.02", "l2:0.15", "l1:1.5", "l0:2", "patch:10%"])
def test_an_audit_tells_the_same(threat: str) -> None:
    alike(lambda device: _told(_audit(Unproven(), threat, device)))


def test_an_audit_with_proofs_tells_the_same() -> None:
    (((*_, attacks, _),), *_) = alike(lambda device: _told(_audit(LinearModel(), "linf:0.02", device)))
    assert any(run.name == "bounds" and run.tried for run in attacks)


@pytest.mark.parametrize("how", ["noise", "detach"])
def test_an_audit_of_a_model_that_hides_its_gradient_tells_the_same(how: str) -> None:
    alike(lambda device: _told(_audit(Masked(LinearModel(), how), "linf:0.02", device)))


@pytest.mark.parametrize(
    ("threat", "attacks"),
    [
        ("linf:0.02", ["art:ProjectedGradientDescent(max_iter=3)", "foolbox:LinfPGD(steps=3)"]),
        (
            "l2:0.15",
            ["art:HopSkipJump(max_iter=1,max_eval=20,init_eval=5)", "foolbox:BoundaryAttack(steps=10)"],
        ),
    ],
)
def test_other_libraries_find_the_same(threat: str, attacks: list[str]) -> None:
    settings: dict[str, Any] = {"attacks": attacks, "effort": "standard"}
    (((*_, runs, _),), *_) = alike(lambda device: _told(_audit(Unproven(), threat, device, **settings)))
    assert [run.status for run in runs if run.name in attacks] == ["done"] * len(attacks)


def test_an_audit_with_a_surrogate_and_one_through_bpda_tell_the_same() -> None:
    alike(lambda device: _told(_audit(Unproven(), "linf:0.02", device, surrogates=[LinearModel(1)])))
    model = nn.Sequential(nn.Identity(), Unproven())
    alike(lambda device: _told(_audit(model, "linf:0.02", device, bpda=["0"])))


def test_an_audit_behind_masks_tells_the_same() -> None:
    images = contract.batch(2)
    labels = contract.predictions(contract.net(), images)

    def run(device: str) -> Any:
        return _told(
            robust.audit(
                contract.net(), (images, labels), ["patch:2x2"], behind="masking", attacks=["fgsm"], device=device,
                precision="plain", class_names=list("abcd"),
            )
        )  # fmt: skip

    alike(run)


def test_corrupted_images_are_the_same() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), LinearModel())
    labels = torch.arange(4)

    def run(device: str) -> Any:
        return _told(robust.audit(copy.deepcopy(model), (images, labels), ["corruptions:2"], device=device))

    _, grid, _ = alike(run)
    assert len(grid) > 20


def test_a_record_made_here_holds_there(tmp_path: Path) -> None:
    _audit(Unproven(), "linf:0.02", "cpu", out=tmp_path, attacks=["fgsm"], effort="standard")
    replayed = alike(lambda device: verify_audit(tmp_path, Unproven(), device=device))
    assert replayed["linf:0.02"].replayed > 0
    assert replayed["linf:0.02"].failed == []


def test_models_that_are_plain_functions_are_asked_there() -> None:
    def run(device: str) -> Any:
        model = LinearModel().to(device)
        return _told(_audit(lambda images: model(images), "linf:0.02", device, attacks=["pgd"], effort="standard"))

    alike(run)


class Constant(LinearModel):
    """Keeps a tensor where ``to`` does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = torch.full((1, 3, 1, 1), 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - self.middle)


class Outside(LinearModel):
    """Leaves torch."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.from_numpy(images.numpy()))


@pytest.mark.parametrize("kind", [Constant, Outside])
def test_a_model_that_stays_behind_is_said(kind: type[nn.Module]) -> None:
    with pytest.raises(InputError, match="--device cpu"):
        _audit(kind(), "linf:0.02", NAME)


def test_images_may_lie_there_already() -> None:
    images, labels = images_of(LinearModel(), 8, 1)
    settings: dict[str, Any] = {"attacks": ["pgd"], "precision": "plain"}
    here = robust.audit(LinearModel(), (images, labels), ["linf:0.02"], device="cpu", **settings)
    for device in ("cpu", NAME):
        found = robust.audit(
            there(LinearModel()), (images.to(NAME), labels.to(NAME)), ["linf:0.02"], device=device, **settings
        )
        assert _told(found) == _told(here)


# Lane


@pytest.mark.parametrize("kind", ["bfloat16, folded", "float32, folded"])
def test_a_copy_of_the_model_runs_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robust.lane.has_bfloat16", lambda _: True)
    images = contract.batch(6)
    labels = contract.predictions(contract.net(), images)
    model = there(contract.net())
    lane = make_lane(model, images.to(NAME), labels.to(NAME), kind=kind)
    assert lane.report.kind == kind
    assert "1 batch normalizations folded" in lane.report.detail
    counted = CountedModel(model, lane)
    found = PGD(EPS["linf"], steps=5)(counted, images.to(NAME), labels.to(NAME))
    assert isinstance(found, Elsewhere)
    assert counted.passes.backward > 0
    if kind.startswith("float32"):
        here = CountedModel(contract.net(), make_lane(contract.net(), images, labels, kind=kind))
        torch.testing.assert_close(found.cpu(), PGD(EPS["linf"], steps=5)(here, images, labels))
