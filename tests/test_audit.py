"""The audit as a whole, against closed forms, broken attacks and interruptions."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import patch_gain
from subjects import SHAPE, LinearModel, Masked, Unproven, distances, images_of, write_factory, write_npz
from torch import Tensor, nn

import robust
from robust import auditing, running
from robust.attacks import PGD
from robust.attacks.base import Attack
from robust.curve import curve
from robust.errors import InputError
from robust.lane import Lane, LaneReport
from robust.ledger import Ledger
from robust.request import default_threats
from robust.summary import AuditSummary, CheckRecord, ThreatResult
from robust.threats import ThreatModel

EPS = {"linf": 0.004, "l2": 0.03, "l1": 0.12}


def audited(model: torch.nn.Module | None = None, **settings: object) -> AuditSummary:
    model = model or LinearModel()
    images, labels = images_of(model)
    return robust.audit(model, (images, labels), **{"threats": ["linf:0.004"], **settings})  # type: ignore[arg-type]


def check(result: ThreatResult, name: str) -> CheckRecord:
    return next(check for check in result.checks if check.name == name)


@pytest.mark.parametrize("norm", list(EPS))
def test_robust_accuracy_is_the_closed_form(norm: str) -> None:
    model = LinearModel()
    images, labels = images_of(model)
    exact = distances(model, images, labels, norm)
    standing = int((exact > EPS[norm]).sum())
    assert 5 <= standing <= 30, "the case must leave something to break and something to stand"
    summary = robust.audit(model, (images, labels), [f"{norm}:{EPS[norm]}"])
    result = summary.threats[0]
    assert summary.clean_accuracy.numerator == 36
    assert result.robust_accuracy.numerator == standing
    assert result.robust_accuracy.low < standing / 40 < result.robust_accuracy.high
    assert result.verdict == "sound", result.reasons


def test_in_l0_the_query_attack_that_every_image_meets_is_not_said_to_be_missing() -> None:
    result = audited(threats=["l0:2"]).threats[0]
    assert next(attack for attack in result.attacks if attack.name == "sparse-rs(queries=500)").status == "done"
    asked = check(result, "black-box")
    assert asked.passed is None
    assert "no query attack followed sparse-rs(queries=500)" in asked.detail


def test_under_a_patch_too() -> None:
    """The patch given in pixels; of a linear model every place can be tried."""
    model = LinearModel()
    labels = torch.arange(24) % 4
    lead = torch.linspace(0.02, 0.2, 24)[:, None]
    images = (0.5 + lead * model.head.weight.detach()[labels].sign()).view(-1, *SHAPE)
    labels[:4] = (labels[:4] + 1) % 4
    weights = model.head.weight.detach().double().numpy().reshape(-1, *SHAPE)
    with torch.no_grad():
        logits = model(images).double().numpy()
    sides = []
    for image, label, logit in zip(images.double().numpy(), labels.tolist(), logits, strict=True):
        rivals = [(weights[k] - weights[label], logit[label] - logit[k]) for k in range(len(weights)) if k != label]
        sides.append(min(s for s in range(7) if any(patch_gain(slope, image, s) > gap for slope, gap in rivals)))
    exact = np.array(sides)
    standing = int((exact > 2).sum())
    assert 3 <= standing <= 17, np.bincount(exact)
    summary = robust.audit(model, (images, labels), ["patch:2x2"])
    result = summary.threats[0]
    assert (result.threat.norm, result.threat.eps, result.threat.text) == ("patch", 4 / 36, "patch:2x2")
    assert result.robust_accuracy.numerator == standing
    assert result.verdict == "sound", result.reasons
    assert result.median_distance is not None
    median = float(np.median(exact[exact > 0]))
    assert median**2 / 36 <= result.median_distance <= (median + 1) ** 2 / 36


def test_a_sentinel_takes_its_gradients_from_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the audit searches on a fast copy, what watches over it must not."""
    on_the_copy: dict[int, set[bool]] = {}
    run = PGD.run

    def watched(self: PGD, model: nn.Module, *rest: Tensor) -> Tensor:
        on_the_copy.setdefault(self.steps, set()).add(getattr(model, "evidence", model) is not model)
        return run(self, model, *rest)  # type: ignore[arg-type]

    def copied(model: nn.Module, *_: object, **__: object) -> Lane:
        return Lane(model, copy.deepcopy(model), LaneReport("float32, folded", 1.0, 2.0, "as this test wants it"))

    monkeypatch.setattr(PGD, "run", watched)
    monkeypatch.setattr(auditing, "make_lane", copied)
    model = LinearModel()
    labels = torch.arange(8) % 4
    images = (0.5 + 0.2 * model.head.weight.detach()[labels].sign()).view(-1, *SHAPE)
    found = robust.audit(model, (images, labels), ["patch:1x1"], device="cpu").threats[0]
    assert found.robust_accuracy.numerator > 0
    assert on_the_copy[100] == {False}
    assert True in on_the_copy[20]  # the search for the smallest perturbations


