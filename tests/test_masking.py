"""Gradient masking is seen where it is, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracles import TinyNet
from quarters import quarters
from subjects import LinearModel, Masked, distances, images_of
from torch import nn

from robust.data import ImageSet, load_data
from robust.defenses import masking
from robust.defenses.masking import CROSS_ENTROPY, masked, masking_rows, temperature_sweep
from robust.defenses.training.distillation import DefensiveDistillation
from robust.errors import InputError
from robust.hardening import harden
from robust.threats import ThreatModel

EPS = 0.004
NEAR = 0.1  # untargeted steps may make for another than the nearest class
THREAT = ThreatModel("linf", EPS)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests look at does not hang on C&W and Square, which take most of the time."""
    monkeypatch.setattr(
        masking, "CARLINI_ATTACK", "foolbox:L2CarliniWagnerAttack(binary_search_steps=2, steps=20, stepsize=0.05)"
    )
    monkeypatch.setattr(masking, "_QUERIES", 50)


@pytest.fixture
def data() -> ImageSet:
    images, labels = images_of(LinearModel(), n=30, wrong=0)
    return load_data((images, labels))


def _truth(data: ImageSet) -> float:
    """The exact robust accuracy of the linear model, by the distances of its images to the nearest other class."""
    found = distances(LinearModel(), data.batch(range(len(data))), data.labels, "linf")
    return float((found > EPS).mean())


def test_a_plain_model_is_not_called_masked(data: ImageSet) -> None:
    rows = masking_rows(LinearModel(), LinearModel(), data, THREAT, 1.0)
    found = {row.attack: row.accuracy for row in rows}
    truth = _truth(data)
    assert 0.1 < truth < 0.9
    for attack in (CROSS_ENTROPY, "PGD, margin", "transfer"):
        assert truth <= found[attack] <= truth + NEAR
    assert masked(rows) < NEAR
    assert rows[0].zero_gradients == 0


def test_a_saturated_model_is_and_the_other_attacks_find_the_truth(data: ImageSet) -> None:
    rows = masking_rows(Masked(LinearModel(), "saturate"), LinearModel(), data, THREAT, 1e4)
    found = {row.attack: row.accuracy for row in rows}
    assert found[CROSS_ENTROPY] > _truth(data) + 0.3
    for attack in ("PGD, logits / temperature", "PGD, margin", "transfer"):
        assert _truth(data) <= found[attack] <= _truth(data) + NEAR
    assert masked(rows) > 0.3
    assert rows[0].zero_gradients > 0.5
    assert rows[0].logit > 1000


def test_a_norm_without_square_is_refused(data: ImageSet) -> None:
    with pytest.raises(InputError, match="linf or l2"):
        masking_rows(LinearModel(), LinearModel(), data, ThreatModel("l1", 1.0), 1.0)


def test_a_sweep_is_kept_and_resumed(tmp_path: Path) -> None:
    defense = DefensiveDistillation("linf:0.05", epochs=2, batch_size=24, device="cpu")
    model: nn.Module = TinyNet()
    parts = quarters(), quarters(48, seed=1), quarters(8, seed=2)
    rows = temperature_sweep(defense, model, *parts, (20, 1), tmp_path)
    assert [row["temperature"] for row in rows] == [1.0] * 7 + [20.0] * 7
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")}
    assert len(kept) == 4, "a teacher and a student for each temperature"
    assert temperature_sweep(defense, model, *parts, (1, 20), tmp_path) == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("checkpoint.pt")} == kept


def test_hardening_by_distillation_says_what_it_is(tmp_path: Path) -> None:
    found = harden(
        TinyNet(), quarters(160), method="distillation(temperature=30)", threat="linf:0.05", epochs=2, batch_size=24,
        out=tmp_path / "out", device="cpu", limit=12, temperatures=(1,),
    )  # fmt: skip
    assert any("masks gradients" in remark for remark in found.card["remarks"])
    written = json.loads((tmp_path / "out/card.json").read_text())["masking"]
    assert {row["temperature"] for row in written} == {1.0, 30.0}
    page = (tmp_path / "out/report.html").read_text()
    assert "The gain is gradient masking" in page
    assert "Distillation masks the gradient" in page
    assert torch.isfinite(next(found.model.parameters())).all()
