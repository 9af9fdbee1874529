"""Where results go on disk: folders that hold nothing else, names found again, files that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robust.errors import InputError


def check_folder(out: str | Path | None, marker: str | Path, holds: str) -> Path | None:
    """The folder for the results, checked but not yet made.

    A folder that is not empty must hold the file ``marker``, the sign of an earlier run that can be gone on with;
    ``holds`` says what would be in it, such as "audit". Raises InputError.
    """
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).exists():
        raise InputError(f"--out {folder}: holds other files and no {holds}; give a new or empty folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: {parent} cannot be written to; give another folder")
    return folder


def stem_of(model: str) -> str:
    """What a folder is called after a model named on the command line."""
    return "".join(c if c.isalnum() else "-" for c in Path(model.split(":")[-1]).stem)[:40]


def folder_of(root: str, model: str, *settings: object) -> Path:
    """A folder under ``root`` that the same command finds again. ``settings`` are what JSON can hold."""
    words = json.dumps([model, *settings]).encode()
    return Path(root) / f"{stem_of(model)}-{hashlib.sha256(words).hexdigest()[:8]}"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` once the body is done: nobody ever sees half a file."""
    partial = path.with_name(path.name + ".partial")
    yield partial
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, in one step."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
