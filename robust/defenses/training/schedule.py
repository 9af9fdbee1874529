"""Learning rates as a function of the step alone, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math

SCHEDULES = ("one-cycle", "cosine", "constant")
_RISE = 0.2


def rate(schedule: str, step: int, total: int, peak: float) -> float:
    """The learning rate of ``step`` (0 to total - 1).

    one-cycle: linear from a 25th of the peak to the peak in the first fifth, then by half a cosine to zero (Smith and
    Topin 2019). cosine: half a cosine from the peak to zero (Loshchilov and Hutter, ICLR 2017). constant: the peak.
    """
    if schedule == "constant":
        return peak
    done = (step + 0.5) / total
    if schedule == "one-cycle":
        if done < _RISE:
            return peak * (0.04 + 0.96 * done / _RISE)
        done = (done - _RISE) / (1 - _RISE)
    return peak * (1 + math.cos(math.pi * done)) / 2
