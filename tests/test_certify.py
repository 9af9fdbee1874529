"""robust.certify and the command: certificates of a linear model, resume, records, reports, and bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from halfspace import SHAPE, SIGMA, Halfspace
from subjects import write_npz
from torch import Tensor, nn

import robust
from robust.defenses.smoothing import CertificateBroken
from robust.defenses.smoothing.record import CertifySummary
from robust.errors import InputError, OtherAuditError
from robust.reports.certificate import render_certificate

DISTANCES = (0.6, 0.4, 0.2, -0.2, 0.02, 0.45)
RADII = (0.1, 0.3, 0.5)


@pytest.fixture
def model() -> Halfspace:
    return Halfspace().eval()


@pytest.fixture
def data(model: Halfspace) -> tuple[Tensor, Tensor]:
    """The last image is labeled wrongly: its certificate, for the other class, must not count."""
    return model.at(*DISTANCES).clamp(0, 1), torch.tensor([0, 0, 0, 1, 0, 1])


def certify(model: nn.Module, data: tuple[Tensor, Tensor], **settings: Any) -> CertifySummary:
    wanted = {"sigma": SIGMA, "radii": RADII, "draws": 5000, "device": "cpu"} | settings
    return robust.certify(model, data, **wanted)  # type: ignore[arg-type]


class TestCertify:
    def test_counts_what_is_certified_for_the_true_class(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        result = certify(model, data).methods[0]
        assert [row.radius for row in result.rows] == [0.5, 0.3, 0.1, 0.1, 0.0, 0.3]
        assert [point.certified.numerator for point in result.points] == [4, 2, 1]
        assert [point.certified.n for point in result.points] == [6, 6, 6]
        assert result.abstained.numerator == 1
        assert result.draws_mean == pytest.approx(np.mean([row.draws for row in result.rows]))

    def test_methods_stand_beside_each_other(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        anytime, cohen = certify(model, data, beside="cohen").methods
        assert (anytime.method, cohen.method) == ("anytime", "cohen")
        assert [p.certified.numerator for p in anytime.points] == [p.certified.numerator for p in cohen.points]
        assert cohen.draws_mean == 5100
        assert anytime.draws_mean < 2500
        alone = certify(model, data, method="cohen").methods[0]
        assert [row.radius for row in alone.rows] == pytest.approx([row.radius for row in cohen.rows], abs=0.05)

    def test_a_tolerance_gives_each_image_its_radius(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        rows = certify(model, data, tolerance=0.05, draws=50_000).methods[0].rows
        for row, distance in zip(rows, DISTANCES, strict=True):
            assert max(0, abs(distance) - 0.08) <= row.radius <= abs(distance)

    def test_attacks_stand_above_the_certificates(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        summary = certify(model, data, attack=True)
        assert summary.attack is not None
        assert [point.radius for point in summary.attack.points] == [0, *RADII]
        # The box cuts a little off the attack, so an image 0.02 short of the radius may stand.
        assert [point.standing.numerator for point in summary.attack.points] == [5, 4, 2, 1]
        for attacked, point in zip(summary.attack.points[1:], summary.methods[0].points, strict=True):
            assert attacked.standing.numerator >= point.certified.numerator

    def test_a_broken_certificate_stops_with_an_error_again_and_again(
        self, data: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        class Sly(Halfspace):
            """Keeps its class for the images themselves and gives the other one wherever it is attacked."""

            attacked = False

            def forward(self, images: Tensor) -> Tensor:
                self.attacked |= images.requires_grad
                return super().forward(images) * (-1 if self.attacked else 1)

        broken = r"image 0 is certified up to 0.5 .* attack of size 0.1 broke"
        with pytest.raises(CertificateBroken, match=broken):
            certify(Sly().eval(), data, attack=True, out=tmp_path)
        assert not (tmp_path / "certify.json").exists()
        with pytest.raises(CertificateBroken, match=broken):
            certify(Sly().eval(), data, attack=True, out=tmp_path)

    def test_bfloat16_is_named_and_certified_as_such(self, data: tuple[Tensor, Tensor]) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(SHAPE), 2)).eval()
        summary = certify(network, data, precision="bfloat16", limit=2)
        assert summary.model.name == "Sequential (bfloat16 copy)"
        assert summary.settings.precision == "bfloat16"
        assert certify(network, data, limit=2).model.name == "Sequential"

    def test_bfloat16_of_what_cannot_be_copied_is_one_line(self, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="bfloat16: the model cannot be copied"):
            robust.certify(
                lambda images: images.flatten(1)[:, :2], data, sigma=0.25, precision="bfloat16", out=tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()

    def test_leaves_the_model_and_the_global_state_as_they_were(
        self, model: Halfspace, data: tuple[Tensor, Tensor]
    ) -> None:
        model.train()
        state, weights = torch.get_rng_state(), model.weights.clone()
        certify(model, data, attack=True, draws=500)
        assert model.training
        assert model.weights.requires_grad
        assert torch.equal(model.weights, weights)
        assert torch.equal(torch.get_rng_state(), state)

    def test_radii_out_of_reach_are_warned_of(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        summary = certify(model, data, radii=[0.1, 2.0])
        assert summary.methods[0].points[1].certified.numerator == 0
        assert "radius 2" in summary.warnings[0]
        assert not certify(model, data).warnings

    def test_default_radii_are_multiples_of_sigma(self, model: Halfspace, data: tuple[Tensor, Tensor]) -> None:
        assert certify(model, data, radii=None).settings.radii == [0.25, 0.5, 0.75]


class TestResume:
    def test_a_killed_run_ends_as_one_that_was_not(
        self, model: Halfspace, data: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        whole = certify(model, data, out=tmp_path / "whole", attack=True)
        lines = (tmp_path / "whole" / "certify.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "cut").mkdir()
        (tmp_path / "cut" / "certify.jsonl").write_text("".join(lines[:4]) + lines[4][:10])
        resumed = certify(model, data, out=tmp_path / "cut", attack=True)
        assert [m.rows for m in resumed.methods] == [m.rows for m in whole.methods]
        assert resumed.attack is not None
        assert whole.attack is not None
        assert resumed.attack.points == whole.attack.points

    def test_a_method_added_later_is_the_one_run_beside(
        self, model: Halfspace, data: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        certify(model, data, method="cohen", out=tmp_path)
        later = certify(model, data, beside="cohen", out=tmp_path)
        at_once = certify(model, data, beside="cohen")
        assert [method.rows for method in later.methods] == [method.rows for method in at_once.methods]

    def test_what_is_finished_is_not_drawn_again(self, data: tuple[Tensor, Tensor], tmp_path: Path) -> None:
        class Counted(Halfspace):
            passed = 0

            def forward(self, images: Tensor) -> Tensor:
                type(self).passed += len(images)
                return super().forward(images)

        certify(Counted().eval(), data, out=tmp_path)
        first, Counted.passed = Counted.passed, 0
        certify(Counted().eval(), data, out=tmp_path)
        assert first > 500
        assert Counted.passed < 50  # the checks of model and data alone

    @pytest.mark.parametrize(
        "other", [{"sigma": 0.3}, {"radii": (0.1,)}, {"seed": 1}, {"alpha": 0.01}, {"limit": 3}, {"draws": 4000}]
    )
    def test_another_run_in_the_folder_is_refused(
        self, model: Halfspace, data: tuple[Tensor, Tensor], tmp_path: Path, other: dict[str, Any]
    ) -> None:
        certify(model, data, out=tmp_path)
        before = (tmp_path / "certify.json").read_bytes()
        with pytest.raises(OtherAuditError, match="another"):
            certify(model, data, out=tmp_path, **other)
        assert (tmp_path / "certify.json").read_bytes() == before

    def test_a_corrupted_record_is_one_clear_line(
        self, model: Halfspace, data: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        (tmp_path / "certify.jsonl").write_text('{"model": 1}\nnonsense\n')
        with pytest.raises(InputError, match="corrupted"):
            certify(model, data, out=tmp_path)


class TestReport:
    def test_record_reads_back_and_the_report_is_made_from_it_alone(
        self, model: Halfspace, data: tuple[Tensor, Tensor], tmp_path: Path
    ) -> None:
        summary = certify(model, data, out=tmp_path, beside="cohen", attack=True, name="<b>net</b>")
        read = CertifySummary.read(tmp_path / "certify.json")
        assert read == summary
        html = (tmp_path / "certify.html").read_text()
        assert html == render_certificate(read)
        assert "<b>net</b>" not in html
        assert "4 of 6 images provably keep their true class" in html
        for part in ("Anytime test", "Cohen&#39;s procedure", "Left standing by attacks", "<svg"):
            assert part in html
        assert "http://" not in html.replace("http://www.w3.org", "")
        assert "<script" not in html


Run = Callable[..., tuple[int, str, str]]
MODEL_FILE = """
import torch
from torch import nn
def load():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 4))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Run) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL_FILE)
    write_npz("data.npz")
    return partial(command, "certify", "model.py:load", "data.npz")


