"""FAB: the fast adaptive boundary attack, which walks to the decision boundary and along it towards the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.base import Attack, Goal, Knowledge, Model, still_open
from robust.attacks.hyperplane import step_over
from robust.errors import InputError, NoGradientError
from robust.threats import per_image


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack: looks for the smallest perturbation, and knows eps only as the verdict's bound.

    Each step replaces the decision boundary by a hyperplane, steps over it from the iterate and, with a little weight,
    from the image, and moves an iterate that fools the model back towards the image.

    Settings:
        steps: steps per run, of two forward passes and of one backward pass per class the hyperplane is chosen from.
        restarts: runs (per target); those after the first start at a random point, at half of eps from the image or at
            half of the smallest perturbation found, whichever is smaller.
        n_targets: 0 chooses in each step the hyperplane of the nearest of all other classes. With n > 0 (FAB-T) one
            run each goes to the hyperplane of the classes of 2nd to (n+1)-th highest logit at the clean image; any
            misclassification counts. With fewer classes there are fewer targets.
        alpha_max: largest weight of the step from the image.
        eta: how far over the hyperplane to step, 1 being just onto it.
        beta: the share of its perturbation that an iterate keeps when it is moved back.
        minimize: whether an image broken inside eps is searched on for a smaller perturbation. False is AutoAttack's
            use: the image leaves the batch, at no change to which images are broken.

    Returns the smallest adversarial perturbation found where it lies inside eps. For the other images the best iterate
    (the smallest adversarial one, else the last) comes back, projected into ball and box.

    Source: Croce and Hein, ICML 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
    algorithm 1; restarts, FAB-T and its targets as in AutoAttack (Croce and Hein, ICML 2020).
    """

    _: KW_ONLY
    steps: int = 100
    restarts: int = 1
    n_targets: int = 0
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    minimize: bool = True

    name: ClassVar[str] = "fab"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "Croce and Hein, ICML 2020"
    targetable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or self.n_targets < 0:
            raise InputError(
                f"fab needs steps >= 1, restarts >= 1 and n_targets >= 0, not {self.steps}, {self.restarts} and "
                f"{self.n_targets}"
            )
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            raise InputError(
                f"fab needs alpha_max in [0, 1], eta >= 1 and beta in (0, 1), not {self.alpha_max:g}, {self.eta:g} and "
                f"{self.beta:g}"
            )

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        logits = model(images)
        index = still_open(logits, goal, eps)
        result, found = images.clone(), _Found(images.clone(), torch.full_like(eps, torch.inf))
        attacked = index
        for number, (classes, random) in enumerate(self._runs(logits, goal)):
            if not len(index):
                break
            run = _Run(model, images[index], goal[index], classes[index], eps[index], index)
            points = self._start(run, found, seeds[index], 8 * number) if random else run.images.clone()
            index = self._run_once(run, points, found)
        result[attacked] = self.geometry.project(found.points[attacked], images[attacked], eps[attacked])
        inside = self.geometry.contains(found.points, images, eps) & found.distance.isfinite()
        result[inside] = found.points[inside]
        return result

    def _runs(self, logits: Tensor, goal: Goal) -> Iterator[tuple[Tensor, bool]]:
        """For each run the classes (N, m) whose hyperplanes it looks at, and whether it starts at random."""
        ranked = logits.scatter(1, goal.labels[:, None], -torch.inf).argsort(dim=1, descending=True)
        others = logits.shape[1] - 1
        for first in range(min(self.n_targets, others) or 1):
            for restart in range(self.restarts):
                yield (ranked[:, first : first + 1] if self.n_targets else ranked[:, :others]), restart > 0

    def _start(self, run: _Run, found: _Found, seeds: Tensor, stream: int) -> Tensor:
        shape, kind = run.images.shape[1:], run.images.dtype
        if self.norm == "linf":
            noise = 2 * randomness.uniform(seeds, stream, shape, kind) - 1
        else:
            noise = randomness.normal(seeds, stream, shape, kind)
        # No two images are further apart than their number of values, in any norm: the cap keeps inf from giving NaN.
        radius = torch.minimum(found.distance[run.index], run.eps).clamp_max(shape.numel()) / 2
        scale = radius / self.geometry.length(noise).clamp_min(1e-12)
        return (run.images + noise * per_image(scale, noise)).clamp(0, 1)

    def _run_once(self, run: _Run, points: Tensor, found: _Found) -> Tensor:
        """One run from ``points``; notes what it finds and returns the positions of the images to go on with."""
        for _ in range(self.steps):
            points = self._step(run, points)
            fooled = run.goal.met(run.model(points))
            found.note(run.index, points, self.geometry.length(points - run.images), fooled)
            back = run.images + (points - run.images) * self.beta
            solved = fooled & self.geometry.contains(points, run.images, run.eps)
            points = torch.where(per_image(fooled, points).bool(), back, points)
            if not self.minimize and bool(solved.any()):
                run, points = run[~solved], points[~solved]
                if not len(run.index):
                    break
        return run.index

    def _step(self, run: _Run, points: Tensor) -> Tensor:
        """Over the hyperplane, from the iterate and from the image, and the two steps mixed."""
        gap, normal = nearest_hyperplane(run.model, points, run.goal.labels, run.classes, self.norm)
        return step_over(points, run.images, gap, normal, self.norm, self.alpha_max, self.eta)


