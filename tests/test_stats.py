"""Intervals and tests against scipy's own and against the equations that define them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robust.stats import clopper_pearson, mcnemar, mean_rate, rate


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 3000))
    return draw(st.integers(0, n)), n


class TestClopperPearson:
    @settings(max_examples=60, deadline=None)
    @given(count=counts(), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
    def test_is_scipys_exact_interval(self, count: tuple[int, int], confidence: float) -> None:
        k, n = count
        expected = stats.binomtest(k, n).proportion_ci(confidence, method="exact")
        assert clopper_pearson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)

    @settings(max_examples=60, deadline=None)
    @given(count=counts())
    def test_each_end_leaves_a_tail_of_two_and_a_half_percent(self, count: tuple[int, int]) -> None:
        k, n = count
        low, high = clopper_pearson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        if k > 0:
            assert stats.binom.sf(k - 1, n, low) == pytest.approx(0.025, rel=1e-6)
        if k < n:
            assert stats.binom.cdf(k, n, high) == pytest.approx(0.025, rel=1e-6)

    @pytest.mark.parametrize("n", [1, 7, 1000])
    def test_none_and_all_have_closed_forms(self, n: int) -> None:
        assert clopper_pearson(0, n) == pytest.approx((0, 1 - 0.025 ** (1 / n)), abs=1e-12)
        assert clopper_pearson(n, n) == pytest.approx((0.025 ** (1 / n), 1), abs=1e-12)

    @pytest.mark.parametrize("n", [1, 5, 40, 1000])
    def test_a_sum_that_is_not_whole_lies_between_its_neighbors(self, n: int) -> None:
        for k in range(n) if n < 100 else (0, 1, 400, 998, 999):
            sums = [k + part for part in (0, 0.01, 0.3, 0.5, 0.99, 1)]
            ends = [clopper_pearson(each, n) for each in sums]
            assert [low for low, _ in ends] == sorted(low for low, _ in ends)
            assert [high for _, high in ends] == sorted(high for _, high in ends)
            assert all(low <= each / n <= high for (low, high), each in zip(ends, sums, strict=True))

    def test_the_mean_of_numbers_in_zero_to_one_is_covered(self) -> None:
        """Exactly, by all outcomes of up to 5 draws of a number with three possible values."""
        rng = np.random.default_rng(0)
        for _ in range(60):
            n = int(rng.integers(1, 6))
            values, chances = np.array([0, rng.random(), 1]), rng.dirichlet([0.6] * 3)
            below = above = 0.0
            for outcome in (c for c in itertools.product(range(n + 1), repeat=3) if sum(c) == n):
                low, high = clopper_pearson(min(float(np.dot(outcome, values)), n), n)
                chance = stats.multinomial.pmf(outcome, n, chances)
                below += chance * (high < chances @ values - 1e-12)
                above += chance * (low > chances @ values + 1e-12)
            assert max(below, above) <= 0.025

    @pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0), (1, -1), (float("nan"), 5), (5.001, 5)])
    def test_impossible_counts_raise(self, k: float, n: float) -> None:
        with pytest.raises(ValueError, match="need 0 <= k <= n"):
            clopper_pearson(k, n)


def test_a_mean_of_shares_has_the_interval_of_as_many_successes() -> None:
    found = mean_rate(2.5, 10)
    assert (found.value, found.n) == (0.25, 10)
    assert (found.low, found.high) == clopper_pearson(2.5, 10)
    assert (mean_rate(3 + 1e-9, 3).value, mean_rate(3 + 1e-9, 3).high) == (1, 1)


def test_rate_states_numerator_denominator_and_interval() -> None:
    found = rate(400, 1000)
    assert (found.value, found.numerator, found.n) == (0.4, 400, 1000)
    assert (found.low, found.high) == pytest.approx((0.36947, 0.43112), abs=1e-5)


class TestMcNemar:
    @settings(max_examples=60, deadline=None)
    @given(first=st.integers(0, 300), second=st.integers(0, 300))
    def test_is_the_exact_sign_test(self, first: int, second: int) -> None:
        expected = 1.0 if first + second == 0 else stats.binomtest(first, first + second, 0.5).pvalue
        assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
        assert mcnemar(first, second) == mcnemar(second, first)

    def test_by_hand(self) -> None:
        assert mcnemar(0, 0) == 1
        assert mcnemar(3, 3) == 1
        assert mcnemar(0, 1) == 1
        assert mcnemar(0, 6) == pytest.approx(2 / 64)
        assert mcnemar(1, 5) == pytest.approx(2 * 7 / 64)