def test_the_demo_meets_a_patch_by_default_and_nothing_else_does() -> None:
    assert [ThreatModel.parse(text).norm for text in default_threats("demo", "demo")] == ["linf", "patch"]
    assert default_threats("demo", "some.npz") == default_threats(LinearModel(), "demo") == ("linf:8/255",)
    # Most attacks have no form for a patch, and nobody asked for it.
    assert default_threats("demo", "demo", ["fab"]) == ("linf:8/255",)


@pytest.mark.parametrize("norm", list(EPS))
def test_smallest_perturbations_approach_the_exact_distances(norm: str) -> None:
    model = LinearModel()
    images, labels = images_of(model)
    exact = distances(model, images, labels, norm)
    result = robust.audit(model, (images, labels), [f"{norm}:{EPS[norm]}"]).threats[0]
    assert result.median_distance is not None
    ratio = result.median_distance / float(np.median(exact[exact > 0]))
    assert 1 - 1e-4 <= ratio <= 1.25


def test_curve_agrees_with_the_figures_it_summarizes() -> None:
    summary = audited()
    result = summary.threats[0]
    values = [point.robust_accuracy for point in result.curve]
    assert values == sorted(values, reverse=True)
    assert result.curve[0].eps == 0
    assert values[0] == summary.clean_accuracy.value
    at_eps = next(point for point in result.curve if point.eps == result.threat.eps)
    assert at_eps.robust_accuracy == result.robust_accuracy.value


def test_curve_counts_by_hand() -> None:
    correct, distance = np.array([True, True, True, False]), np.array([0.1, 0.3, np.inf, np.inf])
    points = {round(p.eps, 6): p.robust_accuracy for p in curve(correct, distance, 0.2, "l2")}
    assert points[0.0] == 0.75
    assert points[0.2] == 0.5
    assert min(points.values()) == 0.25


def test_a_misclassified_image_counts_as_not_robust_and_is_left_alone() -> None:
    summary = audited()
    assert summary.threats[0].robust_accuracy.n == 40
    assert all(record.tried <= 36 for record in summary.threats[0].attacks)


def test_a_robust_model_stands() -> None:
    summary = audited(threats=["linf:1e-5"])
    assert summary.threats[0].robust_accuracy.value == summary.clean_accuracy.value
    assert summary.verdict == "sound"


class _Cheat(PGD):
    """Claims success with a perturbation outside the ball."""

    def run(self, model, images: Tensor, goal, eps: Tensor, seeds: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return (images + 0.5).clamp(0, 1)


def test_claims_outside_the_threat_model_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "build", lambda text, *, norm, eps, seed: _Cheat(eps, norm=norm))
    monkeypatch.setattr(running, "smallest", lambda model, images, labels, threat, bracket, seed: bracket)
    result = audited(attacks=["pgd"]).threats[0]
    cheat = result.attacks[0]
    assert cheat.broken == 0
    assert cheat.rejected > 0
    assert result.robust_accuracy.numerator == 36


def test_a_failing_attack_makes_the_verdict_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = running.build

    def build(text: str, *, norm: str, eps: float, seed: int) -> Attack:
        if text.startswith("fgsm"):
            raise RuntimeError("out of luck\nsecond line")
        return genuine(text, norm=norm, eps=eps, seed=seed)

    monkeypatch.setattr(running, "build", build)
    result = audited().threats[0]
    failed = next(record for record in result.attacks if record.name.startswith("fgsm"))
    assert (failed.status, failed.detail) == ("failed", "RuntimeError: out of luck")
    assert result.verdict == "inconclusive"
    assert any("out of luck" in reason for reason in result.reasons)
    assert not result.score.trusted
    assert sum(record.broken for record in result.attacks) > 0


