"""Hardening from end to end: training between two audits, its files, its report, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import TinyNet
from quarters import quarters

import robust
from robust.comparison import Paired, paired_robust
from robust.data import ImageSet
from robust.defenses import NFGSM
from robust.errors import InputError
from robust.hardening import harden
from robust.ledger import Ledger
from robust.models import identify
from robust.stats import mcnemar

THREAT = "linf:0.1"
FACTORY = """
import sys
sys.path.insert(0, {tests!r})
from oracles import TinyNet

def load():
    return TinyNet()
"""
FILES = {"before", "after", "training", "weights.safetensors", "card.json", "README.md", "history.json", "report.html"}


def _npz(path: Path, data: ImageSet) -> None:
    images = (data.batch(range(len(data))) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.savez(path, images=images.numpy(), labels=data.labels.numpy(), class_names=np.array(list("abcd")))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model file, training and test images, made the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    _npz(Path("train.npz"), quarters(160))
    _npz(Path("test.npz"), quarters(40, seed=5))
    return tmp_path


@pytest.fixture
def run(here: Path, command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return command


COMMAND = (
    "harden", "net.py:load", "train.npz", "--test", "test.npz", "--method", "nfgsm(noise=1.5)", "--threat", THREAT,
    "--epochs", "6", "--batch-size", "16", "--fresh", "--augment", "shift:1", "--device", "cpu", "--out", "out",
)  # fmt: skip


def test_the_command_hardens_and_says_so(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(*COMMAND)
    assert code == 0, err
    assert {path.name for path in Path("out").iterdir()} == FILES
    card = json.loads(Path("out/card.json").read_text())
    clean, hardened = card["figures"]["clean"], card["figures"]["robust"]
    assert hardened["after"]["value"] > hardened["before"]["value"] + 0.3
    assert hardened["p"] < 0.001
    assert hardened["p"] == mcnemar(hardened["only_before"], hardened["only_after"])
    assert clean["after"]["n"] == hardened["before"]["n"] == 40
    assert card["method"]["settings"]["noise"] == 1.5
    assert card["data"]["train"]["n"] + card["data"]["validation"]["n"] == 160
    assert f"{hardened['after']['value']:.1%}" in out
    assert "out/report.html" in out
    assert "validation images are a tenth" in err
    page = Path("out/report.html").read_text()
    assert "Robust accuracy rose from" in page
    assert "McNemar" in page
    assert page.count("<svg") >= 3


def test_the_weights_can_be_audited_and_are_those_of_the_card(run: Callable[..., tuple[int, str, str]]) -> None:
    run(*COMMAND)
    card = json.loads(Path("out/card.json").read_text())
    assert card["use"] == f"robust audit net.py:load test.npz --weights out/weights.safetensors --threat {THREAT}"
    code, _, err = run(*card["use"].split()[1:], "--device", "cpu", "--out", "again")
    assert code == 0, err
    again, after = (robust.AuditSummary.read(Path(name) / "audit.json") for name in ("again", "out/after"))
    assert again.model.sha256 == after.model.sha256 == card["weights"]["sha256"]
    assert again.threats[0].robust_accuracy == after.threats[0].robust_accuracy
    before = robust.AuditSummary.read(Path("out/before/audit.json"))
    assert before.data.sha256 == after.data.sha256
    assert before.settings.seed == after.settings.seed
    assert "auto" in [attack.name for attack in after.threats[0].attacks]


def test_the_same_command_again_changes_nothing(run: Callable[..., tuple[int, str, str]]) -> None:
    run(*COMMAND)
    weights, history = (Path("out", name).read_bytes() for name in ("weights.safetensors", "history.json"))
    code, _, err = run(*COMMAND)
    assert code == 0, err
    assert Path("out/weights.safetensors").read_bytes() == weights
    assert Path("out/history.json").read_bytes() == history
    code, _, err = run(*COMMAND[:-1], "out", "--epochs", "7")
    assert code == 2
    assert "another settings" in err
    assert Path("out/weights.safetensors").read_bytes() == weights


def test_from_python_with_a_defense_and_held_out_images(tmp_path: Path) -> None:
    model = TinyNet()
    before = identify(model)
    defense = NFGSM(THREAT, epochs=2, batch_size=16, fresh=True, device="cpu")
    found = robust.harden(model, quarters(200), method=defense, out=tmp_path / "out", limit=20, device="cpu")
    assert identify(model) == before
    assert identify(found.model) == found.card["weights"]["sha256"]
    assert [part["n"] for part in found.card["data"].values()] == [164, 16, 20]
    assert sum("a tenth of the training data" in remark for remark in found.card["remarks"]) == 2
    with (
        Ledger.open(tmp_path / "out/before/ledger.sqlite") as first,
        Ledger.open(tmp_path / "out/after/ledger.sqlite") as second,
    ):
        paired = paired_robust(first, second, THREAT)
    assert paired.n == 20
    assert paired.both + paired.only_second == found.after.threats[0].robust_accuracy.numerator
    assert paired.both + paired.only_first == found.before.threats[0].robust_accuracy.numerator


def test_test_images_seen_in_training_are_told(tmp_path: Path) -> None:
    data = quarters(160)
    found = harden(
        TinyNet(), data, quarters(40, seed=4), data.take(range(12)), method="fast", threat=THREAT, epochs=1,
        out=tmp_path / "out", device="cpu",
    )  # fmt: skip
    assert any("12 of the 12 test images are also training images" in remark for remark in found.card["remarks"])


def test_paired_counts_by_hand() -> None:
    paired = Paired(both=5, only_first=1, only_second=9, neither=5)
    assert paired.n == 20
    assert paired.difference == pytest.approx(0.4)
    assert paired.p == pytest.approx(2 * (1 + 10) / 2**10)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("--method", "trads"), "did you mean trades"),
        (("--method", "trades(bta=6)"), "did you mean beta"),
        (("--method", "trades(beta='high')"), "takes a number"),
        (("--method", "trades(6)"), "NAME=VALUE"),
        (("--threat", "l0:5"), "has no l0 form"),
        (("--threat", "linf:8"), "did you mean linf:8/255"),
        (("--epochs", "0"), "epochs 0"),
        (("--augment", "mirror"), "flip"),
        (("--limit", "0"), "limit 0"),
        (("--test", "nowhere.npz"), "nowhere.npz"),
        (("--budget", "soon"), "--budget soon"),
        (("--validation", "wide.npz"), r"wide.npz: images of shape"),
        (("--optimizer", "sdg"), "sgd"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Callable[..., tuple[int, str, str]], change: tuple[str, str], match: str
) -> None:
    np.savez("wide.npz", images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.arange(40) % 4)
    code, out, err = run(*COMMAND, *change)
    assert code == 2, err
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert match in err
    assert not Path("out").exists()


def test_a_class_without_training_images_is_named(run: Callable[..., tuple[int, str, str]]) -> None:
    data = quarters(160)
    _npz(Path("train.npz"), data.take([at for at in range(160) if at % 4 != 1]))
    code, _, err = run(*COMMAND)
    assert code == 2
    assert "no training image of class 1 (b)" in err
    assert not Path("out").exists()


def test_a_folder_with_other_files_is_left_alone(run: Callable[..., tuple[int, str, str]]) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    code, _, err = run(*COMMAND)
    assert code == 2
    assert "holds other files" in err
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


def test_settings_beside_a_defense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="epochs"):
        harden(TinyNet(), quarters(160), method=NFGSM(THREAT), out=tmp_path / "out", epochs=3)
