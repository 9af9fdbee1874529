"""Fixtures that many tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from oracles import TinyNet
from torch import Tensor, nn

from robust import cli

pytest.register_assert_rewrite("contract")
# The same examples in every run: a failure belongs to the change that brought it.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

_DATA_VARIABLE = "ROBUST_DATA"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are slower on many threads, and sums come out the same everywhere on one."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Test data drawn from the global generator is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_model() -> nn.Module:
    """A fixed nonlinear classifier of (N, 3, 6, 6) into 4 classes, in eval mode."""
    return TinyNet().eval()


@pytest.fixture
def tiny_images() -> Tensor:
    """Eight images (8, 3, 6, 6) in [0, 1]; some values lie on the box's ends."""
    images = torch.rand(8, 3, 6, 6)
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1
    return images


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the `robust` command in this process; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["robust", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        output = capsys.readouterr()
        code = exit_.value.code
        return (code if isinstance(code, int) else 1 if code else 0), output.out, output.err

    return run


@pytest.fixture
def robust_data() -> Path:
    """The folder of real images and trained models that ROBUST_DATA names; skips the test where there is none."""
    folder = os.environ.get(_DATA_VARIABLE)
    if not folder:
        pytest.skip(f"{_DATA_VARIABLE} is not set: no real data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"{_DATA_VARIABLE}={folder} is no folder")
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run that skipped the real data must not look like a whole one."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if _DATA_VARIABLE in str(report.longrepr)]
    if skipped:
        terminalreporter.write_sep("=", f"{len(skipped)} TESTS ON REAL DATA DID NOT RUN", red=True, bold=True)
        terminalreporter.write_line(f"Set {_DATA_VARIABLE} to the folder of real images and trained models.")
