"""Adapted attacks of ART and Foolbox: the same guarantees as our own, the same accounting, errors in one line."""

from __future__ import annotations

import inspect
import logging
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robust.attacks import PGD
from robust.attacks.adapters import ArtAttack, FoolboxAttack
from robust.attacks.adapters.base import AdaptedAttack
from robust.attacks.base import Goal
from robust.attacks.losses import margin
from robust.counting import CountedModel
from robust.errors import InputError, NoGradientError, RobustError
from robust.threats import NORMS

EPS = {"linf": 0.1, "l2": 1.0, "l1": 8.0, "l0": 20.0}
# Options that make any attack small, where it has them.
SMALL = {
    "binary_search_steps": 2, "directions": 20, "init_eval": 10, "initial_gradient_eval_steps": 5, "k": 5,
    "max_eval": 20, "max_gradient_eval_steps": 10, "max_iter": 5, "num_trial": 5, "population": 4, "query_limit": 300,
    "repeats": 5, "sample_size": 5, "steps": 5,
}  # fmt: skip
CROSS_SECTION = [
    (ArtAttack, "FastGradientMethod", "linf"),
    (ArtAttack, "ProjectedGradientDescent", "l2"),
    (ArtAttack, "ProjectedGradientDescent", "l1"),
    (ArtAttack, "AutoProjectedGradientDescent", "linf"),
    (ArtAttack, "CarliniL2Method", "l2"),
    (ArtAttack, "ElasticNet", "l1"),
    (ArtAttack, "DeepFool", "l2"),
    (ArtAttack, "SaliencyMapMethod", "l0"),
    (ArtAttack, "SquareAttack", "linf"),
    (ArtAttack, "SimBA", "l2"),
    (ArtAttack, "PixelAttack", "l0"),
    (ArtAttack, "HopSkipJump", "linf"),
    (ArtAttack, "SignOPTAttack", "l2"),
    (FoolboxAttack, "LinfFastGradientAttack", "linf"),
    (FoolboxAttack, "LinfProjectedGradientDescentAttack", "linf"),
    (FoolboxAttack, "L2ProjectedGradientDescentAttack", "l2"),
    (FoolboxAttack, "SparseL1DescentAttack", "l1"),
    (FoolboxAttack, "L2CarliniWagnerAttack", "l2"),
    (FoolboxAttack, "DDNAttack", "l2"),
    (FoolboxAttack, "L2FMNAttack", "l2"),
    (FoolboxAttack, "L0FMNAttack", "l0"),
    (FoolboxAttack, "LinfDeepFoolAttack", "linf"),
    (FoolboxAttack, "NewtonFoolAttack", "l2"),
    (FoolboxAttack, "GenAttack", "linf"),
    (FoolboxAttack, "BoundaryAttack", "l2"),
    (FoolboxAttack, "HopSkipJumpAttack", "l2"),
    (FoolboxAttack, "SaltAndPepperNoiseAttack", "l0"),
    (FoolboxAttack, "L2RepeatedAdditiveUniformNoiseAttack", "l2"),
]
cross_section = pytest.mark.parametrize(("library", "attack", "norm"), CROSS_SECTION)


def small(library: type[AdaptedAttack], attack: str, norm: str, eps: float | Tensor | None = None) -> AdaptedAttack:
    names = library(0.1, norm=norm, attack=attack).option_names()
    # GeoDA cannot divide a small budget.
    options = () if attack == "GeoDA" else tuple((name, value) for name, value in SMALL.items() if name in names)
    return library(EPS[norm] if eps is None else eps, norm=norm, attack=attack, options=options)