def test_a_weaker_audit_scores_no_lower_and_is_never_sound() -> None:
    standard, weak = audited(), audited(attacks=["noise"])
    assert weak.score.value >= standard.score.value - 1e-9
    assert weak.verdict != "sound"
    assert not weak.score.trusted
    assert any("leave out" in reason for reason in weak.threats[0].reasons)


@pytest.mark.parametrize("stronger", ["auto", "auto(effort='exhaustive')", "autoattack"])
def test_a_list_that_is_stronger_than_the_standard_one_is_sound(stronger: str) -> None:
    result = audited(attacks=[stronger]).threats[0]
    assert result.verdict == "sound", result.reasons
    assert result.robust_accuracy == audited().threats[0].robust_accuracy


def test_no_time_at_all_is_inconclusive_and_says_what_is_missing() -> None:
    summary = audited(budget=1e-9)
    assert summary.verdict == "inconclusive"
    assert {record.status for record in summary.threats[0].attacks} == {"skipped"}
    assert all("budget" in reason or "not checked" in reason for reason in summary.threats[0].reasons)


@pytest.mark.parametrize(
    ("how", "failing"),
    [
        ("quantize", "gradients"),
        ("detach", "gradients"),
        ("saturate", "gradients"),
        ("softmax", "logits"),
        ("batch", "batch"),
    ],
)
def test_masked_models_are_suspect(how: str, failing: str) -> None:
    images, labels = images_of(LinearModel())
    summary = robust.audit(Masked(LinearModel(), how), (images, labels), ["linf:0.004"])
    result = summary.threats[0]
    assert check(result, failing).passed is False, [c.detail for c in result.checks]
    assert result.verdict == "suspect"
    assert not summary.score.trusted
    assert check(result, failing).title in " ".join(result.reasons)


def test_without_gradients_black_box_attacks_do_the_breaking() -> None:
    images, labels = images_of(LinearModel())
    result = robust.audit(Masked(LinearModel(), "detach"), (images, labels), ["linf:0.004"]).threats[0]
    square = next(record for record in result.attacks if record.name.startswith("square"))
    assert square.status == "done"
    assert square.broken >= 5
    assert "white-box" not in {record.knowledge for record in result.attacks}


