"""Numbers and names as the report writes them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from robust.summary import Rate, ThreatRecord

# Steps of the audit that stand among the attacks in its record but are not attacks.
STEPS = {"bounds": "proofs by bounds", "curve": "search for smaller perturbations", "checks": "checks of the evidence"}

# C0 and C1 controls but for tab, newline and return; marks that reorder the text after them; lone surrogates
# (undecodable folder names); non-characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def printable(text: str) -> str:
    """``text`` with what neither HTML nor a terminal may be given replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def sentence(text: str) -> str:
    """``text`` on one line with a capital and an end."""
    line = one_line(text)
    return line if not line else line[0].upper() + line[1:] + ("" if line[-1] in ".!?" else ".")


def attack_name(name: str) -> str:
    return STEPS.get(name) or one_line(name)


def percent(share: float) -> str:
    """``0.6314`` as ``63.1%``; only a true 0 or 1 is written ``0%`` or ``100%``."""
    if share <= 0:
        return "0%"
    if share >= 1:
        return "100%"
    if share < 0.0005:
        return "<0.1%"
    return ">99.9%" if share >= 0.9995 else f"{100 * share:.1f}%"


def interval(low: float, high: float) -> str:
    """``32.1 to 38.2%``."""
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def rate_text(rate: Rate) -> str:
    """``35.1% (351/1,000, 95% interval 32.1 to 38.2%)``."""
    counts = f"{rate.numerator:,}/{rate.n:,}"
    return f"{percent(rate.value)} ({counts}, 95% interval {interval(rate.low, rate.high)})"


def number(value: float) -> str:
    """A count or cost: thousands separated, two or three figures where it is small."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def in_steps(threat: ThreatRecord) -> bool:
    """Whether sizes read best as n/255: under linf, unless the user gave eps as another decimal."""
    steps = 255 * threat.eps
    return threat.norm == "linf" and ("/" in threat.text or abs(steps - round(steps)) < 0.005)


def step_text(size: float) -> str:
    """``0.0314`` as ``8/255``."""
    steps = 255 * size
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 0.005 else f"{steps:.2f}".rstrip("0") + "/255"


def size_text(threat: ThreatRecord, size: float) -> str:
    """A perturbation size in the unit that suits the threat model: ``8/255``, ``5%`` of a patch, or three figures."""
    if threat.norm == "patch":
        return f"{100 * size:.3g}%"
    return step_text(size) if in_steps(threat) else f"{size:.3g}"


def axis_scale(threat: ThreatRecord) -> float:
    """What sizes are multiplied by on a figure's axis: 255 for color steps, 100 for percent of the area, else 1."""
    return 100.0 if threat.norm == "patch" else 255.0 if in_steps(threat) else 1.0


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class; a model may have more classes than the data has names."""
    return one_line(names[index]) or f"class {index}" if 0 <= index < len(names) else f"class {index}"


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width(text: str) -> int:
    """How many letter widths ``text`` takes, about: two for a Chinese character, none for an accent."""
    return sum(map(_cells, text))


def _fitting(text: str, cells: int) -> str:
    """The longest start of ``text`` that takes at most ``cells``."""
    used = 0
    for index, character in enumerate(text):
        used += _cells(character)
        if used > cells:
            return text[:index]
    return text


def shorten(text: str, cells: int) -> str:
    """``text`` cut to ``cells`` letter widths: names differ at their starts and ends, so the middle gives way."""
    if width(text) <= cells:
        return text
    tail = _fitting(text[::-1], (cells - 1) // 3)[::-1]
    head = _fitting(text, cells - 1 - width(tail))
    return head.rstrip() + "…" + tail.lstrip()
