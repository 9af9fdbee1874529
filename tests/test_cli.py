"""The command: help without torch, results, exit codes, and one clear line for everything that can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from subjects import write_factory, write_npz

from robust.summary import AuditSummary

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model file and images, made the working directory."""
    monkeypatch.chdir(tmp_path)
    write_factory("model.py")
    write_npz("data.npz")
    return tmp_path


@pytest.fixture
def run(here: Path, command: Run) -> Run:
    return command


AUDIT = ("audit", "model.py:load", "data.npz", "--threat", "linf:0.004", "--out", "out")


@pytest.mark.parametrize(
    "command", [[], ["audit"], ["certify"], ["harden"], ["report"], ["verify"], ["attacks"], ["schema"]]
)
def test_help_needs_no_torch(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['robust', *sys.argv[1:], '--help']\n"
        "from robust.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'torchvision', 'numpy', 'matplotlib', 'art', 'foolbox', 'kornia', 'scipy'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, robust; assert 'torch' not in sys.modules; assert 'audit' in dir(robust)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_audit_from_the_command_is_the_audit_from_python(run: Run) -> None:
    import robust

    code, out, err = run(*AUDIT)
    assert code == 0, err
    written = AuditSummary.read(Path("out/audit.json"))
    called = robust.audit("model.py:load", "data.npz", ["linf:0.004"])
    stable = {"seconds", "cost", "attacks"}
    assert written.threats[0].model_dump(exclude=stable) == called.threats[0].model_dump(exclude=stable)
    assert (written.model, written.data, written.clean_accuracy) == (called.model, called.data, called.clean_accuracy)
    assert "out/report.html" in out
    assert f"{written.threats[0].robust_accuracy.numerator}/40" in out
    assert "auto" in err


def test_retrained_weights_get_a_folder_of_their_own(run: Run) -> None:
    arguments = AUDIT[:-2]
    first = run(*arguments)[1]
    assert run(*arguments)[1].splitlines()[-1] == first.splitlines()[-1], "the same audit stays in its folder"
    text = Path("model.py").read_text()
    Path("model.py").write_text(text.replace("return Model()", "return Model(seed=7)"))
    second = run(*arguments)[1]
    assert second.splitlines()[-1] == first.splitlines()[-1].replace("/report.html", "-2/report.html")


def test_json_goes_to_standard_output_alone(run: Run) -> None:
    code, out, _ = run(*AUDIT, "--json")
    assert code == 0
    assert AuditSummary.model_validate(json.loads(out)) == AuditSummary.read(Path("out/audit.json"))


def test_the_gate(run: Run) -> None:
    assert run(*AUDIT, "--fail-under", "0.1")[0] == 0
    assert run(*AUDIT, "--fail-under", "0.99")[0] == 1


def test_the_gate_fails_closed(run: Run) -> None:
    write_factory("model.py", "images = images.detach()")
    code, out, _ = run(*AUDIT, "--fail-under", "0.0")
    assert code == 1
    assert "suspect" in out.lower()
    code, out, _ = run(*AUDIT[:-1], "other", "--fail-under", "0.0", "--budget", "0.000001s")
    assert code == 3
    assert "inconclusive" in out.lower()


def test_report_and_verify(run: Run) -> None:
    run(*AUDIT)
    Path("out/report.html").unlink()
    assert run("report", "out")[0] == 0
    assert Path("out/report.html").stat().st_size > 10_000
    code, out, _ = run("verify", "out", "model.py:load")
    held = AuditSummary.read(Path("out/audit.json")).threats[0]
    assert code == 0
    assert "linf:0.004:" in out
    assert held.robust_accuracy.numerator < 36


def test_verify_sees_a_forged_ledger(run: Run) -> None:
    import sqlite3

    run(*AUDIT)
    with sqlite3.connect("out/ledger.sqlite") as connection:
        row = connection.execute("SELECT image FROM row WHERE broken_by IS NOT NULL").fetchone()[0]
        original = connection.execute("SELECT encoding, pixels FROM image WHERE id = ?", (row,)).fetchone()
        connection.execute("UPDATE row SET encoding = ?, pixels = ? WHERE image = ?", (*original, row))
    code, out, _ = run("verify", "out", "model.py:load")
    assert code == 1
    assert f"images {row}" in out


def test_attacks_are_listed(run: Run) -> None:
    code, out, _ = run("attacks", "--norm", "linf")
    assert code == 0
    for name in ("fgsm", "pgd", "apgd-t", "square", "art:HopSkipJump", "foolbox:LinfProjectedGradientDescentAttack"):
        assert name.lower() in out.lower()
    assert "white-box" in out
    assert "decision" in out


def test_schema_describes_the_file(run: Run) -> None:
    run(*AUDIT)
    schema = json.loads(run("schema")[1])
    written = json.loads(Path("out/audit.json").read_text())
    assert set(schema["required"]) <= set(written)
    assert set(written) <= set(schema["properties"])


def _folder(name: str, classes: tuple[str, ...] = ("a", "b"), mode: str = "RGB", size: int = 6) -> Path:
    for label in classes:
        (Path(name) / label).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(i).integers(0, 255, (size, size, 3), np.uint8)
            Image.fromarray(pixels).convert(mode).save(Path(name) / label / f"{i}.png")
    return Path(name)


def _truncated() -> None:
    file = _folder("images") / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:-40])


