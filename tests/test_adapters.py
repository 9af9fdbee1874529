"""Adapted attacks of ART and Foolbox: the contract of our own, the same accounting, errors in one line."""

from __future__ import annotations

import inspect
import logging
import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
import torch
from contract import CHECKS, Case, Check, inside
from oracles import EPS, Linear
from torch import Tensor, nn

from robust.attacks import PGD
from robust.attacks.adapters import ArtAttack, FoolboxAttack
from robust.attacks.adapters.base import AdaptedAttack
from robust.attacks.base import Goal
from robust.attacks.losses import margin
from robust.counting import CountedModel
from robust.errors import InputError, NoGradientError, RobustError
from robust.threats import NORMS

Library = type[AdaptedAttack]
# Options that make any attack small, where it has them.
SMALL = {
    "binary_search_steps": 2, "directions": 20, "init_eval": 10, "initial_gradient_eval_steps": 5, "k": 5,
    "max_eval": 20, "max_gradient_eval_steps": 10, "max_iter": 5, "num_trial": 5, "population": 4, "query_limit": 300,
    "repeats": 5, "sample_size": 5, "steps": 5,
}  # fmt: skip


def small(library: Library, attack: str, norm: str, eps: float | Tensor | None = None) -> AdaptedAttack:
    names = library(0.1, norm=norm, attack=attack).option_names()
    # GeoDA cannot divide a small budget.
    options = () if attack == "GeoDA" else tuple((name, value) for name, value in SMALL.items() if name in names)
    return library(EPS[norm] if eps is None else eps, norm=norm, attack=attack, options=options)


# The contract


@dataclass(frozen=True)
class Kind:
    """An adapted attack in the place of a class: what the contract asks of one."""

    library: Library
    attack: str

    def __call__(self, eps: float | Tensor, **settings: Any) -> AdaptedAttack:
        return self.library(eps, attack=self.attack, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library.catalog.entries[self.attack], name)


def case(library: Library, attack: str, thorough: int = 0, searches: bool = True, **options: Any) -> Case:
    steps = [(name, thorough) for name in options if thorough]
    return Case(
        attack, Kind(library, attack), {"options": tuple(options.items())}, {"options": tuple(steps)} if steps else {},
        searches=searches, flat=False,
    )  # fmt: skip


# What an attack is excused from, and why.
KEEPS_THE_ORIGINAL = {"zero_eps_is_the_identity", "fooled_images_cost_nothing_further"}  # where it finds nothing
ENDS_ON_THE_BOUNDARY = {"never_loses_a_success_it_saw"}  # where rounding decides which side a point is on
FEW_STEPS = {"targets_are_reached"}
UNDER_CONTRACT: list[tuple[Case, str, set[str]]] = [
    (case(ArtAttack, "ProjectedGradientDescent", max_iter=10), "linf", set()),
    (case(ArtAttack, "HopSkipJump", thorough=20, max_iter=2), "l2", set()),
    (case(ArtAttack, "SaliencyMapMethod"), "l0", set()),
    (case(ArtAttack, "SquareAttack", thorough=1000, max_iter=40), "linf", set()),
    # Its strength is tested apart: it needs thousands of queries.
    (case(FoolboxAttack, "BoundaryAttack", searches=False, queries=150), "l2", KEEPS_THE_ORIGINAL),
    (case(ArtAttack, "BoundaryAttack", searches=False, queries=150), "l2", KEEPS_THE_ORIGINAL),
    (case(ArtAttack, "DeepFool", max_iter=10), "l2", ENDS_ON_THE_BOUNDARY),
    (case(FoolboxAttack, "LinfBasicIterativeAttack", steps=10), "linf", set()),
    (case(FoolboxAttack, "L2ProjectedGradientDescentAttack", thorough=50, steps=10), "l2", FEW_STEPS),
    (case(FoolboxAttack, "L1FMNAttack", thorough=100, steps=20), "l1", KEEPS_THE_ORIGINAL | FEW_STEPS),
    (case(FoolboxAttack, "L0FMNAttack", thorough=100, steps=20), "l0", set()),
    (case(FoolboxAttack, "DDNAttack", thorough=100, steps=20), "l2", set()),
    (
        case(FoolboxAttack, "LinfRepeatedAdditiveUniformNoiseAttack", searches=False, repeats=4),
        "linf",
        KEEPS_THE_ORIGINAL,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "norm", "check"),
    [
        pytest.param(case, norm, check, id=f"{case.name}-{check.__name__}")
        for case, norm, excused in UNDER_CONTRACT
        for check in CHECKS
        if check.__name__ not in excused
    ],
)
def test_contract(case: Case, norm: str, check: Check) -> None:
    check(case, norm)


