"""Randomized smoothing: a classifier by majority vote under Gaussian noise, and l2 certificates for it.

``SmoothedClassifier`` is the model, :func:`robust.certify` certifies it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust.defenses.smoothing.attacking import CertificateBroken, lost_majority, smooth_attack
    from robust.defenses.smoothing.certificates import Certificate, certify_images
    from robust.defenses.smoothing.certifying import certify
    from robust.defenses.smoothing.smoothed import SmoothedClassifier

__all__ = [
    "Certificate", "CertificateBroken", "SmoothedClassifier", "certify", "certify_images", "lost_majority",
    "smooth_attack",
]  # fmt: skip

_HOME = {
    "Certificate": "certificates",
    "CertificateBroken": "attacking",
    "SmoothedClassifier": "smoothed",
    "certify": "certifying",
    "certify_images": "certificates",
    "lost_majority": "attacking",
    "smooth_attack": "attacking",
}


def __getattr__(name: str) -> Any:
    """Load on first use: the record of a finished run is read without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
