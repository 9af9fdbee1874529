"""What the ledger keeps of corrupted images: one cell for each corruption and severity."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass

import numpy as np

from robust.ledger import Ledger
from robust.pixels import FloatImage, decode, encode

_EXAMPLE, _BASELINE = "corruption example", "corruption baseline"


@dataclass(frozen=True)
class Cell:
    """What the model, and the baseline, read in each image; -1 where the logits were no numbers.

    ``encoding`` and ``pixels``: the audit's example image as this cell shows it, in 8-bit color.
    """

    predictions: list[int]
    baseline: list[int] | None
    seconds: float
    encoding: str
    pixels: str

    @classmethod
    def of(cls, predictions: list[int], baseline: list[int] | None, seconds: float, example: FloatImage) -> Cell:
        encoding, data = encode(np.rint(example * 255).astype(np.float32) / np.float32(255))
        return cls(predictions, baseline, seconds, encoding, base64.b64encode(data).decode("ascii"))

    def example(self, shape: tuple[int, int, int]) -> FloatImage:
        return decode(self.encoding, base64.b64decode(self.pixels), shape)


def _key(name: str, severity: int) -> str:
    return f"corruption {name} {severity}"


def read_cell(ledger: Ledger, name: str, severity: int) -> Cell | None:
    """A cell of the ledger; None where it was not finished."""
    found = ledger.meta(_key(name, severity))
    return None if found is None else Cell(**found)


def keep_cell(ledger: Ledger, name: str, severity: int, cell: Cell) -> None:
    ledger.set_meta(_key(name, severity), asdict(cell))


def example_of(ledger: Ledger) -> int | None:
    """The image that every cell shows; None where corruptions were not run."""
    found: int | None = ledger.meta(_EXAMPLE)
    return found


def clean_baseline(ledger: Ledger) -> list[int] | None:
    """What the baseline reads in the images as they are; None without one."""
    found: list[int] | None = ledger.meta(_BASELINE)
    return found


def begin_cells(ledger: Ledger, example: int, baseline: list[int] | None) -> None:
    """Keep what all cells share."""
    ledger.set_meta(_BASELINE, baseline)
    ledger.set_meta(_EXAMPLE, example)
