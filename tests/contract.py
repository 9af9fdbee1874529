"""What every attack promises, as functions that an attack either passes or fails with an AssertionError.

They are functions rather than tests so that the suite can also be turned on attacks that are known to be wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from oracles import (
    EPS,
    Detached,
    FailsOnCall,
    Linear,
    Recording,
    Rounding,
    TinyNet,
    brightest_channel,
    same,
    state_of,
    vulnerable,
)
from torch import Tensor, nn

from robust.attacks import Attack
from robust.errors import InputError, NoGradientError


@dataclass(frozen=True)
class Case:
    """An attack under test, with settings that keep it quick.

    thorough: settings for the test of strength, where the quick ones are too weak.
    budgets: the settings of which more may never lose a success.
    searches: it looks for the worst point, so that it must break a vulnerable model.
    flat: it takes images of shape (N, D) too.
    one_pass: it has but one pass, whose gradient is taken before it is known who is fooled already.
    classes: the fewest classes it is defined for.
    """

    name: str
    kind: type[Attack]
    settings: dict[str, Any] = field(default_factory=dict)
    thorough: dict[str, Any] = field(default_factory=dict)
    budgets: tuple[str, ...] = ()
    searches: bool = True
    flat: bool = True
    one_pass: bool = False
    classes: int = 2

    def __call__(self, eps: float | Tensor, norm: str, **changes: Any) -> Attack:
        return self.kind(eps, norm=norm, **{**self.settings, **changes})


def inside(adversarial: Tensor, images: Tensor, norm: str, eps: float | Tensor) -> Tensor:
    """Membership in ball and box to 1e-6 in float64, by numpy alone, (N,) bool."""
    points, centers = adversarial.detach().flatten(1).double().numpy(), images.detach().flatten(1).double().numpy()
    delta = points - centers
    if norm == "l0":
        length = np.count_nonzero(delta, axis=1).astype(float)
    elif norm == "patch":
        length = np.array([patch_area(change) for change in delta.reshape(images.shape)])
    else:
        length = np.linalg.norm(delta, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    radius = torch.as_tensor(eps, dtype=torch.float64).expand(len(images)).numpy()
    held = (length <= radius * (1 + 1e-6) + 1e-6) & (points >= -1e-6).all(1) & (points <= 1 + 1e-6).all(1)
    return torch.from_numpy(held)


def patch_area(delta: np.ndarray[Any, Any]) -> float:
    """The share of the image's area that the smallest square holding every change (C, H, W) has, pixel by pixel."""
    places = [(row, column) for _, row, column in np.argwhere(delta)]
    if not places:
        return 0.0
    rows, columns = ({place[axis] for place in places} for axis in (0, 1))
    side = max(max(rows) - min(rows), max(columns) - min(columns)) + 1
    return side**2 / (delta.shape[1] * delta.shape[2])


def batch(count: int, channels: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + 10 * count + channels)
    images = torch.rand(count, channels, 6, 6, generator=generator, dtype=torch.float64) ** 1.2
    images[:, :, 0, 0], images[:, :, 0, 1] = 0, 1
    return images.to(dtype)


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def net(channels: int = 3, classes: int = 4, dtype: torch.dtype = torch.float32) -> nn.Module:
    return TinyNet(channels, classes=classes).to(dtype).eval()


# The result


def lies_in_ball_and_box(case: Case, norm: str) -> None:
    for channels in (1, 3):
        model = net(channels)
        for count in (1, 3, 8):
            images = batch(count, channels)
            labels = predictions(model, images)
            scale = torch.linspace(1, 3, count)
            for eps in (
                EPS[norm],
                scale * EPS[norm],
                {"linf": 0.9, "l2": 6.0, "l1": 40.0, "l0": 70.0, "patch": 0.9}[norm],
            ):
                found = case(eps, norm)(model, images, labels)
                assert found.shape == images.shape
                assert found.dtype == images.dtype
                assert not found.requires_grad
                assert inside(found, images, norm, eps).all()