@pytest.fixture
def network() -> nn.Module:
    """A small convolutional network, trainable and in training mode, with running statistics."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))
    return nn.Sequential(*layers)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(network: nn.Module, images: Tensor) -> Tensor:
    """The predictions, but for the last image, which is fooled as it is."""
    predicted = network.eval()(images).argmax(1)
    network.train()
    predicted[2] = (predicted[2] + 1) % 5
    return predicted


class Linear(nn.Module):
    """Logits <w, x> + b of two classes against zero: the distance to the boundary is known in every norm."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(16, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([score, -score, torch.full_like(score, -50.0)], 1)

    def distance(self, images: Tensor, norm: str) -> Tensor:
        """How far each image is from the other class, where the box is far away."""
        score = ((images.flatten(1) - 0.5) @ self.weight).abs()
        dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
        return (score / torch.linalg.vector_norm(self.weight, dual)).detach()


@pytest.fixture
def linear() -> Linear:
    return Linear()


@pytest.fixture
def central() -> Tensor:
    """Images in the middle of the box."""
    return 0.45 + 0.1 * torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(4))


# The guarantees


@cross_section
def test_result_lies_in_ball_and_box_and_is_worth_no_less(library, attack, norm, network, images, labels):
    adversarial = small(library, attack, norm)(network, images, labels)
    assert bool(NORMS[norm].contains(adversarial, images, EPS[norm]).all())
    assert torch.equal(adversarial[2], images[2])
    network.eval()
    goal = Goal(labels)
    assert bool((margin(network(adversarial), goal) >= margin(network(images), goal) - 1e-5).all())


@cross_section
def test_model_and_random_states_are_as_before(library, attack, norm, network, images, labels):
    network(images).sum().backward()
    network[0].bias.requires_grad_(False)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    asked = [parameter.requires_grad for parameter in network.parameters()]
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    small(library, attack, norm)(network, images, labels)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    after = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(after) == len(gradients)
    assert all(torch.equal(now, then) for now, then in zip(after, gradients, strict=True))
    assert [parameter.requires_grad for parameter in network.parameters()] == asked
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


@cross_section
def test_same_seed_same_result(library, attack, norm, network, images, labels):
    chosen = small(library, attack, norm)
    first = chosen(network, images, labels)
    np.random.seed(7)
    torch.manual_seed(7)
    assert torch.equal(first, chosen(network, images, labels))


@cross_section
def test_eps_zero_is_the_identity_and_costs_one_pass(library, attack, norm, network, images, labels):
    counted = CountedModel(network)
    assert torch.equal(small(library, attack, norm, 0.0)(counted, images, labels), images)
    assert (counted.passes.forward, counted.passes.backward) == (3, 0)


@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [case for case in CROSS_SECTION if case[0].catalog.entries[case[1]].alone],
)
def test_attacks_on_single_images_do_not_depend_on_the_batch(library, attack, norm, network, images, labels):
    chosen = small(library, attack, norm)
    together = chosen(network, images, labels)
    for i in range(3):
        assert torch.equal(together[i : i + 1], chosen(network, images[i : i + 1], labels[i : i + 1]))


@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [
        (ArtAttack, "ProjectedGradientDescent", "linf"),
        (FoolboxAttack, "LinfBasicIterativeAttack", "linf"),
        (FoolboxAttack, "L2DeepFoolAttack", "l2"),
        (ArtAttack, "HopSkipJump", "l2"),
    ],
)
def test_a_radius_per_image(library, attack, norm, network, images, labels):
    labels = labels.clone()
    labels[2] = network.eval()(images).argmax(1)[2]
    eps = torch.tensor([0.0, 0.01, 2.0 if norm == "l2" else 0.5])
    adversarial = small(library, attack, norm, eps)(network, images, labels)
    assert bool(NORMS[norm].contains(adversarial, images, eps).all())
    assert torch.equal(adversarial[0], images[0])
    assert bool(Goal(labels).met(network(adversarial))[2])
    length = NORMS[norm].length(adversarial - images)
    assert length[1] <= 0.01 * (1 + 1e-4) < length[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("library", "attack"), [(ArtAttack, "PGD"), (FoolboxAttack, "PGD")])
