"""Where chances and radii meet: Cohen's radius, the Clopper-Pearson lower bound, and wealth against a chance.

Throughout, ``hits`` of ``draws`` noisy copies of an image were given one class, independently, each with the unknown
chance p. The smoothed classifier keeps that class within the l2 radius sigma * Phi^-1(p) (Cohen et al., ICML 2019,
theorem 1, with 1 - p for the runner-up). Everything takes and returns numbers or numpy arrays that broadcast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

# Jeffreys' prior: what a bet against a chance assumes of the true one.
_PRIOR = 0.5


def chance_needed(radius: Any, sigma: float) -> Array:
    """The chance p, in [1/2, 1), at which ``radius`` (>= 0, pixel units) is certified: Phi(radius / sigma)."""
    return np.asarray(special.ndtr(np.asarray(radius, float) / sigma))


def radius_at(chance: Any, sigma: float) -> Array:
    """The radius that a chance of at least ``chance`` certifies, in pixel units; 0 for a chance up to 1/2."""
    return np.asarray(np.maximum(sigma * special.ndtri(np.asarray(chance, float)), 0.0))


def lower_bound(hits: Any, draws: Any, alpha: float) -> Array:
    """The one-sided Clopper-Pearson bound: p lies below it with probability at most ``alpha``, for fixed ``draws``."""
    hits, draws = np.asarray(hits, float), np.asarray(draws, float)
    bound = special.betaincinv(np.maximum(hits, 1), draws - hits + 1, alpha)
    return np.asarray(np.where(hits > 0, bound, 0.0))


def hits_needed(chance: Any, draws: int, alpha: float) -> NDArray[np.int64]:
    """The fewest hits of ``draws`` whose lower bound reaches ``chance`` in (0, 1); ``draws`` + 1 where none does."""
    chance = np.asarray(chance, float)
    low, high = np.zeros(chance.shape, np.int64), np.full(chance.shape, draws + 1, np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (middle > draws) | (lower_bound(np.minimum(middle, draws), draws, alpha) >= chance)
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle + 1)
    return high


def log_wealth_above(hits: Any, draws: Any, chance: Any) -> Array:
    """Log of the wealth of a bet that p lies above ``chance``, begun at 1 and placed before every draw.

    The stake is spread over (chance, 1] by Jeffreys' prior cut off there. While p <= chance the wealth is a
    nonnegative supermartingale: its expected factor in one draw, for a stake on q, is
    p q / chance + (1 - p) (1 - q) / (1 - chance), which is 1 at p = chance and grows with p. So the wealth ever
    reaches 1 / alpha with probability at most alpha, however often one looks (Ville, 1939).
    """
    spread = special.betaincc(_PRIOR, _PRIOR, chance)
    reached = special.betaincc(hits + _PRIOR, draws - hits + _PRIOR, chance)
    return _log_ratio(hits, draws, chance, reached, spread)


def log_wealth_below(hits: Any, draws: Any, chance: Any) -> Array:
    """The same for a bet that p lies below ``chance``, in (0, 1]."""
    spread = special.betainc(_PRIOR, _PRIOR, chance)
    reached = special.betainc(hits + _PRIOR, draws - hits + _PRIOR, chance)
    return _log_ratio(hits, draws, chance, reached, spread)


def log_wealth_away(hits: Any, draws: Any, chance: Any) -> Array:
    """The same for a bet that p is not ``chance``: a martingale at p = chance. It falls in ``chance`` below
    hits / draws and grows above, so what it does not reject is an interval."""
    return _log_ratio(hits, draws, chance, 1.0, 1.0)


def _log_ratio(hits: Any, draws: Any, chance: Any, reached: Any, spread: Any) -> Array:
    misses = draws - hits
    with np.errstate(divide="ignore"):  # a bet that is as good as lost has log wealth -inf
        gained = special.betaln(hits + _PRIOR, misses + _PRIOR) + np.log(reached)
        staked = special.betaln(_PRIOR, _PRIOR) + np.log(spread)
    return np.asarray(gained - staked - special.xlogy(hits, chance) - special.xlog1py(misses, -np.asarray(chance)))
