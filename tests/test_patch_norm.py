"""The geometry of a patch against exhaustive search over windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contract import patch_area
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import patch_gain
from scipy import stats
from torch import Tensor, nn

from robust.evidence import confirm
from robust.patch_norm import window_size, window_sums
from robust.pixels import is_eight_bit
from robust.randomness import image_seeds
from robust.threats import NORMS, ThreatModel

PATCH = NORMS["patch"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
fast = settings(max_examples=40, deadline=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Images in the box, points in and out of it that differ in a part of the pixels, one eps per image."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, channels = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3]))
    shape = (n, channels, draw(st.integers(1, 8)), draw(st.integers(1, 8)))
    images = (torch.rand(shape, generator=generator, dtype=torch.float64) * 4 / 3 - 1 / 6).clamp(0, 1) ** 1.7
    changed = torch.rand(n, 1, *shape[2:], generator=generator) < draw(st.sampled_from([0.05, 0.3, 1.0]))
    points = images + changed * torch.randn(shape, generator=generator, dtype=torch.float64)
    eps = torch.rand(n, generator=generator, dtype=torch.float64)
    eps[0] = draw(st.sampled_from([0.0, 1.0, 4 / (shape[2] * shape[3])]))
    return images, points, eps


def side_of(eps: float, height: int, width: int) -> int:
    """By trying every side."""
    return max(s for s in range(max(height, width) + 1) if s * s <= eps * height * width * (1 + 1e-6) + 1e-6)


def windows(side: int, height: int, width: int) -> list[tuple[slice, slice]]:
    rows, columns = min(side, height), min(side, width)
    return [
        (slice(top, top + rows), slice(left, left + columns))
        for top in range(height - rows + 1)
        for left in range(width - columns + 1)
    ]


@fast
@given(problem=problems())
def test_the_length_is_the_area_of_the_smallest_square(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    images, points, _ = problem
    expected = [patch_area(delta.numpy()) for delta in points - images]
    np.testing.assert_allclose(PATCH.length(points - images).numpy(), expected, rtol=1e-12)


@fast
@given(problem=problems())
def test_projection_is_the_nearest_of_all_windows(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    images, points, eps = problem
    projected = PATCH.project(points, images, eps)
    assert PATCH.contains(projected, images, eps).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    for i in range(len(images)):
        height, width = images.shape[2:]
        boxed = points[i].clamp(0, 1)
        nearest = math.inf
        for rows, columns in windows(side_of(float(eps[i]), height, width), height, width):
            trial = images[i].clone()
            trial[:, rows, columns] = boxed[:, rows, columns]
            nearest = min(nearest, float((trial - boxed).square().sum()))
        assert float((projected[i] - boxed).square().sum()) == pytest.approx(nearest, rel=1e-9, abs=1e-12)


@fast
@given(problem=problems())
def test_points_inside_stay(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    images, points, _ = problem
    points = points.clamp(0, 1)
    assert torch.equal(PATCH.project(points, images, PATCH.length(points - images)), points)
    tiny = images.clone()
    tiny[:, 0, 0, 0], tiny[:, 0, -1, -1] = (images[:, 0, 0, 0] - 1e-9).abs(), 1 - images[:, 0, -1, -1]
    assert torch.equal(PATCH.project(tiny, images, PATCH.length(tiny - images)), tiny)


@fast
@given(problem=problems())
def test_the_steepest_step_is_the_best_of_all_windows(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    images, points, eps = problem
    gradient = points - 0.3
    moved = PATCH.steepest(gradient, images, eps)
    assert PATCH.contains(moved, images, eps).all()
    gain = ((moved - images) * gradient).flatten(1).sum(1)
    for i in range(len(images)):
        side = side_of(float(eps[i]), *images.shape[2:])
        best = patch_gain(gradient[i].numpy(), images[i].numpy(), side)
        assert float(gain[i]) == pytest.approx(best, rel=1e-9, abs=1e-12)


@fast
@given(problem=problems(), share=st.sampled_from([0.25, 1.0]))
def test_a_step_of_ascent_stays_inside_and_keeps_the_place(
    problem: tuple[Tensor, Tensor, Tensor], share: float
) -> None:
    images, points, eps = problem
    start = PATCH.project(points, images, eps)
    moved = PATCH.ascend(points - 0.3, start, images, eps, share * eps)
    assert PATCH.contains(moved, images, eps).all()
    assert ((moved - start).abs() <= share + 1e-12).all()
    # Nothing changed before is given up: the window still holds all of it.
    both = (moved != images) | (start != images)
    assert (PATCH.length(both.double()) <= eps * (1 + 1e-6) + 1e-6).all()


def test_a_full_step_of_ascent_from_the_image_is_the_steepest() -> None:
    images, gradient = torch.rand(4, 3, 7, 5), torch.randn(4, 3, 7, 5)
    torch.testing.assert_close(
        PATCH.ascend(gradient, images, images, 0.3, 0.3), PATCH.steepest(gradient, images, 0.3), rtol=0, atol=0
    )


@fast
@given(problem=problems())
def test_snapping_is_to_the_largest_area_there_is(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    images, _, eps = problem
    height, width = images.shape[2:]
    for share, snapped in zip(eps.tolist(), PATCH.snap(eps, images).tolist(), strict=True):
        assert snapped == pytest.approx(side_of(share, height, width) ** 2 / (height * width))


@pytest.mark.parametrize(("size", "share"), [(32, 0.05), (224, 0.02), (28, 0.1)])
def test_every_whole_side_survives_the_way_through_float32(size: int, share: float) -> None:
    images = torch.zeros(1, 1, size, size)
    for side in range(1, size):
        eps = torch.tensor([side * side / (size * size)])
        assert window_size(eps, images)[0].tolist() == [side]
    assert window_size(share, images)[0].tolist() == [math.floor(math.sqrt(share) * size)]


def test_window_sums_are_sums_over_windows() -> None:
    values = torch.randn(2, 5, 4, dtype=torch.float64)
    sums = window_sums(values, torch.tensor([2, 5]), torch.tensor([3, 1]))
    assert float(sums[0, 3, 1]) == pytest.approx(float(values[0, 3:5, 1:4].sum()))
    assert float(sums[1, 0, 3]) == pytest.approx(float(values[1, :, 3].sum()))
    assert sums[0].isfinite().sum() == 4 * 2
    assert sums[1].isfinite().sum() == 1 * 4


def test_random_patches_lie_everywhere_alike() -> None:
    images = 0.5 + torch.arange(3000, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 4, 5) * 1e-6
    delta = PATCH.random(images, 4 / 20, image_seeds(images, 0), 0) - images
    changed = (delta != 0).any(1)
    assert (changed.sum((1, 2)) == 4).all()
    corners = [tuple(change.nonzero()[0].tolist()) for change in changed]
    counts = np.unique(np.array(corners), axis=0, return_counts=True)[1]
    assert len(counts) == 3 * 4
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest((delta + images)[changed[:, None]].numpy(), "uniform").pvalue > 1e-3


def test_a_patch_in_pixels_holds_exactly_so_many() -> None:
    threat = ThreatModel.parse("patch:5x5").fitted((3, 32, 32))
    images = torch.rand(1, 3, 32, 32)
    square, larger = images.clone(), images.clone()
    square[:, :, 3:8, 20:25] = 0
    larger[:, :, 3:8, 20:26] = 0
    assert threat.geometry.contains(square, images, threat.eps).all()
    assert not threat.geometry.contains(larger, images, threat.eps).any()


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("norm", ["patch", "l0"])
def test_an_8_bit_image_with_a_patch_is_kept_in_8_bits(norm: str, place: str) -> None:
    """What the patch leaves alone must come back to the last bit, or rounding would take a claim out of the threat."""

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.flatten(1).mean(1) * 0 + 0.5, images.amax((1, 2, 3))], 1)

    levels = torch.arange(256).view(1, 1, 16, 16).clamp_max(100)
    images = (levels.float() / 255).to(place)
    claims = images.clone()
    claims[:, :, 3:5, 6:8] = torch.tensor([[0.9, 0.75], [0.81234, 1.0]], device=place)
    threat = ThreatModel(norm, 4 / 256 if norm == "patch" else 4)
    found = confirm(Mean(), images, claims, torch.zeros(1, dtype=torch.long, device=place), threat)
    assert found.broken.all()
    assert found.eight_bit.all()
    assert is_eight_bit(found.stored[0].cpu().numpy())
