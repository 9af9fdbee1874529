"""What an attacker wants of a detector, as a loss to bring down and as an outcome to count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from robust.detection.detector import Detection, class_scores, overlaps
from robust.errors import InputError

# A detection belongs to an object from this intersection over union on. It is far below the usual 0.5, so that a box
# which is only moved or shrunk does not count as gone.
TOUCHING = 0.1
# A detection reads the object as another class from this overlap on.
COVERING = 0.5
# How far beyond the threshold the loss still pulls, in log-odds of the score.
MARGIN = 2.0


@dataclass(frozen=True)
class DetectionGoal:
    """No object of class ``source`` is seen, or, with ``target``, it is seen as that class instead.

    ``threshold``: the score from which a detection counts, in (0, 1).
    """

    source: int
    target: int | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.target == self.source:
            raise InputError(f"the target {self.target} is the source's own class: choose another target")
        if not (0 < self.threshold < 1):
            raise InputError(f"the detection threshold must lie between 0 and 1, not {self.threshold:g}")

    @property
    def lowest(self) -> float:
        """The least score that the loss looks at, ``MARGIN`` in log-odds below the threshold."""
        return float(torch.sigmoid(torch.logit(torch.tensor(self.threshold)) - MARGIN))

    def loss(self, found: Detection, boxes: Tensor) -> Tensor:
        """At least 0, and 0 where the goal is met with the margin to spare; () of one image with true boxes (m, 4).

        Every detection that touches an object pays for the log-odds of ``source`` over the threshold; with a target,
        the surest detection that covers it pays for what the target lacks.
        """
        near = overlaps(found, boxes)
        bar = torch.logit(near.new_tensor(self.threshold))
        sure = _log_odds(class_scores(found, self.source)) - bar
        loss = torch.relu(sure + MARGIN)[near >= TOUCHING].sum()
        if self.target is None:
            return loss
        wanted = (_log_odds(class_scores(found, self.target)) - bar)[near >= COVERING]
        # With nothing to push on, the constant stands for a detection of the least score.
        best = wanted.max() if len(wanted) else wanted.new_tensor(-MARGIN)
        return loss + torch.relu(MARGIN - best)

    def met(self, found: Detection, boxes: Tensor) -> Tensor:
        """Whether the goal is met for each true box (m, 4): (m,) bool."""
        counted = found["scores"] >= self.threshold
        seen = _near(found, boxes, counted & (found["labels"] == self.source), TOUCHING)
        if self.target is None:
            return ~seen
        return ~seen & _near(found, boxes, counted & (found["labels"] == self.target), COVERING)


def _near(found: Detection, boxes: Tensor, which: Tensor, overlap: float) -> Tensor:
    """For each box, whether one of the chosen detections overlaps it that far: (m,) bool."""
    chosen = found["boxes"][which].detach()
    shared: Tensor = box_iou(boxes.to(chosen), chosen) >= overlap
    return shared.any(1)


def _log_odds(scores: Tensor) -> Tensor:
    # Kept off 0 and 1, where the log-odds have no gradient.
    return torch.logit(scores, eps=1e-6)
