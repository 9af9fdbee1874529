"""The cascade: as strong as a long ensemble, at a small part of its cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import Recording, TinyNet
from torch import Tensor, nn

from robust import load_data, load_model
from robust.attacks import APGD, Auto, auto_dense
from robust.attacks.base import Goal, linear_distances
from robust.attacks.seen import Phase, Seen, cascade
from robust.errors import InputError
from robust.randomness import image_seeds
from robust.threats import NORMS


def standing(model: nn.Module, attacks: list, images: Tensor, labels: Tensor) -> Tensor:
    """Which images no attack of the list breaks."""
    found = torch.ones(len(labels), dtype=torch.bool)
    for attack in attacks:
        with torch.no_grad():
            found &= model(attack(model, images, labels)).argmax(1) == labels
    return found


def test_it_misses_nothing_that_a_longer_ensemble_finds() -> None:
    model = TinyNet().eval()
    images = torch.rand(120, 3, 6, 6)
    with torch.no_grad():
        labels = model(images).argmax(1)
    ensemble = [APGD(0.02, steps=100), APGD(0.02, steps=100, loss="dlr", n_targets=3)]
    long, short = standing(model, ensemble, images, labels), standing(model, [Auto(0.02)], images, labels)
    assert 10 < int(long.sum()) < 110, "the case must leave something to break and something to stand"
    assert int(short.sum()) <= int(long.sum())


def test_an_image_far_from_the_boundary_costs_the_first_two_phases_only() -> None:
    weights = torch.zeros(4, 12)
    weights[0] = 1.0

    class Far(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ weights.T * 5

    model = Recording(Far())
    images = torch.full((2, 3, 2, 2), 0.9)
    Auto(0.01)(model, images, torch.zeros(2, dtype=torch.long))
    # 10 steps, the 3 other classes ranked, 10 towards one of them, and one gradient to see how far the boundary is
    assert model.backward_images == 2 * (10 + 3 + 10 + 1)


class Near(nn.Module):
    """Class k's logit over that of class 0 is ``slope[k]`` times the sum of all changes, less ``start[k]``."""

    def __init__(self, slope: list[float], start: list[float]) -> None:
        super().__init__()
        self.slope, self.start = torch.tensor(slope), torch.tensor(start)

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5).flatten(1).sum(1, keepdim=True) * self.slope - self.start


@pytest.mark.parametrize(
    ("start", "near"), [([0.0, 0.121, 1.0, 1.0], 1), ([0.0, 0.121, 0.1215, 1.0], 2), ([0.0, 0.121, 0.1215, 0.122], 3)]
)
def test_the_last_runs_aim_only_at_classes_that_came_near(start: list[float], near: int) -> None:
    # All changes sum up to at most 12 * 0.01 = 0.12, so nothing breaks.
    model = Recording(Near([0.0, 1.0, 1.0, 1.0], start))
    images = torch.full((1, 3, 2, 2), 0.5)
    Auto(0.01)(model, images, torch.zeros(1, dtype=torch.long))
    # 10 steps, 3 classes ranked, one target of 10, 2 of 20, then 30, ten of 15, and 100 for each near class; 8 looks
    # at how far the boundary is, and five gradients that show that nothing is rough here
    assert model.backward_images == 10 + 3 + 10 + 40 + near * (30 + 150 + 100) + 8 + 5


def test_no_pass_is_larger_than_the_callers_batch() -> None:
    model = Recording(Near([0.0] + [1.0] * 11, [0.0] + [0.121] * 11))
    images = torch.full((20, 3, 2, 2), 0.5)
    Auto(0.01)(model, images, torch.zeros(20, dtype=torch.long))
    assert model.backward_images == 20 * (10 + 9 + 10 + 40 + 9 * (30 + 150 + 100) + 8 + 5)
    assert max(len(batch) for batch in model.seen) == 20


