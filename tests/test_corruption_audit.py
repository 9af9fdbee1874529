"""`--threat corruptions`: figures from the cells, resumption, baselines, the report, and what can be given wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robust
from robust.cells import read_cell
from robust.corruptions import NAMES, SEVERITIES, corrupt
from robust.errors import InputError
from robust.ledger import Ledger
from robust.stats import rate
from robust.summary import AuditSummary

CLASSES = ("left", "right", "even")
Run = Callable[..., tuple[int, str, str]]
FACTORY = """
import torch
from torch import nn

class Sides(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, images):
        half = images.shape[-1] // 2
        left, right = images[..., :half].mean((1, 2, 3)), images[..., half:].mean((1, 2, 3))
        return torch.stack([20 * (left - right), 20 * (right - left), self.bias + 0 * left], 1)

def load():
    return Sides(1.0)

def worse():
    return Sides(4.0)

def coin():
    class Coin(Sides):
        def forward(self, images):
            return super().forward(images) + 8 * torch.randn(len(images), 3)
    return Coin(1.0)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(FACTORY)
    images, labels = pictures()
    stored = (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    np.savez("data.npz", images=stored, labels=labels.numpy(), class_names=np.array(CLASSES))
    return tmp_path


def pictures(n: int = 24) -> tuple[Tensor, Tensor]:
    """Images 20x20 with one side brighter, or none; every eighth label is wrong."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(n) % 3
    images = 0.4 + 0.1 * torch.rand(n, 3, 20, 20, generator=generator)
    gap = 0.06 + 0.2 * torch.rand(n, 1, 1, 1, generator=generator)
    images[labels == 0, ..., :10] += gap[labels == 0]
    images[labels == 1, ..., 10:] += gap[labels == 1]
    labels[::8] = (labels[::8] + 1) % 3
    return (images * 255).round() / 255, labels


def load(factory: str = "load") -> nn.Module:
    scope: dict[str, Callable[[], nn.Module]] = {}
    exec(FACTORY, scope)
    return scope[factory]()


ALONE = ("audit", "model.py:load", "data.npz", "--threat", "corruptions")


def test_the_figures_are_those_of_the_corrupted_images(here: Path) -> None:
    model = load()
    images, labels = pictures()
    found = robust.audit("model.py:load", "data.npz", ["corruptions"], seed=4, batch_size=7).corruptions
    assert found is not None
    assert len(found.cells) == 75
    right = {}
    for name in NAMES:
        for severity in SEVERITIES:
            with torch.no_grad():
                right[name, severity] = model(corrupt(images, name, severity, 4)).argmax(1) == labels
    for cell in found.cells:
        assert cell.accuracy == rate(int(right[cell.corruption, cell.severity].sum()), 24)
    shares = torch.stack(list(right.values())).double()
    assert found.mean_accuracy is not None
    assert found.mean_accuracy.value == pytest.approx(float(shares.mean()))
    assert found.mean_accuracy.low < found.mean_accuracy.value < found.mean_accuracy.high
    assert found.always_right == rate(int(shares.all(0).sum()), 24)
    clean = float((model(images).argmax(1) == labels).double().mean())
    assert clean < 1
    assert found.retention == pytest.approx(float(shares.mean()) / clean)
    assert found.worst is not None
    assert found.worst.accuracy.value == pytest.approx(float(shares.mean(1).min()))
    fog = next(record for record in found.corruptions if record.name == "fog")
    assert fog.family == "weather"
    assert fog.accuracy.value == pytest.approx(
        float(torch.stack([right["fog", s] for s in SEVERITIES]).double().mean())
    )
    assert (found.mean_error, found.relative_error, found.baseline) == (None, None, None)


def test_alone_it_writes_a_whole_audit(here: Path, command: Run) -> None:
    code, out, err = command(*ALONE, "--out", "out")
    assert code == 0, err
    written = AuditSummary.read(Path("out/audit.json"))
    assert (written.threats, written.verdict) == ([], "sound")
    assert written.corruptions is not None
    assert written.corruptions.mean_accuracy is not None
    assert written.score.value == pytest.approx(100 * written.corruptions.mean_accuracy.value)
    assert "corruptions: sound, mean accuracy" in out
    assert err.count("accuracy by severity") == 15
    page = Path("out/report.html").read_text()
    assert page.count('<img src="data:image/png') == 76
    assert page.count("--heat:") == 75
    for name in NAMES:
        assert name.replace("jpeg", "JPEG").replace("_", " ") in page
    Path("out/report.html").unlink()
    assert command("report", "out")[0] == 0
    assert Path("out/report.html").read_text() == page
    code, _, err = command("verify", "out", "model.py:load")
    assert code == 2
    assert "no adversarial images" in err


def test_beside_a_norm_ball(here: Path, command: Run) -> None:
    code, out, err = command(
        "audit",
        "model.py:load",
        "data.npz",
        "--threat",
        "corruptions:2",
        "--threat",
        "linf:0.01",
        "--out",
        "out",
        "--json",
    )
    assert code in (0, 3), err
    found = AuditSummary.model_validate(json.loads(out))
    assert [result.threat.text for result in found.threats] == ["linf:0.01"]
    assert found.score == found.threats[0].score
    assert found.corruptions is not None
    assert found.corruptions.severities == [1, 2]
    assert len(found.corruptions.cells) == 30
    page = Path("out/report.html").read_text()
    assert 'id="corruptions"' in page
    assert 'id="gallery"' in page
    assert page.count("--heat:") == 30


def test_an_interrupted_grid_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import robust.corruptions.apply as applying

    whole = robust.audit("model.py:load", "data.npz", ["corruptions"]).corruptions
    original, calls = applying.corrupt, 0

    def killed(*arguments: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 11:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(applying, "corrupt", killed)
    with pytest.raises(KeyboardInterrupt):
        robust.audit("model.py:load", "data.npz", ["corruptions"], out="out")
    counted: list[object] = []
    monkeypatch.setattr(applying, "corrupt", lambda *given: counted.append(given) or original(*given))
    found = robust.audit("model.py:load", "data.npz", ["corruptions"], out="out").corruptions
    assert len(counted) == 75 - 11
    assert whole is not None
    assert found is not None
    assert found.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})


def test_an_unfinished_grid_is_inconclusive_and_states_no_mean(here: Path, command: Run) -> None:
    code, out, _ = command(*ALONE, "--out", "out", "--budget", "0.000001s", "--fail-under", "0")
    assert code == 3
    assert "75 of 75 combinations" in out
    found = AuditSummary.read(Path("out/audit.json")).corruptions
    assert found is not None
    assert (found.mean_accuracy, found.always_right, found.worst, found.cells) == (None, None, None, [])
    assert Path("out/report.html").stat().st_size > 10_000
    assert command(*ALONE, "--out", "out", "--fail-under", "0")[0] == 0


def test_the_gate_is_on_the_mean_accuracy(here: Path, command: Run) -> None:
    assert command(*ALONE, "--out", "out", "--fail-under", "0.2")[0] == 0
    assert command(*ALONE, "--out", "out", "--fail-under", "0.999")[0] == 1


def test_errors_are_relative_to_the_baseline(here: Path, command: Run) -> None:
    itself = robust.audit("model.py:load", "data.npz", ["corruptions"], baseline="model.py:load").corruptions
    assert itself is not None
    assert itself.mean_error == pytest.approx(1)
    assert all(record.error == pytest.approx(1) for record in itself.corruptions)
    against = robust.audit("model.py:load", "data.npz", ["corruptions"], baseline="model.py:worse").corruptions
    assert against is not None
    for record in against.corruptions:
        own = [cell for cell in against.cells if cell.corruption == record.name]
        theirs = sum(1 - cell.baseline.value for cell in own if cell.baseline)
        assert record.error == pytest.approx(sum(1 - cell.accuracy.value for cell in own) / theirs)
    errors = [record.error for record in against.corruptions if record.error is not None]
    assert against.mean_error == pytest.approx(sum(errors) / 15)
    assert against.mean_error < 1

    assert command("audit", "model.py:worse", "data.npz", "--threat", "corruptions", "--out", "worse")[0] == 0
    code, out, err = command(*ALONE, "--baseline", "worse/audit.json", "--out", "read")
    assert code == 0, err
    assert "against model.py:worse: mCE" in out
    read = AuditSummary.read(Path("read/audit.json")).corruptions
    assert read is not None
    assert read.mean_error == pytest.approx(against.mean_error)
    assert read.relative_error == pytest.approx(against.relative_error)
    assert "mean corruption error" in Path("read/report.html").read_text()
    with pytest.raises(InputError, match="another choice of corruptions"):  # whose cells lack what the model reads
        robust.audit("model.py:load", "data.npz", ["corruptions"], baseline="model.py:worse", out="read")


def test_a_random_model_gives_the_same_figures_again(here: Path) -> None:
    first, second = (robust.audit("model.py:coin", "data.npz", ["corruptions:1"]).corruptions for _ in range(2))
    assert first is not None
    assert second is not None
    assert [cell.accuracy for cell in first.cells] == [cell.accuracy for cell in second.cells]


def test_logits_that_are_no_numbers_count_as_wrong(here: Path) -> None:
    class Fragile(nn.Module):
        """NaN for every image with a black or a white value."""

        def forward(self, images: Tensor) -> Tensor:
            spoiled = (images.flatten(1).amin(1) == 0) | (images.flatten(1).amax(1) == 1)
            return load()(images) + torch.where(spoiled, torch.nan, 0.0)[:, None]

    images, labels = pictures()
    found = robust.audit(Fragile(), (images, labels), ["corruptions:1"]).corruptions
    assert found is not None
    impulse = next(cell for cell in found.cells if cell.corruption == "impulse_noise")
    assert impulse.accuracy.numerator == 0


def test_the_ledger_shows_one_image_in_every_cell(here: Path) -> None:
    robust.audit("model.py:load", "data.npz", ["corruptions:1"], out="out")
    with Ledger.open(Path("out/ledger.sqlite")) as ledger:
        cell = read_cell(ledger, "contrast", 1)
        assert cell is not None
        shown = torch.from_numpy(cell.example(ledger.shape))
        images, _ = pictures()
        expected = corrupt(images, "contrast", 1)
        assert float((expected - shown).abs().flatten(1).amax(1).min()) < 0.6 / 255
        assert read_cell(ledger, "contrast", 2) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threat", "corruptions:6"), "severities go from 1 to 5"),
        (("--threat", "corruptions:0"), "severities go from 1 to 5"),
        (("--threat", "corruptions", "--threat", "corruptions:2"), "given twice"),
        (("--threat", "linf:0.01", "--baseline", "model.py:load"), "--threat corruptions"),
        (("--threat", "corruptions", "--attacks", "pgd"), "corruptions are none"),
        (("--threat", "corruptions", "--baseline", "nowhere/audit.json"), "no such file"),
        (("--threat", "corruptions", "--baseline", "model.py:nothing"), "nothing"),
        (("--threat", "corruptions", "--baseline", "broken.json"), "not the record of an audit"),
        (("--threat", "corruptions", "--baseline", "demo"), "--baseline demo"),
    ],
)
def test_bad_input(here: Path, command: Run, arguments: tuple[str, ...], message: str) -> None:
    Path("broken.json").write_text("{}")
    code, out, err = command("audit", "model.py:load", "data.npz", *arguments, "--out", "out")
    assert (code, out) == (2, "")
    assert message in err
    assert err.strip().splitlines()[-1].startswith("robust: ")
    assert not Path("out").exists()


def test_images_too_small_and_records_of_other_audits(here: Path) -> None:
    tiny = (torch.rand(4, 3, 10, 10), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(InputError, match="at least 16x16"):
        robust.audit(load(), tiny, ["corruptions"])
    robust.audit("model.py:load", "data.npz", ["corruptions:1"], out="mild")
    robust.audit("model.py:load", "data.npz", ["linf:0.001"], out="norm", limit=6)
    for folder, seed, message in (
        ("mild", 0, "corruptions:1"),
        ("mild", 1, "another seed"),
        ("norm", 0, "no finished"),
    ):
        with pytest.raises(InputError, match=message):
            robust.audit("model.py:load", "data.npz", ["corruptions"], baseline=folder, seed=seed)
    with pytest.raises(InputError, match="another choice of corruptions"):
        robust.audit("model.py:load", "data.npz", ["corruptions"], out="mild")
