"""What is done for CUDA alone, as far as it can be seen without it: settings, errors, memory that runs out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

import pytest
import torch
from subjects import LinearModel, Unproven, images_of
from torch import Tensor

import robust
from robust import calibration
from robust.defenses.bounds.rounding import product_error
from robust.defenses.training.precision import training_dtype
from robust.float32 import exact_float32, rounding_unit
from robust.lane import has_bfloat16
from robust.memory import Fitting, OutOfMemory
from robust.randomness import own_random
from robust.request import choose_device

Command = Callable[..., tuple[int, str, str]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _products() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(), cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32,
        cudnn.benchmark, cudnn.deterministic,
    )  # fmt: skip


@pytest.fixture
def loose() -> Iterator[None]:
    """Settings as a program that wants speed makes them."""
    before = _products()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, True
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[1], before[3]


# Float32


class Watching(LinearModel):
    """Notes the settings under which it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[Any, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(_products())
        return super().forward(images)


def test_tf32_is_what_pytorch_does_unless_told() -> None:
    """Or there would be nothing to guard against."""
    assert torch.backends.cudnn.allow_tf32
    assert product_error(CUDA) == pytest.approx(2 * 2**-11, rel=1e-3)
    assert product_error(CPU) == 0


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("job", ["audit", "certify"])
def test_what_decides_is_float32_whatever_the_program_allows(job: str) -> None:
    model, before = Watching(), _products()
    images, labels = images_of(model, 6, 1)
    model.seen.clear()
    if job == "audit":
        robust.audit(model, (images, labels), ["linf:0.02"], attacks=["fgsm"], device="cpu")
    else:
        robust.certify(model, (images, labels), sigma=0.1, draws=200, device="cpu")
    assert model.seen == {("highest", False, False, False, True)}
    assert _products() == before


@pytest.mark.usefixtures("loose")
def test_bounds_charge_what_products_may_lose() -> None:
    assert rounding_unit(CPU) == rounding_unit(CUDA) == 2**-8
    torch.set_float32_matmul_precision("high")
    assert rounding_unit(CUDA) == 2**-11
    torch.set_float32_matmul_precision("highest")
    assert rounding_unit(CUDA) == 2**-11  # of convolutions
    with exact_float32():
        assert product_error(CPU) == product_error(CUDA) == 0


def test_an_error_puts_the_settings_back() -> None:
    before = _products()
    with pytest.raises(ZeroDivisionError), exact_float32():
        raise ZeroDivisionError
    assert _products() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="THIS TORCH HAS ONLY THE OLDER SETTINGS")
def test_the_newer_settings_are_heeded_too() -> None:
    """Once a program has used them, PyTorch raises an error where the older ones are read."""
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn.conv
    owners = (cudnn.conv, cudnn.rnn, onednn)
    before = [owner.fp32_precision for owner in owners]
    try:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, onednn.fp32_precision = "ieee", "ieee", "bf16"
        assert rounding_unit(CPU) == 2**-8
        assert rounding_unit(CUDA) == 0
        cudnn.conv.fp32_precision = "tf32"
        with pytest.raises(RuntimeError):
            _ = cudnn.allow_tf32
        assert rounding_unit(CUDA) == 2**-11
        with exact_float32():
            assert rounding_unit(CPU) == rounding_unit(CUDA) == 0
        assert [owner.fp32_precision for owner in owners] == ["tf32", "ieee", "bf16"]
    finally:
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision


# Memory


