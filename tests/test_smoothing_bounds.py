"""Chances, radii and tests from votes against closed forms, exact sums and simulation at the worst case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from robust.defenses.smoothing import bounds
from robust.defenses.smoothing.anytime import GIVE_UP, RadiusTest, ToleranceTest, VoteTest
from robust.defenses.smoothing.cohen import CohenTest

ALPHA, SIGMA = 0.001, 0.25


def simulate(test: VoteTest, chance: float, runs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Feed ``runs`` images of one true chance to a test; the radii certified and the draws it took."""
    rng = np.random.default_rng(seed)
    test.start(runs)
    rows, hits, used, drawn = np.arange(runs), np.zeros(runs, np.int64), np.zeros(runs, np.int64), 0
    while len(rows):
        more = test.more(drawn)
        drawn += more
        hits = hits + rng.binomial(more, chance, len(rows))
        used[rows] = drawn
        open_ = ~test.look(rows, hits, np.full(len(rows), drawn))
        rows, hits = rows[open_], hits[open_]
    return np.array([test.radius(row) for row in range(runs)]), used


def exactly(test: RadiusTest, chance: float) -> tuple[float, float]:
    """The probability that an image of this true chance is certified by a test of one radius, and its mean draws.

    No simulation: the distribution of hits over all undecided images is carried from look to look.
    """
    first, mass, drawn, certified, draws = 0, np.ones(1), 0, 0.0, 0.0
    while len(mass):
        more = test.more(drawn)
        draws += more * mass.sum()
        drawn += more
        low, high = (int(end) for end in stats.binom.ppf([1e-17, 1 - 1e-16], more, chance))
        mass = np.convolve(mass, stats.binom.pmf(np.arange(low, high + 1), more, chance))
        first += low
        hits = first + np.arange(len(mass))
        test.start(len(hits))
        decided = test.look(np.arange(len(hits)), hits, np.full(len(hits), drawn))
        certified += mass[decided & (test.certified() > 0)].sum()
        left = np.flatnonzero(~decided & (mass > 1e-18))
        keep = slice(left[0], left[-1] + 1) if len(left) else slice(0, 0)
        mass, first = np.where(decided, 0, mass)[keep], first + (int(left[0]) if len(left) else 0)
    return float(certified), float(draws)


