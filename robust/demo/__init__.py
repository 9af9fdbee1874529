"""The bundled demo: a traffic-sign classifier and the images to audit it on, both made by this package.

`signs` draws the images, `network` is the model, `train` made the weights (``python -m robust.demo.train``).
Importing this module loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from robust.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from robust.demo.network import SignNet

__all__ = ["data", "load_model"]

WEIGHTS = "weights.safetensors"


def load_model() -> SignNet:
    """The trained classifier in eval mode on the CPU: images (N, 3, 32, 32) in [0, 1] to logits (N, 16).

    Its ``class_names`` name the logits.
    """
    from safetensors.torch import load

    from robust.demo.network import SignNet
    from robust.demo.signs import CLASS_NAMES

    model = SignNet(CLASS_NAMES)
    model.load_state_dict(load(resources.files(__name__).joinpath(WEIGHTS).read_bytes()))
    return model.eval()


def data(n: int = 400, seed: int = 2026) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Fresh images that the model was not trained on.

    Returns ``images`` (n, 32, 32, 3) uint8 RGB, ``labels`` (n,) int64 and the class names. Image i of a seed is
    always the same, whatever ``n``. Raises `InputError` if ``n`` is below 1 or ``seed`` outside 0 to 2**32 - 1.
    """
    from robust.demo.signs import CLASS_NAMES, FIRST_TRAINING_SEED, signs

    if n < 1:
        raise InputError(f"demo data: n must be at least 1, got {n}")
    if not 0 <= seed < FIRST_TRAINING_SEED:
        raise InputError(f"demo data: seed must be from 0 to {FIRST_TRAINING_SEED - 1}, got {seed}")
    return *signs(n, seed), CLASS_NAMES
