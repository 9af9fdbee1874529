"""Intervals and tests for rates."""

from __future__ import annotations

from robust.summary import MeanRate, Rate


def clopper_pearson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a binomial rate.

    Args:
        k: successes, 0 <= k <= n. It need not be whole: for the mean of n values in [0, 1] with sum k the interval of
            k successes is conservative, since no distribution in [0, 1] of that mean varies more than a coin.
        n: trials, > 0.
        confidence: coverage, in (0, 1).

    Returns:
        (low, high), both in [0, 1].

    Source: Clopper and Pearson, Biometrika 26 (1934), in the form of beta quantiles.
    """
    from scipy.stats import beta

    if not (n > 0 and 0 <= k <= n):
        raise ValueError(f"need 0 <= k <= n and n > 0, not k={k}, n={n}")
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high


def rate(k: int, n: int) -> Rate:
    """k of n with its 95 % interval."""
    low, high = clopper_pearson(k, n)
    return Rate(value=k / n, low=low, high=high, numerator=k, n=n)


def mean_rate(total: float, n: int) -> MeanRate:
    """The mean of n values in [0, 1] that add up to ``total``, with its conservative 95 % interval.

    A total that rounding carried beyond n counts as n.
    """
    total = min(total, n)
    low, high = clopper_pearson(total, n)
    return MeanRate(value=total / n, low=low, high=high, n=n)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test for two models (or attacks) on the same images.

    Args:
        only_first: images that only the first gets right; only_second: that only the second gets right.

    Source: McNemar, Psychometrika 12 (1947); exact binomial form.
    """
    from scipy.stats import binom

    n = only_first + only_second
    if n == 0:
        return 1.0
    return float(min(1.0, 2 * binom.cdf(min(only_first, only_second), n, 0.5)))