def test_the_model_is_left_as_it_was() -> None:
    model = torch.nn.Sequential(LinearModel(), torch.nn.Dropout(0.5))
    model[0].eval()
    model.train()
    model[0].head.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = images_of(LinearModel())
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    robust.audit(model, (images, labels), ["linf:0.004"], attacks=["fgsm"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert not model[0].head.bias.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_seed_gives_the_same_record_in_any_batch_size() -> None:
    first, second = audited(batch_size=7), audited(batch_size=40)
    assert [r.robust_accuracy for r in first.threats] == [r.robust_accuracy for r in second.threats]
    assert first.threats[0].curve == second.threats[0].curve
    assert first.data.sha256 == second.data.sha256


def test_files_hold_what_the_call_returns(tmp_path: Path) -> None:
    summary = audited(out=tmp_path / "out")
    assert AuditSummary.read(tmp_path / "out" / "audit.json") == summary
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{summary.threats[0].robust_accuracy.numerator}" in page
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        broken = [row for row in ledger.rows("linf:0.004") if row.broken_by]
        labels = {row.id: row.label for row in ledger.images()}
        assert len(broken) == 36 - summary.threats[0].robust_accuracy.numerator
        for row in broken:
            stored = ledger.adversarial(row.image, "linf:0.004")
            assert stored is not None
            assert np.abs(stored - ledger.original(row.image)).max() <= 0.004 + 1e-6
            prediction = LinearModel()(torch.from_numpy(stored)[None]).argmax(1)
            assert int(prediction) == row.prediction != labels[row.image]


def test_a_finished_audit_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = audited(out=tmp_path / "out")
    monkeypatch.setattr(running, "build", lambda *_, **__: pytest.fail("an attack ran again"))
    second = audited(out=tmp_path / "out")
    assert first.threats == second.threats


def test_an_audit_cut_off_by_its_budget_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, calls = running.build, []

    def build(text: str, *, norm: str, eps: float, seed: int) -> Attack:
        calls.append(text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return genuine(text, norm=norm, eps=eps, seed=seed)

    monkeypatch.setattr(running, "build", build)
    with pytest.raises(KeyboardInterrupt):
        audited(out=tmp_path / "out", batch_size=10)
    resumed = audited(out=tmp_path / "out", batch_size=10)
    whole = audited(batch_size=10)
    assert resumed.threats[0].robust_accuracy == whole.threats[0].robust_accuracy
    assert [(a.name, a.tried, a.broken) for a in resumed.threats[0].attacks] == [
        (a.name, a.tried, a.broken) for a in whole.threats[0].attacks
    ]


def test_another_audit_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    audited(out=tmp_path / "out", attacks=["noise"])
    with pytest.raises(InputError, match="another seed; give another folder"):
        audited(out=tmp_path / "out", attacks=["noise"], seed=1)
    with pytest.raises(InputError, match="another model"):
        audited(LinearModel(seed=5), out=tmp_path / "out", attacks=["noise"])


def test_a_killed_audit_resumes_with_the_same_verdicts(tmp_path: Path) -> None:
    write_factory(tmp_path / "model.py", "time.sleep(0.02)")
    images, labels = write_npz(tmp_path / "data.npz")
    command = [
        sys.executable, "-m", "robust", "audit", str(tmp_path / "model.py") + ":load", str(tmp_path / "data.npz"),
        "--threat", "linf:0.004", "--batch-size", "8", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if b"fgsm" in process.stderr.readline():
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    with Ledger.open(tmp_path / "out" / "ledger.sqlite") as ledger:
        runs = ledger.runs("linf:0.004")
    assert any(run.attack == "fgsm" for run in runs)
    assert not any(run.attack.startswith("square") for run in runs), "killed too late to test anything"
    write_factory(tmp_path / "model.py")
    resumed = robust.audit(
        f"{tmp_path / 'model.py'}:load", tmp_path / "data.npz", ["linf:0.004"], out=tmp_path / "out", batch_size=8
    )
    whole = robust.audit(f"{tmp_path / 'model.py'}:load", tmp_path / "data.npz", ["linf:0.004"], batch_size=8)
    exact = distances(LinearModel(), images, labels, "linf")
    assert resumed.threats[0].robust_accuracy == whole.threats[0].robust_accuracy
    assert resumed.threats[0].robust_accuracy.numerator == int((exact > 0.004).sum())
    assert resumed.threats[0].curve == whole.threats[0].curve
    assert resumed.verdict == whole.verdict


def test_two_threats_are_judged_apart_and_the_worst_counts() -> None:
    summary = audited(threats=["linf:0.004", "l2:0.005"])
    first, second = summary.threats
    assert first.threat.text == "linf:0.004"
    assert second.robust_accuracy.value > first.robust_accuracy.value
    assert summary.score.value == min(first.score.value, second.score.value)


def test_limit_draws_a_random_sample() -> None:
    model = LinearModel()
    images, labels = images_of(model)
    one = robust.audit(model, (images, labels), ["linf:0.004"], attacks=["noise"], limit=10)
    two = robust.audit(model, (images, labels), ["linf:0.004"], attacks=["noise"], limit=10, seed=1)
    assert (one.data.n, one.data.available) == (10, 40)
    assert one.data.sha256 != two.data.sha256
    assert any("leave out" in reason for reason in one.threats[0].reasons)


def test_a_chance_level_model_draws_a_warning() -> None:
    model = LinearModel()
    images, labels = images_of(model)
    summary = robust.audit(model, (images, (labels + 1) % 4), ["linf:0.004"], attacks=["noise"])
    assert any("near chance" in warning for warning in summary.warnings)
    assert summary.verdict != "sound"


def test_effort_is_that_of_the_standard_list(tmp_path: Path) -> None:
    model = Unproven().eval()
    images = images_of(model)
    spent = {}
    for effort in ("quick", "exhaustive"):
        summary = robust.audit(model, images, ["linf:0.01"], effort=effort, precision="plain")
        assert f"auto(effort='{effort}')" in summary.settings.attacks
        assert summary.settings.standard_attacks
        spent[effort] = next(a for a in summary.threats[0].attacks if a.name.startswith("auto")).backward
    assert spent["quick"] < spent["exhaustive"]
    with pytest.raises(InputError, match="write it into the attack"):
        robust.audit(model, images, attacks=["fgsm"], effort="quick")
    with pytest.raises(InputError, match="did you mean"):
        robust.audit(model, images, effort="quik")


def test_another_effort_is_another_audit(tmp_path: Path) -> None:
    model = LinearModel().eval()
    robust.audit(model, images_of(model), ["linf:0.01"], effort="quick", out=tmp_path / "out")
    with pytest.raises(InputError, match="another attacks"):
        robust.audit(model, images_of(model), ["linf:0.01"], out=tmp_path / "out")