def keeps_float64_and_flat_images(case: Case, norm: str) -> None:
    weights = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Linear(weights, torch.zeros(3, dtype=torch.float64))
    images = torch.rand(5, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = predictions(model, images)
    if not case.flat or norm == "patch":
        with pytest.raises(InputError):
            case(EPS[norm], norm)(model, images, labels)
        return
    found = case(EPS[norm], norm)(model, images, labels)
    assert found.dtype == torch.float64
    assert found.shape == images.shape
    assert inside(found, images, norm, EPS[norm]).all()
    assert (found != images).any()


def zero_eps_is_the_identity(case: Case, norm: str) -> None:
    model, images = net(), batch(4)
    labels = predictions(model, images)
    assert torch.equal(case(0.0, norm)(model, images, labels), images)
    some = torch.tensor([0.0, EPS[norm], 0.0, EPS[norm]])
    found = case(some, norm)(model, images, labels)
    assert torch.equal(found[[0, 2]], images[[0, 2]])
    assert (found != images)[[1, 3]].flatten(1).any(1).all()


def eps_belongs_to_its_image(case: Case, norm: str) -> None:
    model, images = net(dtype=torch.float64), batch(4, dtype=torch.float64)
    labels = predictions(model, images)
    eps = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) * EPS[norm]
    eps = eps.floor() if norm == "l0" else eps
    together = case(eps, norm)(model, images, labels)
    for i in range(4):
        alone = case(float(eps[i]), norm)(model, images[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-9)


def no_images_give_none(case: Case, norm: str) -> None:
    empty = torch.zeros(0, 3, 6, 6)
    assert case(EPS[norm], norm)(net(), empty, torch.zeros(0, dtype=torch.long)).shape == empty.shape


def never_loses_a_success_it_saw(case: Case, norm: str) -> None:
    """Each image alone: if any point inside that the model was asked about is misclassified, so is the result."""
    model = net()
    images = batch(12)
    labels = predictions(model, images)
    for i in range(len(images)):
        watched, image = Recording(model), images[i : i + 1]
        found = case(EPS[norm], norm)(watched, image, labels[i : i + 1])
        seen = torch.cat(watched.seen)
        allowed = inside(seen, image.expand_as(seen), norm, EPS[norm])
        if bool((predictions(model, seen)[allowed] != labels[i]).any()):
            assert predictions(model, found) != labels[i]


# Cost


def fooled_images_come_back_for_one_forward_pass(case: Case, norm: str) -> None:
    images = batch(5)
    model = Recording(net())
    wrong = (predictions(model.inner, images) + 1) % 4
    found = case(EPS[norm], norm)(model, images, wrong)
    assert torch.equal(found, images)
    assert model.calls == 1
    assert model.forward_images == 5
    if not case.one_pass:
        assert model.backward_images == 0


def fooled_images_cost_nothing_further(case: Case, norm: str) -> None:
    """In a batch with others, they are seen once and never again."""
    images = batch(6)
    labels = predictions(net(), images)
    is_fooled = torch.tensor([True, False, False, True, True, False])
    labels = torch.where(is_fooled, (labels + 1) % 4, labels)
    mixed, alone = Recording(net()), Recording(net())
    found = case(EPS[norm], norm)(mixed, images, labels)
    case(EPS[norm], norm)(alone, images[~is_fooled], labels[~is_fooled])
    assert torch.equal(found[is_fooled], images[is_fooled])
    assert (found != images)[~is_fooled].flatten(1).any(1).all()
    assert mixed.forward_images == alone.forward_images + 3
    if not case.one_pass:
        assert mixed.backward_images == alone.backward_images


# Side effects


def _mixed_up() -> nn.Module:
    """A model whose flags and gradients are all over the place."""
    model = net()
    model.train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


def _global_state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(),
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def leaves_everything_as_it_was(case: Case, norm: str) -> None:
    model, images = _mixed_up(), batch(4)
    labels = predictions(net(), images)
    labels[0] = (labels[0] + 1) % 4
    inputs, before, world = (images.clone(), labels.clone()), state_of(model), _global_state()
    found = case(EPS[norm], norm)(model, images, labels)
    assert same(state_of(model), before)
    assert _global_state() == world
    assert torch.equal(images, inputs[0])
    assert torch.equal(labels, inputs[1])
    assert images.grad is None
    assert not images.requires_grad
    found.zero_()
    assert torch.equal(images, inputs[0])


def leaves_everything_as_it_was_after_an_error(case: Case, norm: str) -> None:
    images = batch(4)
    labels = predictions(net(), images)
    counted = Recording(net())
    case(EPS[norm], norm)(counted, images, labels)
    for call in {1, min(3, counted.calls), counted.calls}:
        model = FailsOnCall(_mixed_up(), call)
        before, world = state_of(model), _global_state()
        with pytest.raises(RuntimeError, match="out of memory"):
            case(EPS[norm], norm)(model, images, labels)
        assert same(state_of(model), before)
        assert _global_state() == world
        assert images.grad is None


def accepts_images_that_require_a_gradient(case: Case, norm: str) -> None:
    model, images = net(), batch(3)
    labels = predictions(model, images)
    plain = case(EPS[norm], norm)(model, images, labels)
    leaf = images.clone().requires_grad_()
    with torch.no_grad():
        inner = case(EPS[norm], norm)(model, images, labels)
    found = case(EPS[norm], norm)(model, leaf, labels)
    assert leaf.grad is None
    assert not found.requires_grad
    assert torch.equal(found, plain)
    assert torch.equal(inner, plain)


def the_models_mode_does_not_matter(case: Case, norm: str) -> None:
    model, images = net(), batch(4)
    labels = predictions(model, images)
    expected = case(EPS[norm], norm)(model, images, labels)
    assert torch.equal(case(EPS[norm], norm)(model.train(), images, labels), expected)


# What a run depends on


def the_same_seed_gives_the_same_result(case: Case, norm: str) -> None:
    model, images = net(), batch(4)
    labels = predictions(model, images)
    first = case(EPS[norm], norm, seed=3)(model, images, labels)
    torch.manual_seed(99)
    assert torch.equal(case(EPS[norm], norm, seed=3)(model, images, labels), first)


def batching_and_order_do_not_matter(case: Case, norm: str) -> None:
    model, images = net(dtype=torch.float64), batch(8, dtype=torch.float64)
    labels = predictions(model, images)
    labels[5] = (labels[5] + 1) % 4
    attack = case(EPS[norm], norm)
    whole = attack(model, images, labels)
    parts = torch.cat([attack(model, images[:3], labels[:3]), attack(model, images[3:], labels[3:])])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-9)
    order = torch.tensor([6, 0, 3, 7, 1, 5, 2, 4])
    torch.testing.assert_close(attack(model, images[order], labels[order]), whole[order], rtol=0, atol=1e-9)
    layout = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(attack(model, layout, labels), whole, rtol=0, atol=1e-9)