class Cramped(Unproven):
    """Raises CUDA's error where more images than ``most`` are to be kept for a backward pass."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.refused = most, 0

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad and len(images) > self.most:
            self.refused += 1
            raise OutOfMemory("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().forward(images)


@pytest.mark.parametrize("attacks", [None, ["art:FastGradientMethod", "foolbox:LinfPGD(steps=3)"]])
def test_an_audit_that_runs_out_of_memory_goes_on_in_smaller_parts(attacks: list[str] | None) -> None:
    images, labels = images_of(LinearModel(), 14, 2)

    def audited(model: Cramped) -> Any:
        return robust.audit(
            model, (images, labels), ["linf:0.01"], attacks=attacks, batch_size=8, precision="plain", effort="quick"
            if attacks is None else "standard", device="cpu",
        )  # fmt: skip

    roomy, cramped = Cramped(99), Cramped(3)
    wide, narrow = audited(roomy), audited(cramped)
    assert cramped.refused > roomy.refused == 0
    assert narrow.verdict == wide.verdict
    (one,), (other,) = wide.threats, narrow.threats
    assert other.robust_accuracy == one.robust_accuracy
    assert [(run.name, run.broken, run.status) for run in other.attacks] == [
        (run.name, run.broken, run.status) for run in one.attacks
    ]
    assert [(check.name, check.passed) for check in other.checks] == [(c.name, c.passed) for c in one.checks]
    assert any("memory" in run.detail for run in other.attacks)


def test_parts_that_fit_are_found_by_halving_and_kept() -> None:
    tried: list[int] = []

    def work(part: slice) -> list[int]:
        rows = list(range(13))[part]
        tried.append(len(rows))
        if len(rows) > 3:
            raise OutOfMemory("CUDA out of memory")
        return rows

    fitting = Fitting()
    assert list(chain.from_iterable(fitting.run(work, 13))) == list(range(13))
    assert tried == [13, 7, 4, 2, 2, 2, 2, 2, 2, 1]
    tried.clear()
    assert list(chain.from_iterable(fitting.run(work, 13))) == list(range(13))
    assert max(tried) == 2


def test_one_image_that_does_not_fit_is_said() -> None:
    def work(part: slice) -> None:
        raise OutOfMemory("CUDA out of memory")

    with pytest.raises(OutOfMemory):
        Fitting().run(work, 5)


def test_running_out_of_memory_ends_the_command_with_one_line(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:  # fmt: skip
    def audit(*_: Any, **__: Any) -> None:
        raise OutOfMemory("CUDA out of memory. Tried to allocate 20.00 GiB\nmore")

    monkeypatch.setattr("robust.auditing.audit", audit)
    code, _, told = command("audit", "demo", "demo", "--out", str(tmp_path / "out"))
    assert code == 3
    assert told.count("\n") == 1
    assert "--batch-size" in told


# Choosing


@pytest.mark.skipif(torch.cuda.is_available(), reason="THERE IS A CUDA DEVICE HERE")
@pytest.mark.parametrize("name", ["cuda", "cuda:7", "meta", "gpu"])
def test_a_device_that_cannot_be_used_is_said_in_one_line(command: Command, tmp_path: Any, name: str) -> None:
    out = tmp_path / "out"
    code, _, told = command("audit", "demo", "demo", "--device", name, "--out", str(out))
    assert code == 2
    assert told.startswith(f"robust: device '{name}' cannot be used here")
    assert told.count("\n") == 1
    assert not out.exists()


def test_cuda_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU


# Measuring


def test_a_pass_on_cuda_is_timed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    calibration._finish(CUDA)
    calibration._finish(CPU)
    assert waited == [CUDA]
    assert calibration.clock_for(CUDA) is time.perf_counter


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_on_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert has_bfloat16(CUDA) is supported


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_training_takes_bfloat16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert training_dtype("auto", CUDA) == dtype
    assert training_dtype("float32", CUDA) == torch.float32


# Random numbers


def test_cudas_random_state_is_kept_and_no_other_device_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    state = torch.zeros(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: done.append(("kept", device)) or state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda saved, device: done.append(("put back", saved, device)))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(done.append(("current", device))))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: done.append(("seeded", seed)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: done.append("all"))
    before, second = torch.get_rng_state(), torch.device("cuda", 1)
    with own_random(second, 5):
        drawn = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(5)))
    assert done == [("kept", second), ("current", second), ("seeded", 5), ("put back", state, second)]
