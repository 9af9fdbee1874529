"""Common corruptions as the report shows them: the heat map, the figures by corruption, and example pictures."""

from __future__ import annotations

from dataclasses import dataclass

from robust.cells import example_of, read_cell
from robust.corruptions import FAMILIES, NAMES
from robust.ledger import Ledger
from robust.reports import formats
from robust.reports.gallery import SIDES, picture
from robust.summary import AuditSummary, CellRecord, CorruptionRecord, CorruptionResult

PICTURE_BYTES = 600_000  # all example pictures together


@dataclass(frozen=True)
class Shown:
    """One cell: its figures, how deeply the heat map colors it (percent), and the example image as it shows it.

    ``picture`` is a data URI; ``read`` the class read in it, ``right`` whether that is its true one.
    """

    record: CellRecord
    heat: float
    picture: str
    read: int
    right: bool


@dataclass(frozen=True)
class Line:
    """One corruption: its cells by severity and its means (None: not finished); ``first``: of its family."""

    name: str
    family: str
    first: bool
    cells: list[Shown | None]
    record: CorruptionRecord | None


@dataclass(frozen=True)
class CorruptionView:
    """What the template needs; ``image`` and ``original`` are the example image's number and picture."""

    result: CorruptionResult
    headline: str
    lines: list[Line]
    image: int | None
    label: int
    original: str


def spoken(name: str) -> str:
    """``gaussian_noise`` as people say it."""
    return name.replace("jpeg", "JPEG").replace("_", " ")


def headline(summary: AuditSummary, result: CorruptionResult) -> str:
    """The result in one sentence."""
    if result.mean_accuracy is None:
        return f"{len(result.cells)} of {len(NAMES) * len(result.severities)} kinds of corrupted images were measured."
    mean, clean = result.mean_accuracy.value, summary.clean_accuracy.value
    return (
        f"Noise, blur, weather and digital faults take the model from {formats.percent(clean)} right to "
        f"{formats.percent(mean)} on average."
    )


def corruption_view(summary: AuditSummary, ledger: Ledger) -> CorruptionView | None:
    """The section's content; None where corruptions were not asked for."""
    result = summary.corruptions
    if result is None:
        return None
    image = example_of(ledger)
    label = ledger.images()[image].label if image is not None else -1
    lines: list[Line] = []
    for side in SIDES:
        lines = _lines(summary, result, ledger, side)
        if sum(len(cell.picture) for line in lines for cell in line.cells if cell) <= PICTURE_BYTES:
            break
    original = "" if image is None else picture(ledger.original(image), side)
    return CorruptionView(result, headline(summary, result), lines, image, label, original)


def _lines(summary: AuditSummary, result: CorruptionResult, ledger: Ledger, side: int) -> list[Line]:
    cells = {(cell.corruption, cell.severity): cell for cell in result.cells}
    means = {record.name: record for record in result.corruptions}
    image, labels = example_of(ledger), [row.label for row in ledger.images()]

    def shown(name: str, severity: int) -> Shown | None:
        record, cell = cells.get((name, severity)), read_cell(ledger, name, severity)
        if record is None or cell is None or image is None:
            return None
        read = cell.predictions[image]
        shown = picture(cell.example(ledger.shape), side)
        return Shown(record, 4 + 71 * (1 - record.accuracy.value), shown, read, read == labels[image])

    return [
        Line(name, family, name == names[0], [shown(name, s) for s in result.severities], means.get(name))
        for family, names in FAMILIES.items()
        for name in names
    ]


def ratio(share: float) -> str:
    """A share that may exceed one, as ``103.2%``."""
    return f"{100 * share:.1f}%"
