"""Randomized smoothing: a classifier by majority vote under Gaussian noise, and l2 certificates for it.

``SmoothedClassifier`` is the model, :func:`robust.certify` certifies it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.lazy import loader

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


__getattr__ = loader(__name__, _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