def test_the_model_sees_its_own_dtype(library, attack, dtype, network, images, labels):
    adversarial = small(library, attack, "linf")(network.to(dtype), images.to(dtype), labels)
    assert adversarial.dtype == dtype
    assert not torch.equal(adversarial[:2], images[:2].to(dtype))


@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [
        (ArtAttack, "ProjectedGradientDescent", "linf"),
        (ArtAttack, "SaliencyMapMethod", "l0"),
        (FoolboxAttack, "L2ProjectedGradientDescentAttack", "l2"),
        (FoolboxAttack, "L2FMNAttack", "l2"),
        (FoolboxAttack, "GenAttack", "linf"),
    ],
)
def test_targeted(library, attack, norm, network, images, labels):
    eps = {"linf": 1.0, "l2": 14.0, "l0": 192.0}[norm]
    targets = torch.tensor([3, 3, 3])
    labels = torch.where(labels == 3, 4, labels)
    names = library(1.0, norm=norm, attack=attack).option_names()
    steps = tuple((name, 40) for name in ("steps", "max_iter") if name in names)
    adversarial = library(eps, norm=norm, attack=attack, options=steps)(network, images, labels, targets)
    reached = network.eval()(adversarial).argmax(1) == 3
    # A search without gradients need not find all.
    assert int(reached.sum()) >= (1 if attack == "GenAttack" else 3)


def test_untargeted_where_the_library_needs_a_target_aims_at_the_runner_up(linear, central):
    labels = linear(central).argmax(1)
    chosen = FoolboxAttack(2 * float(linear.distance(central, "linf").max()), attack="GenAttack")
    assert bool((linear(chosen(linear, central, labels)).argmax(1) == 1 - labels).all())


def test_targets_where_there_is_no_targeted_form(network, images, labels):
    with pytest.raises(InputError, match="art:DeepFool cannot be targeted"):
        small(ArtAttack, "DeepFool", "l2")(network, images, labels, (labels + 1) % 5)


# Closed forms on a linear model


@pytest.mark.parametrize(
    ("library", "attack", "norm"),
    [
        (ArtAttack, "FastGradientMethod", "linf"),
        (ArtAttack, "ProjectedGradientDescent", "linf"),
        (ArtAttack, "ProjectedGradientDescent", "l2"),
        (ArtAttack, "BasicIterativeMethod", "linf"),
        (ArtAttack, "AutoProjectedGradientDescent", "l2"),
        (FoolboxAttack, "LinfFastGradientAttack", "linf"),
        (FoolboxAttack, "LinfProjectedGradientDescentAttack", "linf"),
        (FoolboxAttack, "L2ProjectedGradientDescentAttack", "l2"),
        (FoolboxAttack, "L2BasicIterativeAttack", "l2"),
        (FoolboxAttack, "LInfFMNAttack", "linf"),
        (FoolboxAttack, "L2FMNAttack", "l2"),
        (FoolboxAttack, "L1FMNAttack", "l1"),
        (FoolboxAttack, "DDNAttack", "l2"),
        (FoolboxAttack, "L2DeepFoolAttack", "l2"),
        (FoolboxAttack, "LinfDeepFoolAttack", "linf"),
        (ArtAttack, "DeepFool", "l2"),
    ],
)
def test_succeeds_just_beyond_the_boundary_and_never_before_it(library, attack, norm, linear, central):
    labels = linear(central).argmax(1)
    distance = linear.distance(central, norm)
    names = library(0.1, norm=norm, attack=attack).option_names()
    options = tuple((name, 100) for name in ("steps", "max_iter") if name in names)
    # Steps along the gradient itself, cut off at the radius, near the corner of a linf ball only slowly.
    beyond = 1.5 if attack == "LInfFMNAttack" else 1.1
    for share, expected in ((0.97, False), (beyond, True)):
        chosen = library(share * distance, norm=norm, attack=attack, options=options)
        fooled = linear(chosen(linear, central, labels)).argmax(1) != labels
        assert fooled.tolist() == [expected] * 3
        if norm != "l1":
            ours = PGD(share * distance, norm=norm)(linear, central, labels)
            assert (linear(ours).argmax(1) != labels).tolist() == [expected] * 3


