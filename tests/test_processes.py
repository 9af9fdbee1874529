"""One training on two processes: the model of one process, the same in both, and one set of files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import TinyNet
from quarters import quarters
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from robust.data import ImageSet, load_data
from robust.defenses.training import METHODS, method
from robust.defenses.training import loop as loop_module
from robust.defenses.training.defense import Defense
from robust.defenses.training.history import Hardened
from robust.defenses.training.processes import Processes, join
from robust.defenses.training.validation import Gap, Held
from robust.errors import InputError
from robust.hardening import harden

CPU = torch.device("cpu")


class PlainNet(nn.Module):
    """Neither batch normalization nor dropout, and one weight that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.head, self.idle = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(288, 4), nn.Linear(2, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.conv(images - 0.5).tanh().flatten(1))
        return logits


class NaNInOne(PlainNet):
    """No number from the second process after six training steps."""

    left = 6

    def forward(self, images: Tensor) -> Tensor:
        self.left -= self.training
        bad = self.training and self.left < 0 and distributed.get_rank() == 1
        return super().forward(images) * (float("nan") if bad else 1.0)


def _defense(name: str, **settings: Any) -> Defense:
    kind = method(name)
    threat = "patch:2x2" if kind.norms == ("patch",) else "linf:0.1"
    return kind(threat, **{"epochs": 2, "batch_size": 23, "precision": "float32", "device": "cpu", **settings})


def _fit(defense: Defense, model: nn.Module | None = None, data: ImageSet | None = None, **more: Any) -> Hardened:
    return defense.fit(model or PlainNet(), data or quarters(), quarters(48, seed=1), **more)


def _read_each_time() -> ImageSet:
    """Images that are no whole 255ths and so are not kept."""
    data = quarters()
    return load_data((data.batch(range(96)) * 0.999, data.labels))


# Name: a training that one process and two shall do alike.
ALIKE: dict[str, Callable[[], Hardened]] = {
    **{name: lambda name=name: _fit(_defense(name)) for name in METHODS},  # type: ignore[misc]
    "l2, augmented": lambda: _fit(replace(_defense("pgd", augment=["shift:1", "light"]), threat="l2:0.5")),
    "awp": lambda: _fit(_defense("trades", awp=0.02, averaging="none")),
    "adamw": lambda: _fit(_defense("fast", optimizer="adamw", averaging="swa")),
    "read each time": lambda: _fit(_defense("nfgsm"), data=_read_each_time()),
}


