"""The fifteen common corruptions at five severities: noise, blur, weather and digital faults, without an attacker.

    from robust.corruptions import corrupt

    foggy = corrupt(images, "fog", severity=3, seeds=0)

After Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019: the procedures of CIFAR-10-C and ImageNet-C, for any size from 16x16, any number of channels, in batches, on any
device, and with random numbers that belong to the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robust.corruptions.severity import FAMILIES, NAMES, SEVERITIES, SMALLEST, check_size
from robust.lazy import loader

if TYPE_CHECKING:
    from robust.corruptions.apply import corrupt

__all__ = ["FAMILIES", "NAMES", "SEVERITIES", "SMALLEST", "check_size", "corrupt"]

__getattr__ = loader(__name__, {"corrupt": "apply"})