@pytest.mark.parametrize("attack", ["L2FMNAttack", "DDNAttack"])
def test_minimum_norm_attacks_find_the_minimum(attack, linear, central):
    labels = linear(central).argmax(1)
    adversarial = FoolboxAttack(4.0, norm="l2", attack=attack)(linear, central, labels)
    assert bool((linear(adversarial).argmax(1) != labels).all())
    length = NORMS["l2"].length(adversarial - central)
    assert torch.allclose(length, linear.distance(central, "l2"), rtol=0.06)


def test_l0_minimum_norm_attack_survives_images_that_cannot_be_fooled():
    class Stubborn(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.stack([images.flatten(1).mean(1) + 9, images.flatten(1).mean(1) * 0], 1)

    images = torch.rand(2, 1, 4, 4)
    chosen = FoolboxAttack(3, norm="l0", attack="L0FMNAttack", options=(("steps", 60),))
    adversarial = chosen(Stubborn(), images, torch.zeros(2, dtype=torch.int64))
    assert bool(NORMS["l0"].contains(adversarial, images, 3).all())


def test_what_lies_beyond_eps_is_no_success(linear, central):
    labels = linear(central).argmax(1)
    eps = 0.5 * linear.distance(central, "l2")
    adversarial = FoolboxAttack(eps, norm="l2", attack="InversionAttack")(linear, central, labels)
    assert bool(NORMS["l2"].contains(adversarial, central, eps).all())
    assert bool((linear(adversarial).argmax(1) == labels).all())


def test_starts_that_cannot_be_found_leave_the_image_alone():
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[2.0, 1.0, 0.0]]).repeat(len(images), 1)

    images, labels = torch.rand(1, 1, 6, 6), torch.zeros(1, dtype=torch.int64)
    few = {"HopSkipJump": (("init_size", 3),), "GeoDA": (), "BoundaryAttack": (("init_size", 3),)}
    for attack, options in few.items():
        chosen = ArtAttack(1.0, norm="l2", attack=attack, options=options)
        assert torch.equal(chosen(Constant(), images, labels), images)
    assert torch.equal(FoolboxAttack(1.0, norm="l2", attack="HopSkipJumpAttack")(Constant(), images, labels), images)


# Accounting, and what reaches the model


def test_passes_are_counted_one_by_one(network, images, labels):
    for library, attack in ((FoolboxAttack, "LinfBasicIterativeAttack"), (ArtAttack, "FastGradientMethod")):
        counted = CountedModel(network)
        chosen = small(library, attack, "linf")
        chosen(counted, images, labels)
        steps = dict(chosen.options).get("steps", 1)
        # One pass of each image at the start, the steps of the two that are not fooled, and one more look at them.
        assert (counted.passes.forward, counted.passes.backward) == (3 + 2 * steps + 2, 2 * steps)