class TestCommand:
    SMALL = ("--limit", "5", "--draws", "300")

    def test_writes_record_and_report(self, run: Run) -> None:
        code, out, err = run("--sigma", "0.25", *self.SMALL, "--out", "out")
        assert code == 0, err
        assert "radius 0.25" in out
        assert "out/certify.html" in out
        assert sorted(path.name for path in Path("out").iterdir()) == ["certify.html", "certify.json", "certify.jsonl"]

    def test_json_and_default_folder(self, run: Run) -> None:
        code, out, err = run("--sigma", "0.25", *self.SMALL, "--json", "--radii", "0.1,0.2")
        assert code == 0, err
        assert [point["radius"] for point in json.loads(out)["methods"][0]["points"]] == [0.1, 0.2]
        assert len(list(Path("robust-certificates").iterdir())) == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--sigma", "0"), "sigma 0"),
            (("--sigma", "-1"), "sigma -1"),
            (("--sigma", "nan"), "sigma nan"),
            (("--sigma", "0.25", "--radii", "0"), "radius 0"),
            (("--sigma", "0.25", "--radii", "0.1,-0.2"), "radius -0.2"),
            (("--sigma", "0.25", "--radii", "wide"), "--radii wide"),
            (("--sigma", "0.25", "--alpha", "0"), "alpha 0"),
            (("--sigma", "0.25", "--alpha", "1"), "alpha 1"),
            (("--sigma", "0.25", "--tolerance", "0"), "tolerance 0"),
            (("--sigma", "0.25", "--draws", "0"), "draws 0"),
            (("--sigma", "0.25", "--method", "cohn"), "did you mean cohen"),
            (("--sigma", "0.25", "--beside", "anytime"), "beside anytime"),
            (("--sigma", "0.25", "--precision", "float16"), "did you mean"),
            (("--sigma", "0.25", "--limit", "0"), "limit 0"),
            (("--sigma", "0.25", "--device", "cud"), "device 'cud'"),
            (("--sigma", "0.25", "--out", "data.npz"), "--out data.npz"),
        ],
    )
    def test_bad_input_is_one_line_and_writes_nothing(self, run: Run, arguments: tuple[str, ...], message: str) -> None:
        before = sorted(Path().rglob("*"))
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in str(path)] == before

    def test_labels_outside_the_models_classes(self, run: Run) -> None:
        np.savez("data.npz", images=np.zeros((2, 6, 6, 3), np.uint8), labels=np.array([0, 9]))
        code, _, err = run("--sigma", "0.25", "--out", "out")
        assert code == 2
        assert "label 9 is outside the model's 4 logits" in err
        assert not Path("out").exists()
