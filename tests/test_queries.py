"""Query attacks: no image is asked about more often than agreed, and what each cost is known, by whoever counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from contract import patch_area
from oracles import TinyNet
from torch import Tensor, nn

from robust.attacks.base import Goal
from robust.attacks.queries import Book, CountedAttack, only_asks
from robust.attacks.registry import build, native
from robust.errors import InputError
from robust.threats import NORMS

EPS = {"linf": 0.04, "l2": 0.3, "l1": 1.5, "l0": 4, "patch": 4 / 36}
OURS = [(info.name, norm) for info in native() if info.knowledge in ("score", "decision") for norm in info.norms]
ADAPTED = [
    ("art:BoundaryAttack", "l2"),
    ("art:HopSkipJump", "l2"),
    ("art:SimBA", "l2"),
    ("art:SquareAttack", "linf"),
    ("foolbox:BoundaryAttack", "l2"),
    ("foolbox:HopSkipJumpAttack", "linf"),
    ("foolbox:PointwiseAttack", "l0"),
    ("foolbox:GaussianBlurAttack", "l2"),
]


class Witness(nn.Module):
    """Counts by itself: knows the points that each image asks about when alone, and so whose a point of a batch is."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, list[Tensor]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        logits: Tensor = self.inner(images)
        return logits

    def all(self) -> Tensor:
        return torch.cat(self.seen).flatten(1)

    def by_owner(self, alone: list[Tensor]) -> list[int]:
        """How many points came from each image; one that several ask about (a corner of the box) is shared out."""
        known, sizes = torch.cat(alone), [len(points) for points in alone]
        same = torch.cdist(self.all(), known, compute_mode="donot_use_mm_for_euclid_dist") < 1e-9
        assert same.any(1).all()
        shares = torch.stack([part.sum(1) for part in same.double().split(sizes, 1)], 1) / same.sum(1, keepdim=True)
        return [round(float(count), 6) for count in shares.sum(0)]


def subjects() -> tuple[nn.Module, Tensor, Tensor]:
    """A model and seven images, the third of which it classifies wrong."""
    model = TinyNet(seed=1).double().eval()
    images = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[2] = (labels[2] + 1) % 4
    return model, images, labels


def first_success(points: Tensor, image: Tensor, label: Tensor, model: nn.Module, norm: str, eps: float) -> int:
    """The number of the first of the points (M, D) that is misclassified inside the ball, from 1; 0 for none."""
    shaped = points.view(-1, *image.shape)
    with torch.no_grad():
        wrong = model(shaped).argmax(1) != label
    delta = (points - image.flatten()).numpy()
    size = {
        "linf": abs(delta).max(1),
        "l2": (delta**2).sum(1) ** 0.5,
        "l1": abs(delta).sum(1),
        "l0": (delta != 0).sum(1),
        "patch": np.array([patch_area(change) for change in delta.reshape(-1, *image.shape)]),
    }
    hits = (wrong & torch.from_numpy(size[norm] <= eps * (1 + 1e-6) + 1e-6)).nonzero()
    return int(hits[0]) + 1 if len(hits) else 0


@pytest.mark.parametrize("queries", [2, 3, 40, 200])
@pytest.mark.parametrize(("name", "norm"), OURS + ADAPTED)
def test_no_image_is_asked_about_more_often_than_agreed(name: str, norm: str, queries: int) -> None:
    model, images, labels = subjects()
    attack = build(f"{name}(queries={queries})", norm=norm, eps=EPS[norm], seed=0)
    assert only_asks(attack)
    alone = []
    for i in range(7):
        watched = Witness(model)
        one = attack.queried(watched, images[i : i + 1], labels[i : i + 1])
        points = watched.all()
        assert len(points) <= queries
        assert one.spent.tolist() == [len(points)]
        assert one.broken_at.tolist() == [first_success(points, images[i], labels[i], model, norm, EPS[norm])]
        alone.append(points)
    watched = Witness(model)
    found = attack.queried(watched, images, labels)
    counted = watched.by_owner(alone)
    assert counted == [len(points) for points in alone] == found.spent.tolist()
    assert max(counted) <= queries
    assert counted[2] == 1
    assert torch.equal(found.points, attack(model, images, labels))