def a_plain_function_is_a_model_too(case: Case, norm: str) -> None:
    model, images = net(), batch(3)
    labels = predictions(model, images)
    found = case(EPS[norm], norm)(lambda x: model(x), images, labels)
    assert torch.equal(found, case(EPS[norm], norm)(model, images, labels))


# More never means less


def a_larger_budget_never_loses_a_success(case: Case, norm: str) -> None:
    model, images = net(), batch(40)
    labels = predictions(model, images)
    for budget in case.budgets:
        fooled = torch.zeros(40, dtype=torch.bool)
        for amount in (1, 2, 5, 11):
            found = case(EPS[norm] * 0.6, norm, **{budget: amount})(model, images, labels)
            now = predictions(model, found) != labels
            assert not bool((fooled & ~now).any()), (budget, amount)
            fooled = now


def a_larger_eps_never_loses_a_success_on_a_linear_model(case: Case, norm: str) -> None:
    if not case.searches:
        return
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(1, 108, generator=generator, dtype=torch.float64)
    further = case.classes - 2  # classes that no change inside eps reaches
    bias = torch.cat([torch.zeros(2, dtype=torch.float64), torch.full((further,), -100.0, dtype=torch.float64)])
    model = Linear(torch.cat([weights, -weights, 0 * weights.expand(further, -1)]), bias)
    images = 0.5 + 0.05 * torch.randn(20, 3, 6, 6, generator=generator, dtype=torch.float64).clamp(-3, 3)
    labels = predictions(model, images)
    fooled = torch.zeros(20, dtype=torch.bool)
    for factor in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        eps = max(round(10 * factor), 1) if norm == "l0" else EPS[norm] * factor
        found = case(eps, norm)(model, images, labels)
        now = predictions(model, found) != labels
        assert not bool((fooled & ~now).any()), factor
        fooled = now
    assert fooled.any()


