"""What an audit found, told to people: the score, figures, one HTML file, a few lines of text.

Everything here is made from the ledger and the summary alone; no torch, no attack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.lazy import loader

if TYPE_CHECKING:
    from robust.reports.html import write_report
    from robust.reports.score import audit_score, threat_score
    from robust.reports.text import summary_text

__all__ = ["audit_score", "summary_text", "threat_score", "write_report"]

_HOME = {"write_report": "html", "threat_score": "score", "audit_score": "score", "summary_text": "text"}


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
