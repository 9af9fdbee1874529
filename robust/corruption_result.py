"""From the cells of the ledger to accuracies, retention and corruption errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust.cells import Cell, clean_baseline, read_cell
from robust.corrupting import Grid
from robust.corruptions import FAMILIES, NAMES
from robust.ledger import Ledger
from robust.stats import mean_rate, rate
from robust.summary import (
    AuditSummary,
    BaselineRecord,
    CellRecord,
    CorruptionRecord,
    CorruptionResult,
    MeanRate,
    Rate,
    ScoreRecord,
)

_FAMILY = {name: family for family, names in FAMILIES.items() for name in names}
Errors = dict[str, float]


def corruption_result(ledger: Ledger, grid: Grid) -> CorruptionResult | None:
    """What the ledger says of the cells asked for; None where none were."""
    if not grid.severities:
        return None
    images = ledger.images()
    labels = np.array([image.label for image in images])
    clean = sum(image.correct for image in images) / len(images)
    found = {(n, s): cell for n in NAMES for s in grid.severities if (cell := read_cell(ledger, n, s)) is not None}
    right = {key: np.array(cell.predictions) == labels for key, cell in found.items()}
    cells = [_cell(key, found[key], right[key], labels, grid) for key in found]
    whole = [name for name in NAMES if all((name, severity) in found for severity in grid.severities)]
    finished = len(whole) == len(NAMES)
    base = _baseline(ledger, grid, labels)
    errors = _relative(cells, whole, 0.0, 0.0)
    mean = _mean(list(right.values())) if finished else None
    left = len(NAMES) * len(grid.severities) - len(cells)
    return CorruptionResult(
        severities=list(grid.severities),
        cells=cells,
        corruptions=[
            CorruptionRecord(
                name=name, family=_FAMILY[name],  # type: ignore[arg-type]
                accuracy=(one := _mean([right[name, severity] for severity in grid.severities])),
                retention=one.value / clean if clean else None, error=errors.get(name),
            )
            for name in whole
        ],
        mean_accuracy=mean,
        always_right=rate(int(np.all(list(right.values()), axis=0).sum()), len(labels)) if finished else None,
        retention=mean.value / clean if mean and clean else None,
        worst=min(cells, key=lambda cell: cell.accuracy.value, default=None),
        mean_error=_mean_of(errors) if finished else None,
        relative_error=_mean_of(_relative(cells, whole, 1 - clean, 1 - base.clean_accuracy.value))
        if finished and base else None,
        baseline=base,
        verdict="inconclusive" if left else "sound",
        reasons=[_reason(len(cells), left)],
        seconds=sum(cell.seconds for cell in found.values()),
    )  # fmt: skip


def _reason(done: int, left: int) -> str:
    if left:
        return f"The budget ran out: {left} of {done + left} combinations of corruption and severity are missing."
    return f"All {done} combinations of corruption and severity were run on every image."


def corruption_score(result: CorruptionResult, clean: Rate) -> ScoreRecord:
    """The score of an audit for corruptions alone: 100 times the mean accuracy, of the cells that were finished."""
    cells = [cell.accuracy.value for cell in result.cells] or [0.0]
    found = result.mean_accuracy or MeanRate(value=float(np.mean(cells)), low=0.0, high=1.0, n=clean.n)
    return ScoreRecord(
        value=100 * found.value, low=100 * found.low, high=100 * found.high,
        definition="The mean accuracy over all corruptions and severities, times 100.",
        trusted=result.verdict == "sound",
    )  # fmt: skip


def _cell(key: tuple[str, int], cell: Cell, right: NDArray[Any], labels: NDArray[Any], grid: Grid) -> CellRecord:
    name, severity = key
    other = None
    if cell.baseline is not None:
        other = rate(int((np.array(cell.baseline) == labels).sum()), len(labels))
    elif grid.baseline is not None and grid.baseline.record is not None:
        other = _recorded(grid.baseline.record, name, severity)
    return CellRecord(
        corruption=name, severity=severity, accuracy=rate(int(right.sum()), len(labels)), baseline=other
    )  # fmt: skip


def _recorded(record: AuditSummary, name: str, severity: int) -> Rate:
    assert record.corruptions is not None
    return next(c.accuracy for c in record.corruptions.cells if (c.corruption, c.severity) == (name, severity))


def _baseline(ledger: Ledger, grid: Grid, labels: NDArray[Any]) -> BaselineRecord | None:
    base = grid.baseline
    if base is None:
        return None
    if base.record is not None:
        return BaselineRecord(name=base.name, sha256=base.sha256, clean_accuracy=base.record.clean_accuracy)
    right = int((np.array(clean_baseline(ledger)) == labels).sum())
    return BaselineRecord(name=base.name, sha256=base.sha256, clean_accuracy=rate(right, len(labels)))


def _mean(right: Sequence[NDArray[Any]]) -> MeanRate:
    """The mean over images of the share of cells that read each right. An image's cells count as one observation."""
    shares = np.mean(right, axis=0)
    return mean_rate(float(shares.sum()), len(shares))


def _relative(cells: Sequence[CellRecord], names: Sequence[str], clean: float, baseline: float) -> Errors:
    """Errors summed over severities as shares of the baseline's, each first less the model's error unattacked.

    A corruption under which the baseline loses nothing has none. Source: Hendrycks and Dietterich, ICLR 2019,
    section 4.
    """
    found: Errors = {}
    for name in names:
        own = [cell for cell in cells if cell.corruption == name]
        below = sum((1 - cell.baseline.value) - baseline for cell in own if cell.baseline is not None)
        if below > 1e-12:
            found[name] = sum((1 - cell.accuracy.value) - clean for cell in own) / below
    return found


def _mean_of(errors: Errors) -> float | None:
    """The mean over all corruptions; None where one is missing."""
    return sum(errors.values()) / len(NAMES) if len(errors) == len(NAMES) else None