def _not_an_image() -> None:
    (_folder("images") / "b" / "2.png").write_text("no picture")


def _npz(**arrays: np.ndarray) -> None:
    np.savez("bad.npz", **arrays)


IMAGES = np.zeros((4, 3, 6, 6), np.float32)
LABELS = np.array([0, 1, 2, 3])
MODEL, DATA = "model.py:load", "data.npz"


def _model(body: str = "", load: str = "return Model()") -> None:
    write_factory("model.py", body)
    text = Path("model.py").read_text()
    Path("model.py").write_text(text.replace("return Model()", load))


BAD = {
    "missing model file": (None, ("nothere.py:load", DATA), ["nothere.py"]),
    "missing data": (None, (MODEL, "nothere"), ["nothere"]),
    "data forgotten": (None, (MODEL,), ["DATA is missing"]),
    "unknown model": (None, ("torchvision:resnet51", DATA), ["resnet51", "resnet50"]),
    "unknown factory": (None, ("model.py:laod", DATA), ["laod", "load"]),
    "unknown threat": (None, (MODEL, DATA, "--threat", "lnf:0.1"), ["lnf", "linf"]),
    "unknown attack": (None, (MODEL, DATA, "--attacks", "pdg"), ["pdg", "pgd"]),
    "unknown attack option": (None, (MODEL, DATA, "--attacks", "pgd(stpes=3)"), ["stpes", "steps"]),
    "unknown ART attack": (None, (MODEL, DATA, "--attacks", "art:HopSkipJmp"), ["HopSkipJmp", "HopSkipJump"]),
    "eps of 8": (None, (MODEL, DATA, "--threat", "linf:8"), ["linf:8", "8/255"]),
    "l2 eps of 128": (None, (MODEL, DATA, "--threat", "l2:128"), ["128/255"]),
    "limit of 0": (None, (MODEL, DATA, "--limit", "0"), ["limit"]),
    "bad budget": (None, (MODEL, DATA, "--budget", "soon"), ["--budget soon", "10m"]),
    "bad gate": (None, (MODEL, DATA, "--fail-under", "40"), ["--fail-under 40", "0.4"]),
    "bad size": (None, (MODEL, DATA, "--resize", "32"), ["--resize 32", "HxW"]),
    "bad mean": (None, (MODEL, DATA, "--mean", "a,b", "--std", "1,1"), ["--mean a,b"]),
    "no such device": (None, (MODEL, DATA, "--device", "gpu"), ["gpu", "cuda"]),
    "not an image": (_not_an_image, (MODEL, "images"), ["2.png"]),
    "truncated image": (_truncated, (MODEL, "images"), ["1.png", "truncated"]),
    "empty folder": (lambda: Path("images").mkdir(), (MODEL, "images"), ["images"]),
    "one class only": (lambda: _folder("images", ("a",)), (MODEL, "images"), ["images", "2 classes"]),
    "size mismatch": (lambda: _folder("images", size=9), (MODEL, "images"), ["(3, 9, 9)", "--resize"]),
    "grayscale": (lambda: _folder("images", mode="L"), (MODEL, "images"), ["(1, 6, 6)"]),
    "label outside": (lambda: _npz(images=IMAGES, labels=LABELS + 3), (MODEL, "bad.npz"), ["label", "4"]),
    "pixels outside": (lambda: _npz(images=IMAGES + 7, labels=LABELS), (MODEL, "bad.npz"), ["[0, 1]", "255"]),
    "NaN pixels": (lambda: _npz(images=IMAGES * np.nan, labels=LABELS), (MODEL, "bad.npz"), ["NaN"]),
    "NaN weights": (lambda: _model(load="m = Model(); m.head.bias.data[1] = float('nan'); return m"),
                    (MODEL, DATA), ["NaN", "head.bias"]),
    "NaN logits": (lambda: _model("images = images * float('nan')"), (MODEL, DATA), ["NaN", "logits"]),
    "no logits": (lambda: _model("return images"), (MODEL, DATA), ["(N, K)"]),
    "raising factory": (lambda: _model(load="raise KeyError('weights')"), (MODEL, DATA), ["KeyError", "model.py"]),
    "foreign folder": (lambda: (Path("out").mkdir(), Path("out/thesis.txt").write_text("x")), (MODEL, DATA),
                       ["out", "other files"]),
    "file as folder": (lambda: Path("out").write_text("x"), (MODEL, DATA), ["out", "file"]),
    "corrupted ledger": (lambda: (Path("out").mkdir(), Path("out/ledger.sqlite").write_bytes(b"x" * 5000)),
                         (MODEL, DATA), ["ledger.sqlite", "corrupted", "delete"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line_and_code_2(run: Run, case: str) -> None:
    prepare, arguments, words = BAD[case]
    if prepare is not None:
        prepare()
    before = sorted(path for path in Path("out").rglob("*")) if Path("out").is_dir() else Path("out").exists()
    code, out, err = run("audit", *arguments, "--out", "out")
    said = [line for line in err.splitlines() if line.startswith("robust: ")]
    assert code == 2, (code, out, err)
    assert len(said) == 1, err
    if case != "raising factory":  # whose own traceback is kept, short
        assert not any(line.startswith("Traceback") for line in err.splitlines())
    assert len(err.splitlines()) <= 20
    for word in words:
        assert word in err, (word, err)
    after = sorted(path for path in Path("out").rglob("*")) if Path("out").is_dir() else Path("out").exists()
    assert after == before, "something was half written"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(run: Run) -> None:
    Path("locked").mkdir(mode=0o500)
    code, _, err = run("audit", MODEL, DATA, "--out", "locked/out")
    assert code == 2
    assert "locked" in err


def test_a_folder_that_cannot_be_made(run: Run) -> None:
    Path("blocked").write_text("a file")
    code, _, err = run("audit", MODEL, DATA, "--out", "blocked/out")
    assert code == 2
    assert "blocked" in err


def test_reports_of_nothing(run: Run) -> None:
    for command in (("report", "nothing"), ("verify", "nothing", MODEL)):
        code, _, err = run(*command)
        assert code == 2
        assert "audit.json" in err
    Path("bad").mkdir()
    Path("bad/audit.json").write_text("{}")
    assert run("report", "bad")[0] == 2


def test_verify_refuses_another_model(run: Run) -> None:
    run(*AUDIT)
    code, _, err = run("verify", "out", "demo")
    assert code == 2
    assert "another model" in err


def test_probabilities_are_a_warning_and_a_check(run: Run) -> None:
    Path("soft.py").write_text(
        "import model, torch\ndef load(): return torch.nn.Sequential(model.load(), torch.nn.Softmax(1))\n"
    )
    code, out, _ = run("audit", "soft.py:load", *AUDIT[2:])
    assert code == 0
    assert "suspect" in out.lower()
    summary = AuditSummary.read(Path("out/audit.json"))
    assert any("probabilities" in warning for warning in summary.warnings)


def test_interruption_keeps_what_was_computed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from robust import running

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "_run_curve", stop)
        code, _, err = run(*AUDIT)
    assert code == 130
    assert "same command" in err
    started = time.perf_counter()
    assert run(*AUDIT)[0] == 0
    assert time.perf_counter() - started < 60
