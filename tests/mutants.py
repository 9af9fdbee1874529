"""Attacks with one known fault each, to see that the contract notices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from contract import Case
from torch import Tensor, nn

from robust.attacks import PGD, UniformNoise
from robust.attacks.base import Attack, Goal, Knowledge, Model
from robust.attacks.losses import cross_entropy


@dataclass(frozen=True)
class Identity(Attack):
    """Returns its input."""

    name: ClassVar[str] = "identity"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "none"
    source: ClassVar[str] = "none"

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return images.clone()


class OutOfBall(PGD):
    """Steps on after the last projection."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        found = super().run(model, images, goal, eps, seeds)
        return torch.where(found == images, found, images + (found - images) * 1.01)


class OutOfBox(PGD):
    """Forgets that images end at 0 and 1."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        found = super().run(model, images, goal, eps, seeds)
        return torch.where((found == images) & (images == 1) & (eps > 0).view(-1, 1, 1, 1), found + 1e-4, found)


class LargestEps(PGD):
    """Gives every image the largest eps of the batch."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return super().run(model, images, goal, eps.max().expand_as(eps), seeds)


class GlobalNoise(PGD):
    """Starts from the global random state."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return super().run(model, images, goal, eps, torch.randint(2**60, seeds.shape))


class SeedByPosition(PGD):
    """Seeds belong to the place in the batch."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return super().run(model, images, goal, eps, torch.arange(len(seeds)) + self.seed)


class Unguarded(PGD):
    """Switches the model to eval mode and leaves it there."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        if isinstance(model, nn.Module):
            model.eval()
        return super().__call__(model, images, labels, targets)


class TrainMode(PGD):
    """Attacks a model in training mode, batch statistics, dropout and all."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        goal, eps = self._checked(images, labels, targets)
        return self.run(model, images, goal, eps, torch.arange(len(images)))


class WeightGradients(PGD):
    """Calls backward, which fills the gradients of all weights."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        found = super().__call__(model, images, labels, targets)
        with torch.enable_grad():
            cross_entropy(model(images), Goal(labels)).sum().backward()
        return found


class InPlace(PGD):
    """Writes into the caller's images."""

    def __call__(self, model: Model, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
        found = super().__call__(model, images, labels, targets)
        return images.copy_(found) if not images.requires_grad else found


class TouchesFooled(PGD):
    """Attacks what is fooled already."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        labels = model(images).argmax(1) if goal.targets is None else goal.labels
        return super().run(model, images, Goal(labels, goal.targets), eps, seeds)


class Wasteful(PGD):
    """Gives fooled images back untouched, after attacking them with the rest."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        found = TouchesFooled.run(self, model, images, goal, eps, seeds)  # type: ignore[arg-type]
        fooled = goal.met(model(images))
        return torch.where(fooled.view(-1, 1, 1, 1), images, found)


class LastIterate(PGD):
    """Goes on after a success and returns wherever it ends."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        found = super().run(model, images, goal, eps, seeds)
        return self.geometry.project(images + 0.3 * (found - images), images, eps)


class LastRestart(PGD):
    """Every restart overwrites what the one before had found."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        once = replace(self, restarts=1, steps=1)
        return PGD.run(once, model, images, goal, eps, seeds + self.restarts)


class IgnoresTargets(PGD):
    """Takes targets and makes any mistake at all."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        return super().run(model, images, Goal(goal.labels), eps, seeds)


class SwallowsErrors(PGD):
    """Returns the images where it cannot attack."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        try:
            return super().run(model, images, goal, eps, seeds)
        except Exception:
            return images.clone()


class Unchecked(PGD):
    """Believes its input."""

    def _checked(self, images: Tensor, labels: Tensor, targets: Tensor | None) -> tuple[Goal, Tensor]:
        eps = torch.as_tensor(self.eps, dtype=images.dtype)
        return Goal(labels, targets), eps.expand(len(images)) if eps.dim() == 0 else eps


class Downhill(PGD):
    """Descends where it should climb."""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        step = -1.0 if self.step_size is None else self.step_size
        return PGD.run(replace(self, step_size=step * float(eps.max()) / 4), model, images, goal, eps, seeds)


def _case(kind: type[Attack], **settings: Any) -> Case:
    return Case(kind.__name__, kind, {"steps": 10, **settings}, budgets=("restarts",))


IDENTITY = Case("identity", Identity)
NOISE = Case("pure-noise", UniformNoise, {"draws": 10})
SOUND = _case(PGD)

MUTANTS: tuple[tuple[Case, set[str]], ...] = (
    (IDENTITY, {"breaks_a_vulnerable_model", "targets_are_reached", "zero_eps_is_the_identity"}),
    (NOISE, {"breaks_a_vulnerable_model", "targets_are_reached"}),
    (_case(OutOfBall), {"lies_in_ball_and_box"}),
    (_case(OutOfBox), {"lies_in_ball_and_box"}),
    (_case(LargestEps), {"lies_in_ball_and_box", "zero_eps_is_the_identity", "eps_belongs_to_its_image"}),
    (_case(GlobalNoise), {"leaves_everything_as_it_was", "the_same_seed_gives_the_same_result"}),
    (_case(SeedByPosition), {"batching_and_order_do_not_matter"}),
    (_case(Unguarded), {"leaves_everything_as_it_was", "leaves_everything_as_it_was_after_an_error"}),
    (_case(TrainMode), {"leaves_everything_as_it_was", "the_models_mode_does_not_matter"}),
    (_case(WeightGradients), {"leaves_everything_as_it_was"}),
    (_case(InPlace), {"leaves_everything_as_it_was"}),
    (_case(TouchesFooled), {"fooled_images_come_back_for_one_forward_pass", "fooled_images_cost_nothing_further"}),
    (_case(Wasteful), {"fooled_images_come_back_for_one_forward_pass", "fooled_images_cost_nothing_further"}),
    (_case(LastIterate), {"never_loses_a_success_it_saw"}),
    (_case(LastRestart), {"a_larger_budget_never_loses_a_success"}),
    (_case(IgnoresTargets), {"targets_are_reached"}),
    (_case(SwallowsErrors), {"a_missing_gradient_is_said", "leaves_everything_as_it_was_after_an_error"}),
    (_case(Unchecked), {"bad_input_gets_one_line", "an_unknown_norm_is_said"}),
    (_case(Downhill), {"breaks_a_vulnerable_model", "targets_are_reached"}),
)
