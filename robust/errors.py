"""What a user can do wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustError(Exception):
    """Base of every error that `robust` raises on purpose."""


class InputError(RobustError, ValueError):
    """Bad input or usage: one line that names the file or argument and the remedy. Exit code 2."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``valid``, with the nearest valid names."""
    names = sorted(valid)
    by_folded = {candidate.lower(): candidate for candidate in names}
    near = [by_folded[match] for match in difflib.get_close_matches(name.lower(), list(by_folded), n=4, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(names[:12])}"
    return InputError(f"unknown {kind} {name!r}: {hint}")


class OtherAuditError(InputError):
    """The folder holds the audit of something else."""


class NoGradientError(RobustError):
    """The model's output does not depend on its input by any differentiable path."""