CROSS_SECTION: list[tuple[Library, str, str]] = [
    (ArtAttack, "FastGradientMethod", "l2"),
    (ArtAttack, "ProjectedGradientDescent", "l1"),
    (ArtAttack, "AutoProjectedGradientDescent", "linf"),
    (ArtAttack, "CarliniL2Method", "l2"),
    (ArtAttack, "ElasticNet", "l1"),
    (ArtAttack, "NewtonFool", "l2"),
    (ArtAttack, "SimBA", "l2"),
    (ArtAttack, "ZooAttack", "l2"),
    (ArtAttack, "PixelAttack", "l0"),
    (ArtAttack, "BoundaryAttack", "l2"),
    (ArtAttack, "HopSkipJump", "linf"),
    (ArtAttack, "SignOPTAttack", "l2"),
    (FoolboxAttack, "LinfFastGradientAttack", "linf"),
    (FoolboxAttack, "SparseL1DescentAttack", "l1"),
    (FoolboxAttack, "L2CarliniWagnerAttack", "l2"),
    (FoolboxAttack, "EADAttack", "l1"),
    (FoolboxAttack, "L2FMNAttack", "l2"),
    (FoolboxAttack, "LinfDeepFoolAttack", "linf"),
    (FoolboxAttack, "NewtonFoolAttack", "l2"),
    (FoolboxAttack, "VirtualAdversarialAttack", "l2"),
    (FoolboxAttack, "GenAttack", "linf"),
    (FoolboxAttack, "BoundaryAttack", "l2"),
    (FoolboxAttack, "HopSkipJumpAttack", "l2"),
    (FoolboxAttack, "PointwiseAttack", "l0"),
    (FoolboxAttack, "SaltAndPepperNoiseAttack", "l0"),
    (FoolboxAttack, "GaussianBlurAttack", "linf"),
    (FoolboxAttack, "L2AdditiveGaussianNoiseAttack", "l2"),
]


@pytest.mark.parametrize(("library", "attack", "norm"), CROSS_SECTION)
def test_one_run(library, attack, norm):
    """Ball, box, an image that is fooled already, the random states, the seed, and batches, in one run each."""
    model, images = contract.net(), contract.batch(3)
    labels = contract.predictions(model, images)
    labels[2] = (labels[2] + 1) % 4
    chosen = small(library, attack, norm)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    adversarial = chosen(model, images, labels)
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert bool(inside(adversarial, images, norm, EPS[norm]).all())
    assert torch.equal(adversarial[2], images[2])
    with torch.no_grad():
        goal = Goal(labels)
        assert bool((margin(model(adversarial), goal) >= margin(model(images), goal) - 1e-5).all())
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(chosen(model, images, labels), adversarial)
    if library.catalog.entries[attack].alone:
        for i in range(3):
            assert torch.equal(adversarial[i : i + 1], chosen(model, images[i : i + 1], labels[i : i + 1]))


@pytest.mark.parametrize("attack", ["HopSkipJump", "BoundaryAttack"])
def test_starts_that_art_cannot_seed_are_seeded(attack):
    model, images = contract.net(), contract.batch(2)
    labels = contract.predictions(model, images)
    results = []
    for seed in (1, 1, 2):
        options = (("max_iter", 1), ("init_size", 50))
        chosen = ArtAttack(4.0, norm="l2", attack=attack, options=options, seed=seed, stop=False)
        results.append(chosen(model, images, labels))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# Closed forms


