"""AutoAttack is what its name says: these attacks, in this order, with these budgets, each on what still stands."""

from __future__ import annotations

import contract
import pytest
import torch
from oracles import EPS, Linear, Recording
from shortened import ShortAutoAttack
from torch import Tensor, nn

from robust.attacks import APGD, FAB, Attack, AutoAttack, Square
from robust.errors import InputError
from robust.threats import NORMS


def composition(attack: AutoAttack) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for part in attack.parts():
        assert (part.eps, part.norm, part.seed) == (attack.eps, attack.norm, attack.seed)
        if isinstance(part, APGD):
            rows.append(("apgd", part.loss, part.n_targets, part.restarts, part.steps, part.eot))
        elif isinstance(part, FAB):
            assert (part.alpha_max, part.eta, part.beta) == (0.1, 1.05, 0.9)
            rows.append(("fab", part.n_targets, part.restarts, part.steps))
        elif isinstance(part, Square):
            rows.append(("square", part.queries, part.p_init, part.loss))
    return rows


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_published_composition(norm: str) -> None:
    apgd_t, fab_t, square = ("apgd", "dlr", 9, 1, 100, 1), ("fab", 9, 1, 100), ("square", 5000, 0.8, None)
    assert composition(AutoAttack(0.1, norm=norm, seed=4)) == [("apgd", "ce", 0, 1, 100, 1), apgd_t, fab_t, square]
    assert composition(AutoAttack(0.1, norm=norm, version="plus")) == [
        ("apgd", "ce", 0, 5, 100, 1), ("apgd", "dlr", 0, 5, 100, 1), ("fab", 0, 5, 100), square, apgd_t, fab_t,
    ]  # fmt: skip
    assert composition(AutoAttack(0.1, norm=norm, version="rand")) == [
        ("apgd", "ce", 0, 1, 100, 20), ("apgd", "dlr", 0, 1, 100, 20),
    ]  # fmt: skip


def test_the_published_composition_in_l1() -> None:
    attack = AutoAttack(12.0, norm="l1", seed=4)
    assert composition(attack) == [
        ("apgd", "ce", 0, 5, 100, 1), ("apgd", "dlr", 5, 1, 100, 1), ("fab", 9, 1, 100), ("square", 5000, 0.8, None),
    ]  # fmt: skip


def test_squares_windows_shrink_after_the_published_queries() -> None:
    square = AutoAttack(0.1).parts()[3]
    assert isinstance(square, Square)
    shares = [square._share(query) for query in range(5000)]
    halved = [query - 1 for query in range(1, 5000) if shares[query] < shares[query - 1]]
    assert halved == [10, 50, 200, 500, 1000, 2000, 4000]
    assert shares[0] == 0.8
    assert shares[-1] == 0.8 / 2**7


class Ignorant(nn.Module):
    """Ten classes, and an image that moves the logits far too little to matter."""

    def forward(self, images: Tensor) -> Tensor:
        slopes = torch.linspace(1, 2, 10) * 1e-3
        return images.mean((1, 2, 3))[:, None] * slopes + torch.linspace(1, 0, 10)


def test_what_an_image_that_never_breaks_costs() -> None:
    model = Recording(Ignorant())
    AutoAttack(0.1)(model, torch.rand(1, 1, 4, 4), torch.tensor([0]))
    assert model.backward_images == 100 + 9 * 100 + 9 * 100
    # The clean image; per part its own clean pass and the check of its result; start and steps of each run.
    assert model.forward_images == 1 + 4 * 2 + 101 + 9 * 101 + 9 * 200 + 5001
    model = Recording(Ignorant())
    AutoAttack(0.5, norm="l1")(model, torch.rand(1, 1, 4, 4), torch.tensor([0]))
    assert model.backward_images == 5 * 100 + 5 * 100 + 9 * 100
    # In l1 the runs start afresh in each of three balls.
    assert model.forward_images == 1 + 4 * 2 + 5 * 103 + 5 * 103 + 9 * 200 + 5001


class Logged(Attack):
    """Returns the image moved by 0.01, and writes down how many images came."""

    name, norms, knowledge, source = "logged", ("linf",), "none", "none"
    seen: list[int] = []  # noqa: RUF012

    def run(self, model, images, goal, eps, seeds):  # type: ignore[no-untyped-def]
        self.seen.append(len(images))
        return (images + 0.01).clamp(0, 1)


def test_each_attack_gets_only_what_still_stands() -> None:
    class Staged(ShortAutoAttack):
        def parts(self) -> tuple[Attack, ...]:
            return Logged(0.0), ShortAutoAttack.parts(self)[0], Logged(0.0)

    model, images = contract.net(), contract.batch(30)
    labels = contract.predictions(model, images)
    labels[:4] = (labels[:4] + 1) % 4
    Logged.seen.clear()
    found = Staged(EPS["linf"])(model, images, labels)
    nudged = contract.predictions(model, (images + 0.01).clamp(0, 1)) == labels
    left = contract.predictions(model, found) == labels
    assert Logged.seen == [26, int(left.sum())]
    assert left.sum() < nudged[4:].sum()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_breaks_what_any_of_its_parts_breaks(norm: str) -> None:
    model, images = contract.net(), contract.batch(60)
    labels = contract.predictions(model, images)
    attack = ShortAutoAttack(EPS[norm] / 2, norm=norm)
    broken = torch.zeros(60, dtype=torch.bool)
    for part in attack.parts():
        broken |= contract.predictions(model, part(model, images, labels)) != labels
    assert torch.equal(contract.predictions(model, attack(model, images, labels)) != labels, broken)
    assert 5 < broken.sum() < 55