@dataclass(frozen=True)
class _Run:
    """What stays the same over one run, one row per image still in it."""

    model: Model
    images: Tensor
    goal: Goal
    classes: Tensor  # (n, m): whose hyperplanes to look at
    eps: Tensor
    index: Tensor  # position in the call's batch

    def __getitem__(self, keep: Tensor) -> _Run:
        return _Run(
            self.model, self.images[keep], self.goal[keep], self.classes[keep], self.eps[keep], self.index[keep]
        )


@dataclass(frozen=True)
class _Found:
    """The smallest adversarial points so far, and their distance: inf where there is none, and the last iterate."""

    points: Tensor
    distance: Tensor

    def note(self, index: Tensor, points: Tensor, length: Tensor, fooled: Tensor) -> None:
        nearer = torch.where(fooled, length < self.distance[index], self.distance[index].isinf())
        self.points[index[nearer]] = points[nearer]
        smaller = nearer & fooled
        self.distance[index[smaller]] = length[smaller]


def nearest_hyperplane(
    model: Model, points: Tensor, labels: Tensor, classes: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """The linearized decision boundary that is nearest to each point, among those towards ``classes`` (N, m).

    Returns the gap z_s - z_y (N,) of the class s chosen, and its gradient (N, D): the hyperplane is where
    gap + gradient @ d = 0. Nearest is by |gap| / (dual norm of the gradient), without regard to the box. Costs one
    forward pass and m backward passes. Raises NoGradientError where no gradient reaches the input.
    """
    leaf = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        gaps = logits.gather(1, classes) - logits.gather(1, labels[:, None])
        totals = gaps.sum(0).unbind()
        if not gaps.requires_grad:
            raise NoGradientError("no gradient reaches the model's input: it detaches, quantizes or runs without grad")
    order = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    best_gap, best_normal = torch.zeros_like(gaps[:, 0]).detach(), torch.zeros_like(points).flatten(1)
    best_distance = torch.full_like(best_gap, torch.inf)
    for i, total in enumerate(totals):
        (gradient,) = torch.autograd.grad(total, leaf, retain_graph=i + 1 < len(totals), allow_unused=True)
        if gradient is None:
            raise NoGradientError("no gradient reaches the model's input: the output does not depend on it")
        normal, gap = gradient.flatten(1).nan_to_num(0, 0, 0), gaps[:, i].detach()
        distance = gap.abs() / (torch.linalg.vector_norm(normal, order, dim=1) + 1e-12)
        nearer = distance < best_distance
        best_gap, best_distance = torch.where(nearer, gap, best_gap), torch.where(nearer, distance, best_distance)
        best_normal = torch.where(nearer[:, None], normal, best_normal)
    return best_gap, best_normal
