"""Threat models against independent geometry: optimality certificates, closed forms and distribution tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import EPS, brute_force_l0_gain, linear_gain
from scipy import optimize, stats
from torch import Tensor

from robust.errors import InputError
from robust.randomness import image_seeds
from robust.threats import NORMS, ThreatModel

ALL_NORMS = sorted(NORMS.keys() - {"patch"})  # which has its own tests, in test_patch_norm.py
SHAPES = [(3, 6, 6), (1, 5, 7), (40,)]
DTYPES = [torch.float32, torch.float64]
fast = settings(max_examples=30, deadline=None)


def norm_of(name: str, delta: Tensor) -> np.ndarray:
    flat = delta.flatten(1).double().numpy()
    if name == "l0":
        return np.count_nonzero(flat, axis=1).astype(float)
    return np.linalg.norm(flat, ord={"linf": np.inf, "l2": 2, "l1": 1}[name], axis=1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Images in the box (some values on its ends), points in and far out of it, and one eps factor per image."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = (draw(st.sampled_from([1, 3, 8])), *draw(st.sampled_from(SHAPES)))
    dtype = draw(st.sampled_from(DTYPES))
    spread = draw(st.sampled_from([1e-4, 0.02, 0.3, 5.0]))
    # A power, since plain random numbers lie on a grid on which all differences are exact.
    images = (torch.rand(shape, generator=generator, dtype=dtype) * 4 / 3 - 1 / 6).clamp(0, 1) ** 1.7
    points = images + torch.randn(shape, generator=generator, dtype=dtype) * spread
    factor = torch.rand(shape[0], generator=generator, dtype=dtype) * 2
    factor[draw(st.integers(0, shape[0] - 1))] = draw(st.sampled_from([0.0, 1.0]))
    return images, points, factor


def radii(name: str, factor: Tensor) -> Tensor:
    eps = factor * EPS[name]
    return eps.floor() if name == "l0" else eps


@pytest.mark.parametrize("name", ALL_NORMS)
class TestProject:
    @fast
    @given(problem=problems())
    def test_lands_in_ball_and_box(self, name: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        images, points, factor = problem
        eps = radii(name, factor)
        projected = NORMS[name].project(points, images, eps)
        assert projected.shape == images.shape
        assert projected.dtype == images.dtype
        assert (norm_of(name, projected - images) <= eps.double().numpy() * (1 + 1e-6) + 1e-6).all()
        assert projected.min() >= 0
        assert projected.max() <= 1
        assert NORMS[name].contains(projected, images, eps).all()

    @fast
    @given(problem=problems())
    def test_many_points_of_the_same_images_go_the_same_way(
        self, name: str, problem: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        images, points, factor = problem
        eps = radii(name, factor)
        into = NORMS[name].into(images, eps)
        for moved in (points, images, 2 * points - 1):
            assert torch.equal(into(moved), NORMS[name].project(moved, images, eps))

    @fast
    @given(problem=problems())
    def test_is_idempotent(self, name: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        images, points, factor = problem
        eps = radii(name, factor)
        once = NORMS[name].project(points, images, eps)
        torch.testing.assert_close(NORMS[name].project(once, images, eps), once, rtol=0, atol=1e-6)

    @fast
    @given(problem=problems())
    def test_leaves_points_inside_unchanged(self, name: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        images, points, _ = problem
        points = points.clamp(0, 1) ** 1.3
        eps = torch.from_numpy(norm_of(name, points - images)).to(images.dtype) * 1.01 + 1e-5
        eps = eps.ceil() if name == "l0" else eps
        assert torch.equal(NORMS[name].project(points, images, eps), points)

    @fast
    @given(problem=problems())
    def test_eps_per_image_is_image_by_image(self, name: str, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        images, points, factor = problem
        eps = radii(name, factor)
        together = NORMS[name].project(points, images, eps)
        for i in range(len(images)):
            alone = NORMS[name].project(points[i : i + 1], images[i : i + 1], float(eps[i]))
            torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)

    def test_zero_eps_gives_the_image(self, name: str) -> None:
        images = torch.rand(3, 2, 4, 4) / 3
        assert torch.equal(NORMS[name].project(images + torch.randn(3, 2, 4, 4), images, 0.0), images)

    def test_does_not_change_its_arguments(self, name: str) -> None:
        images, points = torch.rand(2, 3, 3, 3), torch.randn(2, 3, 3, 3)
        before = images.clone(), points.clone()
        NORMS[name].project(points, images, EPS[name])
        assert torch.equal(images, before[0])
        assert torch.equal(points, before[1])

    def test_memory_layout_does_not_matter(self, name: str) -> None:
        images, points = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
        plain = NORMS[name].project(points, images, EPS[name])
        last = torch.channels_last
        other = NORMS[name].project(
            points.contiguous(memory_format=last), images.contiguous(memory_format=last), EPS[name]
        )
        torch.testing.assert_close(plain, other, rtol=0, atol=1e-6)


class TestNearest:
    """p is the nearest point of a convex set to u exactly if no q in the set has (u - p) . (q - p) > 0.

    The largest value of the left side over the set is a linear problem that the oracles solve without any projection.
    """

    @fast
    @given(problem=problems(), name=st.sampled_from(["linf", "l1"]))
    def test_no_point_of_ball_and_box_is_nearer(self, problem: tuple[Tensor, Tensor, Tensor], name: str) -> None:
        images, points, factor = (value.double() for value in problem)
        eps = radii(name, factor)
        projected = NORMS[name].project(points, images, eps)
        for i in range(len(images)):
            image, point, nearest = (value[i].flatten().numpy() for value in (images, points, projected))
            slope = point - nearest
            most = linear_gain(name, slope, image, float(eps[i])) + slope @ image
            assert most - slope @ nearest <= 1e-9 * max(1.0, np.abs(slope).sum())

    @fast
    @given(problem=problems())
    def test_l2_is_nearest_in_the_ball_where_the_box_is_far(self, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        """With the box, the l2 form scales and then clips: inside both, but not the nearest point of both."""
        images, points, factor = (value.double() for value in problem)
        images, eps = 0.5 + 0 * images, factor.clamp(0.01, 1) * 0.4
        projected = NORMS["l2"].project(points, images, eps)
        for i in range(len(images)):
            image, point, nearest = (value[i].flatten().numpy() for value in (images, points, projected))
            slope = point - nearest
            most = slope @ image + float(eps[i]) * np.linalg.norm(slope)
            assert most - slope @ nearest <= 1e-9 * max(1.0, np.abs(slope).sum())

    def test_l2_with_the_box_scales_then_clips(self) -> None:
        image = torch.tensor([[0.9, 0.5]])
        point = torch.tensor([[0.9 + 0.6, 0.5 + 0.8]])  # length 1: scaled to (0.3, 0.4), of which the first is clipped
        projected = NORMS["l2"].project(point, image, 0.5)
        torch.testing.assert_close(projected, torch.tensor([[1.0, 0.9]]))

    def test_no_images_at_all(self) -> None:
        none = torch.empty(0, 3, 2, 2)
        for name in ("l1", "l0"):
            assert NORMS[name].project(none, none, torch.empty(0)).shape == none.shape
            assert NORMS[name].steepest(none, none, torch.empty(0)).shape == none.shape

    def test_l1_agrees_with_a_general_solver(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(5):
            image, point = rng.random(5), rng.normal(0.5, 1, 5)
            eps = float(rng.uniform(0.2, 1.5))
            # Split into gains and losses, the l1 ball becomes linear.
            solution = optimize.minimize(
                lambda d, image=image, point=point: np.sum((image + d[:5] - d[5:] - point) ** 2),
                np.zeros(10),
                bounds=[(0, 1 - x) for x in image] + [(0, x) for x in image],
                constraints={"type": "ineq", "fun": lambda d, eps=eps: eps - d.sum()},
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            found = NORMS["l1"].project(torch.tensor(point)[None], torch.tensor(image)[None], eps)[0].numpy()
            np.testing.assert_allclose(found, image + solution.x[:5] - solution.x[5:], atol=1e-5)

    @pytest.mark.parametrize("changed", [0, 1, 30, 200])
    def test_l1_is_the_same_however_many_values_differ(self, changed: int) -> None:
        """Few differing values are projected apart from the rest: as each image alone, with nothing else around."""
        generator = torch.Generator().manual_seed(changed)
        images = torch.rand(4, 200, generator=generator, dtype=torch.float64)
        places = torch.stack([torch.randperm(200, generator=generator)[:changed] for _ in images])
        shift = torch.randn(4, 200, generator=generator, dtype=torch.float64) * torch.tensor([[0.01], [1], [1], [9]])
        points = images + torch.zeros_like(images).scatter(1, places, shift)
        eps = torch.tensor([0.5, 0.0, 1.0, 7.0], dtype=torch.float64)
        projected = NORMS["l1"].project(points, images, eps)
        alone = [
            NORMS["l1"].project(points[i, place][None], images[i, place][None], eps[i])
            for i, place in enumerate(places)
        ]
        assert torch.equal(projected.scatter(1, places, 0), images.scatter(1, places, 0))
        torch.testing.assert_close(projected.gather(1, places), torch.cat(alone), rtol=0, atol=1e-12)

    def test_l0_keeps_the_largest_changes(self) -> None:
        image = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
        point = torch.tensor([[0.6, 0.1, 5.0, 0.4]])  # the third is worth 0.5 inside the box
        torch.testing.assert_close(NORMS["l0"].project(point, image, 2), torch.tensor([[0.5, 0.1, 1.0, 0.5]]))

    def test_l0_with_ties_keeps_no_more_than_eps(self) -> None:
        images = torch.full((2, 10), 0.5)
        projected = NORMS["l0"].project(images + 0.25, images, torch.tensor([3.0, 0.0]))
        assert (projected != images).sum(1).tolist() == [3, 0]

    def test_l0_takes_the_first_of_equal_changes_whoever_else_is_there(self) -> None:
        images = torch.full((3, 40), 0.5)
        points = images + 0.25 * torch.tensor([[1.0] * 40, [0.0, 2.0] * 20, [0.0] * 30 + [1.0] * 10])
        eps = torch.tensor([3.0, 2.0, 40.0])
        projected = NORMS["l0"].project(points, images, eps)
        assert [row.nonzero().squeeze(1).tolist() for row in projected != images] == [
            [0, 1, 2],
            [1, 3],
            [*range(30, 40)],
        ]
        alone = [NORMS["l0"].project(points[i, None], images[i, None], float(eps[i])) for i in range(3)]
        assert torch.equal(projected, torch.cat(alone))


@pytest.mark.parametrize("name", ALL_NORMS)
class TestRandom:
    @pytest.mark.parametrize("batch", [1, 3, 8])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_lies_in_ball_and_box(self, name: str, batch: int, dtype: torch.dtype) -> None:
        for shape in SHAPES:
            images = torch.rand(batch, *shape, dtype=dtype)
            eps = torch.rand(batch, dtype=dtype) * EPS[name] * 2
            eps[0] = EPS[name]
            points = NORMS[name].random(images, eps, image_seeds(images, 0), 0)
            assert points.shape == images.shape
            assert points.dtype == dtype
            assert (norm_of(name, points - images) <= eps.double().numpy() * (1 + 1e-6) + 1e-6).all()
            assert points.min() >= 0
            assert points.max() <= 1
            assert (norm_of(name, points - images) > 0)[eps.numpy() >= EPS[name]].all()

    def test_belongs_to_the_image_and_not_to_its_batch(self, name: str) -> None:
        images = torch.rand(5, 3, 4, 4, dtype=torch.float64)
        eps = torch.linspace(0.5, 1, 5, dtype=torch.float64) * EPS[name]
        together = NORMS[name].random(images, eps, image_seeds(images, 3), 8)
        order = torch.tensor([3, 1])
        apart = NORMS[name].random(images[order], eps[order], image_seeds(images[order], 3), 8)
        torch.testing.assert_close(apart, together[order], rtol=0, atol=1e-12)

    def test_streams_seeds_and_images_differ(self, name: str) -> None:
        images = torch.full((2, 3, 4, 4), 0.5)
        images[1] += 1e-3
        draws = [
            NORMS[name].random(images, EPS[name], image_seeds(images, seed), stream) - images
            for seed, stream in [(0, 0), (0, 8), (1, 0)]
        ]
        flat = [row for draw in draws for row in draw]
        for i, first in enumerate(flat):
            for second in flat[:i]:
                assert (first - second).abs().max() > 1e-3

    def test_zero_eps_gives_the_image(self, name: str) -> None:
        images = torch.rand(2, 3, 4, 4)
        assert torch.equal(NORMS[name].random(images, 0.0, image_seeds(images, 0), 0), images)


class TestSpread:
    """Uniform in the ball, for images far from the box's ends, tested over a large batch of different images."""

    count = 2000

    def draw(self, name: str, dimensions: int, eps: float) -> np.ndarray:
        images = 0.5 + torch.arange(self.count, dtype=torch.float64)[:, None].expand(-1, dimensions) * 1e-6
        points = NORMS[name].random(images, eps, image_seeds(images, 0), 0)
        return (points - images).numpy()

    def test_linf_is_uniform_in_each_value(self) -> None:
        delta = self.draw("linf", 3, 0.2)
        for column in delta.T:
            assert stats.kstest(column, stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(delta.T) - np.eye(3)).max() < 4 / math.sqrt(self.count)

    @pytest.mark.parametrize(("name", "order"), [("l2", 2), ("l1", 1)])
    @pytest.mark.parametrize("dimensions", [1, 2, 5])
    def test_radius_and_direction(self, name: str, order: int, dimensions: int) -> None:
        """A ball of radius r holds r^D of the volume, so that radius^D is uniform; no orthant is preferred."""
        delta = self.draw(name, dimensions, 0.3)
        radius = np.linalg.norm(delta, ord=order, axis=1) / 0.3
        assert stats.kstest(radius**dimensions, "uniform").pvalue > 1e-3
        orthants = np.bincount((delta > 0) @ 2 ** np.arange(dimensions), minlength=2**dimensions)
        assert stats.chisquare(orthants).pvalue > 1e-3

    def test_l2_direction_is_uniform_on_the_circle(self) -> None:
        delta = self.draw("l2", 2, 0.3)
        assert stats.kstest(np.arctan2(*delta.T), stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3

    def test_l1_shares_are_uniform_on_the_simplex(self) -> None:
        """The share of one of D values in a uniform point of the simplex is Beta(1, D - 1)."""
        delta = np.abs(self.draw("l1", 4, 0.3))
        for column in (delta / delta.sum(1, keepdims=True)).T:
            assert stats.kstest(column, stats.beta(1, 3).cdf).pvalue > 1e-3

    def test_l0_changes_every_position_alike_to_uniform_values(self) -> None:
        delta = self.draw("l0", 10, 3)
        changed = delta != 0
        assert (changed.sum(1) == 3).all()
        assert stats.chisquare(changed.sum(0)).pvalue > 1e-3
        base = 0.5 + np.arange(self.count) * 1e-6
        assert stats.kstest((delta + base[:, None])[changed], "uniform").pvalue > 1e-3

    def test_a_large_ball_is_clipped_to_the_box(self) -> None:
        images = torch.zeros(4, 3, 8, 8)
        points = NORMS["linf"].random(images, 1.0, image_seeds(images, 0), 0)
        assert 0.4 < (points == 0).float().mean() < 0.6
        assert points.max() <= 1


class TestSteepest:
    @pytest.mark.parametrize("name", ["l1", "l0"])
    @pytest.mark.parametrize("size", [1.0, 40.0, 1000.0])
    def test_values_at_the_end_of_the_box_use_nothing_up(self, name: str, size: float) -> None:
        """More of them than are looked at first, and all with larger gradients than the values that can move."""
        points, gradient = torch.ones(2, 600), torch.linspace(2, 1, 600).repeat(2, 1)
        points[:, 300:] = 0.25
        sizes = torch.tensor([size, size / 4])
        moved = NORMS[name].steepest(gradient, points, sizes) - points
        wanted = sizes if name == "l1" else sizes.floor() * 0.75
        torch.testing.assert_close(moved.sum(1), wanted.clamp_max(300 * 0.75))
        assert not moved[:, :300].any()

    @fast
    @given(problem=problems())
    def test_linf_and_l2_maximize_over_the_ball(self, problem: tuple[Tensor, Tensor, Tensor]) -> None:
        points, gradient, factor = problem[0].double(), problem[1].double() - 0.3, problem[2].double()
        for name, dual in (("linf", 1), ("l2", 2)):
            size = factor * EPS[name]
            moved = NORMS[name].steepest(gradient, points, size) - points
            assert (norm_of(name, moved) <= size.numpy() * (1 + 1e-9)).all()
            gain = (moved * gradient).flatten(1).sum(1).numpy()
            best = size.numpy() * np.linalg.norm(gradient.flatten(1).numpy(), ord=dual, axis=1)
            np.testing.assert_allclose(gain, best, rtol=1e-9)

    @fast
    @given(problem=problems(), name=st.sampled_from(["l1", "l0"]))
    def test_l1_and_l0_maximize_over_ball_and_box(self, problem: tuple[Tensor, Tensor, Tensor], name: str) -> None:
        points, gradient = problem[0].double(), problem[1].double() - 0.3
        size = radii(name, problem[2].double())
        moved = NORMS[name].steepest(gradient, points, size)
        assert (norm_of(name, moved - points) <= size.numpy() * (1 + 1e-9)).all()
        assert moved.min() >= 0
        assert moved.max() <= 1 + 1e-12
        gain = ((moved - points) * gradient).flatten(1).sum(1)
        for i in range(len(points)):
            best = linear_gain(name, gradient[i].flatten().numpy(), points[i].flatten().numpy(), float(size[i]))
            assert float(gain[i]) == pytest.approx(best, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("name", ["l1", "linf"])
    def test_the_oracle_agrees_with_linear_programming(self, name: str) -> None:
        rng = np.random.default_rng(1)
        for _ in range(5):
            slope, image, eps = rng.normal(size=6), rng.random(6), float(rng.uniform(0.1, 2))
            both = np.concatenate([-slope, slope])
            bounds = [(0, min(1 - x, eps)) for x in image] + [(0, min(x, eps)) for x in image]
            limit = {"A_ub": np.ones((1, 12)), "b_ub": [eps]} if name == "l1" else {}
            assert -optimize.linprog(both, bounds=bounds, **limit).fun == pytest.approx(
                linear_gain(name, slope, image, eps), abs=1e-9
            )

    def test_the_oracle_agrees_with_brute_force(self) -> None:
        rng = np.random.default_rng(2)
        for count in (1, 3):
            slope, image = rng.normal(size=7), rng.random(7)
            assert brute_force_l0_gain(slope, image, count) == pytest.approx(linear_gain("l0", slope, image, count))

    @pytest.mark.parametrize("name", ALL_NORMS)
    @pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-37, 1e-42, 1e30])
    def test_the_scale_of_a_float32_gradient_does_not_matter(self, name: str, scale: float) -> None:
        points, gradient = torch.rand(3, 2, 4, 4), torch.randn(3, 2, 4, 4).sign() * (1 + torch.rand(3, 2, 4, 4))
        plain = NORMS[name].steepest(gradient, points, EPS[name])
        scaled = NORMS[name].steepest(gradient * scale, points, EPS[name])
        # Below 1e-38 float32 has few digits left, so that the order of near ties may change.
        tolerance = 5e-3 if scale < 1e-38 else 1e-5
        gains = [((moved - points) * gradient).flatten(1).sum(1) for moved in (plain, scaled)]
        torch.testing.assert_close(gains[1], gains[0], rtol=tolerance, atol=0)

    @pytest.mark.parametrize("name", ALL_NORMS)
    def test_a_zero_gradient_moves_nothing(self, name: str) -> None:
        points = torch.rand(3, 2, 4, 4)
        gradient = torch.randn(3, 2, 4, 4)
        gradient[1] = 0
        moved = NORMS[name].steepest(gradient, points, EPS[name])
        assert torch.equal(moved[1], points[1])
        assert (moved[[0, 2]] != points[[0, 2]]).flatten(1).any(1).all()

    @pytest.mark.parametrize("name", ALL_NORMS)
    def test_values_without_gradient_stay(self, name: str) -> None:
        points = torch.full((1, 8), 0.5)
        gradient = torch.tensor([[1.0, -2.0, 0, 0, 0, 0, 0, 0]])
        moved = NORMS[name].steepest(gradient, points, 4.0)
        assert torch.equal(moved[:, 2:], points[:, 2:])

    @pytest.mark.parametrize("name", ALL_NORMS)
    def test_nan_in_one_gradient_spoils_no_other_image(self, name: str) -> None:
        points, gradient = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        clean = NORMS[name].steepest(gradient, points, EPS[name])
        gradient[0, 0, 0, 0] = torch.nan
        moved = NORMS[name].steepest(gradient, points, EPS[name])
        assert torch.equal(moved[1], clean[1])

    @pytest.mark.parametrize("name", ALL_NORMS)
    def test_nan_in_a_gradient_does_not_stop_the_image(self, name: str) -> None:
        points, gradient = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
        gradient[0, 0, 0, :2] = 0
        clean = NORMS[name].steepest(gradient, points, EPS[name])
        gradient[0, 0, 0, :2] = torch.nan
        assert torch.equal(NORMS[name].steepest(gradient, points, EPS[name]), clean)


