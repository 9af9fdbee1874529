"""What a run of `robust certify` has finished so far: one line of JSON an image, so that a killed run can go on.

Certificates depend on image and seed alone, so a run that was resumed ends with those of one that was not.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robust.errors import InputError, OtherAuditError


class Journal:
    """Finished rows by kind and image, kept in memory and, where there is a ``path``, on disk.

    ``identity`` says what is certified and how. Raises OtherAuditError where the file is of something else, InputError
    where it cannot be read or made. A last line cut short by a kill is dropped.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path = path
        self._rows: dict[str, dict[int, dict[str, Any]]] = {}
        if path is None:
            return
        try:
            if path.exists():
                self._read(path, identity)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(identity) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {path.parent}: cannot be used ({error.strerror}); give another folder") from None

    def _read(self, path: Path, identity: dict[str, Any]) -> None:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        try:
            found, *rows = [json.loads(line) for line in whole.splitlines()]
            held = {(row["kind"], row["image"]): row for row in rows}
        except (ValueError, KeyError, TypeError):
            remedy = "delete it, or give another --out folder"
            raise InputError(f"{path}: the record of finished images is corrupted; {remedy}") from None
        differing = [key for key in identity if not isinstance(found, dict) or found.get(key) != identity[key]]
        if differing:
            raise OtherAuditError(
                f"--out {path.parent}: holds a run with another {' and '.join(differing)}; give another folder"
            )
        os.truncate(path, len(whole) + 1)
        for (kind, image), row in held.items():
            self._rows.setdefault(kind, {})[image] = row

    def rows(self, kind: str) -> dict[int, dict[str, Any]]:
        """Finished rows of one kind by image."""
        return self._rows.get(kind, {})

    def add(self, kind: str, image: int, **row: Any) -> None:
        """Note one finished image; on disk when this returns."""
        full = {"kind": kind, "image": image, **row}
        self._rows.setdefault(kind, {})[image] = full
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(full) + "\n")