class TestBounds:
    @given(hits=st.integers(0, 500), misses=st.integers(0, 500), alpha=st.sampled_from([0.0005, 0.001, 0.05]))
    def test_lower_bound_is_the_exact_one_sided_interval(self, hits: int, misses: int, alpha: float) -> None:
        draws = hits + misses + 1
        expected = stats.binomtest(hits, draws, alternative="greater").proportion_ci(1 - alpha, method="exact").low
        assert float(bounds.lower_bound(hits, draws, alpha)) == pytest.approx(expected, abs=1e-9)

    def test_all_hits_have_a_closed_form(self) -> None:
        assert float(bounds.lower_bound(100_000, 100_000, ALPHA)) == pytest.approx(ALPHA ** (1 / 100_000), rel=1e-12)
        assert float(bounds.radius_at(ALPHA**1e-5, 1.0)) == pytest.approx(3.8115, abs=1e-4)

    def test_chance_and_radius_are_inverse_and_scale_with_sigma(self) -> None:
        radii = np.array([0.0, 0.1, 0.25, 0.9])
        assert bounds.radius_at(bounds.chance_needed(radii, SIGMA), SIGMA) == pytest.approx(radii)
        assert float(bounds.chance_needed(SIGMA, SIGMA)) == pytest.approx(0.841344746)
        assert float(bounds.radius_at(0.3, SIGMA)) == 0

    @pytest.mark.parametrize("draws", [10, 64, 3000])
    def test_hits_needed_is_the_first_count_that_is_enough(self, draws: int) -> None:
        chances = np.array([0.5, 0.8, 0.99, 0.99999])
        for chance, need in zip(chances, bounds.hits_needed(chances, draws, ALPHA), strict=True):
            enough = bounds.lower_bound(np.arange(draws + 1), draws, ALPHA) >= chance
            assert need == (int(enough.argmax()) if enough.any() else draws + 1)

    @pytest.mark.parametrize(("hits", "draws"), [(0, 1), (7, 9), (50, 50), (3, 40)])
    @pytest.mark.parametrize("chance", [0.5, 0.84])
    def test_wealth_is_the_mixture_of_likelihood_ratios(self, hits: int, draws: int, chance: float) -> None:
        def mixture(low: float, high: float) -> float:
            def stake(angle: float) -> float:  # q = sin(angle)^2 spreads Jeffreys' prior evenly
                q = np.sin(angle) ** 2
                ratio = (q / chance) ** hits * ((1 - q) / (1 - chance)) ** (draws - hits)
                return float(ratio)

            ends = np.arcsin(np.sqrt([low, high]))
            return float(np.log(integrate.quad(stake, *ends, epsabs=0, epsrel=1e-10)[0] / (ends[1] - ends[0])))

        assert float(bounds.log_wealth_above(hits, draws, chance)) == pytest.approx(mixture(chance, 1), abs=1e-7)
        assert float(bounds.log_wealth_below(hits, draws, chance)) == pytest.approx(mixture(0, chance), abs=1e-7)
        assert float(bounds.log_wealth_away(hits, draws, chance)) == pytest.approx(mixture(0, 1), abs=1e-7)

    @pytest.mark.parametrize("draws", [1, 12, 60])
    def test_the_expected_wealth_is_one_at_the_chance_and_less_below(self, draws: int) -> None:
        hits, chance = np.arange(draws + 1), 0.8
        wealth = np.exp(bounds.log_wealth_above(hits, draws, chance))
        assert stats.binom.pmf(hits, draws, chance) @ wealth == pytest.approx(1)
        assert stats.binom.pmf(hits, draws, 0.7) @ wealth < 1


class TestRadiusTest:
    @pytest.mark.parametrize("radius", [0.0, 0.25, 0.5, 0.75])
    def test_the_error_at_the_worst_case_is_at_most_alpha_exactly(self, radius: float) -> None:
        """As it is used: alpha 0.001 and up to 100,000 draws, at p = p_r; much less below."""
        test = RadiusTest((radius,), SIGMA, ALPHA, 100_000)
        error, _ = exactly(test, float(test.chances[0]))
        assert 0.3 * ALPHA < error <= ALPHA
        assert exactly(test, 0.98 * float(test.chances[0]))[0] < 0.1 * ALPHA

    @pytest.mark.parametrize("radius", [0.25, 0.5, 0.75])
    @pytest.mark.parametrize("lead", [3, 3.5, 4, 5, 8])
    def test_certifies_hardly_less_often_than_cohen(self, radius: float, lead: float) -> None:
        """Of images whose chance is so many standard deviations of Cohen's estimate above what the radius needs."""
        test = RadiusTest((radius,), SIGMA, ALPHA, 100_000)
        need = float(test.chances[0])
        chance = need + lead * np.sqrt(need * (1 - need) / 100_000)
        cohen = stats.binom.sf(bounds.hits_needed(need, 100_000, ALPHA) - 1, 100_000, chance)
        assert cohen - exactly(test, chance)[0] <= 0.12

    @pytest.mark.parametrize("radius", [0.0, 0.25, 0.5])
    def test_false_certificates_at_the_worst_case_are_at_most_alpha(self, radius: float) -> None:
        """At p = p_r exactly. With alpha = 0.02 and 4,000 runs, a true rate of alpha passes 104 once in 10,000."""
        test = RadiusTest((radius,), SIGMA, 0.02, 3000)
        simulate(test, float(test.chances[0]), 4000)
        assert test.certified().sum() <= stats.binom.ppf(0.9999, 4000, 0.02)

    def test_one_error_serves_all_radii(self) -> None:
        test = RadiusTest((0.1, 0.2, 0.25, 0.3, 0.5), SIGMA, 0.02, 3000)
        radii, _ = simulate(test, float(test.chances[2]), 4000)
        assert (radii >= 0.25).sum() <= stats.binom.ppf(0.9999, 4000, 0.02)
        assert (radii >= 0.1).mean() > 0.99

    @pytest.mark.parametrize("chance", [0.75, 0.8, 0.87, 0.9, 0.99, 1.0])
    def test_certifies_what_cohen_certifies_with_far_fewer_draws(self, chance: float) -> None:
        radius = 0.25
        fixed, _ = simulate(CohenTest(SIGMA, ALPHA, 100_000), chance, 200, seed=1)
        found, draws = simulate(RadiusTest((radius,), SIGMA, ALPHA, 100_000), chance, 200)
        assert abs((found >= radius).mean() - (fixed >= radius).mean()) <= 0.05
        assert draws.mean() <= 100_000 / 25

    def test_giving_up_loses_few_of_those_that_would_pass_half_the_time(self) -> None:
        test = RadiusTest((0.25,), SIGMA, ALPHA, 20_000)
        chance = float(test.need[0] / test.horizon)
        simulate(test, chance, 2000)
        assert test.certified().mean() >= 0.5 - GIVE_UP - 4 * np.sqrt(0.25 / 2000)

    def test_radii_beyond_the_horizon_are_given_up_at_once(self) -> None:
        radii, draws = simulate(RadiusTest((0.25, 0.9), SIGMA, ALPHA, 1000), 1.0, 3)
        assert radii.tolist() == [0.25] * 3
        assert draws.max() <= 64

    def test_a_larger_radius_counts_only_with_all_smaller_ones(self) -> None:
        test = RadiusTest((0.1, 0.2), SIGMA, ALPHA, 1000)
        test.start(1)
        test.won[0] = [False, True]
        assert test.radius(0) == 0
        test.won[0] = [True, True]
        assert test.radius(0) == 0.2