def two_classes() -> tuple[Linear, Tensor, Tensor]:
    """A linear model, images far from the box's ends, and their distances to the boundary in linf and l2, (2, 3)."""
    generator = torch.Generator().manual_seed(3)
    slope = torch.randn(16, generator=generator)
    model = Linear(torch.stack([slope, -slope]), torch.stack([-0.5 * slope.sum(), 0.5 * slope.sum()]))
    images = 0.5 + 0.05 * torch.rand(3, 16, generator=generator)
    images += torch.tensor([[0.1], [0.2], [-0.15]]) * slope / slope.norm()
    score = ((images - 0.5) @ slope).abs()
    return model, images.view(3, 1, 4, 4), torch.stack([score / slope.norm(p=p) for p in (1, 2)])


@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [
        (ArtAttack, "FastGradientMethod", "linf"),
        (ArtAttack, "ProjectedGradientDescent", "linf"),
        (ArtAttack, "ProjectedGradientDescent", "l2"),
        (ArtAttack, "BasicIterativeMethod", "linf"),
        (ArtAttack, "MomentumIterativeMethod", "l2"),
        (ArtAttack, "AutoProjectedGradientDescent", "l2"),
        (ArtAttack, "AutoConjugateGradient", "linf"),
        (ArtAttack, "DeepFool", "l2"),
        (FoolboxAttack, "LinfFastGradientAttack", "linf"),
        (FoolboxAttack, "LinfProjectedGradientDescentAttack", "linf"),
        (FoolboxAttack, "L2ProjectedGradientDescentAttack", "l2"),
        (FoolboxAttack, "L2BasicIterativeAttack", "l2"),
        (FoolboxAttack, "L2FMNAttack", "l2"),
        (FoolboxAttack, "DDNAttack", "l2"),
        (FoolboxAttack, "L2DeepFoolAttack", "l2"),
        (FoolboxAttack, "LinfDeepFoolAttack", "linf"),
    ],
)
def test_succeeds_just_beyond_the_boundary_as_our_own_does_and_never_before_it(library, attack, norm):
    model, images, distances = two_classes()
    labels = contract.predictions(model, images)
    names = library(0.1, norm=norm, attack=attack).option_names()
    options = tuple((name, 100) for name in ("steps", "max_iter") if name in names)
    for share, expected in ((0.97, False), (1.1, True)):
        eps = share * distances[["linf", "l2"].index(norm)]
        for chosen in (library(eps, norm=norm, attack=attack, options=options), PGD(eps, norm=norm)):
            fooled = contract.predictions(model, chosen(model, images, labels)) != labels
            assert fooled.tolist() == [expected] * 3


@pytest.mark.parametrize("attack", ["L2FMNAttack", "DDNAttack", "L2CarliniWagnerAttack"])
def test_without_stop_minimum_norm_attacks_find_the_minimum(attack):
    """Foolbox's own L2FMNAttack fails this: it never projects."""
    model, images, distances = two_classes()
    labels = contract.predictions(model, images)
    chosen = FoolboxAttack(4.0, norm="l2", attack=attack, options=(("steps", 100),), stop=False)
    adversarial = chosen(model, images, labels)
    assert bool((contract.predictions(model, adversarial) != labels).all())
    assert torch.allclose(NORMS["l2"].length(adversarial - images), distances[1], rtol=0.06)


def test_with_stop_a_search_ends_at_its_first_success():
    model, images, distances = two_classes()
    labels = contract.predictions(model, images)
    costs = []
    for stop in (True, False):
        counted = CountedModel(model)
        chosen = ArtAttack(3 * distances[1], norm="l2", attack="HopSkipJump", options=(("max_iter", 5),), stop=stop)
        assert bool((contract.predictions(model, chosen(counted, images, labels)) != labels).all())
        costs.append(counted.passes.forward)
    assert costs[0] < costs[1] / 2


