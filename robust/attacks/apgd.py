"""Auto-PGD: projected gradient descent that sets its own step size."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Attack, Goal, Knowledge, Loss, Model, loss_and_gradient, still_open
from robust.attacks.losses import LOSSES
from robust.errors import InputError, unknown
from robust.threats import Norm, per_image


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD as published: momentum, step halving at checkpoints, restart from the best point so far.

    Settings:
        steps: gradient steps per run.
        restarts: runs (per target), each from its own random start.
        loss: ``ce``, ``dlr`` or ``margin``. AutoAttack's APGD-CE is ``loss="ce"``.
        n_targets: without ``targets`` in the call, attack towards each of the classes of 2nd to (n+1)-th highest logit
            at the clean image in turn; any misclassification counts. AutoAttack's APGD-T is ``loss="dlr",
            n_targets=9``. With fewer classes there are fewer targets.
        eot: for models that draw random numbers: forward and backward passes per step over which the gradient is
            averaged (expectation over transformation). As published, loss and success are read off the last pass.

    An image leaves the batch at the first iterate that fools the model; the published code carries it on to no other
    verdict. With ``eot`` above 1 it is carried on, and the last iterate that fooled the model comes back, as published:
    on the first one a random model may have erred by chance. In l1 a run spends 30, 30 and 40 % of its steps in balls
    of 3, 2 and 1 times eps, as AutoAttack does.

    Source: Croce and Hein, ICML 2020, algorithm 1 (linf, l2); Croce and Hein, "Mind the box", ICML 2021 (l1).
    """

    _: KW_ONLY
    steps: int = 100
    restarts: int = 1
    loss: str = "ce"
    n_targets: int = 0
    eot: int = 1

    name: ClassVar[str] = "apgd"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Croce and Hein, ICML 2020"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.steps < 1 or self.restarts < 1 or self.n_targets < 0 or self.eot < 1:
            raise InputError(
                f"apgd needs steps >= 1, restarts >= 1, n_targets >= 0 and eot >= 1, not {self.steps}, "
                f"{self.restarts}, {self.n_targets} and {self.eot}"
            )

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        best, best_loss = images.clone(), torch.full_like(eps, -torch.inf)
        aims = [goal]
        if self.n_targets and goal.targets is None:
            logits = model(images)
            index = still_open(logits, goal, eps)
            ranked = logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(dim=1, descending=True)
            aims = [Goal(goal.labels, ranked[:, i]) for i in range(min(self.n_targets, logits.shape[1] - 1))]
        else:
            index = still_open(model(images), goal, eps)
        for number, aim in enumerate(aim for aim in aims for _ in range(self.restarts)):
            if not len(index):
                break
            task = _Task(model, LOSSES[self.loss], self.geometry, images, goal, aim, eps, seeds, 8 * number, self.eot)
            index = self._run_once(task, index, best, best_loss)
        return best

    def _run_once(self, task: _Task, index: Tensor, best: Tensor, best_loss: Tensor) -> Tensor:
        """One run over the images at ``index``; notes the best points and returns what still stands."""
        images, eps = task.images[index], task.eps[index]
        if self.norm != "l1":
            points = task.geometry.project(_start(task, images, eps, index), images, eps)
            state = self._prepared(_first(task, points, index, 2 * eps, self.steps))
            return _climb(self, task, state, best, best_loss)
        steps = [math.ceil(0.3 * self.steps), math.ceil(0.3 * self.steps)]
        steps.append(max(self.steps - sum(steps), 0))
        points = images + _direction(task, images, index)
        for factor, count in zip((3, 2, 1), steps, strict=True):
            points = task.geometry.project(points, images, factor * eps)
            state = _first(task, points, index, factor * eps, count)
            if factor == 1:
                return _climb_l1(task, state, count, 1, best, best_loss)
            _climb_l1(task, state, count, factor, None, None)
            points = state.best
        raise AssertionError("unreachable")

    # What other attacks of the same schedule do otherwise.

    def _prepared(self, state: _State) -> _State:
        return state

    def _ascend(self, state: _State, step: int) -> Tensor:
        """The next points, along gradient and momentum."""
        momentum, state.previous = state.points - state.previous, state.points
        geometry = self.geometry
        moved = geometry.project(
            geometry.steepest(state.gradient, state.points, state.size), state.images, state.eps
        )  # fmt: skip
        if step:
            moved = geometry.project(
                state.points + 0.75 * (moved - state.points) + 0.25 * momentum, state.images, state.eps
            )  # fmt: skip
        return moved

    def _returned(self, state: _State, back: Tensor) -> None:
        """Told which images (n,) went back to their best point."""


