"""Patches made by gradient ascent over images, placements and conditions: universal, stickers, or one per image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robust.attacks.base import Goal, Model
from robust.attacks.losses import LOSSES
from robust.attacks.patch.placing import check_boxes, in_pixels, light_on, paste, whole
from robust.attacks.patch.printing import non_printability, total_variation
from robust.attacks.patch.regions import Region
from robust.attacks.patch.transforms import Conditions, apply
from robust.errors import InputError, NoGradientError, unknown
from robust.models import evaluating
from robust.progress import Progress, Silent
from robust.randomness import image_seeds, uniform


@dataclass(frozen=True)
class PatchAttack:
    """Settings of the optimizer.

    steps: gradient steps. batch: images in each; every image has a placement and conditions of its own at each step.
    rate: the step size at first, in [0, 1] pixel units, falling to a hundredth of it as a cosine.
    loss: ``margin``, cut at ``enough`` so that images read wrong with that much margin in logits no longer pull, or
        ``ce``.
    nps, tv: weights of non-printability and total variation. palette: printable colors (K, 3).
    per_image: one patch per image (LaVAN) instead of one for all; steps are then those of each image.
    restarts: starting points; after a tenth of the steps the one that misleads best goes on, of patches per image
        each one's own best. seed: of all draws.
    """

    steps: int = 300
    batch: int = 32
    rate: float = 0.2
    loss: str = "margin"
    enough: float = 5.0
    nps: float = 0.0
    tv: float = 0.0
    palette: Tensor | None = None
    per_image: bool = False
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("margin", "ce"):
            raise unknown("patch loss", self.loss, ("margin", "ce"))
        if self.steps < 1 or self.batch < 1 or self.restarts < 1:
            raise InputError("a patch needs steps, batch and restarts of at least 1")
        if not (self.rate > 0 and self.nps >= 0 and self.tv >= 0):
            raise InputError("a patch needs rate > 0 and nps, tv >= 0")
        if self.nps > 0 and self.palette is None:
            raise InputError("non-printability needs a palette: see robust.attacks.patch.default_palette")


@dataclass(frozen=True)
class PatchResult:
    """patch: (C, h, w) in [0, 1], or (N, C, h, w) where there is one per image. cover: (h, w), what of it is patch.

    history, gains: per step the share of the batch's images on which it reached its goal (the target or, without one,
    anything but the label) and the mean loss that it maximizes, before the step.
    """

    patch: Tensor
    cover: Tensor
    region: Region
    history: list[float]
    gains: list[float]


State = dict[str, Any]


def train_patch(
    model: Model,
    images: Tensor,
    labels: Tensor,
    target: int | None,
    region: Region,
    conditions: Conditions | None = None,
    attack: PatchAttack | None = None,
    *,
    boxes: Tensor | None = None,
    initial: Tensor | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    keep_every: int = 20,
) -> PatchResult:
    """A patch that makes ``model`` read images as ``target`` (None: as anything but their label).

    Args:
        images: (N, C, H, W) in [0, 1]; labels: (N,), their classes; none may be the target.
        region: where it lies; conditions: seen how (None: as is); attack: the optimizer's settings.
        boxes: (N, 4), x0 y0 x1 y1 in pixels: each image's frame for the region; None: the whole image.
        initial: patch to start from instead of grey, of the texture's shape.
        keep: called every ``keep_every`` steps with what ``state`` takes to go on: numbers and tensors.

    The model's weights, flags and gradients and the global random state are left as they were. Raises InputError for
    images, labels, target or boxes that do not fit; NoGradientError where no gradient reaches the input.
    """
    labels = check_source(images, labels, target)
    frames = whole(images) if boxes is None else check_boxes(boxes, images)
    given = (images.detach(), frames, region, conditions or Conditions(), attack or PatchAttack())
    with evaluating(model):
        return optimize(_Reading(*given, model, labels, target), initial, progress, state, keep, keep_every)


def optimize(
    scene: Scene,
    initial: Tensor | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    keep_every: int = 20,
) -> PatchResult:
    """The patch that gains most in ``scene``; the other arguments are those of :func:`train_patch`."""
    progress, steps = progress or Silent(), scene.attack.steps
    with torch.inference_mode(False):
        if scene.attack.per_image:
            return _each(scene, initial, progress, state, keep)
        run = _Run.resumed(state) if state else _first(scene, _starts(scene, initial))
        progress.stage("patch", steps)
        progress.advance(run.step)
        while run.step < steps:
            scene.advance(run)
            progress.advance(1)
            if keep is not None and run.step % keep_every == 0:
                keep(run.state())
    return PatchResult(run.patch[0].detach(), scene.cover, scene.region, run.history, run.gains)


def check_source(images: Tensor, labels: Tensor, target: int | None) -> Tensor:
    """Labels as (N,) int64 on the images' device. Raises InputError for what makes no attack."""
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        raise InputError(f"a patch needs images (N, C, H, W) of floats, not {images.dtype} {tuple(images.shape)}")
    if not (images.min() >= -1e-6 and images.max() <= 1 + 1e-6):
        raise InputError("images must lie in [0, 1]: divide 8-bit images by 255")
    given = torch.as_tensor(labels, device=images.device)
    if given.is_floating_point() or given.shape != (len(images),):
        raise InputError(f"labels must be {len(images)} class numbers, not {given.dtype} {tuple(given.shape)}")
    if target is not None and bool((given == target).any()):
        raise InputError(f"the target {target} is the source's own class: choose another target")
    return given.long()


