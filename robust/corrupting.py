"""Runs a model, and a baseline beside it, over corrupted images, cell by cell, into the ledger.

A cell is one corruption at one severity over all audited images. One that is in the ledger is not run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from robust import randomness
from robust.batching import batches
from robust.cells import Cell, begin_cells, example_of, keep_cell, read_cell
from robust.corruptions import NAMES, SEVERITIES
from robust.describing import name_of
from robust.draws import Stream
from robust.errors import InputError
from robust.models import check_model, evaluating, identify, load_model
from robust.request import SUMMARY, Request
from robust.running import Job
from robust.summary import AuditSummary, DataRecord
from robust.surrogates import ModelSource

_CANDIDATES = 64


@dataclass(frozen=True)
class Baseline:
    """What corruption errors are relative to: a model to be run beside the audited one, or the record of another audit.

    ``model`` is None for a record; ``record`` None for a model.
    """

    name: str
    sha256: str
    model: nn.Module | None
    record: AuditSummary | None


@dataclass(frozen=True)
class Grid:
    """The cells asked for: every corruption at each of these severities; none where corruptions are not asked for."""

    severities: tuple[int, ...]
    baseline: Baseline | None = None

    @property
    def identity(self) -> dict[str, Any] | None:
        """What a ledger must have been made for, to be gone on with."""
        if not self.severities:
            return None
        base = self.baseline
        # The cells hold what a model read beside the audited one; of a record they hold nothing.
        compared = base and {"sha256": base.sha256, "recorded": base.record is not None}
        return {"severities": list(self.severities), "baseline": compared}

    @property
    def text(self) -> str:
        """As on the command line."""
        return "corruptions" if self.severities == SEVERITIES else f"corruptions:{max(self.severities)}"


def check_baseline(given: ModelSource | None, severities: tuple[int, ...]) -> None:
    """Raises InputError for a baseline that nothing would be compared with."""
    if given is not None and not severities:
        raise InputError(
            "--baseline: is for corruption errors; ask for them with --threat corruptions, or leave it out"
        )


def load_baseline(
    given: ModelSource | None, images: Tensor, classes: int, data: DataRecord, request: Request, trust: bool
) -> Baseline | None:
    """The baseline that ``given`` names: an `audit.json`, the folder of one, or a model.

    ``images``: a few of the audit's, on its device. Raises InputError for a record of other images, another seed or
    fewer severities, and for a model that does not fit.
    """
    if given is None:
        return None
    record = _record_at(given)
    if record is not None:
        _check_record(str(given), record, data, request)
        return Baseline(record.model.name, record.model.sha256, None, record)
    try:
        model = load_model(given, trust=trust).to(request.device)
        found = check_model(model, images, torch.empty(0, dtype=torch.long), None)
    except InputError as error:
        raise InputError(f"--baseline {name_of(given)}: {error}") from error
    if found != classes:
        raise InputError(f"--baseline {name_of(given)}: gives {found} logits, the model under audit {classes}")
    return Baseline(name_of(given), identify(model), model, None)


def _record_at(given: ModelSource) -> AuditSummary | None:
    if not isinstance(given, (str, Path)):
        return None
    path = Path(given) / SUMMARY if Path(given).is_dir() else Path(given)
    if path.suffix != ".json":
        return None
    if not path.is_file():
        raise InputError(f"--baseline {given}: no such file; give the audit.json of another audit, or a model")
    try:
        return AuditSummary.read(path)
    except (ValidationError, UnicodeDecodeError) as error:
        raise InputError(f"--baseline {path}: not the record of an audit ({str(error).splitlines()[0]})") from None


def _check_record(given: str, record: AuditSummary, data: DataRecord, request: Request) -> None:
    if record.corruptions is None or record.corruptions.mean_accuracy is None:
        raise InputError(
            f"--baseline {given}: holds no finished audit with --threat corruptions; make one, or give a model"
        )
    if record.data.sha256 != data.sha256 or record.settings.seed != request.seed:
        raise InputError(
            f"--baseline {given}: was audited on other images or with another seed; audit it on the same data, with "
            "the same --limit and --seed"
        )
    if not set(request.corruptions) <= set(record.corruptions.severities):
        raise InputError(
            f"--baseline {given}: has severities up to {max(record.corruptions.severities)} only; ask for "
            f"corruptions:{max(record.corruptions.severities)}"
        )


def run_corruptions(job: Job, grid: Grid) -> None:
    """Every cell that is not in the ledger yet, as far as time allows."""
    total = len(job.data)
    if grid.severities and example_of(job.ledger) is None:
        begin_cells(job.ledger, _choose_example(job), _clean_baseline(job, grid))
    for name in NAMES if grid.severities else ():
        job.progress.stage(f"corruptions  {name}", total * len(grid.severities))
        shares = []
        for severity in grid.severities:
            cell = read_cell(job.ledger, name, severity)
            if cell is None:
                cell = _run_cell(job, grid, name, severity)
                if cell is None:
                    job.progress.line("corruptions  the budget ran out")
                    return
                keep_cell(job.ledger, name, severity, cell)
            else:
                job.progress.advance(total)
            right = sum(read == label for read, label in zip(cell.predictions, job.data.labels.tolist(), strict=True))
            shares.append(f"{right / total:6.1%}")
        job.progress.line(f"corruptions  {name:<18} accuracy by severity {' '.join(shares)}")


def _clean_baseline(job: Job, grid: Grid) -> list[int] | None:
    """What the baseline reads in the images as they are; None for a record, or without one."""
    model = None if grid.baseline is None else grid.baseline.model
    if model is None:
        return None
    ids = batches(list(range(len(job.data))), job.batch_size)
    return [read for batch in ids for read in _read(model, job.data.batch(batch).to(job.device))]


def _run_cell(job: Job, grid: Grid, name: str, severity: int) -> Cell | None:
    from robust.corruptions.apply import corrupt  # needs kornia, which takes its time to load

    start = time.perf_counter()
    example = example_of(job.ledger)
    other = None if grid.baseline is None else grid.baseline.model
    # Of a model that draws random numbers each cell is one draw, the same in every run.
    stream = Stream(job.seed * 1009 + NAMES.index(name) * len(SEVERITIES) + severity)
    predictions: list[int] = []
    compared: list[int] = []
    shown = torch.zeros(job.data.shape)
    for ids in batches(list(range(len(job.data))), job.batch_size):
        if job.out_of_time:
            return None
        images = job.data.batch(ids).to(job.device)
        corrupted = corrupt(images, name, severity, randomness.image_seeds(images, job.seed))
        if example in ids:
            shown = corrupted[ids.index(example)].cpu()
        with stream.next(job.device):
            predictions += _read(job.model, corrupted)
            compared += [] if other is None else _read(other, corrupted)
        job.progress.advance(len(ids))
    seconds = time.perf_counter() - start
    return Cell.of(predictions, None if other is None else compared, seconds, shown.numpy())


def _read(model: nn.Module, images: Tensor) -> list[int]:
    """The class read in each image."""
    with evaluating(model), torch.no_grad():
        logits = model(images).float()
    finite = logits.isfinite().all(1)
    classes: list[int] = logits.argmax(1).masked_fill(~finite, -1).tolist()
    return classes


def _choose_example(job: Job) -> int:
    """Of the first images read right (or of any, where none is), the one with most contrast in its middle."""
    ids = (job.correct() or list(range(len(job.data))))[:_CANDIDATES]
    images = job.data.batch(ids)
    height, width = images.shape[-2:]
    middle = images[..., height // 4 : height - height // 4, width // 4 : width - width // 4]
    return ids[int(middle.flatten(1).std(1).argmax())]
