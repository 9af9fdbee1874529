"""How far float32 arithmetic can be from exact arithmetic: what makes a proof hold for the model as it runs.

A sum of n products in floating point, added in any order, fused or not, differs from the exact one by at most
gamma(n) times the sum of the absolute products (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section
3.1). The bounds treat each such difference, in the model's own pass and in the computing of the bounds, as one more
perturbation inside the network. Not covered: numbers below 1e-38, and convolutions by transforms (Winograd, FFT).
"""

from __future__ import annotations

import torch

from robust.float32 import rounding_unit

_UNIT = 2.0**-24  # float32, rounding to nearest


def gamma(terms: int) -> float:
    """The relative error of a float32 sum of so many products; rises with ``terms``, infinite from 16 million on."""
    error = terms * _UNIT
    return error / (1 - error) if error < 1 else float("inf")


def product_error(device: torch.device) -> float:
    """What multiplying in less than float32 adds: TF32 (10 bits kept) or bfloat16 (7), where torch may use them.

    A product of two rounded factors is off by two roundings and their product.
    """
    unit = rounding_unit(device)
    return 2 * unit + unit * unit
