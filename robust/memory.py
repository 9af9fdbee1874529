"""When a device runs out of memory: the same work in smaller parts."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

# The name from version 2.5 on, and before.
OutOfMemory: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
Result = TypeVar("Result")


class Fitting:
    """Runs batches in parts of ``size`` images, or whole; from where one does not fit into memory on, in half of that.

    How an image fares does not depend on those beside it, so that only time is lost.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, work: Callable[[slice], Result], n: int) -> list[Result]:
        """What ``work`` gives for parts that together are ``range(n)``. Raises where a single image does not fit."""
        results: list[Result] = []
        start = 0
        while start < n:
            size = min(self.size or n, n - start)
            try:
                results.append(work(slice(start, start + size)))
                start += size
                continue
            except OutOfMemory:
                if size == 1:
                    raise
            # Out here, where the error is gone, and with it the frames that held on to the memory.
            self.size = (size + 1) // 2
            if torch.cuda.is_available():
                gc.collect()
                torch.cuda.empty_cache()
        return results
