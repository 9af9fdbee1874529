"""The bundled demo: the pictures it draws, the model that reads them, and the script that trained it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust import demo
from robust.demo import train as training
from robust.demo.network import MEAN, STD
from robust.demo.signs import CLASS_NAMES, FIRST_TRAINING_SEED, render, signs
from robust.errors import InputError

PACKAGE = Path(demo.__file__).parent
FRESH = 400


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def fresh() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels, _ = demo.data(FRESH, seed=31)
    return images, labels


@pytest.fixture(scope="module")
def logits(fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> Tensor:
    images = torch.from_numpy(fresh[0]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return demo.load_model()(images)


# --- the pictures


def test_data_has_the_documented_shapes_and_types() -> None:
    images, labels, names = demo.data(5)
    assert images.shape == (5, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (5,)
    assert labels.dtype == np.int64
    assert names == CLASS_NAMES
    assert len(set(names)) == len(names) >= 12


def test_same_seed_gives_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from robust.demo import data; images, labels, _ = data(24, 7);"
        "print(hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest())"
    )
    images, labels, _ = demo.data(24, 7)
    assert _run(code) == _digest(images, labels)


def test_other_seeds_give_other_images_and_another_order() -> None:
    first, second = signs(32, 1), signs(32, 2)
    assert not np.array_equal(first[1], second[1])
    assert not any(np.array_equal(a, b) for a in first[0] for b in second[0])


def test_images_of_one_seed_all_differ(fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    assert len({image.tobytes() for image in fresh[0]}) == FRESH


def test_an_image_does_not_depend_on_how_many_are_drawn() -> None:
    few, many = signs(5, 3), signs(40, 3)
    np.testing.assert_array_equal(few[0], many[0][:5])
    np.testing.assert_array_equal(few[1], many[1][:5])
    np.testing.assert_array_equal(render(int(many[1][39]), 3, 39), many[0][39])


def test_the_label_changes_the_sign_and_not_the_scene() -> None:
    a, b = render(CLASS_NAMES.index("stop"), 5, 1), render(CLASS_NAMES.index("no entry"), 5, 1)
    changed = (a != b).any(-1)
    border = np.ones((32, 32), bool)
    border[2:-2, 2:-2] = False
    assert changed[~border].mean() > 0.1
    assert changed[border].mean() < changed[~border].mean() / 2


@pytest.mark.parametrize("n", [1, 15, 16, 50])
def test_classes_are_balanced(n: int) -> None:
    _, labels = signs(n, 11)
    counts = np.bincount(labels, minlength=len(CLASS_NAMES))
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("n", "seed"), [(0, 1), (-3, 1), (4, -1), (4, FIRST_TRAINING_SEED)])
def test_bad_numbers_get_one_clear_line(n: int, seed: int) -> None:
    with pytest.raises(InputError, match=r"^demo data: (n|seed) must be") as caught:
        demo.data(n, seed)
    assert "\n" not in str(caught.value)


def test_importing_the_demo_loads_neither_torch_nor_numpy() -> None:
    loaded = _run("import sys, robust.demo; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))")
    assert loaded == "[]"


# --- the model


def test_weights_are_small_and_finite() -> None:
    assert (PACKAGE / demo.WEIGHTS).stat().st_size < 1_000_000
    model = demo.load_model()
    assert not model.training
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_model_names_its_classes(logits: Tensor) -> None:
    assert demo.load_model().class_names == CLASS_NAMES
    assert logits.shape == (FRESH, len(CLASS_NAMES))


def test_packaged_model_reads_fresh_images(fresh: tuple[NDArray[np.uint8], NDArray[np.int64]], logits: Tensor) -> None:
    right = logits.argmax(1).numpy() == fresh[1]
    assert right.mean() >= 0.94
    by_class = {name: right[fresh[1] == label].mean() for label, name in enumerate(CLASS_NAMES)}
    assert min(by_class.values()) >= 0.7, by_class


def test_outputs_are_logits_not_probabilities(logits: Tensor) -> None:
    assert (logits < 0).any()
    assert (logits > 1).any()
    assert ((logits.sum(1) - 1).abs() > 0.1).float().mean() > 0.9


def test_normalization_is_inside_the_model() -> None:
    model = demo.load_model()
    images = torch.rand(3, 3, 32, 32)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    by_hand = model.head(model.features((images - mean) / std))
    torch.testing.assert_close(model(images), by_hand)
    assert not torch.allclose(model(images), model.head(model.features(images)))


def test_gradients_reach_every_image(fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    images = (torch.from_numpy(fresh[0][:16]).permute(0, 3, 1, 2).float() / 255).requires_grad_()
    loss = torch.nn.functional.cross_entropy(demo.load_model()(images), torch.from_numpy(fresh[1][:16]))
    (gradient,) = torch.autograd.grad(loss, images)
    assert torch.isfinite(gradient).all()
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


# --- the training


def test_log_belongs_to_the_packaged_weights(fresh: tuple[NDArray[np.uint8], NDArray[np.int64]]) -> None:
    log = json.loads((PACKAGE / training.LOG).read_text(encoding="utf-8"))
    assert log["weights_sha256"] == hashlib.sha256((PACKAGE / demo.WEIGHTS).read_bytes()).hexdigest()
    assert tuple(log["classes"]) == CLASS_NAMES
    assert len(log["epochs"]) == log["settings"]["epochs"]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TEST_IMAGES", 32)
    monkeypatch.setattr(training, "ATTACKED_IMAGES", 16)


def _train_into(out: Path) -> dict[str, object]:
    assert training.main(["--out", str(out), "--seed", "4", "--images", "160", "--epochs", "2"]) == 0
    log: dict[str, object] = json.loads((out / training.LOG).read_text(encoding="utf-8"))
    return log


@pytest.mark.usefixtures("short")
def test_training_script_repeats_itself_and_keeps_the_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first, second = _train_into(tmp_path / "a"), _train_into(tmp_path / "b")
    torch.testing.assert_close(torch.get_rng_state(), before)
    assert first["weights_sha256"] == second["weights_sha256"]
    assert first["epochs"] == second["epochs"]
    assert first["test"] == second["test"]


def test_training_attack_stays_in_its_ball_and_raises_the_loss(
    fresh: tuple[NDArray[np.uint8], NDArray[np.int64]],
) -> None:
    model, eps = demo.load_model(), 8 / 255
    images = torch.from_numpy(fresh[0][:64]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(fresh[1][:64])
    moved = training._attacked(model, images, labels, eps, 5)
    assert float((moved - images).abs().max()) <= eps + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    loss = torch.nn.functional.cross_entropy
    assert float(loss(model(moved), labels).detach()) > 2 * float(loss(model(images), labels).detach())


@pytest.mark.parametrize("arguments", [["--images", "5"], ["--epochs", "0"], ["--seed", "-1"], ["--out", "FILE/x"]])
def test_training_script_refuses_bad_input_in_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = [argument.replace("FILE", str(tmp_path / "file")) for argument in arguments]
    assert training.main(["--out", str(tmp_path / "out"), *given]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {arguments[0]}")
    assert not (tmp_path / "out" / demo.WEIGHTS).exists()