class TestToleranceTest:
    @pytest.mark.parametrize("chance", [0.6, 0.9])
    def test_the_bound_errs_at_most_alpha_of_the_time(self, chance: float) -> None:
        radii, _ = simulate(ToleranceTest(0.05, SIGMA, 0.02, 4000), chance, 1500)
        truth = float(bounds.radius_at(chance, SIGMA))
        assert (radii > truth).sum() <= stats.binom.ppf(0.9999, 1500, 0.02)

    def test_a_wider_tolerance_takes_fewer_draws_and_is_kept(self) -> None:
        truth = float(bounds.radius_at(0.95, SIGMA))
        for tolerance, most in ((0.1, 4000), (0.03, 40_000)):
            radii, draws = simulate(ToleranceTest(tolerance, SIGMA, ALPHA, 100_000), 0.95, 100)
            assert draws.max() <= most
            assert (truth - radii).max() <= tolerance * 1.5
            assert radii.max() <= truth

    def test_stops_early_where_the_class_has_no_majority(self) -> None:
        radii, draws = simulate(ToleranceTest(0.01, SIGMA, ALPHA, 100_000), 0.3, 100)
        assert radii.max() == 0
        assert np.median(draws) <= 200


class TestCohen:
    def test_is_the_published_procedure(self) -> None:
        test = CohenTest(SIGMA, ALPHA, 1000)
        radii, draws = simulate(test, 0.9, 50)
        assert (draws == 1000).all()
        rng = np.random.default_rng(0)
        hits = np.zeros(50, np.int64)
        while (more := test.more(int(draws[0]) - 1000)) and not hits.any():
            hits += rng.binomial(more, 0.9, 50)
        low = stats.beta.ppf(ALPHA, hits, 1000 - hits + 1)
        assert radii == pytest.approx(SIGMA * stats.norm.ppf(low))

    def test_abstains_below_one_half(self) -> None:
        radii, _ = simulate(CohenTest(SIGMA, ALPHA, 1000), 0.5, 50)
        assert radii.max() == 0
