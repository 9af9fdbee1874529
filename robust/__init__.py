"""Adversarial robustness audits for image classifiers.

    import robust

    summary = robust.audit("demo", "demo", threats=["linf:8/255"], out="report")
    summary.threats[0].robust_accuracy

Attacks: :mod:`robust.attacks`. Everything here is loaded when first used, so that importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust.auditing import audit
    from robust.data import ImageSet, load_data
    from robust.defenses.smoothing import SmoothedClassifier, certify
    from robust.errors import InputError, NoGradientError, RobustError
    from robust.hardening import harden
    from robust.ledger import Ledger
    from robust.models import load_model
    from robust.reports import write_report
    from robust.summary import AuditSummary
    from robust.threats import ThreatModel

__version__ = "0.1.0"

_HOME = {
    "AuditSummary": "robust.summary",
    "ImageSet": "robust.data",
    "InputError": "robust.errors",
    "Ledger": "robust.ledger",
    "NoGradientError": "robust.errors",
    "RobustError": "robust.errors",
    "SmoothedClassifier": "robust.defenses.smoothing",
    "ThreatModel": "robust.threats",
    "audit": "robust.auditing",
    "certify": "robust.defenses.smoothing",
    "harden": "robust.hardening",
    "load_data": "robust.data",
    "load_model": "robust.models",
    "write_report": "robust.reports",
}

__all__ = [
    "AuditSummary", "ImageSet", "InputError", "Ledger", "NoGradientError", "RobustError", "SmoothedClassifier",
    "ThreatModel", "audit", "certify", "harden", "load_data", "load_model", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'robust' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