# What the two processes do. Each writes what it found to a file of its own.


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    here = Path(folder)
    distributed.init_process_group("gloo", init_method=f"file://{here}/meeting", rank=rank, world_size=2)
    found = {name: _plain(train()) for name, train in ALIKE.items()}
    found["normalized"] = _plain(_fit(_defense("pgd"), TinyNet()))
    found["diverged"] = _plain(_fit(_defense("pgd", epochs=4), NaNInOne()))
    for name in ("nfgsm", "free"):
        _killed(_defense(name, epochs=3), here / name)
        found[f"whole {name}"] = _plain(_fit(_defense(name, epochs=3)))
        found[f"resumed {name}"] = _plain(_fit(_defense(name, epochs=3), out=here / name))
    found.update(_decisions(rank))
    with pytest.raises(InputError, match="batch_size 3"):
        _fit(_defense("pgd", batch_size=3))
    with pytest.raises(InputError, match="method distillation: is judged by one more training"):
        harden(PlainNet(), quarters(160), method=_defense("distillation"), out=here / "out")
    with pytest.raises(InputError, match="each of 2 processes takes its own"):
        _fit(_defense("pgd", device="cuda:0"))
    found["step"] = _one_step(rank)
    torch.save(found, here / f"{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # as the package's own processes end, see Processes.leave


def _values() -> Tensor:
    """Five rows, of which the first process has two."""
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class TwoWays(nn.Module):
    """Normalization, and a weight for each process to use alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.first, self.second = (nn.Parameter(torch.zeros(3)) for _ in range(2))

    def forward(self, values: Tensor, rank: int) -> Tensor:
        self.norm(values)
        return ((self.second if rank else self.first) * torch.ones_like(values)).sum(1)


def _one_step(rank: int) -> dict[str, Tensor]:
    """A backward pass on five rows shared by two processes."""
    model, processes = TwoWays(), join("cpu")
    rows = processes.rows(5)
    share = (rows.stop - rows.start) / 5
    loss = model(_values()[rows], rank).mean() * share
    loss.backward()
    processes.joined(model, loss, share)
    assert model.norm.running_mean is not None
    assert model.norm.running_var is not None
    assert model.second.grad is not None
    return {
        "running_mean": model.norm.running_mean, "running_var": model.norm.running_var, "second": model.second.grad,
    }  # fmt: skip


def _plain(found: Hardened) -> dict[str, Any]:
    epochs = [{**asdict(epoch), "seconds": 0, "processor": 0} for epoch in found.history.epochs]
    history = {**found.history.record(), "epochs": epochs}
    return {"weights": dict(found.model.state_dict()), "history": history}


def _killed(defense: Defense, out: Path) -> None:
    """Train until some way into the third epoch."""
    original = loop_module._Run._step

    def step(self: Any, *arguments: Any) -> Any:
        if len(self.epochs) == 2 and self.step % 4 == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module._Run, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            _fit(defense, out=out)


def _decisions(rank: int) -> dict[str, Any]:
    """An early stop and a roll-back, measured by the first process; the other may not measure anything."""

    def first(values: list[Any]) -> Callable[..., Any]:
        left = iter(values)
        return lambda *_: next(left) if rank == 0 else pytest.fail("measured by the second process")

    good, bad = Gap(0.5, 0.45), Gap(0.9, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Held, "under_pgd", first([0.5, 0.6, 0.59, 0.4, 0.9]))
        stopped = _plain(_fit(_defense("pgd", epochs=9, patience=2, guard=False)))
        patch.setattr(Held, "under_pgd", lambda *_: 0.5)
        patch.setattr(Held, "gap", first([good, bad, good, good]))
        rolled = _plain(_fit(_defense("nfgsm", epochs=3)))
    return {"stopped": stopped, "rolled back": rolled}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both processes found."""
    folder = tmp_path_factory.mktemp("together")
    spawn(_worker, (str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


Together = tuple[dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_train_what_one_does(name: str, together: Together) -> None:
    alone, found = _plain(ALIKE[name]()), together[0][name]
    for key, value in alone["weights"].items():
        assert torch.allclose(found["weights"][key], value, rtol=1e-4, atol=1e-5), key
    assert not torch.allclose(found["weights"]["conv.weight"], PlainNet().conv.weight, atol=1e-3)
    for one, two in zip(alone["history"]["epochs"], found["history"]["epochs"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["clean"] == pytest.approx(one["clean"], abs=0.03)
    assert found["history"]["remarks"] == ["trained by 2 processes on cpu"]


def test_both_processes_have_the_same_to_the_last_bit(together: Together) -> None:
    first, second = together
    assert first.keys() == second.keys()
    for name in first.keys() - {"step"}:
        found = first[name]
        assert _same(found["weights"], second[name]["weights"]), name
        assert found["history"] == second[name]["history"], name


@pytest.mark.parametrize("name", ["nfgsm", "free"])
def test_a_killed_run_goes_on_and_ends_with_the_same_model(name: str, together: Together) -> None:
    first, _ = together
    whole, resumed = first[f"whole {name}"], first[f"resumed {name}"]
    assert _same(whole["weights"], resumed["weights"])
    assert whole["history"] == resumed["history"]


def test_a_loss_that_is_no_number_in_one_process_stops_both(together: Together) -> None:
    for found in together:
        assert "diverged" in found["diverged"]["history"]["stopped"]
        assert found["diverged"]["history"]["best"] == 1
        assert all(bool(value.isfinite().all()) for value in found["diverged"]["weights"].values())


def test_what_the_first_measures_decides_for_both(together: Together) -> None:
    for found in together:
        history = found["stopped"]["history"]
        assert (history["best"], len(history["epochs"])) == (2, 4)
        assert [epoch["rollbacks"] for epoch in found["rolled back"]["history"]["epochs"]] == [0, 1, 1]


def test_running_statistics_are_averaged_and_it_is_said(together: Together) -> None:
    assert "running statistics averaged" in together[0]["normalized"]["history"]["remarks"][0]
    values = _values()
    for found in together:
        mean = 0.1 * values.mean(0)
        assert torch.allclose(found["step"]["running_mean"], mean, atol=1e-6), "as of the whole batch"
        parts = 0.4 * values[:2].var(0) + 0.6 * values[2:].var(0)
        assert torch.allclose(found["step"]["running_var"], 0.9 + 0.1 * parts, atol=1e-6)


def test_a_weight_that_one_process_reaches_moves_in_both(together: Together) -> None:
    for found in together:
        assert torch.allclose(found["step"]["second"], torch.full((3,), 0.6)), "the share of the process that used it"


def test_rows_cover_the_batch_once() -> None:
    for count in (1, 2, 3, 7):
        rows = [range(23)[Processes(CPU, rank, count).rows(23)] for rank in range(count)]
        assert [at for part in rows for at in part] == list(range(23))
        assert {len(part) for part in rows} <= {23 // count, 23 // count + 1}


def test_alone_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    assert join("cpu") == Processes(CPU, 0, 1)


# The command

FACTORY = """
import sys
sys.path.insert(0, {tests!r})
from test_processes import PlainNet

def load():
    return PlainNet()
"""


def _torchrun(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (folder / "net.py").write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    for name, data in (("train", quarters(160)), ("test", quarters(20, seed=5))):
        images = (data.batch(range(len(data))) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        np.savez(folder / name, images=images.numpy(), labels=data.labels.numpy(), class_names=np.array(list("abcd")))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "robust",
        "harden", "net.py:load", "train.npz", "--test", "test.npz", "--method", "nfgsm", "--threat", "linf:0.1",
        "--epochs", "2", "--batch-size", "16", "--fresh", "--device", "cpu", "--limit", "10", "--out", "out", *more,
    ]  # fmt: skip
    package = str(Path(loop_module.__file__).parents[3])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_command_under_torchrun_writes_one_report(tmp_path: Path) -> None:
    done = _torchrun(tmp_path)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["figures"]["images"] == 10
    assert "trained by 2 processes on cpu" in card["remarks"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "before", "after", "training", "weights.safetensors", "card.json", "README.md", "history.json", "report.html",
    }  # fmt: skip
    assert done.stdout.count("report: out/report.html") == 1
    assert done.stderr.count("epoch   2/2") == 1
    assert done.stderr.count("audit of the model after hardening") == 1


def test_under_torchrun_too_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = _torchrun(tmp_path, "--batch-size", "3")
    assert done.returncode != 0
    assert done.stderr.count("robust: ") == 1, done.stderr
    assert "robust: batch_size 3: 2 processes need at least 2 images each; give at least 4" in done.stderr
    assert not (tmp_path / "out").exists()
