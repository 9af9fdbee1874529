"""Proofs, hardening and patches on the simulated device, as :mod:`test_devices` has it for attacks and audits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import contract
import pytest
import second_device
import torch
from detectors import BOX, RED, ColorDetector
from quarters import quarters
from safetensors.torch import load_file
from second_device import NAME, alike, there
from subjects import LinearModel, images_of
from test_bounds import mixed
from torch import Tensor, nn

import robust
from robust.attacks.patch import OnSign, PatchAttack, rectangle
from robust.defenses.bounds import prove
from robust.defenses.bounds.proving import EFFORTS
from robust.defenses.training import METHODS, loop, method
from robust.defenses.training.augmentation import augmentation
from robust.detection import DetectionGoal, attack_detector, measure_detector
from robust.models import identify
from robust.patches.making import make_patch
from robust.threats import ThreatModel

pytestmark = pytest.mark.skipif(bool(second_device.MISSING), reason=f"NO DEVICE IS SIMULATED: {second_device.MISSING}")


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", second_device.Generator)


@pytest.fixture
def one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's own random numbers would lead to another model, so here it takes those of the CPU."""
    monkeypatch.setattr(second_device.Backend, "generator", torch.default_generator)


# Certificates


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("text", ["linf:0.02", "l2:0.2"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_bounds_are_the_same(pooling: str, text: str, effort: str) -> None:
    model, images = mixed(pooling, 3)
    labels = contract.predictions(model, images)

    def run(device: str) -> Any:
        with torch.no_grad():
            moved = copy.deepcopy(model).to(device)
            proofs = prove(moved, images.to(device), labels.to(device), ThreatModel.parse(text), effort)
        assert proofs.margin.device.type == device
        return proofs.margin.cpu()

    # More is taken at a time there, which moves last bits.
    torch.testing.assert_close(run(NAME), run("cpu"), rtol=2e-5, atol=1e-6)


def test_a_smoothed_classifier_answers_the_same() -> None:
    images, _ = images_of(LinearModel(), 4, 1)

    def run(device: str) -> Any:
        smoothed = robust.SmoothedClassifier(LinearModel().to(device), 0.1)
        given = images.to(device)
        return smoothed(given).tolist(), smoothed.predict(given).tolist(), smoothed.predict(given[:0]).tolist()

    alike(run)


@pytest.mark.parametrize("more", [{"attack": True, "beside": "cohen"}, {"precision": "bfloat16"}])
def test_smoothing_certifies_the_same(more: dict[str, Any]) -> None:
    images, labels = images_of(LinearModel(), 4, 1)

    def run(device: str) -> Any:
        found = robust.certify(LinearModel(), (images, labels), sigma=0.02, draws=4000, device=device, **more)
        return [(part.rows, part.points) for part in found.methods], found.attack and found.attack.points

    ((rows, _), *_), _ = alike(run)
    assert any(row.radius > 0 for row in rows)


@pytest.mark.parametrize("behind", ["masking", "bands"])
def test_patch_certificates_are_the_same(behind: str) -> None:
    images = contract.batch(6)
    labels = torch.arange(6) % 4

    def run(device: str) -> Any:
        found = robust.certify_patches(
            contract.net(), (images, labels), patch="2x2", behind=behind, attack=behind == "masking", device=device
        )
        return found.rows, found.certified

    alike(run)


# Hardening


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.usefixtures("one_stream")
def test_a_defense_trains_the_same_model(name: str) -> None:
    kind = method(name)
    threat = {("patch",): "patch:2x2", ("l2",): "l2:0.5"}.get(kind.norms, "linf:0.05")
    data = quarters(24)

    def run(device: str) -> Any:
        torch.manual_seed(1)
        defense = kind(threat, epochs=1, batch_size=12, precision="float32", device=device)
        trained = defense.fit(contract.net(), data, data).model
        assert next(iter(trained.parameters())).device.type == device
        return [value.tolist() for value in trained.state_dict().values()]

    alike(run)


@pytest.mark.usefixtures("one_stream")
def test_a_start_in_an_l2_ball_is_the_same() -> None:
    def run(device: str) -> Any:
        torch.manual_seed(1)
        defense = method("fast")("l2:0.5", epochs=1, batch_size=12, precision="float32", device=device)
        return identify(defense.fit(contract.net(), quarters(24), quarters(24)).model)

    alike(run)


@pytest.mark.usefixtures("one_stream")
@pytest.mark.parametrize("text", ["shift:2", "flip", "light:0.3", "turn:20", "erase:3"])
def test_an_augmentation_is_the_same(text: str) -> None:
    def run(device: str) -> Any:
        torch.manual_seed(3)
        return augmentation(text)(contract.batch(8).to(device)).tolist()

    assert run("cpu") == run(NAME) != contract.batch(8).tolist()


@pytest.mark.usefixtures("one_stream")
def test_hardening_ends_in_the_same_audits(tmp_path: Path) -> None:
    weights: list[dict[str, Tensor]] = []

    def run(device: str) -> Any:
        torch.manual_seed(1)
        found = robust.harden(
            contract.net(), quarters(48), quarters(16, seed=1), quarters(8, seed=2), method="fast", threat="linf:0.1",
            out=tmp_path / device, epochs=1, batch_size=24, precision="float32", device=device,
        )  # fmt: skip
        assert next(found.model.parameters()).device.type == device
        weights.append(load_file(tmp_path / device / "weights.safetensors"))
        return [(part.clean_accuracy, part.threats[0].robust_accuracy) for part in (found.before, found.after)]

    alike(run)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["free", "trades"])
def test_a_training_killed_there_goes_on_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 12, "device": NAME, "averaging": "ema"}
    defense, data = method(name)("linf:0.05", precision="bfloat16", **settings), quarters(24)
    whole = defense.fit(contract.net(), data, data)
    step = loop._Run._step

    def dies_in_the_second_epoch(self: Any, *arguments: Any) -> Any:
        if self.epochs:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", dies_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            defense.fit(contract.net(), data, data, out=tmp_path)
    again = defense.fit(contract.net(), data, data, out=tmp_path)
    assert len(again.history.epochs) == 2
    assert identify(again.model) == identify(whole.model)