@pytest.mark.parametrize(("version", "fewest"), [("standard", 4), ("plus", 4), ("rand", 3)])
def test_too_few_classes_are_said(version: str, fewest: int) -> None:
    images = contract.batch(2)
    model = Linear(torch.randn(fewest - 1, 108), torch.zeros(fewest - 1))
    with pytest.raises(InputError, match=r"not defined for \d classes.*use apgd-ce") as caught:
        AutoAttack(0.1, version=version)(model, images, contract.predictions(model, images))
    assert "\n" not in str(caught.value)


def test_other_versions_norms_and_shapes_are_said() -> None:
    with pytest.raises(InputError, match="unknown version of autoattack 'standart': did you mean standard"):
        AutoAttack(0.1, version="standart")
    model, images = contract.net(), contract.batch(2)
    with pytest.raises(InputError, match="autoattack has no l0 form; it supports linf, l2, l1"):
        AutoAttack(0.1, norm="l0")(model, images, contract.predictions(model, images))
    for version in ("plus", "rand"):
        with pytest.raises(InputError, match="not published for l1"):
            AutoAttack(0.1, norm="l1", version=version)
    with pytest.raises(InputError, match=r"shape \(N, C, H, W\)"):
        AutoAttack(0.1)(model, images.flatten(1), torch.tensor([0, 1]))


class Turning(nn.Module):
    """Two classes; every pass uses the next of three slopes, as a model that draws random numbers might."""

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes, self.calls = slopes, 0

    def forward(self, images: Tensor) -> Tensor:
        slope = self.slopes[self.calls % len(self.slopes)]
        self.calls += 1
        gap = (images - 0.5).flatten(1) @ slope - 100
        return torch.stack([-gap, gap], 1) / 2


class TestExpectationOverTransformation:
    slopes = torch.tensor([[3.0, -1.0, 1.0, -2.0], [-1.0, 3.0, -2.0, 1.0], [-1.0, -1.0, 2.0, 2.0]])
    images = torch.full((1, 1, 2, 2), 0.5)
    labels = torch.tensor([0])

    @pytest.mark.parametrize("eot", [1, 3, 6])
    def test_the_step_follows_the_mean_gradient(self, eot: int) -> None:
        model = Turning(self.slopes)
        attack = APGD(0.1, steps=1, loss="margin", eot=eot)
        watched = Recording(model)
        attack(watched, self.images, self.labels)
        # The clean pass comes first, so the gradients begin with the second slope.
        mean = torch.stack([self.slopes[(1 + i) % 3] for i in range(eot)]).mean(0)
        torch.testing.assert_close(watched.seen[-1].flatten(), 0.5 + 0.1 * mean.sign())
        assert watched.backward_images == eot
        assert watched.forward_images == 1 + eot + 1

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_a_model_without_randomness_gets_the_same_verdict(self, norm: str) -> None:
        model, images = contract.net(dtype=torch.float64), contract.batch(20, dtype=torch.float64)
        labels = contract.predictions(model, images)
        settings = {"norm": norm, "steps": 8, "seed": 1}
        watched = Recording(model)
        found = APGD(EPS[norm] / 2, **settings)(model, images, labels)
        averaged = APGD(EPS[norm] / 2, **settings, eot=5)(watched, images, labels)
        broken = contract.predictions(model, found) != labels
        assert 2 < broken.sum() < 18
        assert torch.equal(contract.predictions(model, averaged) != labels, broken)
        torch.testing.assert_close(averaged[~broken], found[~broken], rtol=0, atol=1e-9)
        # Nobody leaves early: the clean pass, then start and all steps but the last of each run five times, that once.
        runs = 3 if norm == "l1" else 1
        assert watched.backward_images == 20 * 5 * 8
        assert watched.forward_images == 20 * (1 + 5 * 8 + runs)

    def test_the_last_iterate_that_fools_a_random_model_comes_back(self) -> None:
        model, images = contract.net(), contract.batch(20)
        labels = contract.predictions(model, images)
        for i in range(20):
            watched = Recording(model)
            found = APGD(EPS["linf"], steps=8, eot=2)(watched, images[i : i + 1], labels[i : i + 1])
            fooling = [seen for seen in watched.seen if contract.predictions(model, seen) != labels[i]]
            if fooling:
                assert torch.equal(found, fooling[-1])

    def test_images_fooled_once_are_not_run_again(self) -> None:
        model, images = contract.net(), contract.batch(20)
        labels = contract.predictions(model, images)
        once, twice = Recording(model), Recording(model)
        found = APGD(EPS["linf"], steps=8, eot=2)(once, images, labels)
        left = int((contract.predictions(model, found) == labels).sum())
        assert 0 < left < 20
        APGD(EPS["linf"], steps=8, eot=2, restarts=2)(twice, images, labels)
        assert twice.backward_images - once.backward_images == left * 2 * 8

    def test_rand_lies_in_the_ball_and_finds_a_random_models_average_weakness(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = contract.net()

            def forward(self, images: Tensor) -> Tensor:
                noise = torch.randn(images.shape, generator=self.generator)
                return self.inner(images + 0.05 * noise)

        model, images = Noisy(), contract.batch(12)
        labels = contract.predictions(model.inner, images)
        model.generator = torch.Generator().manual_seed(0)
        found = ShortAutoAttack(2 * EPS["linf"], version="rand")(model, images, labels)
        assert NORMS["linf"].contains(found, images, 2 * EPS["linf"]).all()
        rate = torch.stack([contract.predictions(model, found) != labels for _ in range(50)]).float().mean(0)
        clean = torch.stack([contract.predictions(model, images) != labels for _ in range(50)]).float().mean(0)
        assert rate.mean() > 0.6
        assert clean.mean() < 0.4

    def test_no_passes_are_no_attack(self) -> None:
        with pytest.raises(InputError, match="eot"):
            APGD(0.1, eot=0)