@pytest.mark.parametrize("name", ALL_NORMS)
class TestContains:
    def test_accepts_the_rim_and_rejects_beyond(self, name: str) -> None:
        images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
        eps = 5.0 if name == "l0" else 0.3
        direction = torch.zeros_like(images)
        direction.flatten(1)[:, : 5 if name == "l0" else 1] = 1
        assert NORMS[name].contains(images + direction * 0.3, images, eps).tolist() == [True, True]
        if name == "l0":
            direction.flatten(1)[1, 5] = 1e-9
            assert NORMS[name].contains(images + direction * 0.3, images, eps).tolist() == [True, False]
        else:
            beyond = images + direction * torch.tensor([0.3 + 1e-7, 0.3 + 2e-6]).view(2, 1, 1, 1)
            assert NORMS[name].contains(beyond, images, eps).tolist() == [True, False]

    def test_rejects_outside_the_box(self, name: str) -> None:
        images = torch.ones(4, 3, 4, 4, dtype=torch.float64)
        images[2:] = 0
        points = images.clone()
        points[0, 0, 0, 0], points[1, 0, 0, 0] = 1 + 5e-7, 1 + 2e-6
        points[2, 0, 0, 0], points[3, 0, 0, 0] = -5e-7, -2e-6
        assert NORMS[name].contains(points, images, EPS[name]).tolist() == [True, False, True, False]

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_rejects_what_is_no_number(self, name: str, bad: float) -> None:
        images = torch.rand(2, 3, 4, 4)
        points = images.clone()
        points[0, 2, 3, 3] = bad
        assert NORMS[name].contains(points, images, 1e9).tolist() == [False, True]

    def test_eps_per_image(self, name: str) -> None:
        images = torch.full((3, 4), 0.25)
        points = images.clone()
        points[:, :2] = 0.75
        length = {"linf": 0.5, "l2": math.sqrt(0.5), "l1": 1.0, "l0": 2.0}[name]
        eps = torch.tensor([length * 0.4, length, length * 3])
        assert NORMS[name].contains(points, images, eps).tolist() == [False, True, True]

    def test_length_of_a_known_perturbation(self, name: str) -> None:
        delta = torch.zeros(2, 3, 2, 2)
        delta[0, 0, 0, 0], delta[0, 2, 1, 1] = 0.3, -0.4
        expected = {"linf": 0.4, "l2": 0.5, "l1": 0.7, "l0": 2.0}[name]
        torch.testing.assert_close(NORMS[name].length(delta), torch.tensor([expected, 0.0]))


