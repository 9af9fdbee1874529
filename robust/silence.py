"""Quiet while another library works: what matters of it reaches the user as an error of our own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(highest: int = logging.WARNING) -> Iterator[None]:
    """No warnings, and no log records up to the level ``highest``. Errors are raised as ever."""
    before = logging.root.manager.disable
    # Without any handler, a library's first logging.info() would install one for the whole process.
    placeholder = logging.NullHandler()
    logging.root.addHandler(placeholder)
    logging.disable(max(before, highest))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(placeholder)