@dataclass(frozen=True)
class _Task:
    """What stays the same over one run, for all images of the call."""

    model: Model
    loss: Loss
    geometry: Norm
    images: Tensor
    goal: Goal  # what counts as success
    aim: Goal  # what the loss looks at
    eps: Tensor
    seeds: Tensor
    stream: int
    eot: int

    def climb(self, points: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (n,) and logits of the last pass over ``points``, and the gradient averaged over all passes."""
        values, logits, gradient = loss_and_gradient(self.model, points, self.aim[index], self.loss)
        if self.eot > 1:
            gradient = gradient.clone()
            for _ in range(self.eot - 1):
                values, logits, another = loss_and_gradient(self.model, points, self.aim[index], self.loss)
                gradient += another
            gradient /= self.eot
        return values, logits, gradient


@dataclass
class _State:
    """What changes over one run, one row per image still standing."""

    index: Tensor  # position in the call's batch
    images: Tensor
    eps: Tensor
    points: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    checked_loss: Tensor  # best loss at the last checkpoint
    reduced: Tensor  # whether the step was halved at the last checkpoint
    size: Tensor
    losses: Tensor  # (n, steps)
    logits: Tensor
    fooled: Tensor  # whether any iterate of this run fooled the model

    def keep(self, mask: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])


def _direction(task: _Task, images: Tensor, index: Tensor) -> Tensor:
    shape = images.shape[1:]
    if task.geometry.name == "linf":
        return 2 * randomness.uniform(task.seeds[index], task.stream, shape, images.dtype) - 1
    return randomness.normal(task.seeds[index], task.stream, shape, images.dtype)


def _start(task: _Task, images: Tensor, eps: Tensor, index: Tensor) -> Tensor:
    """A random point on the sphere of radius eps, clipped to the box."""
    noise = _direction(task, images, index)
    unit = noise / per_image(task.geometry.length(noise), images).clamp_min(1e-12)
    return (images + unit * per_image(eps, images)).clamp(0, 1)


def _first(task: _Task, points: Tensor, index: Tensor, size: Tensor, steps: int) -> _State:
    values, logits, gradient = task.climb(points, index)
    return _State(
        index=index, images=task.images[index], eps=task.eps[index], points=points, previous=points,
        gradient=gradient, best=points.clone(), best_gradient=gradient.clone(), best_loss=values.clone(),
        checked_loss=values.clone(), reduced=torch.ones_like(values, dtype=torch.bool), size=size.clone(),
        losses=values.new_zeros(len(index), max(steps, 1)), logits=logits,
        fooled=torch.zeros_like(values, dtype=torch.bool),
    )  # fmt: skip


def _note(task: _Task, state: _State, values: Tensor, best: Tensor, best_loss: Tensor) -> Tensor:
    """Writes the better points into the call's result; returns which images need not be carried on."""
    solved = task.goal[state.index].met(state.logits)
    state.fooled = state.fooled | solved
    values = values.masked_fill(solved, torch.inf)
    better = values > best_loss[state.index]
    if task.eot > 1:
        better, done = better | solved, torch.zeros_like(solved)
    else:
        done = solved
    best[state.index[better]], best_loss[state.index[better]] = state.points[better], values[better]
    return done


def _evaluate(task: _Task, state: _State, step: int, last: bool) -> Tensor:
    """Loss, logits and (but for the last point) gradient at the new points; keeps the best of the run."""
    if last:
        state.logits = task.model(state.points)
        values = task.loss(state.logits, task.aim[state.index])
    else:
        values, state.logits, state.gradient = task.climb(state.points, state.index)
    state.losses[:, step] = values
    better = values > state.best_loss
    wide = per_image(better, state.points).bool()
    state.best = torch.where(wide, state.points, state.best)
    state.best_gradient = torch.where(wide, state.gradient, state.best_gradient)
    state.best_loss = torch.where(better, values, state.best_loss)
    return values


def _drop_solved(task: _Task, state: _State, values: Tensor, best: Tensor, best_loss: Tensor) -> None:
    done = _note(task, state, values, best, best_loss)
    if bool(done.any()):
        state.keep(~done)


def _climb(attack: APGD, task: _Task, state: _State, best: Tensor, best_loss: Tensor) -> Tensor:
    """Algorithm 1 for linf and l2."""
    steps = attack.steps
    window, shrink, smallest = max(int(0.22 * steps), 1), max(int(0.03 * steps), 1), max(int(0.06 * steps), 1)
    since = 0
    _drop_solved(task, state, state.best_loss.clone(), best, best_loss)
    for step in range(steps):
        if not len(state.index):
            break
        state.points = attack._ascend(state, step)
        values = _evaluate(task, state, step, last=step == steps - 1)
        _drop_solved(task, state, values, best, best_loss)
        since += 1
        if since == window:
            attack._returned(state, _checkpoint(state, step, window))
            since, window = 0, max(window - shrink, smallest)
    return state.index[~state.fooled]


def _checkpoint(state: _State, step: int, window: int) -> Tensor:
    """Halves the step, and goes back to the best point, where progress was poor (conditions 1 and 2): there True."""
    # Before step 0 the published code compares with a loss of zero, the last column not yet written.
    recent = [state.losses[:, step - i] > state.losses[:, step - i - 1] for i in range(window)]
    rises = torch.stack(recent).sum(0)
    stuck = ~state.reduced & (state.checked_loss >= state.best_loss)
    halve = (rises <= 0.75 * window) | stuck
    state.reduced, state.checked_loss = halve, state.best_loss.clone()
    state.size = torch.where(halve, state.size / 2, state.size)
    wide = per_image(halve, state.points).bool()
    state.points = torch.where(wide, state.best, state.points)
    state.gradient = torch.where(wide, state.best_gradient, state.gradient)
    return halve


def _climb_l1(
    task: _Task, state: _State, steps: int, factor: int, best: Tensor | None, best_loss: Tensor | None
) -> Tensor:
    """The l1 form: sparse steps whose sparsity follows that of the best point. ``best`` None: a ball wider than eps."""
    geometry, values_per_image = task.geometry, math.prod(state.images.shape[1:])
    window, since = max(int(0.04 * steps), 1), 0
    changed = _changed(state.points, state.images)
    share, old = changed / values_per_image / 1.5, changed
    if best is not None and best_loss is not None:
        done = _note(task, state, state.best_loss.clone(), best, best_loss)
        share, old = share[~done], old[~done]
        state.keep(~done)
    for step in range(steps):
        if not len(state.index):
            break
        radius = factor * state.eps
        sparse = _sparse_sign(state.gradient, share)
        moved = state.points + per_image(state.size, sparse) * sparse / per_image(_l1(sparse) + 1e-10, sparse)
        state.points = geometry.project(moved, state.images, radius)
        values = _evaluate(task, state, step, last=step == steps - 1)
        if best is not None and best_loss is not None:
            done = _note(task, state, values, best, best_loss)
            if bool(done.any()):
                share, old = share[~done], old[~done]
                state.keep(~done)
        since += 1
        if since == window and len(state.index):
            since = 0
            now = _changed(state.best, state.images)
            sparser = now / old.clamp_min(1) < 0.95
            share, old = now / values_per_image / 1.5, now
            radius = factor * state.eps
            state.size = torch.where(sparser, radius, state.size / 1.5).clamp(radius / 10, radius)
            wide = per_image(sparser, state.points).bool()
            state.points = torch.where(wide, state.best, state.points)
            state.gradient = torch.where(wide, state.best_gradient, state.gradient)
    return state.index[~state.fooled]


def _changed(points: Tensor, images: Tensor) -> Tensor:
    return (points != images).flatten(1).sum(1).to(points.dtype)


def _l1(values: Tensor) -> Tensor:
    return values.flatten(1).abs().sum(1)


def _sparse_sign(gradient: Tensor, share: Tensor) -> Tensor:
    """The signs of the largest ``share`` of each gradient's values, zero elsewhere."""
    size = gradient.flatten(1).abs()
    count = size.shape[1]
    place = ((1 - share) * count).clamp(0, count - 1).long()
    least = size.sort(1).values.gather(1, place[:, None])
    return (gradient.flatten(1).sign() * (size >= least)).view_as(gradient)
