"""A quiet place to run another library's code in: it prints nothing, and leaves nothing changed behind it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from robust.errors import NoGradientError, RobustError
from robust.memory import OutOfMemory
from robust.randomness import own_random, seed_all

_NO_GRADIENT = ("does not require grad", "Gradient term in PyTorch model is `None`")


@contextmanager
def own_randomness(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yields a function that seeds Python's, NumPy's and torch's global generators; puts them back at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()

    def seed(value: int) -> None:
        random.seed(value)
        np.random.seed(value % 2**32)
        seed_all(device, value)

    with own_random(device):
        try:
            yield seed
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


class ModelError(Exception):
    """Carries an error of the model itself out of a library; its cause is the error."""


@contextmanager
def renamed_errors(name: str) -> Iterator[None]:
    """Turns whatever a library raises into one line that names the attack.

    Raises NoGradientError where the library missed a gradient, RobustError for the rest. Our own errors pass, and so do
    those of the model: running out of memory is not the library's doing.
    """
    try:
        yield
    except (RobustError, OutOfMemory):
        raise
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None:
            if isinstance(inner, ModelError) and inner.__cause__ is not None:
                raise inner.__cause__ from None
            inner = inner.__cause__
        text = " ".join(str(error).split())
        if any(sign in text for sign in _NO_GRADIENT):
            raise NoGradientError(f"{name}: no gradient reaches the model's input") from error
        raise RobustError(f"{name} failed: {text or type(error).__name__}") from error
