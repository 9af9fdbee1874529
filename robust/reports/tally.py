"""What the ledger says of classes: how each fares, and which is pushed to which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from robust.ledger import ImageRow, Ledger, Row


@dataclass(frozen=True)
class ClassTally:
    """The audited images of one class: how many, right unattacked, and still right under attack."""

    index: int
    n: int
    correct: int
    robust: int


@dataclass(frozen=True)
class Break:
    """An image that is right unattacked and has an adversarial image, inside the threat model or beyond eps."""

    image: ImageRow
    row: Row
    inside: bool


def breaks(ledger: Ledger, threat: str) -> list[Break]:
    """Every image with a finding under ``threat``, in the order of images; ``inside`` where it counts as broken."""
    images = {image.id: image for image in ledger.images() if image.correct}
    return [
        Break(images[row.image], row, row.broken_by is not None)
        for row in ledger.rows(threat)
        if row.image in images and row.prediction is not None and row.distance is not None
    ]


def class_tallies(ledger: Ledger, threat: str) -> list[ClassTally]:
    """One tally per class that the audited data holds, by class index."""
    broken = {entry.image.id for entry in breaks(ledger, threat) if entry.inside}
    images = ledger.images()
    n = Counter(image.label for image in images)
    correct = Counter(image.label for image in images if image.correct)
    robust = Counter(image.label for image in images if image.correct and image.id not in broken)
    return [ClassTally(label, n[label], correct[label], robust[label]) for label in sorted(n)]


def pushes(ledger: Ledger, threat: str) -> list[tuple[int, int, int]]:
    """(true class, class read after the attack, images), the most frequent first; broken images only."""
    found = Counter(
        (entry.image.label, entry.row.prediction)
        for entry in breaks(ledger, threat)
        if entry.inside and entry.row.prediction is not None
    )
    return sorted(((true, read, count) for (true, read), count in found.items()), key=lambda p: (-p[2], p[0], p[1]))