def test_how_near_a_class_comes_outside_the_ball_does_not_count() -> None:
    model, images, labels = TinyNet().eval(), torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.long)
    with torch.no_grad():
        seen = Seen(model, NORMS["l1"], images, Goal(labels), torch.full((4,), 0.5), model(images))
        before = seen.lead.clone()
        seen.look(torch.arange(4), torch.rand(4, 3, 6, 6))
        assert torch.equal(seen.lead, before)
        points = images.clone()
        points[:, 0, 0, 0] = 0.5
        seen.look(torch.arange(4), points)
    assert (seen.lead > before).any()


def test_a_class_that_stays_far_costs_no_run_but_the_nearest_always_has_one() -> None:
    """Nothing has closed any gap yet, and class 1 is the nearer one."""
    model = Recording(Near([0.0, 0.0, -1.0], [0.0, 1.0, 1.5]))
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        seen = Seen(model, NORMS["l1"], images, Goal(labels), torch.full((2,), 0.1), model(images))
        runs: list[Tensor] = []
        cascade(seen, [Phase(5, 2, gap=0.5)], lambda seen, phase, run: runs.append(run.aim.targets), lambda *_: images)
    assert torch.equal(torch.cat(runs), torch.tensor([1, 1]))


@pytest.mark.parametrize(("norm", "length"), [("linf", 12.0), ("l2", 12**0.5)])
def test_linear_distances_are_those_of_a_linear_model(norm: str, length: float) -> None:
    model = Near([0.0, 1.0, -4.0, 0.0], [0.0, 0.12, 0.24, 1.0])
    images = torch.full((2, 3, 2, 2), 0.5)
    classes = torch.tensor([[1, 2, 3], [3, 2, 1]])
    found = linear_distances(model, images, Goal(torch.zeros(2, dtype=torch.long)), classes, NORMS[norm])
    near, far = 0.12 / length, 0.24 / (4 * length)
    assert found[:, 1].tolist() == pytest.approx([far, far])
    assert float(found[0, 0]) == pytest.approx(near)
    assert float(found[0, 2]) > 1e20, "a class whose logit does not move is out of reach"
    assert torch.equal(found[0].flip(0), found[1])


def test_classes_go_by_their_linear_distance_where_they_were_ranked() -> None:
    # Class 1 has the nearest logit, class 2 the nearest boundary; class 3 was not ranked and comes last.
    model = Near([0.0, 0.1, -4.0, 8.0], [0.0, 0.12, 0.24, 1.0])
    images, goal = torch.full((1, 3, 2, 2), 0.5), Goal(torch.tensor([0]))
    seen = Seen(model, NORMS["linf"], images, goal, torch.full((1,), 0.001), model(images), strays=False)
    index = torch.tensor([0])
    assert seen.targets(index, 3).tolist() == [[1, 2, 3]]
    seen.rank(index, 2)
    assert seen.targets(index, 3).tolist() == [[2, 1, 3]]
    assert seen.targets(index, 1).tolist() == [[2]]


def test_restarts_start_apart_and_biased_ones_go_towards_their_target() -> None:
    class Tilted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            flat = images.flatten(1)
            return torch.stack([flat[:, 0], flat[:, 1], flat[:, 2]], 1) * 4

    image = torch.full((1, 3, 2, 2), 0.5)
    image[0, 0, 0, 0] = 0.9
    model, goal = Recording(Tilted()), Goal(torch.tensor([0]))
    seen = Seen(model, NORMS["linf"], image, goal, torch.full((1,), 0.1), model(image), strays=False)
    climb = auto_dense._climb(image_seeds(image, 0))
    cascade(seen, (Phase(1, 1, restarts=4, biased=4),), climb, auto_dense._distance)
    starts, first = model.seen[1], model.seen[5]
    assert len(starts) == len(first) == 4
    assert len(torch.unique(starts.flatten(1), dim=0)) == 4
    # Four steps of 0.6 eps reach the face from anywhere: down for the label's own pixel, up for the target's.
    assert first.flatten(1)[:, 0].tolist() == pytest.approx([0.8] * 4)
    target = int(seen.targets(torch.tensor([0]), 1))
    assert first.flatten(1)[:, target].tolist() == pytest.approx([0.6] * 4)