@pytest.mark.parametrize(("name", "norm"), OURS)
def test_an_image_that_nothing_fools_spends_all_of_its_queries(name: str, norm: str) -> None:
    def stubborn(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), 3)

    attack = build(f"{name}(queries=37)", norm=norm, eps=EPS[norm], seed=0)
    assert isinstance(attack, CountedAttack)
    found = attack.queried(stubborn, torch.rand(3, 1, 6, 6), torch.zeros(3, dtype=torch.long))
    assert found.spent.tolist() == [37] * 3
    assert found.broken_at.tolist() == [0] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("square(queries=1)", "square: queries must be at least 2"),
        ("rays(queries=0)", "rays: queries must be at least 2"),
        ("art:HopSkipJump(queries=1)", "art:HopSkipJump: queries must be at least 2"),
        ("art:HopSkipJump(queries=2.5)", "art:HopSkipJump: queries must be int, not 2.5"),
        ("art:PGD(queries=100)", "art:ProjectedGradientDescent is no query attack"),
        ("art:HopSkipJump(querys=10)", "did you mean queries"),
    ],
)
def test_a_limit_that_makes_no_sense_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(text, norm="linf", eps=0.1, seed=0)
    assert "\n" not in str(caught.value)


class TestBook:
    @staticmethod
    def book(limit: int = 5, eps: float = 0.5, model: Callable[[Tensor], Tensor] | None = None) -> Book:
        """Two images of one value, 0 and 0.2, of class 0 up to 0.6 and of class 1 beyond."""
        images = torch.tensor([[0.0], [0.2]])
        scores = model or (lambda points: torch.cat([0.6 - points, points - 0.6], 1))
        goal = Goal(torch.zeros(2, dtype=torch.long))
        return Book(scores, images, goal, torch.full((2,), eps), NORMS["linf"], limit)

    def test_what_lies_beyond_the_limit_is_not_asked(self) -> None:
        asked = []

        def model(points: Tensor) -> Tensor:
            asked.append(len(points))
            return torch.zeros(len(points), 2)

        book = self.book(4, model=model)
        book.ask(torch.full((1, 2, 1), 0.3), torch.tensor([1]))
        logits = book.ask(torch.full((2, 3, 1), 0.3), torch.tensor([0, 1]))
        assert asked == [2, 2, 4]
        assert logits.isnan().any(2).tolist() == [[False] * 3, [False, True, True]]
        assert book.spent.tolist() == [4, 4]
        assert book.live.tolist() == []

    def test_the_first_success_inside_and_the_nearest_are_kept(self) -> None:
        book = self.book(limit=9)
        owners = torch.tensor([0, 1])
        fooled = book.fooled(torch.tensor([[[0.9], [0.5], [0.7]], [[0.5], [0.65], [0.62]]]), owners)
        assert fooled.tolist() == [[True, False, True], [False, True, True]]
        assert book.broken_at.tolist() == [0, 3]
        assert book.live.tolist() == [0]
        torch.testing.assert_close(book.distance, torch.tensor([0.7, 0.42]))
        result = book.result()
        torch.testing.assert_close(result.points, torch.tensor([[0.5], [0.62]]))

    def test_what_was_left_comes_back_where_nothing_fools(self) -> None:
        book = self.book()
        book.stay(torch.tensor([[0.1]]), torch.tensor([0]))
        torch.testing.assert_close(book.result().points, torch.tensor([[0.1], [0.2]]))

    def test_integer_answers_are_answers(self) -> None:
        book = self.book(model=lambda points: torch.cat([points <= 0.6, points > 0.6], 1).long())
        assert book.fooled(torch.tensor([[[0.61]]]), torch.tensor([0])).tolist() == [[True]]