# Strength


def breaks_a_vulnerable_model(case: Case, norm: str) -> None:
    """Half of eps suffices for the best attacker; chance gets nowhere near."""
    if not case.searches:
        return
    weak = vulnerable(norm)
    assert (predictions(weak.model, weak.images) == weak.labels).all()
    found = case(weak.eps, norm, **case.thorough)(weak.model, weak.images, weak.labels)
    broken = (predictions(weak.model, found) != weak.labels) & inside(found, weak.images, norm, weak.eps)
    assert broken.float().mean() >= 0.9


# Targets


def targets_are_reached(case: Case, norm: str) -> None:
    model, images, labels = brightest_channel()
    eps = {"linf": 0.06, "l2": 0.6, "l1": 8.0, "l0": 30.0, "patch": 0.25}[norm]
    if not case.kind.targetable:
        with pytest.raises(InputError, match="target"):
            case(eps, norm)(model, images, labels, (labels + 1) % 3)
        return
    if not case.searches:
        return
    for step in (1, 2):
        targets = (labels + step) % 3
        found = case(eps, norm)(model, images, labels, targets)
        assert inside(found, images, norm, eps).all()
        assert predictions(model, found).tolist() == targets.tolist()
    # Wrong already is not yet on target; being on target is.
    stated = (labels + 1) % 3
    found = case(eps, norm)(model, images, stated, (labels + 2) % 3)
    assert predictions(model, found).tolist() == ((labels + 2) % 3).tolist()
    watched = Recording(model)
    assert torch.equal(case(eps, norm)(watched, images, stated, labels), images)
    assert watched.calls == 1


# What cannot be done is said


def a_missing_gradient_is_said(case: Case, norm: str) -> None:
    inner, images = net(), batch(4)
    labels = predictions(inner, images)
    model = Detached(inner)
    before = state_of(model)
    if case.kind.knowledge == "white-box":
        with pytest.raises(NoGradientError) as caught:
            case(EPS[norm], norm)(model, images, labels)
        assert "\n" not in str(caught.value)
    else:
        found = case(EPS[norm], norm)(model, images, labels)
        assert torch.equal(found, case(EPS[norm], norm)(inner, images, labels))
    assert same(state_of(model), before)


