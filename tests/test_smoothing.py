"""Smoothing of a linear classifier, whose certified radius is its distance to the boundary, and its votes and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from halfspace import SHAPE, SIGMA, Halfspace
from oracles import TinyNet
from scipy.stats import norm
from torch import Tensor, nn

from robust.attacks import PGD
from robust.batching import comfortable_batch
from robust.defenses.smoothing import SmoothedClassifier, certify_images, lost_majority, smooth_attack
from robust.defenses.smoothing.anytime import RadiusTest, ToleranceTest
from robust.defenses.smoothing.certificates import Certificate
from robust.defenses.smoothing.cohen import CohenTest
from robust.defenses.smoothing.sampling import Sampler, Stream
from robust.errors import InputError

STREAMS = (Stream.SELECTION, Stream.ESTIMATION)


@pytest.fixture
def model() -> Halfspace:
    return Halfspace().eval().requires_grad_(False)


def certify(model: nn.Module, images: Tensor, test: object, batch: int = 64, seed: int = 0) -> list[Certificate]:
    found = dict(certify_images(Sampler(model, SIGMA, seed, batch), images, 2, test, 64, STREAMS))  # type: ignore[arg-type]
    return [found[row] for row in range(len(images))]


class TestCertificates:
    DISTANCES = (0.6, 0.4, 0.2, 0.02, -0.2, -0.4)

    def test_radii_are_those_of_the_closed_form(self, model: Halfspace) -> None:
        found = certify(model, model.at(*self.DISTANCES), RadiusTest((0.1, 0.3, 0.5), SIGMA, 0.001, 20_000))
        assert [one.radius for one in found] == [0.5, 0.3, 0.1, 0.0, 0.1, 0.3]
        assert [one.prediction for one in found if not one.abstains] == [0, 0, 0, 1, 1]
        assert all(one.draws == one.estimated + 64 for one in found)

    def test_cohens_radii_approach_the_distance_from_below(self, model: Halfspace) -> None:
        for one, distance in zip(
            certify(model, model.at(*self.DISTANCES), CohenTest(SIGMA, 0.001, 20_000)), self.DISTANCES, strict=True
        ):
            assert one.radius <= abs(distance)
            assert one.radius >= abs(distance) - 0.06
            assert one.draws == 20_064

    def test_a_tolerance_is_kept(self, model: Halfspace) -> None:
        for one, distance in zip(
            certify(model, model.at(0.3, 0.15), ToleranceTest(0.05, SIGMA, 0.001, 50_000)), (0.3, 0.15), strict=True
        ):
            assert distance - 0.08 <= one.radius <= distance

    def test_do_not_depend_on_batches_or_company(self, model: Halfspace) -> None:
        images = model.at(*self.DISTANCES)
        test = RadiusTest((0.1, 0.3, 0.5), SIGMA, 0.001, 5000)
        together = certify(model, images, test)
        assert certify(model, images.flip(0), test, batch=7)[::-1] == together
        assert [certify(model, image[None], test, batch=256)[0] for image in images] == together

    def test_another_seed_draws_anew(self, model: Halfspace) -> None:
        test = CohenTest(SIGMA, 0.001, 3000)
        first, second = (certify(model, model.at(0.2, 0.3), test, seed=seed) for seed in (0, 1))
        assert all(a.hits != b.hits for a, b in zip(first, second, strict=True))

    def test_no_draw_serves_twice(self, model: Halfspace) -> None:
        """Not for choosing the class and for estimating its chance, nor for two methods, nor within one."""
        seen: list[Tensor] = []

        class Watch(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                seen.append(images.flatten(1))
                logits: Tensor = model(images)
                return logits

        sampler, images = Sampler(Watch(), SIGMA, 0, 64), model.at(0.3)
        for streams in (STREAMS, (Stream.COHEN_SELECTION, Stream.COHEN_ESTIMATION)):
            assert len(list(certify_images(sampler, images, 2, CohenTest(SIGMA, 0.001, 320), 64, streams))) == 1
        lost_majority(sampler, images, torch.tensor([0]), 0.001)
        copies = torch.cat(seen)
        assert len(copies) > 800
        assert len(copies.unique(dim=0)) == len(copies)


class TestSampler:
    def test_noise_is_gaussian_of_deviation_sigma(self, model: Halfspace) -> None:
        seen: list[Tensor] = []

        class Watch(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                seen.append(images - 0.5)
                return torch.zeros(len(images), 2)

        Sampler(Watch(), SIGMA, 0, 64).histogram(torch.full((1, *SHAPE), 0.5), Stream.SELECTION, 640, 2)
        noise = torch.cat(seen).double()
        assert noise.std().item() == pytest.approx(SIGMA, rel=0.02)
        assert abs(noise.mean().item()) < 4 * SIGMA / noise.numel() ** 0.5
        covariance = torch.corrcoef(noise.flatten(1).T)
        assert (covariance - torch.eye(len(covariance))).abs().max() < 6 / 640**0.5
        # No draw occurs twice.
        assert len(noise.flatten(1).unique(dim=0)) == 640

    def test_streams_and_images_have_their_own_noise(self, model: Halfspace) -> None:
        sampler = Sampler(model, SIGMA, 0, 64)
        images, zero, many = model.at(0.1, 0.1001), np.zeros(2, np.int64), np.full(2, 4000)
        classes = torch.zeros(2, dtype=torch.int64)
        counts = [sampler.hits(images, classes, stream, zero, many).tolist() for stream in Stream]
        assert len({count for pair in counts for count in pair}) > len(Stream)

    def test_counts_go_on_where_they_stopped(self, model: Halfspace) -> None:
        sampler, images, classes = Sampler(model, SIGMA, 0, 96), model.at(0.1, -0.1), torch.tensor([0, 1])
        zero = np.zeros(2, np.int64)
        whole = sampler.hits(images, classes, Stream.ESTIMATION, zero, zero + 100)
        start = sampler.hits(images, classes, Stream.ESTIMATION, zero, np.array([64, 32]))
        rest = sampler.hits(images, classes, Stream.ESTIMATION, np.array([64, 32]), np.array([36, 68]))
        assert (start + rest).tolist() == whole.tolist()
        votes = sampler.histogram(images, Stream.ESTIMATION, 100, 2)
        assert [votes[0, 0], votes[1, 1]] == whole.tolist()
        assert votes.sum(1).tolist() == [100, 100]

    def test_no_number_is_no_vote(self) -> None:
        class Broken(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return torch.tensor([math.nan, 1.0]).expand(len(images), 2)

        votes = Sampler(Broken(), SIGMA, 0, 64).histogram(torch.zeros(1, *SHAPE), Stream.SELECTION, 50, 2)
        assert votes.tolist() == [[0, 0]]


class TestSmoothedClassifier:
    def test_call_is_the_log_of_the_mean_softmax(self, model: Halfspace) -> None:
        smoothed, images = SmoothedClassifier(model, SIGMA, draws=2000), model.at(0.3, 0.1, -0.2)
        chances = smoothed(images).exp()
        assert chances.sum(1) == pytest.approx([1, 1, 1], abs=1e-5)
        assert chances[:, 0].numpy() == pytest.approx(norm.cdf(np.array([0.3, 0.1, -0.2]) / SIGMA), abs=0.04)

    def test_call_is_deterministic_and_leaves_the_global_state(self, model: Halfspace) -> None:
        smoothed, images = SmoothedClassifier(model, SIGMA), model.at(0.3, 0.1, -0.2)
        state = torch.get_rng_state()
        assert torch.equal(smoothed(images), smoothed(images))
        assert torch.allclose(smoothed(images)[1:2], smoothed(images[1:2]), atol=1e-5)
        assert torch.equal(torch.get_rng_state(), state)

    def test_predicts_with_abstention(self, model: Halfspace) -> None:
        assert SmoothedClassifier(model, SIGMA).predict(model.at(0.3, 0.0, -0.2)).tolist() == [0, -1, 1]

    def test_is_a_model_that_attacks_take(self, model: Halfspace) -> None:
        images, labels = model.at(0.1, 0.3, -0.1, -0.3), torch.tensor([0, 0, 1, 1])
        smoothed = SmoothedClassifier(model, SIGMA, draws=500)
        found = PGD(eps=0.2, norm="l2", steps=20)(smoothed, images, labels)
        assert (smoothed(found).argmax(1) != labels).tolist() == [True, False, True, False]

    @pytest.mark.parametrize("sigma", [0, -0.1, float("nan"), float("inf")])
    def test_no_noise_is_an_error(self, model: Halfspace, sigma: float) -> None:
        with pytest.raises(InputError, match="sigma"):
            SmoothedClassifier(model, sigma)


class TestAttack:
    def test_reaches_the_boundary_of_the_vote_and_not_further(self, model: Halfspace) -> None:
        images, labels = model.at(0.1, 0.3, -0.1, -0.3), torch.tensor([0, 0, 1, 1])
        found = smooth_attack(SmoothedClassifier(model, SIGMA), images, labels, 0.2)
        assert (found - images).flatten(1).norm(dim=1).max() <= 0.2 + 1e-5
        sampler = Sampler(model, SIGMA, 0, 128)
        assert lost_majority(sampler, found, labels, 0.001) == [True, False, True, False]
        assert lost_majority(sampler, images, labels, 0.001) == [False] * 4

    def test_an_image_on_the_boundary_counts_as_not_lost(self, model: Halfspace) -> None:
        assert lost_majority(Sampler(model, SIGMA, 0, 128), model.at(0.0), torch.tensor([0]), 0.001) == [False]


def test_a_batch_smaller_than_a_block_is_enough() -> None:
    network, images = TinyNet().eval(), torch.rand(2, 3, 6, 6)
    assert comfortable_batch(network, images[:1]) >= 4
    few, many = (Sampler(network, SIGMA, 0, batch).histogram(images, Stream.SELECTION, 70, 4) for batch in (4, 128))
    assert few.tolist() == many.tolist()