def test_l0_minimum_norm_attack_survives_images_that_cannot_be_fooled():
    """Foolbox's own L0FMNAttack fails this: its ball outgrows the image."""
    model = Linear(torch.stack([torch.ones(16), torch.zeros(16)]), torch.tensor([9.0, 0.0]))
    images = torch.rand(2, 1, 4, 4)
    chosen = FoolboxAttack(3, norm="l0", attack="L0FMNAttack", options=(("steps", 60),))
    adversarial = chosen(model, images, torch.zeros(2, dtype=torch.int64))
    assert bool(inside(adversarial, images, "l0", 3).all())


def test_what_lies_beyond_eps_is_no_success():
    model, images, distances = two_classes()
    labels = contract.predictions(model, images)
    eps = 0.5 * distances[1]
    assert bool((contract.predictions(model, 1 - images) != labels).all())
    adversarial = FoolboxAttack(eps, norm="l2", attack="InversionAttack")(model, images, labels)
    assert bool(inside(adversarial, images, "l2", eps).all())
    assert bool((contract.predictions(model, adversarial) == labels).all())


def test_what_is_worse_than_the_original_is_not_returned():
    """One step of noise towards a class that only gets less likely: the original comes back."""

    class Peak(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            away = (images - 0.5).abs().flatten(1).amax(1)
            return torch.stack([1 + 10 * away, torch.ones_like(away)], 1)

    images = torch.full((2, 1, 4, 4), 0.5) + 0.01
    chosen = FoolboxAttack(0.3, norm="linf", attack="LinfAdditiveUniformNoiseAttack")
    assert torch.equal(chosen(Peak(), images, torch.zeros(2, dtype=torch.int64)), images)


def test_untargeted_where_the_library_needs_a_target_aims_at_the_runner_up():
    model, images, distances = two_classes()
    labels = contract.predictions(model, images)
    three = nn.Sequential(model, nn.ConstantPad1d((0, 1), -50.0))
    chosen = FoolboxAttack(2 * distances[0], attack="GenAttack")
    assert contract.predictions(three, chosen(three, images, labels)).tolist() == (1 - labels).tolist()


def test_the_boundary_attack_gets_somewhere_with_enough_queries() -> None:
    """At twice a typical distance of this net: nothing with 100 queries, nearly everything with 1000."""
    model, images = contract.net(), contract.batch(6)
    labels = contract.predictions(model, images)
    broken = []
    for queries in (100, 1000):
        attack = ArtAttack(1.0, norm="l2", attack="BoundaryAttack", queries=queries)
        found = attack.queried(model, images, labels)
        assert int(found.spent.max()) <= queries
        broken.append(int((contract.predictions(model, found.points) != labels).sum()))
    assert broken[0] <= 1
    assert broken[1] >= 5


def test_starts_that_cannot_be_found_leave_the_image_alone():
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[2.0, 1.0, 0.0]]).repeat(len(images), 1)

    images, labels = torch.rand(1, 1, 6, 6), torch.zeros(1, dtype=torch.int64)
    for library, attack, options in (
        (ArtAttack, "HopSkipJump", (("init_size", 3),)),
        (ArtAttack, "BoundaryAttack", (("init_size", 3),)),
        (ArtAttack, "GeoDA", ()),
        (FoolboxAttack, "HopSkipJumpAttack", ()),
    ):
        counted = CountedModel(Constant())
        assert torch.equal(library(1.0, norm="l2", attack=attack, options=options)(counted, images, labels), images)
        assert counted.passes.forward <= 10_010


# Accounting, and what reaches the model


def test_passes_are_counted_one_by_one():
    model, images = contract.net(), contract.batch(3)
    labels = contract.predictions(model, images)
    labels[2] = (labels[2] + 1) % 4
    for library, attack, steps in ((FoolboxAttack, "LinfBasicIterativeAttack", 5), (ArtAttack, "FGSM", 1)):
        counted = CountedModel(model)
        small(library, attack, "linf", 1e-4)(counted, images, labels)
        # One pass of each image at the start, the steps of the two that are not fooled, and one more look at them.
        assert (counted.passes.forward, counted.passes.backward) == (3 + 2 * steps + 2, 2 * steps)


