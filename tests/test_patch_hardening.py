"""Hardening against patches: what each method trains on, models behind a defense in an audit, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import TinyNet
from quarters import quarters
from torch import Tensor, nn
from torch.nn import functional as F

import robust
from robust import proving
from robust.defenses import BandTraining, MaskTraining, OcclusionTraining
from robust.defenses.patch import BandSmoothing, MaskedClassifier
from robust.defenses.patch.behind import put_behind
from robust.defenses.patch.certificates import Certificates
from robust.defenses.patch.certifying import certify_patches
from robust.defenses.patch.masking import kept, masks
from robust.defenses.patch.record import PatchSummary
from robust.defenses.smoothing import CertificateBroken
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.errors import InputError
from robust.models import identify
from robust.threats import ThreatModel

THREAT = "patch:2x2"
SHAPE = (3, 6, 6)
FACTORY = """
import sys
sys.path.insert(0, {tests!r})
from oracles import TinyNet

def load():
    return TinyNet()
"""


class Corner(nn.Module):
    """Two classes, told apart by the weighted sum of all pixels; the weights grow towards the last pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(0.1, 1, 108))

    def forward(self, images: Tensor) -> Tensor:
        score = (images.flatten(1) - 0.5) @ self.weights
        return torch.stack([-score, score], 1)


def batch_of(model: nn.Module, labels: Tensor, images: Tensor | None = None) -> Batch:
    images = torch.full((len(labels), *SHAPE), 0.5) if images is None else images
    return Batch(Network(model, torch.float32), images, labels, ThreatModel.parse(THREAT).fitted(SHAPE))


def changed(points: Tensor, images: Tensor) -> Tensor:
    """The pixels (N, H, W) that differ."""
    return (points != images).any(1)


def test_the_occlusion_attack_goes_to_the_steepest_square_and_to_the_ends_of_the_box() -> None:
    """A linear loss: the square of the largest weights is the last one, and its pixels go against the label."""
    labels = torch.tensor([0, 1, 0])
    batch = batch_of(Corner(), labels)
    for candidates in (1, 4):
        points = OcclusionTraining(THREAT, candidates=candidates, steps=8).attack(batch)
        where = changed(points, batch.images)
        assert where.sum((1, 2)).tolist() == [4, 4, 4]
        assert where[:, 4:, 4:].all()
        ends = torch.where(labels == 0, 1.0, 0.0)[:, None, None, None].expand(-1, 3, 2, 2)
        assert torch.equal(points[:, :, 4:, 4:], ends)