class _BadGradient(nn.Module):
    """Finite logits whose gradient is NaN or infinite at some values, as roots and norms give it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images) + 0 * images[:, :, 0, 0].sqrt().sum(1, keepdim=True)
        return logits


def zero_and_nan_gradients_do_no_harm(case: Case, norm: str) -> None:
    images = batch(4)
    for model in (Rounding(net()), _BadGradient(net())):
        labels = predictions(model, images)
        found = case(EPS[norm], norm)(model, images, labels)
        assert inside(found, images, norm, EPS[norm]).all()


class _NanFor(nn.Module):
    """NaN logits wherever the image was changed: no such answer counts as a success."""

    def __init__(self, inner: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.inner, self.known = inner, {image.numpy().tobytes() for image in images}

    def forward(self, images: Tensor) -> Tensor:
        known = [image.numpy().tobytes() in self.known for image in images.detach()]
        logits: Tensor = torch.where(torch.tensor(known)[:, None], self.inner(images), torch.nan)
        return logits


def nan_logits_are_no_success(case: Case, norm: str) -> None:
    images = batch(3)
    model = _NanFor(net(), images)
    labels = predictions(model, images)
    watched = Recording(model)
    found = case(EPS[norm], norm)(watched, images, labels)
    assert inside(found, images, norm, EPS[norm]).all()
    # Had NaN been taken for success, the images would have left the batch early.
    steps = max((case.settings.get(name, 1) for name in ("steps", "draws", "queries")), default=1)
    if not case.one_pass:
        assert watched.forward_images >= 3 * steps


def bad_input_gets_one_line(case: Case, norm: str) -> None:
    model, images = net(), batch(3)
    labels = predictions(model, images)
    other = (labels + 1) % 4

    def bad() -> Iterable[tuple[str, tuple[Any, ...]]]:
        yield "images over 1", (EPS[norm], images * 255, labels, None)
        yield "images below 0", (EPS[norm], images - 0.5, labels, None)
        yield "images with NaN", (EPS[norm], images.clone().index_fill_(3, torch.tensor([2]), torch.nan), labels, None)
        yield "bytes", (EPS[norm], (images * 255).byte(), labels, None)
        yield "one dimension", (EPS[norm], images.flatten(), labels, None)
        yield "too few labels", (EPS[norm], images, labels[:2], None)
        yield "label columns", (EPS[norm], images, labels[:, None], None)
        yield "float labels", (EPS[norm], images, labels.float(), None)
        yield "negative eps", (-0.1, images, labels, None)
        yield "eps that is NaN", (float("nan"), images, labels, None)
        yield "eps of another batch", (torch.full((2,), EPS[norm]), images, labels, None)
        if case.kind.targetable:
            yield "target is the label", (EPS[norm], images, labels, labels)
            yield "one target is the label", (EPS[norm], images, labels, torch.cat([other[:2], labels[2:]]))
            yield "too few targets", (EPS[norm], images, labels, other[:2])

    case(EPS[norm], norm)(model, images, labels)
    assert not _not_said(case, norm, model, bad())


def classes_the_model_has_not_are_said(case: Case, norm: str) -> None:
    """Else every image with such a label would count as fooled."""
    model, images = net(), batch(3)
    labels = predictions(model, images)

    def bad() -> Iterable[tuple[str, tuple[Any, ...]]]:
        yield "negative label", (EPS[norm], images, labels - 9, None)
        yield "label too large", (EPS[norm], images, labels + 4, None)
        yield "one label too large", (EPS[norm], images, torch.cat([labels[:2], torch.tensor([4])]), None)
        if case.kind.targetable:
            yield "target too large", (EPS[norm], images, labels, labels + 4)
            yield "negative target", (EPS[norm], images, labels, labels - 9)

    assert not _not_said(case, norm, model, bad())


def _not_said(case: Case, norm: str, model: nn.Module, bad: Iterable[tuple[str, tuple[Any, ...]]]) -> list[str]:
    """Which of the bad calls (eps, images, labels, targets) do not raise an InputError of one line."""
    wrong = []
    for what, (eps, *arguments) in bad:
        try:
            case(eps, norm)(model, *arguments)
        except InputError as error:
            if "\n" in str(error):
                wrong.append(f"{what}: more than one line")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}")
        else:
            wrong.append(f"{what}: accepted")
    return wrong


def an_unknown_norm_is_said(case: Case, norm: str) -> None:
    model, images = net(), batch(2)
    for other in {"l3", "linf", "l2", "l1", "l0", "patch"} - set(case.kind.norms):
        with pytest.raises(InputError) as caught:
            case(EPS[norm], other)(model, images, predictions(model, images))
        assert all(name in str(caught.value) for name in case.kind.norms)


Check = Callable[[Case, str], None]

CHECKS: tuple[Check, ...] = (
    lies_in_ball_and_box,
    keeps_float64_and_flat_images,
    zero_eps_is_the_identity,
    eps_belongs_to_its_image,
    no_images_give_none,
    never_loses_a_success_it_saw,
    fooled_images_come_back_for_one_forward_pass,
    fooled_images_cost_nothing_further,
    leaves_everything_as_it_was,
    leaves_everything_as_it_was_after_an_error,
    accepts_images_that_require_a_gradient,
    the_models_mode_does_not_matter,
    the_same_seed_gives_the_same_result,
    batching_and_order_do_not_matter,
    a_plain_function_is_a_model_too,
    a_larger_budget_never_loses_a_success,
    a_larger_eps_never_loses_a_success_on_a_linear_model,
    breaks_a_vulnerable_model,
    targets_are_reached,
    a_missing_gradient_is_said,
    zero_and_nan_gradients_do_no_harm,
    nan_logits_are_no_success,
    bad_input_gets_one_line,
    classes_the_model_has_not_are_said,
    an_unknown_norm_is_said,
)


def violations(case: Case, norm: str, checks: Iterable[Check] = CHECKS) -> set[str]:
    """The names of the promises that the attack breaks."""
    broken = set()
    for check in checks:
        try:
            check(case, norm)
        except Exception:
            broken.add(check.__name__)
        except pytest.fail.Exception:  # "did not raise"
            broken.add(check.__name__)
    return broken