class Rippled(nn.Module):
    """Rises with every value, but in ripples that make the gradient point down at a third of all places."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.start = (self.height(images).mean() + 0.18).item()

    def height(self, images: Tensor) -> Tensor:
        moved = images.flatten(1) - 0.5
        return (moved + 2 * torch.sin(60 * moved) / 60).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        rise = self.height(images) - self.start
        return torch.stack([torch.zeros_like(rise), rise], 1)


def test_averaged_gradients_break_what_ripples_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    # Moving every value up by eps = 0.2 is enough for the average image, whatever the ripples.
    images = 0.3 + 0.4 * torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, labels = Rippled(images), torch.zeros(20, dtype=torch.long)
    averaged = int(model(Auto(0.2)(model, images, labels)).argmax(1).sum())
    smooth = tuple(phase for phase in auto_dense.EFFORT["standard"] if not phase.rough)
    monkeypatch.setitem(auto_dense.EFFORT, "standard", smooth)
    plain = int(model(Auto(0.2)(model, images, labels)).argmax(1).sum())
    assert averaged >= 12
    assert plain <= 4


def test_roughness_does_not_depend_on_other_images() -> None:
    images = 0.3 + 0.4 * torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, labels = Rippled(images), torch.zeros(6, dtype=torch.long)
    together = Auto(0.2)(model, images, labels)
    alone = torch.cat([Auto(0.2)(model, images[i : i + 1], labels[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_point_without_numbers_hides_nothing_that_others_of_its_image_show() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0], [torch.nan] * 3, [0.0, -2.0, -0.5]])

    def model(points: Tensor) -> Tensor:
        return logits[points.flatten(1).sum(1).round().long()]

    image, goal = torch.zeros(1, 3, 1, 1), Goal(torch.tensor([0]))
    seen = Seen(model, NORMS["linf"], image, goal, torch.ones(1), logits[2:], strays=False)
    points = torch.zeros(2, 3, 1, 1)
    points[1, 0] = 1
    seen.look(torch.tensor([0, 0]), points)
    assert not seen.unsolved.any()
    assert torch.equal(seen.best, points[:1])
    assert seen.best_margin.tolist() == [torch.inf]
    assert seen.lead.tolist() == [[0.0, 1.0, -0.5]]


def test_more_effort_spends_more_and_loses_nothing() -> None:
    model = TinyNet().eval()
    images = torch.rand(60, 3, 6, 6)
    with torch.no_grad():
        labels = model(images).argmax(1)
    left, spent = [], []
    for effort in ("quick", "standard", "exhaustive"):
        counting = Recording(model)
        left.append(int(standing(counting, [Auto(0.02, effort=effort)], images, labels).sum()))
        spent.append(counting.backward_images)
    assert left == sorted(left, reverse=True)
    assert spent == sorted(spent)


def test_unknown_effort_is_said() -> None:
    with pytest.raises(InputError, match="did you mean standard"):
        Auto(0.1, effort="standrd")


def test_no_weaker_than_apgd_on_a_real_model(robust_data: Path) -> None:
    model = load_model(f"{robust_data / 'zoo.py'}:cifar_cnn_a_adv")
    data = load_data(robust_data / "cifar10_sdp200.npz").take(range(100))
    images, labels = data.batch(range(100)), data.labels
    ensemble = [APGD(2 / 255, steps=50), APGD(2 / 255, steps=50, loss="dlr", n_targets=9)]
    counting = Recording(model)
    cascade = standing(counting, [Auto(2 / 255)], images, labels)
    assert int(cascade.sum()) <= int(standing(model, ensemble, images, labels).sum())
    assert counting.backward_images < 60 * 100