class TestText:
    @pytest.mark.parametrize(
        ("text", "norm", "eps"),
        [
            ("linf:8/255", "linf", 8 / 255),
            ("l2:0.5", "l2", 0.5),
            ("l1:12", "l1", 12.0),
            ("l0:20", "l0", 20.0),
            ("linf:0", "linf", 0.0),
            ("linf:1", "linf", 1.0),
            ("LINF:.1", "linf", 0.1),
            (" linf : 8 / 255 ", "linf", 8 / 255),
            ("l2:1e-3", "l2", 1e-3),
            ("l2:128/255", "l2", 128 / 255),
            ("linf:0.5/255", "linf", 0.5 / 255),
            ("patch:5%", "patch", 0.05),
            ("patch:0.5%", "patch", 0.005),
            ("patch:0.05", "patch", 0.05),
            (" patch : 5 % ", "patch", 0.05),
        ],
    )
    def test_every_form(self, text: str, norm: str, eps: float) -> None:
        threat = ThreatModel.parse(text)
        assert (threat.norm, threat.eps, threat.text) == (norm, eps, text.strip())
        assert threat.geometry is NORMS[norm]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("linf", "NORM:EPS"),
            ("", "NORM:EPS"),
            ("linf:", "NORM:EPS"),
            ("l2:abc", "NORM:EPS"),
            ("l2:nan", "NORM:EPS"),
            ("linf:8/255/2", "NORM:EPS"),
            ("l2:1.2.3", "not a number"),
            ("l2:--1", "not a number"),
            ("linf:8/0", "8/0"),
            ("lnf:0.1", "did you mean"),
            ("l3:0.1", "did you mean"),
            ("wasserstein:1", "choose from"),
            ("linf:8", "did you mean linf:8/255"),
            ("linf:1.5", "[0, 1]"),
            ("linf:-0.1", "at least 0"),
            ("l2:1e999", "eps must be a number"),
            ("l0:2.5", "whole"),
            ("l0:1/3", "whole"),
            ("patch:5", "did you mean patch:5% or, in pixels, patch:5x5"),
            ("patch:120%", "at most 100%"),
            ("patch:5x7", "a square"),
            ("patch:0x0", "a square"),
            ("patch:2.5x2.5", "NORM:EPS"),
            ("patch:-5%", "at least 0"),
            ("linf:5%", "only a patch"),
            ("l2:5x5", "only a patch"),
        ],
    )
    def test_every_mistake_gets_one_line(self, text: str, says: str) -> None:
        with pytest.raises(InputError) as caught:
            ThreatModel.parse(text)
        message = str(caught.value)
        assert says in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        ("norm", "eps", "says"),
        [
            ("l3", 0.1, "unknown norm"),
            ("linf", math.nan, "at least 0"),
            ("linf", math.inf, "at least 0"),
            ("l2", -1.0, "at least 0"),
            ("linf", 8.0, "linf:8/255"),
            ("l0", 1.5, "whole"),
        ],
    )
    def test_from_python_the_same_rules_hold(self, norm: str, eps: float, says: str) -> None:
        with pytest.raises(InputError, match=says.replace("[", r"\[")):
            ThreatModel(norm, eps)

    @pytest.mark.parametrize("eps", [8 / 255, 0.1, 1 / 3, 0.5, 1e-9])
    def test_the_text_reads_back_as_the_same_threat(self, eps: float) -> None:
        assert ThreatModel.parse(ThreatModel("linf", eps).text).eps == eps