@dataclass
class _Run:
    """A patch on its way: everything that the next step depends on."""

    patch: Tensor  # (1 or N, C, h, w)
    mean: Tensor
    square: Tensor
    step: int
    history: list[float]
    gains: list[float]

    @staticmethod
    def start(patch: Tensor) -> _Run:
        return _Run(patch, torch.zeros_like(patch), torch.zeros_like(patch), 0, [], [])

    @staticmethod
    def resumed(state: State) -> _Run:
        patch, mean, square = (state[name].clone() for name in ("patch", "mean", "square"))
        return _Run(patch, mean, square, int(state["step"]), list(state["history"]), list(state["gains"]))

    def state(self) -> State:
        return {
            "patch": self.patch.clone(), "mean": self.mean.clone(), "square": self.square.clone(),
            "step": self.step, "history": list(self.history), "gains": list(self.gains),
        }  # fmt: skip


@dataclass(frozen=True)
class Scene(ABC):
    """What a patch is made for: images with a frame in each, and what it gains there."""

    images: Tensor
    boxes: Tensor
    region: Region
    conditions: Conditions
    attack: PatchAttack

    @abstractmethod
    def gain(self, patch: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the patch gains on each image of ``rows``, differentiable, and whether it misleads there; both (n,)."""

    def part(self, rows: slice) -> Scene:
        """The same with some of the images."""
        return replace(self, images=self.images[rows], boxes=self.boxes[rows])

    @cached_property
    def seeds(self) -> Tensor:
        return image_seeds(self.images, self.attack.seed)

    @cached_property
    def light(self) -> Tensor | None:
        return light_on(self.images, self.boxes) if self.conditions.relit else None

    @cached_property
    def cover(self) -> Tensor:
        return self.region.cover((self.images.shape[-2], self.images.shape[-1])).to(self.images)

    def advance(self, run: _Run) -> None:
        """One step of Adam up the mean gain of the next batch."""
        attack = self.attack
        patch = run.patch.detach().requires_grad_()
        with torch.enable_grad():
            gain, misled = self.gain(patch, self._rows(run.step), run.step)
            total = gain.mean() if not attack.per_image else gain.sum()
            if attack.nps:
                assert attack.palette is not None
                total = total - attack.nps * non_printability(patch, self.cover, attack.palette).sum()
            if attack.tv:
                total = total - attack.tv * total_variation(patch, self.cover).sum()
            if not total.requires_grad:
                raise NoGradientError("no gradient reaches the patch: the model detaches, quantizes or has no gradient")
            (gradient,) = torch.autograd.grad(total, patch, allow_unused=True)
        if gradient is None:
            raise NoGradientError("no gradient reaches the patch: the output does not depend on the input")
        run.history.append(float(misled.float().mean()))
        run.gains.append(float(gain.detach().mean()))
        run.step += 1
        run.mean = 0.9 * run.mean + 0.1 * gradient
        run.square = 0.99 * run.square + 0.01 * gradient.square()
        direction = run.mean / (1 - 0.9**run.step) / ((run.square / (1 - 0.99**run.step)).sqrt() + 1e-8)
        share = 0.01 + 0.99 * (1 + math.cos(math.pi * run.step / attack.steps)) / 2
        run.patch = (patch.detach() + attack.rate * share * direction).clamp(0, 1)

    def _rows(self, step: int) -> Tensor:
        """The images of a step: every one comes as often as the others, in an order new in each round."""
        n = len(self.images)
        if self.attack.per_image or n <= self.attack.batch:
            return torch.arange(n, device=self.images.device)
        places = torch.arange(step * self.attack.batch, (step + 1) * self.attack.batch, device=self.images.device)
        rounds = torch.arange(int(places[0]) // n, int(places[-1]) // n + 1, device=places.device)
        orders = uniform(rounds * 7919 + self.attack.seed, 5, (n,)).argsort(1)
        return orders[places // n - rounds[0], places % n]


@dataclass(frozen=True)
class _Reading(Scene):
    """A classifier's reading of the images as something else than their labels (N,), or as the target."""

    model: Model
    labels: Tensor
    target: int | None

    def gain(self, patch: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        labels = self.labels[rows]
        goal = Goal(labels, None if self.target is None else torch.full_like(labels, self.target))
        logits = self.model(self._seen(patch, rows, step))
        gain = LOSSES[self.attack.loss](logits, goal)
        if self.attack.loss == "margin":
            gain = gain.clamp(max=self.attack.enough)
        return gain, goal.met(logits.detach())

    def part(self, rows: slice) -> Scene:
        return replace(self, images=self.images[rows], boxes=self.boxes[rows], labels=self.labels[rows])

    def _seen(self, patch: Tensor, rows: Tensor, step: int) -> Tensor:
        """The images of ``rows`` with the patch, under conditions of this step."""
        seeds = self.seeds[rows]
        corners = in_pixels(self.region.draw(seeds, step).corners, self.boxes[rows])
        light = None if self.light is None else self.light[rows]
        textures = patch[0] if len(patch) == 1 else patch
        return apply(paste(self.images[rows], textures, self.cover, corners, light), self.conditions.draw(seeds, step))


def _starts(scene: Scene, initial: Tensor | None) -> list[Tensor]:
    """The starting points, (1, C, h, w) each: the given one, or grey and then noise."""
    shape = (scene.images.shape[1], *scene.cover.shape)
    if initial is not None:
        if tuple(initial.shape) != shape:
            raise InputError(f"the initial patch must have the shape {shape}, not {tuple(initial.shape)}")
        return [initial.detach().to(scene.images).clone()[None]]
    grey = torch.full((1, *shape), 0.5).to(scene.images)
    seeds = [torch.tensor([scene.attack.seed * 1009 + index]) for index in range(1, scene.attack.restarts)]
    return [grey, *(uniform(seed.to(grey.device), 6, shape).to(grey) for seed in seeds)]


def _first(scene: Scene, starts: list[Tensor]) -> _Run:
    """Of several starting points, the one that misleads best after a tenth of the steps."""
    runs = [_Run.start(start) for start in starts]
    if len(runs) == 1:
        return runs[0]
    trial = _trial(scene, runs)
    return max(runs, key=lambda run: sum(run.history[-max(1, trial // 3) :]))


def _best_each(scene: Scene, starts: list[Tensor]) -> Tensor:
    """For each image, (N, C, h, w), what gains it most after a tenth of the steps from each of the starting points."""
    n = len(scene.images)
    runs = [_Run.start(start.repeat(n, 1, 1, 1)) for start in starts]
    if len(runs) == 1:
        return runs[0].patch
    trial, rows = _trial(scene, runs), torch.arange(n, device=scene.images.device)
    with torch.no_grad():
        gains = torch.stack([scene.gain(run.patch, rows, trial)[0] for run in runs])
    return torch.stack([run.patch for run in runs])[gains.argmax(0), rows]


def _trial(scene: Scene, runs: list[_Run]) -> int:
    """A tenth of the steps for each; how many that is."""
    steps = max(1, scene.attack.steps // 10)
    for run in runs:
        for _ in range(steps):
            scene.advance(run)
    return steps


def _each(
    scene: Scene, initial: Tensor | None, progress: Progress, state: State | None, keep: Callable[[State], None] | None
) -> PatchResult:
    """One patch per image, batch after batch, each for all steps."""
    attack, n = scene.attack, len(scene.images)
    done = state["patch"].clone() if state else scene.images.new_empty(0, scene.images.shape[1], *scene.cover.shape)
    # Sums over the images, step by step.
    history = list(state["history"]) if state else [0.0] * attack.steps
    gains = list(state["gains"]) if state else [0.0] * attack.steps
    progress.stage("patches", n)
    progress.advance(len(done))
    while len(done) < n:
        part = scene.part(slice(len(done), len(done) + attack.batch))
        count = len(part.images)
        run = _Run.start(_best_each(part, _starts(scene, initial)))
        while run.step < attack.steps:
            part.advance(run)
        done = torch.cat([done, run.patch])
        history = [total + count * value for total, value in zip(history, run.history, strict=True)]
        gains = [total + count * value for total, value in zip(gains, run.gains, strict=True)]
        progress.advance(count)
        if keep is not None:
            keep({"patch": done, "history": history, "gains": gains})
    return PatchResult(
        done, scene.cover, scene.region, [value / n for value in history], [value / n for value in gains]
    )
