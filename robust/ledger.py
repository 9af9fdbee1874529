"""The ledger of one audit: a SQLite file, one row per (image, threat model), one transaction per batch.

A killed audit leaves a ledger from which the same command goes on: every batch that was paid for is in it. The report
and `robust verify` read it. Image numbers are positions in the audited data, 0 to n - 1.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robust.errors import InputError
from robust.pixels import FloatImage, decode, encode

FORMAT = 2

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE image (
    id INTEGER PRIMARY KEY, label INTEGER NOT NULL, prediction INTEGER NOT NULL, confidence REAL NOT NULL,
    encoding TEXT NOT NULL, pixels BLOB NOT NULL);
CREATE TABLE row (
    image INTEGER NOT NULL, threat TEXT NOT NULL,
    broken_by TEXT, distance REAL, prediction INTEGER, confidence REAL, eight_bit INTEGER,
    encoding TEXT, pixels BLOB,
    PRIMARY KEY (image, threat));
CREATE TABLE run (
    threat TEXT NOT NULL, attack TEXT NOT NULL, batch INTEGER NOT NULL,
    tried INTEGER NOT NULL, broken INTEGER NOT NULL, rejected INTEGER NOT NULL,
    forward INTEGER NOT NULL, backward INTEGER NOT NULL, seconds REAL NOT NULL,
    status TEXT NOT NULL, detail TEXT NOT NULL,
    PRIMARY KEY (threat, attack, batch));
CREATE TABLE query (
    threat TEXT NOT NULL, attack TEXT NOT NULL, image INTEGER NOT NULL,
    spent INTEGER NOT NULL, broken_at INTEGER,
    PRIMARY KEY (threat, attack, image));
CREATE TABLE checks (
    threat TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (threat, name));
"""


@dataclass(frozen=True)
class ImageRow:
    """An audited image and what the model says of it unattacked."""

    id: int
    label: int
    prediction: int
    confidence: float

    @property
    def correct(self) -> bool:
        return self.prediction == self.label


@dataclass(frozen=True)
class Row:
    """What is known of one image under one threat model.

    ``broken_by`` names the attack that first broke it inside the threat model (None: it stands, or was wrong before
    any attack). ``distance`` is the smallest perturbation found, in the threat's norm; it may lie beyond eps.
    ``prediction`` and ``confidence`` are the model's for that smallest adversarial image. ``eight_bit`` tells whether
    any adversarial image found for it, the smallest or an earlier one, is an 8-bit image.
    """

    image: int
    broken_by: str | None
    distance: float | None
    prediction: int | None
    confidence: float | None
    eight_bit: bool | None


@dataclass(frozen=True)
class Finding:
    """One verified adversarial image, on its way into the ledger. ``attack`` is None where it lies beyond eps."""

    image: int
    attack: str | None
    distance: float
    prediction: int
    confidence: float
    eight_bit: bool
    adversarial: FloatImage


@dataclass(frozen=True)
class Run:
    """One attack on one batch: what it tried, broke and cost."""

    threat: str
    attack: str
    batch: int
    tried: int
    broken: int
    rejected: int
    forward: int
    backward: int
    seconds: float
    status: str
    detail: str


@dataclass(frozen=True)
class Queries:
    """What one query attack asked about one image.

    ``spent``: forward passes, the clean one included. ``broken_at``: the pass that broke the image (counted from 1),
    None where none did or re-verification did not confirm it.
    """

    image: int
    spent: int
    broken_at: int | None


