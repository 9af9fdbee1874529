"""Proofs inside an audit: what they spare, what they claim, and what happens where an attack contradicts one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import TinyNet
from subjects import LinearModel, distances, images_of
from torch import Tensor, nn

import robust
from robust import proving
from robust.defenses.bounds import proving as bounds
from robust.defenses.bounds.proving import Proofs
from robust.reports import summary_text
from robust.summary import AttackRecord, AuditSummary, ThreatResult


def audited(model: nn.Module, threat: str = "linf:0.004", **settings: object) -> AuditSummary:
    images, labels = images_of(model)
    return robust.audit(model, (images, labels), [threat], **settings)  # type: ignore[arg-type]


def record(result: ThreatResult, name: str) -> AttackRecord:
    return next(attack for attack in result.attacks if attack.name == name)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.004), ("l2", 0.03)])
def test_certified_accuracy_of_a_linear_model_is_the_closed_form(norm: str, eps: float) -> None:
    model = LinearModel()
    images, labels = images_of(model)
    exact = distances(model, images, labels, norm)
    summary = robust.audit(model, (images, labels), [f"{norm}:{eps}"])
    result = summary.threats[0]
    assert result.certified_accuracy is not None
    assert result.certified_accuracy.numerator == int((exact > eps + 2e-5).sum()) > 4
    assert result.certified_accuracy.numerator <= result.robust_accuracy.numerator
    assert result.certified_accuracy.n == 40
    assert result.verdict == "sound", result.reasons
    assert "proven: " in summary_text(summary)


def test_only_the_first_attack_runs_on_proven_images() -> None:
    result = audited(LinearModel()).threats[0]
    first, second = result.attacks[:2]
    assert result.certified_accuracy is not None
    assert first.tried == 36
    assert second.tried == 36 - first.broken - result.certified_accuracy.numerator


def test_the_same_images_stand_with_and_without_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    with_proofs = audited(LinearModel()).threats[0]
    monkeypatch.setattr(proving, "NORMS", ())
    without = audited(LinearModel()).threats[0]
    assert without.certified_accuracy is None
    assert without.robust_accuracy == with_proofs.robust_accuracy
    assert without.verdict == with_proofs.verdict


def test_a_proof_that_an_attack_contradicts_stops_the_audit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    genuine = bounds.prove_network

    def credulous(*arguments: object, **settings: object) -> Proofs:
        proofs = genuine(*arguments, **settings)  # type: ignore[arg-type]
        return replace(proofs, margin=torch.ones_like(proofs.margin))

    monkeypatch.setattr(bounds, "prove_network", credulous)
    for _ in range(2):  # resumed, it stops again
        with pytest.raises(proving.ContradictionError, match=r"image \d+ is proven robust under linf:0.004, yet fgsm"):
            audited(LinearModel(), out=tmp_path / "out")


def test_a_model_without_bounds_is_audited_and_says_why() -> None:
    summary = audited(TinyNet().eval(), limit=12)
    result = summary.threats[0]
    assert result.certified_accuracy is None
    assert "tanh" in record(result, "bounds").detail
    assert record(result, "bounds").tried == 0
    assert all("bounds" not in reason for reason in result.reasons)


def test_another_norm_has_no_bounds() -> None:
    result = audited(LinearModel(), "l1:0.12", limit=12).threats[0]
    assert result.certified_accuracy is None
    assert "l1" in record(result, "bounds").detail


class Wide(nn.Module):
    """Two hidden layers whose values nearly all may change sign: nothing is provable."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(108, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4)
        )
        for parameter in self.layers.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def test_a_network_that_proves_nothing_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[int] = []
    genuine = bounds.prove_network

    def counted(*arguments: object, **settings: object) -> Proofs:
        proofs = genuine(*arguments, **settings)  # type: ignore[arg-type]
        spent.append(int(proofs.functions.sum()))
        return proofs

    monkeypatch.setattr(bounds, "prove_network", counted)
    result = audited(Wide(), "linf:0.3", attacks=["fgsm"]).threats[0]
    assert result.certified_accuracy is None
    assert record(result, "bounds").tried <= 4
    assert sum(spent) <= 0.03 * (200 * 36 + 60_000)