class TestCheckShape:
    @pytest.mark.parametrize(
        ("text", "shape"),
        [
            ("linf:8/255", (3, 32, 32)),
            ("patch:5%", (3, 32, 32)),
            ("patch:32x32", (3, 32, 64)),
            ("patch:0", (1, 5, 5)),
            ("l2:0.5", (1, 1, 1)),
            ("l2:55", (3, 32, 32)),
            ("l0:783", (1, 28, 28)),
        ],
    )
    def test_accepts_what_leaves_images_apart(self, text: str, shape: tuple[int, int, int]) -> None:
        ThreatModel.parse(text).check_shape(shape)

    @pytest.mark.parametrize(
        ("text", "shape", "widest"),
        [
            ("linf:1", (3, 32, 32), "1"),
            ("l2:56", (3, 32, 32), "55.42"),
            ("l1:3072", (3, 32, 32), "3072"),
            ("l0:784", (1, 28, 28), "784"),
            ("l2:128", (3, 32, 32), "128/255"),
            ("patch:100%", (3, 32, 32), "32x32"),
            ("patch:32x32", (3, 32, 32), "whole image"),
            ("patch:33x33", (3, 32, 40), "larger than the images"),
            ("patch:0.05%", (3, 32, 32), "0.098%"),
        ],
    )
    def test_rejects_what_covers_every_image(self, text: str, shape: tuple[int, int, int], widest: str) -> None:
        with pytest.raises(InputError) as caught:
            ThreatModel.parse(text).check_shape(shape)
        message = str(caught.value)
        assert widest in message
        assert text in message
        assert "\n" not in message


class TestFitted:
    def test_a_side_in_pixels_becomes_a_share_of_the_area(self) -> None:
        threat = ThreatModel.parse("patch:5x5").fitted((3, 20, 10))
        assert (threat.norm, threat.eps, threat.text, threat.side) == ("patch", 25 / 200, "patch:5x5", None)
        assert threat.fitted((3, 20, 10)) == threat

    def test_until_then_it_may_be_the_whole_image(self) -> None:
        assert ThreatModel.parse("patch:5x5").eps == 1

    def test_all_others_stay(self) -> None:
        for text in ("linf:8/255", "patch:5%"):
            assert ThreatModel.parse(text).fitted((3, 32, 32)) == ThreatModel.parse(text)