class Ledger:
    """An open ledger. Use :meth:`create` or :meth:`open`, then close it or use it as a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path | None) -> None:
        self._connection = connection
        self.path = path

    @classmethod
    def create(cls, path: Path | None, identity: dict[str, Any]) -> Ledger:
        """A new ledger at ``path`` (None: in memory) for the audit that ``identity`` describes."""
        try:
            connection = sqlite3.connect(path if path is not None else ":memory:")
            connection.executescript(_TABLES)
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot make a ledger here ({error}); give a new --out folder") from None
        ledger = cls(connection, path)
        ledger.set_meta("format", FORMAT)
        ledger.set_meta("identity", identity)
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """The ledger at ``path``. Raises InputError where it is missing, corrupted or of another format."""
        remedy = "delete it, or give another --out folder"
        if not path.is_file():
            raise InputError(f"{path}: no ledger here")
        connection = sqlite3.connect(path)
        try:
            whole = connection.execute("PRAGMA quick_check").fetchone()[0]
            if whole != "ok":
                raise InputError(f"{path}: the ledger is corrupted ({' '.join(whole.split())}); {remedy}")
            ledger = cls(connection, path)
            if ledger.meta("format") != FORMAT:
                raise InputError(f"{path}: the ledger has format {ledger.meta('format')}, not {FORMAT}; {remedy}")
        except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
            connection.close()
            raise InputError(f"{path}: the ledger is corrupted ({error}); {remedy}") from error
        except InputError:
            connection.close()
            raise
        return ledger

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Settings and marks of progress

    def set_meta(self, key: str, value: Any) -> None:
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def meta(self, key: str) -> Any:
        found = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    # Images

    def add_images(self, rows: Iterable[ImageRow], images: Iterable[FloatImage]) -> None:
        """Add audited images, each (C, H, W) float32 in [0, 1]."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO image VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (row.id, row.label, row.prediction, row.confidence, *encode(image))
                    for row, image in zip(rows, images, strict=True)
                ),
            )

    def images(self) -> list[ImageRow]:
        query = "SELECT id, label, prediction, confidence FROM image ORDER BY id"
        return [ImageRow(*found) for found in self._connection.execute(query)]

    def original(self, image: int) -> FloatImage:
        """The audited image, (C, H, W) float32 in [0, 1]."""
        found = self._connection.execute("SELECT encoding, pixels FROM image WHERE id = ?", (image,)).fetchone()
        return self._decode(image, found)

    def _decode(self, image: int, found: tuple[str, bytes]) -> FloatImage:
        try:
            return decode(*found, self.shape)
        except (zlib.error, OSError, ValueError) as error:
            raise InputError(
                f"{self.path}: the ledger is corrupted (image {image}: {error}); delete it, or give another "
                "--out folder"
            ) from None

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.meta("shape")
        return channels, height, width

    # Rows

    def rows(self, threat: str) -> list[Row]:
        """Every row of one threat model, in the order of images. An image with no finding has no row."""
        query = (
            "SELECT image, broken_by, distance, prediction, confidence, eight_bit FROM row "
            "WHERE threat = ? ORDER BY image"
        )
        return [
            Row(image, by, distance, prediction, confidence, None if eight_bit is None else bool(eight_bit))
            for image, by, distance, prediction, confidence, eight_bit in self._connection.execute(query, (threat,))
        ]

    def adversarial(self, image: int, threat: str) -> FloatImage | None:
        """The smallest adversarial image found, (C, H, W) float32 in [0, 1], or None."""
        query = "SELECT encoding, pixels FROM row WHERE image = ? AND threat = ? AND pixels IS NOT NULL"
        found = self._connection.execute(query, (image, threat)).fetchone()
        return None if found is None else self._decode(image, found)

    def record(self, run: Run, findings: Iterable[Finding], queries: Iterable[Queries] = ()) -> None:
        """Write one batch in one transaction. A finding replaces an earlier one only if it is smaller."""
        with self._connection:
            self._connection.execute(f"INSERT OR REPLACE INTO run VALUES ({','.join('?' * 11)})", _values(run))
            self._connection.executemany(
                "INSERT OR REPLACE INTO query VALUES (?, ?, ?, ?, ?)",
                [(run.threat, run.attack, asked.image, asked.spent, asked.broken_at) for asked in queries],
            )
            for finding in findings:
                encoding, pixels = encode(finding.adversarial)
                self._connection.execute(
                    "INSERT INTO row VALUES (:image, :threat, :by, :distance, :prediction, :confidence, :eight, "
                    ":encoding, :pixels) ON CONFLICT (image, threat) DO UPDATE SET "
                    "broken_by = coalesce(broken_by, :by), eight_bit = max(eight_bit, :eight)",
                    values := {
                        "image": finding.image, "threat": run.threat, "by": finding.attack,
                        "distance": finding.distance, "prediction": finding.prediction,
                        "confidence": finding.confidence, "eight": finding.eight_bit,
                        "encoding": encoding, "pixels": pixels,
                    },
                )  # fmt: skip
                self._connection.execute(
                    "UPDATE row SET distance = :distance, prediction = :prediction, confidence = :confidence, "
                    "encoding = :encoding, pixels = :pixels "
                    "WHERE image = :image AND threat = :threat AND distance > :distance",
                    values,
                )

    # Runs and checks

    def runs(self, threat: str) -> list[Run]:
        query = "SELECT * FROM run WHERE threat = ? ORDER BY rowid"
        return [Run(*found) for found in self._connection.execute(query, (threat,))]

    def queries(self, threat: str, attack: str) -> list[Queries]:
        """What a query attack asked about each image it was tried on, in the order of images."""
        query = "SELECT image, spent, broken_at FROM query WHERE threat = ? AND attack = ? ORDER BY image"
        return [Queries(*found) for found in self._connection.execute(query, (threat, attack))]

    def set_check(self, threat: str, name: str, record: str) -> None:
        """Keep the JSON of one finished check."""
        with self._connection:
            self._connection.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", (threat, name, record))

    def checks(self, threat: str) -> dict[str, str]:
        return dict(self._connection.execute("SELECT name, record FROM checks WHERE threat = ?", (threat,)).fetchall())


def _values(run: Run) -> tuple[Any, ...]:
    return (
        run.threat, run.attack, run.batch, run.tried, run.broken, run.rejected, run.forward, run.backward,
        run.seconds, run.status, run.detail,
    )  # fmt: skip
