"""What a patch costs a detector: recall, average precision and how often the goal is met, beside controls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from robust.attacks.patch.measure import CONTROLS, control
from robust.attacks.patch.regions import Region
from robust.attacks.patch.transforms import Conditions, Drawn
from robust.detection.attack import check_scenes
from robust.detection.average_precision import AveragePrecision, average_precision, recalled
from robust.detection.detector import Detection, Detector, detect, sensitive
from robust.detection.goals import DetectionGoal
from robust.detection.scenes import FRAME, patched, seen
from robust.float32 import exact_float32
from robust.randomness import image_seeds
from robust.stats import mean_rate
from robust.summary import MeanRate

# From this score on, detections count in the average precision; below there is only noise, and it costs time.
_LOWEST = 0.01
_AT_ONCE = 32  # pictures that the detector is given together


@dataclass(frozen=True)
class Sight:
    """How a detector sees the objects of one row of a table, over all draws of all images.

    recall: share of the objects found, at the goal's threshold and overlap 0.5; average_precision: at overlap 0.5.
    gone, misread: shares of the objects that are found untouched under the same conditions and that now are not seen
        as the source class at all, or as the target instead; None for the untouched, and for misread without a target.

    Intervals are over images: draws of one image are not independent.
    """

    recall: MeanRate
    average_precision: AveragePrecision
    gone: MeanRate | None
    misread: MeanRate | None


@dataclass(frozen=True)
class DistanceBand:
    """The patch's success among draws whose distance lies in [low, high): means over ``draws`` draws."""

    low: float
    high: float
    draws: int
    met: MeanRate | None


@dataclass(frozen=True)
class DetectionMeasurement:
    """images, draws: how many, and draws of each; area: the patch's share of the object's box; sights: by name, which
    are ``clean``, ``patch`` and the controls of the same area; bands: the patch's success by distance."""

    images: int
    draws: int
    area: float
    sights: dict[str, Sight]
    bands: list[DistanceBand]


@exact_float32()
def measure_detector(
    detector: Detector,
    images: Tensor,
    boxes: Tensor,
    goal: DetectionGoal,
    patch: Tensor,
    region: Region,
    conditions: Conditions | None = None,
    *,
    draws: int = 4,
    bins: int = 3,
    seed: int = 1,
) -> DetectionMeasurement:
    """How the detector sees objects untouched, with the patch (3, h, w), and with controls in the patch's place.

    Args as of :func:`robust.detection.attack.attack_detector`; every image is shown ``draws`` times. ``seed`` should be
    another than the one the patch was made with. The same seed shows every row the same conditions.
    """
    boxes = check_scenes(images, boxes)
    cover = region.cover(FRAME)
    textures: dict[str, Tensor | None] = {"clean": None, "patch": patch.to(images)}
    textures |= {name: control(name, 3, cover.shape, seed).to(images) for name in CONTROLS}
    shown = _Shown(detector, images.detach(), boxes, goal, region, conditions or Conditions(), draws, seed)
    with torch.no_grad(), sensitive(detector, min(_LOWEST, goal.threshold)):
        views = {name: shown.views(texture) for name, texture in textures.items()}
    found = ~shown.met(views["clean"], DetectionGoal(goal.source, threshold=goal.threshold))
    return DetectionMeasurement(
        images=len(images),
        draws=draws,
        area=float(cover.mean()),
        sights={name: shown.sight(view, None if name == "clean" else found) for name, view in views.items()},
        bands=list(shown.bands(shown.met(views["patch"], goal), found, bins)),
    )


@dataclass(frozen=True)
class _Views:
    """Per draw and image, draw by draw: what was detected, and the object's box (1, 4)."""

    found: list[Detection]
    truths: list[Tensor]


@dataclass(frozen=True)
class _Shown:
    detector: Detector
    images: Tensor
    boxes: Tensor
    goal: DetectionGoal
    region: Region
    conditions: Conditions
    draws: int
    seed: int

    def drawn(self) -> list[Drawn]:
        seeds = image_seeds(self.images, self.seed)
        return [self.conditions.draw(seeds, turn) for turn in range(self.draws)]

    def views(self, texture: Tensor | None) -> _Views:
        views = _Views([], [])
        for drawn in self.drawn():
            scene = self.images
            if texture is not None:
                scene = patched(scene, self.boxes, texture, self.region, drawn)
            pictures, objects = seen(scene, self.boxes, drawn)
            for part in torch.split(pictures, _AT_ONCE):
                views.found.extend(detect(self.detector, list(part)))
            views.truths.extend(objects[:, None])
        return views

    def met(self, views: _Views, goal: DetectionGoal) -> Tensor:
        """Whether the goal is met, (draws, images) bool."""
        met = [goal.met(*pair) for pair in zip(views.found, views.truths, strict=True)]
        return torch.cat(met).view(self.draws, -1)

    def sight(self, views: _Views, counted: Tensor | None) -> Sight:
        goal, n = self.goal, len(self.images)
        pairs = list(zip(views.found, views.truths, strict=True))
        recall = torch.cat([recalled(*pair, goal.source, goal.threshold) for pair in pairs]).view(self.draws, n)
        everything = torch.ones_like(recall)
        gone = misread = None
        if counted is not None:
            gone = _share(self.met(views, DetectionGoal(goal.source, threshold=goal.threshold)), counted)
            misread = None if goal.target is None else _share(self.met(views, goal), counted)
        recalls = _share(recall, everything)
        assert recalls is not None
        groups = list(range(n)) * self.draws
        precision = average_precision(views.found, views.truths, goal.source, groups=groups)
        return Sight(recalls, precision, gone, misread)

    def bands(self, met: Tensor, counted: Tensor, bins: int) -> Iterator[DistanceBand]:
        distance = torch.stack([drawn.distance for drawn in self.drawn()])
        low, high = self.conditions.distance
        if high == low:
            return
        edges = [low + (high - low) * index / bins for index in range(bins)] + [high + 1e-6]
        for start, end in pairwise(edges):
            inside = counted & (distance >= start) & (distance < end)
            yield DistanceBand(start, min(end, high), int(inside.sum()), _share(met, inside))


def _share(hits: Tensor, counted: Tensor) -> MeanRate | None:
    """Mean over images of the share of their counted draws that are hits; both (draws, images) bool."""
    weights = counted.sum(0)
    some = weights > 0
    if not bool(some.any()):
        return None
    shares = (hits & counted).sum(0)[some].double() / weights[some]
    return mean_rate(float(shares.sum()), len(shares))
