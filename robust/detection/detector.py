"""What a detector is to `robust`: torchvision's plain protocol, and how to see what it scores below its threshold.

A detector is a callable from a list of images, each float (3, H, W) in [0, 1], to one dictionary per image: ``boxes``
(n, 4) as x0, y0, x1, y1 in pixels, ``labels`` (n,) integers, ``scores`` (n,) in [0, 1], differentiable with respect to
the images. torchvision's detectors in eval mode are that as they stand. Optionally ``class_scores`` (n, K): how each
box scores for every class; it helps attacks that want one particular class, and no figure reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from robust.errors import InputError

Detection = dict[str, Tensor]
Detector = Callable[[list[Tensor]], list[Detection]]


def detect(detector: Detector, images: Sequence[Tensor]) -> list[Detection]:
    """The detector's answer. Raises InputError where it does not keep to the protocol."""
    given = detector(list(images))
    if not isinstance(given, (list, tuple)) or len(given) != len(images):
        raise InputError(f"the detector must return one dictionary for each of {len(images)} images: put it in eval()")
    for answer in given:
        if not isinstance(answer, dict) or not {"boxes", "labels", "scores"} <= answer.keys():
            raise InputError("the detector must return dictionaries with boxes, labels and scores: wrap it so")
        n = len(answer["scores"])
        if answer["boxes"].shape != (n, 4) or answer["labels"].shape != (n,) or answer["scores"].shape != (n,):
            raise InputError(f"boxes, labels and scores must be (n, 4), (n,) and (n,), not {_shapes(answer)}")
    return list(given)


def _shapes(answer: Detection) -> str:
    return ", ".join(str(tuple(answer[key].shape)) for key in ("boxes", "labels", "scores"))


@contextmanager
def sensitive(detector: Detector, threshold: float) -> Iterator[None]:
    """Within, the detector in eval mode also returns detections that score between ``threshold`` and its own one.

    The own threshold is ``score_thresh``, on the detector or on one of its parts, as in torchvision's and in ours; a
    detector without one is used as it is.
    """
    parts: list[Any] = list(detector.modules()) if isinstance(detector, nn.Module) else [detector]
    kept = [(part, part.score_thresh) for part in parts if isinstance(getattr(part, "score_thresh", None), float)]
    training = [(part, part.training) for part in parts if isinstance(part, nn.Module)]
    try:
        for part, own in kept:
            part.score_thresh = min(own, threshold)
        for part, _ in training:
            part.training = False
        yield
    finally:
        for part, own in kept:
            part.score_thresh = own
        for part, was in training:
            part.training = was


def class_scores(found: Detection, label: int) -> Tensor:
    """How each box scores for one class, (n,): from ``class_scores``, else the score where the label is that class."""
    if "class_scores" in found:
        return found["class_scores"][:, label]
    return torch.where(found["labels"] == label, found["scores"], 0)


def overlaps(found: Detection, boxes: Tensor) -> Tensor:
    """Intersection over union of each detection with the nearest of ``boxes`` (m, 4): (n,), 0 where there is none."""
    if not len(boxes):
        return torch.zeros_like(found["scores"])
    shared: Tensor = box_iou(found["boxes"].detach(), boxes.to(found["boxes"]))
    return shared.amax(1)
