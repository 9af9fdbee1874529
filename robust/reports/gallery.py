"""The report's gallery: which adversarial images to show, and each picture as a PNG in a data URI."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust.ledger import Ledger
from robust.pixels import FloatImage
from robust.reports.tally import Break, breaks

SHOWN = 12
SIDES = (256, 192, 128, 96, 64, 48)
_NICE = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Exhibit:
    """One adversarial image for the gallery; the three pictures are data URIs of PNGs.

    ``factor``: by how much the change is magnified; in its picture mid-gray is no change.
    """

    found: Break
    factor: float
    original: str
    change: str
    adversarial: str


def choose(found: Sequence[Break], count: int = SHOWN) -> list[Break]:
    """The most telling images: small perturbations first, but each time from the least shown classes and pushes.

    Images broken inside the threat model only, or, where there is none, those broken beyond eps; of these, the half
    that the model was surest of, since it proves little to push an image that was in doubt. Deterministic.
    """
    candidates = [entry for entry in found if entry.inside] or list(found)
    surest = sorted(candidates, key=lambda entry: (-entry.image.confidence, entry.image.id))
    kept = surest[: max(count, len(surest) // 2)]
    left = sorted(kept, key=lambda entry: (entry.row.distance or 0.0, entry.image.id))
    true: Counter[int] = Counter()
    read: Counter[int | None] = Counter()
    chosen: list[Break] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda entry: (true[entry.image.label], read[entry.row.prediction]))
        left.remove(best)
        true[best.image.label] += 1
        read[best.row.prediction] += 1
        chosen.append(best)
    return sorted(chosen, key=lambda entry: (entry.row.distance or 0.0, entry.image.id))


def exhibits(ledger: Ledger, threat: str, budget: int, count: int = SHOWN) -> list[Exhibit]:
    """The gallery of one threat model, its pictures shrunk until they take at most ``budget`` bytes, if they can."""
    pairs = [
        (entry, ledger.original(entry.image.id), adversarial)
        for entry in choose(breaks(ledger, threat), count)
        if (adversarial := ledger.adversarial(entry.image.id, threat)) is not None
    ]
    for side in SIDES:
        shown = [_exhibit(entry, original, adversarial, side) for entry, original, adversarial in pairs]
        if sum(len(item.original) + len(item.change) + len(item.adversarial) for item in shown) <= budget:
            break
    return shown


def front(ledger: Ledger, threat: str, names: Sequence[str]) -> Exhibit | None:
    """The one adversarial image for the first screen: a stop sign if one was broken, since everybody knows what that
    means; of these, or else of all, the one the model is surest of in its error."""
    found = [entry for entry in breaks(ledger, threat) if entry.inside]
    stops = [entry for entry in found if _is_stop(names, entry.image.label)]
    for entry in sorted(stops or found, key=lambda entry: (-(entry.row.confidence or 0), entry.image.id)):
        adversarial = ledger.adversarial(entry.image.id, threat)
        if adversarial is not None:
            return _exhibit(entry, ledger.original(entry.image.id), adversarial, SIDES[0])
    return None


def _is_stop(names: Sequence[str], label: int) -> bool:
    return label < len(names) and "stop" in names[label].lower().split()


def _exhibit(entry: Break, original: FloatImage, adversarial: FloatImage, side: int) -> Exhibit:
    change = adversarial - original
    factor = magnification(float(np.abs(change).max()))
    magnified = np.clip(0.5 + factor * change, 0, 1)
    return Exhibit(entry, factor, *(picture(image, side) for image in (original, magnified, adversarial)))


def magnification(largest: float) -> float:
    """The roundest factor, at least 1, that brings a change of ``largest`` near to half the pixel range, not beyond."""
    if largest >= 0.5 or largest <= 0:
        return 1.0
    full = 0.5 / largest
    power = 10.0 ** math.floor(math.log10(full))
    return max(nice for nice in _NICE if nice * power <= full * (1 + 1e-6)) * power


def picture(image: NDArray[np.floating], side: int = SIDES[0]) -> str:
    """A (C, H, W) image in [0, 1] as the data URI of a PNG, shrunk to ``side`` where it is larger.

    Two channels are shown as their mean, more than three as the first three.
    """
    channels = image.shape[0]
    shown = image[:3] if channels >= 3 else image.mean(axis=0, keepdims=True)
    array = np.rint(np.clip(np.nan_to_num(shown), 0, 1) * 255).astype(np.uint8)
    png = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    if max(png.size) > side:
        scale = side / max(png.size)
        png = png.resize((max(1, round(png.width * scale)), max(1, round(png.height * scale))), Image.Resampling.BOX)
    buffer = io.BytesIO()
    png.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
