"""Average precision of one class, as COCO computes it at one overlap, with an interval, and recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from robust.detection.detector import Detection

_RECALLS = np.linspace(0, 1, 101)
Matched = tuple[NDArray[np.float64], NDArray[np.bool_], int]


@dataclass(frozen=True)
class AveragePrecision:
    """A value in [0, 1] with its 95 % bootstrap interval over images, and the number of true objects."""

    value: float
    low: float
    high: float
    objects: int


def average_precision(
    found: Sequence[Detection],
    truths: Sequence[Tensor],
    label: int,
    overlap: float = 0.5,
    *,
    groups: Sequence[int] | None = None,
    resamples: int = 500,
) -> AveragePrecision:
    """Average precision of the class ``label``: precision at 101 recalls, each the best at that recall or above.

    Args:
        found: per image the detections.
        truths: per image the true boxes (m, 4) of the class.
        overlap: intersection over union from which a detection is right; each true box is found once at most.
        groups: of each image, what it belongs to; pictures of one object are drawn together. None: each for itself.
        resamples: draws of the bootstrap over groups, seeded: the same input gives the same interval.

    Raises ValueError if there is no true box at all.
    Source: the COCO evaluation (Lin et al., ECCV 2014) at one overlap, without crowds and size classes.
    """
    matched = [_matched(each, boxes, label, overlap) for each, boxes in zip(found, truths, strict=True)]
    objects = sum(true for _, _, true in matched)
    if not objects:
        raise ValueError("average precision needs at least one true box")
    members: dict[int, list[Matched]] = {}
    for group, each in zip(groups or range(len(matched)), matched, strict=True):
        members.setdefault(group, []).append(each)
    kept = list(members.values())
    draws = np.random.default_rng(0).integers(len(kept), size=(resamples, len(kept)))
    drawn = [[each for index in draw for each in kept[index]] for draw in draws]
    values = [_area(draw) for draw in drawn if any(true for _, _, true in draw)]
    value = _area(matched)
    low, high = np.quantile(values, [0.025, 0.975]) if values else (value, value)
    return AveragePrecision(value, min(float(low), value), max(float(high), value), objects)


def _matched(found: Detection, truths: Tensor, label: int, overlap: float) -> Matched:
    """Scores from high to low, which of the detections hit a true box not yet taken, and how many true boxes."""
    mine = found["labels"] == label
    scores, order = found["scores"][mine].detach().double().cpu().sort(descending=True, stable=True)
    hits = np.zeros(len(order), bool)
    if len(order) and len(truths):
        shared = box_iou(found["boxes"][mine].detach().double().cpu(), truths.double().cpu())[order]
        for rank, row in enumerate(shared):
            best, which = row.max(0)
            if best >= overlap:
                hits[rank] = True
                shared[:, which] = -1
    return scores.numpy(), hits, len(truths)


def _area(matched: Sequence[Matched]) -> float:
    scores = np.concatenate([scores for scores, _, _ in matched])
    hits = np.concatenate([hits for _, hits, _ in matched])[np.argsort(-scores, kind="stable")]
    right = np.cumsum(hits)
    recall = right / sum(true for _, _, true in matched)
    precision = right / np.arange(1, len(hits) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    return float(envelope[np.searchsorted(recall, _RECALLS)].mean())


def recalled(found: Detection, boxes: Tensor, label: int, threshold: float, overlap: float = 0.5) -> Tensor:
    """Which of the true boxes (m, 4) a detection of ``label`` with at least that score and overlap covers: (m,) bool.

    One detection can only cover one box: the strongest detections choose first, as in the average precision.
    """
    kept = (found["labels"] == label) & (found["scores"] >= threshold)
    order = found["scores"][kept].argsort(descending=True, stable=True)
    covered = torch.zeros(len(boxes), dtype=torch.bool, device=found["boxes"].device)
    if len(order) and len(boxes):
        shared = box_iou(found["boxes"][kept].detach(), boxes.to(found["boxes"]))[order]
        for row in range(len(shared)):
            best, which = shared[row].max(0)
            if best >= overlap:
                covered[which] = True
                shared[:, which] = -1
    return covered
