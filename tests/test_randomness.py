"""Random numbers that belong to images: their distribution, and what they may not depend on."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from robust.randomness import image_seeds, integers, normal, uniform


def mix(z: int) -> int:
    """The finalizer of SplitMix64 on unsigned 64-bit numbers."""
    z %= 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


SEEDS = image_seeds(torch.arange(4, dtype=torch.float32)[:, None] / 7, 0)
COUNT = 20_000


class TestDistribution:
    def test_uniform_passes_kolmogorov_smirnov_for_every_image_and_stream(self) -> None:
        for stream in (0, 1, 8, 12345):
            for row in uniform(SEEDS, stream, (COUNT,), torch.float64):
                assert stats.kstest(row.numpy(), "uniform").pvalue > 1e-3

    def test_uniform_moments(self) -> None:
        values = uniform(SEEDS, 0, (COUNT,), torch.float64)
        error = 4 / (4 * COUNT) ** 0.5
        assert abs(float(values.mean()) - 1 / 2) < error * 12**-0.5
        assert abs(float((values**2).mean()) - 1 / 3) < error * 0.3

    def test_uniform_reaches_both_ends_and_stays_below_one(self) -> None:
        values = uniform(SEEDS, 0, (COUNT,))
        assert values.dtype == torch.float32
        assert 0 <= values.min() < 1e-3
        assert 1 - 1e-3 < values.max() < 1

    def test_all_bits_of_a_uniform_number_are_fair(self) -> None:
        whole = (uniform(SEEDS, 3, (COUNT,), torch.float64) * 2**24).long().flatten()
        for bit in range(24):
            ones = int((whole >> bit & 1).sum())
            assert stats.binomtest(ones, whole.numel()).pvalue > 1e-4

    def test_normal_passes_kolmogorov_smirnov(self) -> None:
        for row in normal(SEEDS, 2, (COUNT,), torch.float64):
            assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3

    def test_normal_is_finite_with_tails(self) -> None:
        values = normal(SEEDS, 0, (COUNT,))
        assert values.isfinite().all()
        assert 3.5 < values.abs().max() < 6
        assert float((values**4).mean()) == pytest.approx(3, abs=0.2)

    @pytest.mark.parametrize("high", [1, 2, 7, 1000])
    def test_integers_cover_their_range_evenly(self, high: int) -> None:
        values = integers(SEEDS, 5, (COUNT,), high)
        assert values.dtype == torch.int64
        counts = np.bincount(values.flatten().numpy(), minlength=high)
        assert len(counts) == high
        if high > 1:
            assert stats.chisquare(counts).pvalue > 1e-3

    def test_integers_take_a_bound_per_image(self) -> None:
        high = torch.tensor([1, 3, 10, 100])
        values = integers(SEEDS, 0, (500,), high[:, None])
        assert (values >= 0).all()
        assert values.amax(1).tolist() == [0, 2, 9, 99]


class TestIndependence:
    @pytest.mark.parametrize("draw", [uniform, normal])
    def test_streams_and_images_are_uncorrelated(self, draw) -> None:
        rows = torch.cat([draw(SEEDS, stream, (COUNT,), torch.float64) for stream in (0, 1, 2, 8)])
        correlations = np.corrcoef(rows.numpy()) - np.eye(len(rows))
        assert np.abs(correlations).max() < 4.5 / COUNT**0.5

    @pytest.mark.parametrize("lag", [1, 2, 3, 32, 1024])
    def test_neighbors_are_uncorrelated(self, lag: int) -> None:
        for row in uniform(SEEDS, 0, (COUNT,), torch.float64):
            assert abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < 4 / COUNT**0.5

    def test_no_stream_is_a_shifted_copy_of_another(self) -> None:
        first, second = (set(uniform(SEEDS, stream, (2000,), torch.float64)[0].tolist()) for stream in (0, 1))
        # Of 2000 numbers with 24 bits about 0.24 meet by chance.
        assert len(first & second) < 5

    def test_seeds_that_follow_each_other_share_nothing(self) -> None:
        near = torch.arange(50, dtype=torch.int64)
        rows = uniform(near, 0, (400,), torch.float64)
        correlations = np.corrcoef(rows.numpy()) - np.eye(50)
        assert np.abs(correlations).max() < 5 / 400**0.5


class TestBelongsToTheImage:
    @pytest.mark.parametrize("draw", [uniform, normal, lambda s, i, d: integers(s, i, d, 1000)])
    def test_batching_and_order_do_not_matter(self, draw) -> None:
        together = draw(SEEDS, 4, (3, 5, 5))
        assert together.shape == (4, 3, 5, 5)
        order = torch.tensor([2, 0])
        assert torch.equal(draw(SEEDS[order], 4, (3, 5, 5)), together[order])

    def test_the_same_call_gives_the_same_numbers(self) -> None:
        assert torch.equal(uniform(SEEDS, 7, (10,)), uniform(SEEDS, 7, (10,)))

    def test_float32_and_float64_agree(self) -> None:
        assert torch.equal(uniform(SEEDS, 7, (10,)).double(), uniform(SEEDS, 7, (10,), torch.float64))
        single, double = normal(SEEDS, 7, (10,)), normal(SEEDS, 7, (10,), torch.float64)
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)

    def test_the_numbers_never_change(self) -> None:
        """A ledger is replayed by another version on another machine: the hash, in whole numbers of Python."""
        images = [[0.0, 0.25], [1.0, 0.5]]
        seeds = [mix(zlib.crc32(struct.pack("<2f", *image)) + 5 * 0x100000001B3) for image in images]
        starts = [mix(seed + 3 * 0x632BE59BD9B4E019) for seed in seeds]
        expected = [[mix(start + i * 0x9E3779B97F4A7C15) >> 40 for i in (1, 2)] for start in starts]
        found = image_seeds(torch.tensor(images), 5)
        assert [seed % 2**64 for seed in found.tolist()] == seeds
        assert (uniform(found, 2, (2,), torch.float64) * 2**24).long().tolist() == expected

    def test_the_global_random_state_is_untouched(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        uniform(image_seeds(torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), 9), 0, (50,))
        normal(SEEDS, 0, (50,))
        integers(SEEDS, 0, (50,), 9)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert random.getstate() == before[2]


class TestImageSeeds:
    def test_one_int64_per_image_that_depends_on_nothing_else(self) -> None:
        images = torch.rand(5, 3, 4, 4)
        seeds = image_seeds(images, 1)
        assert seeds.dtype == torch.int64
        assert seeds.shape == (5,)
        assert torch.equal(image_seeds(images.flip(0), 1), seeds.flip(0))
        assert torch.equal(image_seeds(images.contiguous(memory_format=torch.channels_last), 1), seeds)
        assert torch.equal(image_seeds(images.double(), 1), seeds)
        assert torch.equal(image_seeds(images.requires_grad_(), 1), seeds)

    def test_different_images_have_different_seeds(self) -> None:
        images = torch.zeros(300, 3, 10, 10)
        images.view(300, 300).fill_diagonal_(1 / 255)  # one value of 300, by one 8-bit step
        assert len(set(image_seeds(images, 0).tolist())) == 300

    @pytest.mark.parametrize("seeds", [range(-50, 50), [0, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63)]])
    def test_different_attack_seeds_have_different_seeds(self, seeds) -> None:
        images = torch.rand(20, 3, 4, 4)
        drawn = [image_seeds(images, seed) for seed in seeds]
        assert len(set(torch.cat(drawn).tolist())) == 20 * len(drawn)

    def test_no_images_have_no_seeds(self) -> None:
        assert image_seeds(torch.zeros(0, 3, 4, 4), 0).shape == (0,)
