"""A patch on an object that makes a detector lose it or take it for something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robust.attacks.patch.optimize import PatchAttack, PatchResult, Scene, State, optimize
from robust.attacks.patch.placing import check_boxes
from robust.attacks.patch.regions import Region
from robust.attacks.patch.transforms import Conditions
from robust.detection.detector import Detector, detect, sensitive
from robust.detection.goals import DetectionGoal
from robust.detection.scenes import FRAME, patched, seen
from robust.errors import InputError
from robust.progress import Progress


def attack_detector(
    detector: Detector,
    images: Tensor,
    boxes: Tensor,
    goal: DetectionGoal,
    region: Region,
    conditions: Conditions | None = None,
    attack: PatchAttack | None = None,
    *,
    initial: Tensor | None = None,
    progress: Progress | None = None,
    state: State | None = None,
    keep: Callable[[State], None] | None = None,
    keep_every: int = 20,
) -> PatchResult:
    """One patch for the objects in all images that brings the detector to ``goal``.

    Args:
        detector: torchvision's protocol, see :mod:`robust.detection.detector`; in eval mode meanwhile.
        images: (N, 3, H, W) in [0, 1]; boxes: (N, 4), x0 y0 x1 y1 in pixels, the object in each: the patch's frame.
        region: where in that frame it lies; a mask should be no finer than the boxes' pixels.
        conditions: seen how; ``distance`` makes the picture smaller in its frame.
        attack: the optimizer's settings, of which ``loss`` and ``enough`` are not used: the goal has its own.
        initial, progress, state, keep, keep_every: as of :func:`robust.attacks.patch.train_patch`.

    Raises InputError for images or boxes that do not fit, for a goal whose target is its source and for a detector that
    breaks the protocol; NoGradientError where no gradient reaches the patch.
    """
    attack = attack or PatchAttack()
    if attack.per_image:
        raise InputError("a detector's patch is one for all images: leave per_image off")
    boxes = check_scenes(images, boxes)
    scene = _Detection(images.detach(), boxes, region, conditions or Conditions(), attack, detector, goal)
    with sensitive(detector, goal.lowest):
        return optimize(scene, initial, progress, state, keep, keep_every)


def check_scenes(images: Tensor, boxes: Tensor) -> Tensor:
    """The boxes as (N, 4) floats on the images' device. Raises InputError for what does not fit."""
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point() or not len(images):
        raise InputError(f"a detector needs images (N, 3, H, W) of floats, not {images.dtype} {tuple(images.shape)}")
    if not (images.min() >= -1e-6 and images.max() <= 1 + 1e-6):
        raise InputError("images must lie in [0, 1]: divide 8-bit images by 255")
    return check_boxes(boxes, images)


@dataclass(frozen=True)
class _Detection(Scene):
    detector: Detector
    goal: DetectionGoal

    @cached_property
    def cover(self) -> Tensor:
        return self.region.cover(FRAME).to(self.images)

    def gain(self, patch: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        boxes, drawn = self.boxes[rows], self.conditions.draw(self.seeds[rows], step)
        light = None if self.light is None else self.light[rows]
        pictures, objects = seen(patched(self.images[rows], boxes, patch[0], self.region, drawn, light), boxes, drawn)
        found = detect(self.detector, list(pictures))
        pairs = list(zip(found, objects[:, None], strict=True))
        # The pictures' own zero share keeps the gradient alive where nothing is detected at all.
        loss = torch.stack([self.goal.loss(*pair) for pair in pairs]) + 0 * pictures.flatten(1).sum(1)
        return -loss, torch.cat([self.goal.met(*pair) for pair in pairs])