@pytest.mark.parametrize(
    ("library", "attack"), [(ArtAttack, "PGD"), (FoolboxAttack, "PGD"), (ArtAttack, "HopSkipJump")]
)
def test_every_call_goes_through_the_model_itself(library, attack, images, labels, network):
    class Watched(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            calls.append(len(images))
            assert not self.training
            return super().forward(images)

    calls: list[int] = []
    counted = CountedModel(Watched(*network))
    small(library, attack, "linf")(counted, images, labels)
    assert sum(calls) == counted.passes.forward > 8


@pytest.mark.parametrize("attack", [ArtAttack(0.1, attack="PGD"), FoolboxAttack(0.1, attack="PGD")])
def test_gradients_behind_a_plain_function_stay_clean(attack, network, images, labels):
    network.eval()
    attack(lambda x: network(x), images, labels)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_libraries_stay_silent(network, images, labels, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handlers, level = list(logging.root.handlers), logging.root.manager.disable
    monkeypatch.setattr(logging.root, "level", logging.DEBUG)
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
            small(library, attack, norm)(network, images, labels)
    assert capfd.readouterr() == ("", "")
    assert [str(entry.message) for entry in caught] == []
    assert logging.root.handlers == handlers
    assert logging.root.manager.disable == level
    assert list(Path().iterdir()) == []


# Errors


@pytest.mark.parametrize(
    "attack",
    [ArtAttack(0.1, attack="PGD"), FoolboxAttack(0.1, attack="PGD"), ArtAttack(0.1, norm="l2", attack="DeepFool")],
)
@pytest.mark.parametrize("kind", ["detached", "unrelated"])
def test_no_gradient(attack, kind, network, images, labels):
    network.eval()
    other = torch.zeros(5, requires_grad=True)

    def model(points: Tensor) -> Tensor:
        logits = network(points).detach()
        return logits if kind == "detached" else logits + other

    with pytest.raises(NoGradientError, match="no gradient reaches the model's input"):
        attack(model, images, labels)


def test_queries_need_no_gradient(network, images, labels):
    network.eval()
    chosen = small(FoolboxAttack, "HopSkipJumpAttack", "l2", 14.0)
    fooled = network(chosen(lambda points: network(points).detach(), images, labels)).argmax(1) != labels
    assert bool(fooled.all())


def test_errors_of_the_library_become_one_line(network, images, labels):
    softmax = nn.Sequential(*network, nn.Softmax(1))
    with pytest.raises(RobustError, match="^art:AutoProjectedGradientDescent failed: .*logits") as error:
        ArtAttack(0.1, attack="AutoProjectedGradientDescent")(softmax, images, labels)
    assert "\n" not in str(error.value)


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
        ArtAttack(0.1, attack="PGD", options=(("max_iter", "many"),)),
        ArtAttack(0.1, attack="HopSkipJump", options=(("max_iter", -1),)),
    ],
)
def test_values_that_the_library_refuses_are_bad_input(attack, network, images, labels):
    with pytest.raises(InputError, match="max_iter=") as error:
        attack(network, images, labels)
    assert str(error.value).startswith(attack.name)


def test_images_that_do_not_fit(network, labels):
    with pytest.raises(InputError, match="art:SquareAttack takes square images only, not 8 by 6"):
        ArtAttack(0.1, attack="SquareAttack")(network, torch.rand(3, 3, 8, 6), labels)
    with pytest.raises(InputError, match="takes images of shape"):
        ArtAttack(0.1, attack="PGD")(network, torch.rand(3, 8), labels)


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
        for name, target in catalog.aliases.items():
            assert target in catalog.entries
            # A library's own second name must mean the same class.
            if name in present and "ProjectedGradientDescent" not in name:
                assert getattr(module, name) is getattr(module, target)


def every_attack(slow_too: bool) -> list[tuple[type[AdaptedAttack], str, str]]:
    return [
        (library, attack, norm)
        for library in (ArtAttack, FoolboxAttack)
        for attack, entry in library.catalog.entries.items()
        for norm in entry.norms
        if slow_too or entry.needs is None
    ]


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 6, 6)])
@pytest.mark.parametrize(("library", "attack", "norm"), every_attack(slow_too=True))
def test_every_listed_attack_runs(library, attack, norm, shape, classes):
    if not library.available(attack):
        pytest.skip(f"{attack} needs {library.catalog.entries[attack].needs}")
    torch.manual_seed(0)
    size = shape[1] * shape[2]
    model = nn.Sequential(nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size, classes))
    images = torch.rand(3, *shape)
    labels = model(images).argmax(1)
    chosen = small(library, attack, norm)
    assert bool(NORMS[norm].contains(chosen(model, images, labels), images, EPS[norm]).all())
    if chosen.targetable:
        adversarial = chosen(model, images, labels, (labels + 1) % classes)
        assert bool(NORMS[norm].contains(adversarial, images, EPS[norm]).all())
