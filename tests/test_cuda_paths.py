"""What is done for CUDA alone, as far as it can be seen without it: settings, errors, memory that runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from subjects import LinearModel, images_of
from torch import Tensor

import robust
from robust.defenses.bounds.rounding import product_error
from robust.float32 import exact_float32, rounding_unit

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
