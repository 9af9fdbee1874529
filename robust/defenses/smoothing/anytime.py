"""Tests that look at the votes as they come and stop at the first look that decides, at the same alpha.

A test is told, for many images at once, how many of how many draws were hits; it keeps one row of state an image.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robust.defenses.smoothing.bounds import (
    Array,
    chance_needed,
    hits_needed,
    log_wealth_above,
    log_wealth_away,
    log_wealth_below,
    lower_bound,
    radius_at,
)

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Of alpha, the part that bets may spend on the way; the rest is for the fixed test at the horizon.
EARLY = 0.5
# How often an image may be given up that the test at the horizon would have certified. It costs no alpha.
GIVE_UP = 0.05
_FIRST, _GROWTH, _LONGEST, _GRAIN = 64, 16, 4096, 32


class VoteTest(Protocol):
    """Decides from votes what is certified. ``horizon``: the most draws of one image."""

    horizon: int

    def start(self, images: int) -> None:
        """Forget everything; from now on there are rows 0 to ``images`` - 1."""

    def look(self, rows: Counts, hits: Counts, draws: Counts) -> Flags:
        """Take note of all hits and draws so far, (n,), of the images at ``rows``; which of them are decided."""

    def radius(self, row: int) -> float:
        """The certified radius of an image, 0 where nothing is certified. Final once the image is decided."""

    def more(self, draws: int) -> int:
        """How many draws to take before the next look, after ``draws``; 0 at the horizon."""


class RadiusTest:
    """Which of the asked radii are certified, all at once with error ``alpha`` for an image.

    Each radius r is a hypothesis p <= Phi(r / sigma), rejected by a bet whose wealth reaches 1 / (alpha EARLY) at any
    look, or by the Clopper-Pearson test at level alpha (1 - EARLY) on all draws up to the horizon. A radius counts
    only if all smaller ones count as well. So one error bound serves all radii: the smallest radius that is not true
    has to be rejected first, and that happens with probability at most alpha (fixed-sequence testing; Maurer, Hothorn
    and Lehmacher 1995).

    A radius is given up, and all larger ones with it, once the test at the horizon cannot succeed any more, or once a
    bet against every p that would pass it at least every second time has won 1 / GIVE_UP.

    Args:
        radii: in pixel units, ascending, >= 0 (0 asks whether the class has the majority).
        sigma: of the noise, pixel units. alpha: in (0, 1). horizon: most draws of an image.
    """

    def __init__(self, radii: tuple[float, ...], sigma: float, alpha: float, horizon: int) -> None:
        self.radii, self.horizon = radii, horizon
        self.chances = chance_needed(radii, sigma)
        self.need = hits_needed(self.chances, horizon, alpha * (1 - EARLY))
        self._hope = np.minimum(self.need / horizon, 1.0)
        self._enough, self._hopeless = -np.log(alpha * EARLY), -np.log(GIVE_UP)
        self.start(0)

    def start(self, images: int) -> None:
        self.won: Flags = np.zeros((images, len(self.radii)), bool)
        self.lost: Flags = np.zeros((images, len(self.radii)), bool)

    def look(self, rows: Counts, hits: Counts, draws: Counts) -> Flags:
        x, t = hits[:, None], draws[:, None]
        certified = (x >= self.need) | (log_wealth_above(x, t, self.chances) >= self._enough)
        beyond = t - x > self.horizon - self.need
        hopeless = beyond | (log_wealth_below(x, t, self._hope) >= self._hopeless)
        self.won[rows] |= certified
        self.lost[rows] |= hopeless & ~self.won[rows]
        # Decided once the first radius that is not certified, if there is one, is given up.
        first = self._count(self.won[rows])
        padded = np.pad(self.lost[rows], ((0, 0), (0, 1)), constant_values=True)
        return np.asarray(padded[np.arange(len(rows)), first] | (draws >= self.horizon))

    def radius(self, row: int) -> float:
        count = int(self._count(self.won[[row]])[0])
        return self.radii[count - 1] if count else 0.0

    def certified(self) -> Counts:
        """How many of the radii are certified, by row."""
        return self._count(self.won)

    def more(self, draws: int) -> int:
        return next_draws(draws, self.horizon)

    @staticmethod
    def _count(won: Flags) -> Counts:
        return np.asarray(np.logical_and.accumulate(won, axis=1).sum(1), np.int64)


class ToleranceTest:
    """The radius itself, to ``tolerance`` pixel units, with error ``alpha`` for an image.

    Keeps a confidence sequence for p (all chances that a bet against them has not won 1 / (alpha EARLY) from, at any
    look so far). Stops once its lower end and an upper end at level GIVE_UP are less than ``tolerance`` apart as
    radii, or the upper end is below 1/2. At the horizon the Clopper-Pearson bound at alpha (1 - EARLY) may replace
    the lower end. Large p need many draws: no test tells p = 1 from the chance of a very large radius.
    """

    def __init__(self, tolerance: float, sigma: float, alpha: float, horizon: int) -> None:
        self.tolerance, self.sigma, self.alpha, self.horizon = tolerance, sigma, alpha, horizon
        self.start(0)

    def start(self, images: int) -> None:
        self.low: Array = np.zeros(images)

    def look(self, rows: Counts, hits: Counts, draws: Counts) -> Flags:
        low = np.maximum(self.low[rows], _edge(hits, draws, self.alpha * EARLY, 0.0))
        last = draws >= self.horizon
        low = np.where(last, np.maximum(low, lower_bound(hits, draws, self.alpha * (1 - EARLY))), low)
        self.low[rows] = low
        high = _edge(hits, draws, GIVE_UP, 1.0)
        near = radius_at(high, self.sigma) - radius_at(low, self.sigma) <= self.tolerance
        return np.asarray(last | (near & (low > 0.5)) | (high < 0.5))

    def radius(self, row: int) -> float:
        return float(radius_at(self.low[row], self.sigma))

    def more(self, draws: int) -> int:
        return next_draws(draws, self.horizon)


def next_draws(draws: int, horizon: int) -> int:
    """A sixteenth more than there are, in whole grains, so that a late look costs few draws and looks are few."""
    step = max(_FIRST, min(draws // _GROWTH, _LONGEST) // _GRAIN * _GRAIN)
    return min(step, horizon - draws)


def _edge(hits: Counts, draws: Counts, level: float, end: float) -> Array:
    """The lower (``end`` 0) or upper (1) end of the chances not rejected at ``level``, by bisection, never inside."""
    inside, outside = hits / np.maximum(draws, 1), np.full(len(hits), end)
    for _ in range(50):
        middle = (inside + outside) / 2
        rejected = log_wealth_away(hits, draws, middle) >= -np.log(level)
        outside, inside = np.where(rejected, middle, outside), np.where(rejected, inside, middle)
    return outside