def test_of_several_places_the_one_where_a_gray_square_hurts_most_is_taken() -> None:
    """Only the bright first pixel speaks for the label, so hiding it hurts, though the gradient is larger elsewhere."""

    class Fragile(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            first, last = images[:, 0, 0, 0], images[:, 0, 5, 5]
            score = 20 * (first - 0.7).relu() + 0.1 * first + 8 * last.clamp(0, 0.001)
            return torch.stack([score, torch.full_like(score, 3.0)], 1)

    images = torch.zeros(2, *SHAPE)
    images[:, 0, 0, 0] = 1
    labels = torch.zeros(2, dtype=torch.long)
    batch = batch_of(Fragile(), labels, images)
    many = changed(OcclusionTraining(THREAT, candidates=25, steps=1).attack(batch), images)
    assert many[:, 0, 0].all()
    free = changed(OcclusionTraining(THREAT, candidates=0, steps=1).attack(batch_of(Fragile(), labels, images)), images)
    assert (free.flatten(1).sum(1) <= 4).all()


def test_masks_in_training_are_pairs_of_the_defense_and_the_worst_of_those_tried() -> None:
    torch.manual_seed(3)
    images = torch.rand(40, *SHAPE)
    labels = torch.arange(40) % 2
    model = Corner()
    keep = kept((6, 6), masks((6, 6), (2, 2), 6))
    pairs = (keep[:, None] & keep[None]).flatten(0, 1)
    losses = {}
    for candidates in (1, 12):
        points = MaskTraining(THREAT, candidates=candidates).attack(batch_of(model, labels, images))
        for point, image in zip(points, images, strict=True):
            assert (torch.where(pairs, image, 0.5) == point).flatten(1).all(1).any()
        losses[candidates] = float(F.cross_entropy(model(points), labels).detach())
    assert losses[12] > losses[1] + 0.05


@pytest.mark.parametrize("kind", ["columns", "rows", "blocks"])
def test_training_on_bands_shows_what_the_votes_see(kind: str) -> None:
    images = torch.rand(64, *SHAPE)
    points = BandTraining(THREAT, size=2, kind=kind).attack(batch_of(Corner(), torch.zeros(64).long(), images))
    shown = (points == images).all(1)
    assert (shown.sum((1, 2)) == (4 if kind == "blocks" else 12)).all()
    assert len({tuple(one.flatten().tolist()) for one in shown}) > 4, "the bands are drawn for each image"
    assert torch.equal(points[~shown[:, None].expand_as(points)].unique(), torch.tensor([0.5]))


@pytest.mark.parametrize("defense", [OcclusionTraining, MaskTraining])
def test_training_makes_a_model_that_withstands_more(defense: type[Defense]) -> None:
    settings = {"epochs": 8, "batch_size": 24, "fresh": True, "precision": "float32", "device": "cpu"}
    method = defense(THREAT, **settings)  # type: ignore[arg-type]
    model = TinyNet()
    before = identify(model)
    found = method.fit(model, quarters(), quarters(48, seed=1))
    assert identify(model) == before
    assert found.history.measure == method.measure
    assert found.history.epochs[found.history.best - 1].robust > 0.5
    again = method.fit(model, quarters(), quarters(48, seed=1))
    assert identify(again.model) == identify(found.model)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that was trained under masks on bright quarters."""
    torch.set_num_threads(1)
    defense = MaskTraining(THREAT, epochs=8, batch_size=24, fresh=True, precision="float32", device="cpu")
    return defense.fit(TinyNet(), quarters(), quarters(48, seed=1)).model


def test_an_audit_behind_masks_has_their_certificates_as_its_lower_bound(network: nn.Module, tmp_path: Path) -> None:
    data = quarters(12, seed=2)
    found = robust.audit(network, data, [THREAT], behind="masking", out=tmp_path / "a", device="cpu")
    result = found.threats[0]
    certificates = MaskedClassifier(network, 2).certify(data.batch(range(12)))
    assert result.certified_accuracy is not None
    assert result.certified_accuracy.numerator == int(certificates.correct(data.labels).sum()) > 3
    assert result.certified_accuracy.numerator <= result.robust_accuracy.numerator
    assert "behind masking" in found.model.name
    assert found.settings.behind == "masking"
    for given in (None, "bands"):  # the same weights, but another model
        with pytest.raises(InputError, match="--behind 'masking'"):
            robust.auditing.verify_audit(tmp_path / "a", network, behind=given, device="cpu")
    assert not robust.auditing.verify_audit(tmp_path / "a", network, behind="masking", device="cpu")[THREAT].failed
    assert found.settings.command == f"robust.audit(TinyNet, {data.name}, ['{THREAT}'], behind='masking')"
    none = robust.audit(network, data, [THREAT], behind="bands(size=6)", device="cpu").threats[0].certified_accuracy
    assert none is not None  # every band is met by every patch
    assert (none.numerator, none.n) == (0, 12)
    bare = robust.audit(network, data, [THREAT], device="cpu").threats[0]
    assert bare.certified_accuracy is None
    assert bare.robust_accuracy.numerator < result.robust_accuracy.numerator
    with pytest.raises(InputError, match="another behind"):
        robust.audit(network, data, [THREAT], behind="masking(count=3)", out=tmp_path / "a", device="cpu")


def test_a_certified_image_that_falls_stops_the_audit(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(self: MaskedClassifier, images: Tensor) -> Certificates:
        n = len(images)
        return Certificates(self.predict(images).predicted, torch.ones(n, dtype=torch.bool), torch.zeros(n))

    monkeypatch.setattr(MaskedClassifier, "certify", all_of_them)
    with pytest.raises(proving.ContradictionError, match="is proven robust"):
        robust.audit(network, quarters(24, seed=2), ["patch:3x3"], behind="masking", device="cpu")
    with pytest.raises(CertificateBroken, match="is certified"):
        certify_patches(network, quarters(24, seed=2), patch="3x3", attack=True, device="cpu")


def test_certificates_for_smaller_patches_prove_nothing() -> None:
    job = SimpleNamespace(model=MaskedClassifier(TinyNet(), 1), data=quarters(8))
    threat = ThreatModel.parse(THREAT).fitted(SHAPE)
    found, tried, note = proving._certify_patches(job, threat, [0, 1])  # type: ignore[arg-type]
    assert (found, tried) == ([], 0)
    assert "1x1, not 2x2" in note


def test_what_a_model_can_be_put_behind() -> None:
    small, large = (ThreatModel.parse(text).fitted(SHAPE) for text in ("patch:1x1", "patch:2x2"))
    masked = put_behind("masking(count=3)", Corner(), [small, large], (6, 6))
    assert isinstance(masked, MaskedClassifier)
    assert (masked.patch, masked.count) == ((2, 2), 3)
    assert isinstance(put_behind("bands(size=2, kind='rows')", Corner(), [small], (6, 6)), BandSmoothing)
    linf = ThreatModel.parse("linf:0.1")
    for text, threats, word in (
        ("masking", [linf], "patch"),
        ("roa", [small], "masking"),
        ("mask", [small], "masking"),
        ("masking(", [small], "--behind"),
        ("masking(3)", [small], "--behind"),
        ("bands(kind=3)", [small], "a text here, such as 'columns'"),
    ):
        with pytest.raises(InputError, match=word):
            put_behind(text, Corner(), threats, (6, 6))


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    for name, data in (("train", quarters(120)), ("test", quarters(12, seed=5))):
        images = (data.batch(range(len(data))) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.savez(f"{name}.npz", images=images.numpy(), labels=data.labels.numpy(), class_names=np.array(list("abcd")))
    return command


def test_the_command_hardens_certifies_and_audits_behind_masks(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(
        "harden", "net.py:load", "train.npz", "--test", "test.npz", "--method", "masking", "--threat", THREAT,
        "--epochs", "6", "--batch-size", "16", "--fresh", "--device", "cpu", "--out", "out",
    )  # fmt: skip
    assert code in (0, 3), err
    card = json.loads(Path("out/card.json").read_text())
    certified = card["figures"]["certified"]
    assert certified["before"] is None
    assert 0 < certified["after"]["value"] <= card["figures"]["robust"]["after"]["value"]
    assert "--behind 'masking(count=6)'" in card["use"]
    assert "Certified, patch:2x2" in Path("out/report.html").read_text()
    weights = ("--weights", "out/weights.safetensors", "--device", "cpu")
    code, out, err = run("certify", "net.py:load", "test.npz", "--patch", "2x2", "--attack", *weights, "--out", "c")
    assert code == 0, err
    record = PatchSummary.model_validate_json(Path("c/certify.json").read_text())
    assert record.certified.numerator == certified["after"]["numerator"]
    assert record.attacked is not None
    assert record.certified.numerator <= record.attacked.numerator <= record.defended.numerator
    assert f"{record.certified.value:.1%}" in out
    rows = Path("c/certify.jsonl").read_bytes()
    cut = rows[: len(rows) * 2 // 3]
    Path("c/certify.jsonl").write_bytes(cut)
    assert run("certify", "net.py:load", "test.npz", "--patch", "2x2", "--attack", *weights, "--out", "c")[0] == 0
    again = PatchSummary.model_validate_json(Path("c/certify.json").read_text())
    assert again.rows == record.rows


def test_bad_input_ends_in_one_line(run: Callable[..., tuple[int, str, str]]) -> None:
    for arguments, word in (
        (("certify", "net.py:load", "test.npz"), "--patch"),
        (("certify", "net.py:load", "test.npz", "--patch", "2x2", "--sigma", "0.25"), "one of them"),
        (("certify", "net.py:load", "test.npz", "--patch", "9x9"), "larger than the images"),
        (("certify", "net.py:load", "test.npz", "--patch", "2x2", "--draws", "100"), "--draws"),
        (("certify", "net.py:load", "test.npz", "--patch", "2x2", "--alpha", "0.1"), "--alpha"),
        (("certify", "net.py:load", "test.npz", "--sigma", "0.25", "--behind", "bands"), "--behind"),
        (("certify", "net.py:load", "test.npz", "--patch", "0%"), "--patch 0%"),
        (("certify", "net.py:load", "test.npz", "--patch", "large"), "--patch large"),
        (("certify", "net.py:load", "test.npz", "--patch", "2x2", "--behind", "maskin"), "masking"),
        (("certify", "net.py:load", "test.npz", "--patch", "2x2", "--behind", "bands", "--attack"), "--attack"),
        (("audit", "net.py:load", "test.npz", "--behind", "masking"), "--threat patch:5%"),
        (("harden", "net.py:load", "train.npz", "--threat", "patch:5%", "--method", "pgd"), "patch"),
    ):
        code, out, err = run(*arguments)
        assert code == 2, (arguments, err)
        assert err.count("\n") == 1
        assert word in err, (arguments, err)
        assert not out
