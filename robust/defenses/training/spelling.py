"""Methods as the command line writes them: ``trades`` or ``trades(beta=6)``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from robust.defenses.training import method
from robust.defenses.training.defense import Defense
from robust.errors import InputError, unknown
from robust.threats import ThreatModel

_SPELLING = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def build_defense(
    text: str, threat: ThreatModel | str, settings: Mapping[str, Any], option: str = "--method"
) -> Defense:
    """The defense that ``text`` names, with ``settings`` for all methods and its own in brackets.

    ``option``: where it was written, for errors. Raises InputError for an unknown method or setting (with the nearest),
    and values that do not fit.
    """
    matched = _SPELLING.fullmatch(text)
    if matched is None:
        raise InputError(f"{option} {text}: write NAME or NAME(SETTING=VALUE, ...), such as trades(beta=6)")
    kind = method(matched[1].lower())
    given = {**settings, **_options(f"{option} {text}", matched[2] or "")}
    known = {item.name: item for item in fields(kind) if item.name not in ("threat", "teacher")}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"setting of {kind.name}", name, known)
        _check_kind(kind.name, name, value, known[name].default)
    return kind(threat, **given)


def _options(named: str, inside: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({inside})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise InputError(f"{named}: write its settings as NAME=VALUE, such as trades(beta=6)") from None


def _check_kind(method_name: str, name: str, value: Any, default: Any) -> None:
    """A number or a text where the default is one; the rest is checked where it is used."""
    if isinstance(default, str) and not isinstance(value, str):
        raise InputError(f"{name}={value!r}: {method_name} takes a text here, such as {default!r}")
    if not isinstance(default, (int, float)) or value is None:
        return
    kind: tuple[type, ...] = (
        (bool,) if isinstance(default, bool) else (int,) if isinstance(default, int) else (int, float)
    )
    if not isinstance(value, kind) or (isinstance(value, bool) and kind != (bool,)):
        wanted = {bool: "True or False", int: "a whole number"}.get(kind[0] if len(kind) == 1 else float, "a number")
        raise InputError(f"{name}={value!r}: {method_name} takes {wanted} here, such as {default}")
