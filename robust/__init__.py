"""Adversarial robustness audits for image classifiers.

    import robust

    summary = robust.audit("demo", "demo", threats=["linf:8/255"], out="report")
    summary.threats[0].robust_accuracy

Attacks: :mod:`robust.attacks`. Everything here is loaded when first used, so that importing the package is cheap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.lazy import loader

if TYPE_CHECKING:
    from robust.auditing import audit
    from robust.data import ImageSet, load_data
    from robust.defenses.patch import BandSmoothing, MaskedClassifier
    from robust.defenses.patch.certifying import certify_patches
    from robust.defenses.smoothing import SmoothedClassifier, certify
    from robust.errors import InputError, NoGradientError, RobustError
    from robust.hardening import harden
    from robust.ledger import Ledger
    from robust.models import load_model
    from robust.patches.making import make_patch
    from robust.reports import write_report
    from robust.summary import AuditSummary
    from robust.threats import ThreatModel

__version__ = "0.1.0"

_HOME = {
    "AuditSummary": "summary",
    "BandSmoothing": "defenses.patch",
    "ImageSet": "data",
    "InputError": "errors",
    "Ledger": "ledger",
    "MaskedClassifier": "defenses.patch",
    "NoGradientError": "errors",
    "RobustError": "errors",
    "SmoothedClassifier": "defenses.smoothing",
    "ThreatModel": "threats",
    "audit": "auditing",
    "certify": "defenses.smoothing",
    "certify_patches": "defenses.patch.certifying",
    "harden": "hardening",
    "load_data": "data",
    "load_model": "models",
    "make_patch": "patches.making",
    "write_report": "reports",
}

__all__ = [
    "AuditSummary", "BandSmoothing", "ImageSet", "InputError", "Ledger", "MaskedClassifier", "NoGradientError",
    "RobustError", "SmoothedClassifier", "ThreatModel", "audit", "certify", "certify_patches", "harden", "load_data",
    "load_model", "make_patch", "write_report",
]  # fmt: skip


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