@pytest.mark.parametrize(
    ("library", "attack"), [(ArtAttack, "PGD"), (FoolboxAttack, "PGD"), (ArtAttack, "HopSkipJump")]
)
def test_every_call_goes_through_the_model_itself(library, attack):
    """ART would call the layers of a sequential model, and not the model."""

    class Watched(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            assert not self.training
            return super().forward(images)

    calls: list[int] = []
    counted, images = CountedModel(Watched(contract.net()).train()), contract.batch(3)
    labels = contract.predictions(contract.net(), images)
    small(library, attack, "linf")(counted, images, labels)
    assert sum(calls) == counted.passes.forward > 8
    assert counted.training


@pytest.mark.parametrize("attack", [ArtAttack(0.05, attack="PGD"), FoolboxAttack(0.05, attack="PGD")])
def test_gradients_behind_a_plain_function_stay_clean(attack):
    model, images = contract.net(), contract.batch(3)
    labels = contract.predictions(model, images)
    adversarial = attack(lambda points: model(points), images, labels)
    assert not torch.equal(adversarial, images)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_libraries_stay_silent(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    model, images = contract.net(), contract.batch(3)
    labels = contract.predictions(model, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for library, attack, norm in (
            (ArtAttack, "GeoDA", "l2"),
            (ArtAttack, "CarliniL0Method", "l0"),
            (ArtAttack, "BoundaryAttack", "l2"),
            (FoolboxAttack, "L2DeepFoolAttack", "l2"),
            (FoolboxAttack, "GaussianBlurAttack", "l2"),
            (FoolboxAttack, "LinearSearchBlendedUniformNoiseAttack", "l2"),
        ):
            small(library, attack, norm)(model, images, labels)
    assert capfd.readouterr() == ("", "")
    assert [str(entry.message) for entry in caught] == []
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == level
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("attack", ["PixelAttack", "SignOPTAttack", "ThresholdAttack"])
def test_two_classes_are_not_mistaken_for_one(attack):
    model, images, _ = two_classes()
    labels = contract.predictions(model, images)
    norm = ArtAttack.catalog.entries[attack].norms[0]
    adversarial = small(ArtAttack, attack, norm, 16.0 if norm == "l0" else 1.0)(model, images, labels)
    assert bool((contract.predictions(model, adversarial) != labels).any())


# Errors


@pytest.mark.parametrize("attack", [ArtAttack(0.1, attack="PGD"), FoolboxAttack(0.1, attack="PGD")])
def test_an_output_that_does_not_depend_on_the_input_has_no_gradient(attack):
    model, images = contract.net(), contract.batch(3)
    labels = contract.predictions(model, images)
    other = torch.zeros(4, requires_grad=True)
    with pytest.raises(NoGradientError, match="no gradient reaches the model's input"):
        attack(lambda points: model(points).detach() + other, images, labels)


def test_errors_of_the_library_become_one_line():
    model, images = nn.Sequential(contract.net(), nn.Softmax(1)), contract.batch(3)
    with pytest.raises(RobustError, match=r"^art:AutoProjectedGradientDescent failed: .*logits") as error:
        ArtAttack(0.1, attack="APGD")(model, images, contract.predictions(model, images))
    assert "\n" not in str(error.value)


def test_errors_of_the_model_are_its_own():
    def broken(points: Tensor) -> Tensor:
        if points.requires_grad:
            raise ZeroDivisionError("the model's own")
        return contract.net()(points)

    images = contract.batch(3)
    for attack in (ArtAttack(0.1, attack="PGD"), FoolboxAttack(0.1, attack="PGD")):
        with pytest.raises(ZeroDivisionError, match="the model's own"):
            attack(broken, images, contract.predictions(contract.net(), images))


@pytest.mark.parametrize(
    ("library", "attack", "options", "message"),
    [
        (
            ArtAttack,
            "HopSkipJump",
            {"max_itr": 3},
            "unknown option of art:HopSkipJump 'max_itr': did you mean max_iter",
        ),
        (ArtAttack, "HopSkipJump", {"norm": 2}, "unknown option of art:HopSkipJump 'norm'"),
        (FoolboxAttack, "DDNAttack", {"stepz": 3}, "unknown option of foolbox:DDNAttack 'stepz': did you mean steps"),
        (FoolboxAttack, "HopSkipJumpAttack", {"constraint": "l2"}, "unknown option"),
        (ArtAttack, "Hopskipjmp", {}, "unknown attack 'art:Hopskipjmp': did you mean art:HopSkipJump"),
        (FoolboxAttack, "DDN2", {}, "unknown attack 'foolbox:DDN2': did you mean"),
        (ArtAttack, "spatialtransformation", {}, "art:SpatialTransformation cannot be used here: its changes"),
        (FoolboxAttack, "DatasetAttack", {}, "foolbox:DatasetAttack cannot be used here: it needs other images"),
        (ArtAttack, "AutoAttack", {}, "it is not the published four attacks"),
    ],
)
def test_bad_names_and_options(library, attack, options, message):
    with pytest.raises(InputError) as error:
        library(0.1, norm="l2", attack=attack, options=tuple(options.items()))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "attack",
    [
        ArtAttack(0.1, attack="FGSM", options=(("batch_size", 0),)),
        ArtAttack(0.1, attack="HopSkipJump", options=(("max_iter", -1),)),
        FoolboxAttack(0.1, norm="l1", attack="EADAttack", options=(("decision_rule", "no"),)),
    ],
)
def test_values_that_the_library_refuses_are_bad_input(attack):
    images = contract.batch(3)
    with pytest.raises(InputError) as error:
        attack(contract.net(), images, contract.predictions(contract.net(), images))
    (option, value) = attack.options[0]
    assert str(error.value).startswith(f"{attack.name}({option}={value!r}): ")


def test_images_that_do_not_fit():
    labels = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(InputError, match="art:SquareAttack takes square images only, not 8 by 6"):
        ArtAttack(0.1, attack="SquareAttack")(contract.net(), torch.rand(3, 3, 8, 6), labels)


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package numba: pip install numba"):
        FoolboxAttack(0.1, norm="l2", attack="L2BrendelBethgeAttack")


@pytest.mark.parametrize(("library", "module"), [(ArtAttack, "art.attacks.evasion"), (FoolboxAttack, "foolbox")])
def test_a_library_that_cannot_be_imported(library, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(RobustError, match="cannot be imported"):
        library(0.1, attack="PGD")


# Completeness


def test_every_attack_of_the_libraries_is_listed_or_excluded_with_a_reason():
    import art.attacks.evasion
    import foolbox.attacks

    for library, module in ((ArtAttack, art.attacks.evasion), (FoolboxAttack, foolbox.attacks)):
        catalog = library.catalog
        known = {*catalog.entries, *catalog.aliases, *catalog.excluded, "Attack"}
        present = {name for name, value in vars(module).items() if inspect.isclass(value)}
        assert present - known == set()
        assert not set(catalog.entries) & set(catalog.excluded)
        assert set(catalog.aliases.values()) <= set(catalog.entries)
        if module is foolbox.attacks:
            for name in present & set(catalog.aliases):
                assert getattr(module, name) is getattr(module, catalog.aliases[name])


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 6)])
@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [
        (library, attack, norm)
        for library in (ArtAttack, FoolboxAttack)
        for attack, entry in library.catalog.entries.items()
        for norm in entry.norms
    ],
)
def test_every_listed_attack_runs(library, attack, norm, shape, classes):
    if not library.available(attack):
        pytest.skip(f"{attack} needs {library.catalog.entries[attack].needs}")
    size = shape[1] * shape[2]
    model = nn.Sequential(nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size, classes))
    images = torch.rand(3, *shape)
    labels = contract.predictions(model, images)
    chosen = small(library, attack, norm)
    assert bool(inside(chosen(model, images, labels), images, norm, EPS[norm]).all())
    if chosen.targetable:
        adversarial = chosen(model, images, labels, (labels + 1) % classes)
        assert bool(inside(adversarial, images, norm, EPS[norm]).all())
