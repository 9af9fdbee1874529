"""What all reports share: how a page is made from its template, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robust.errors import InputError
from robust.places import write_text
from robust.reports import formats

_TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, filters: dict[str, Any], values: dict[str, Any]) -> str:
    """The page as HTML text, complete in itself. ``filters`` are added to those of all pages; ``values`` are what the
    template and its macros see."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        percent=formats.percent, number=formats.number, duration=formats.duration, line=formats.one_line,
        sentence=formats.sentence, attack=formats.attack_name,
        class_name=str,  # which the macros name on every page
    )  # fmt: skip
    environment.filters.update(filters)
    css = Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))
    environment.globals.update(interval=formats.interval, css=css)
    return formats.printable(environment.get_template(template).render(values))


def write_page(text: str, path: Path) -> None:
    """Write a page to ``path`` in one step. Raises InputError where it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: the report cannot be written ({error.strerror}); choose another folder") from error