# Patches


@pytest.mark.parametrize(("kind", "nps"), [("universal", 0.1), ("stickers", 0.0), ("per-image", 0.0)])
def test_a_patch_is_the_same(kind: str, nps: float, tmp_path: Path) -> None:
    images = torch.rand(34, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(6), LinearModel())
    labels = torch.arange(34) % 2

    def run(device: str) -> Any:
        made = make_patch(
            copy.deepcopy(model), (images, labels), source="class 0", target="class 1", kind=kind, steps=1, batch=4,
            nps=nps, tv=0.1, draws=1, layouts=2, dpi=30, conditions="physical", device=device, out=tmp_path / device,
        )  # fmt: skip
        return made.patch.tolist(), made.cover.tolist(), made.record["figures"]

    alike(run)


def test_a_patch_against_a_detector_is_the_same() -> None:
    images, boxes = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([BOX] * 3)

    def run(device: str) -> Any:
        detector = there(ColorDetector()) if device == NAME else ColorDetector()
        result = attack_detector(
            detector, images.to(device), boxes.to(device), DetectionGoal(RED, None, threshold=0.6),
            OnSign(rectangle(16, 16, 0.25)), attack=PatchAttack(steps=3),
        )  # fmt: skip
        measured = measure_detector(
            detector, images.to(device), boxes.to(device), DetectionGoal(RED, None, threshold=0.6), result.patch,
            OnSign(rectangle(16, 16, 0.25)), draws=2,
        )  # fmt: skip
        return result.patch.tolist(), str(measured)

    alike(run)
