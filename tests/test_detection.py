"""Detectors: average precision by hand, goals, and the protocol held by torchvision's own detectors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robust.attacks.patch import OnSign, PatchAttack
from robust.detection import (
    Detection,
    DetectionGoal,
    attack_detector,
    average_precision,
    detect,
    measure_detector,
    recalled,
    sensitive,
)
from robust.errors import InputError
from robust.models import load_factory

_EXAMPLES = Path(__file__).parent.parent / "examples"


def detection(*rows: tuple[float, int, list[float]]) -> Detection:
    return {
        "scores": torch.tensor([score for score, _, _ in rows]),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.int64),
        "boxes": torch.tensor([box for _, _, box in rows]).view(-1, 4),
    }


NEAR, FAR, ELSEWHERE = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [40.0, 40, 50, 50]


def test_average_precision_by_hand() -> None:
    # Three true boxes. By score: right (0.9), wrong (0.8), right (0.7), the same box again (0.6); the third is missed.
    found = [
        detection((0.9, 1, NEAR), (0.8, 1, ELSEWHERE)),
        detection((0.7, 1, NEAR), (0.6, 1, NEAR), (0.99, 2, FAR)),
    ]
    truths = [torch.tensor([NEAR]), torch.tensor([NEAR, FAR])]
    # Precision 1 up to recall 1/3 (recalls 0.00 to 0.33: 34 points), then 2/3 up to recall 2/3 (33 points), then 0.
    measured = average_precision(found, truths, label=1)
    assert measured.value == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    assert measured.objects == 3
    assert measured.low <= measured.value <= measured.high


def test_average_precision_of_the_best_and_the_worst() -> None:
    truths = [torch.tensor([NEAR])] * 3
    best = average_precision([detection((0.4, 1, NEAR))] * 3, truths, label=1)
    assert (best.low, best.value, best.high) == (1, 1, 1)
    worst = average_precision([detection((0.9, 1, FAR))] * 3, truths, label=1)
    assert (worst.low, worst.value, worst.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="at least one true box"):
        average_precision([detection()], [torch.zeros(0, 4)], label=1)


def test_average_precision_as_pycocotools_has_it() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    found, truths = random_scenes(40)
    numbers = range(1, len(truths) + 1)
    # COCO's boxes are x, y, width, height.
    given = [
        {"image_id": i, "category_id": 1, "iscrowd": 0, "bbox": wide(box), "area": 1.0, "id": 10 * i + k}
        for i, boxes in zip(numbers, truths, strict=True)
        for k, box in enumerate(boxes)
    ]
    truth = coco.COCO()
    truth.dataset = {"images": [{"id": i} for i in numbers], "categories": [{"id": 1}], "annotations": given}
    truth.createIndex()
    results = truth.loadRes(
        [
            {"image_id": i, "category_id": 1, "bbox": wide(box), "score": float(score)}
            for i, each in zip(numbers, found, strict=True)
            for box, score in zip(each["boxes"], each["scores"], strict=True)
        ]
    )
    evaluation = cocoeval.COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["precision"][0, :, 0, 0, 2].mean()  # overlap 0.5, all areas, 100 detections
    assert average_precision(found, truths, label=1).value == pytest.approx(expected, abs=1e-9)


def wide(box: Tensor) -> list[float]:
    x0, y0, x1, y1 = box.double().tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def random_scenes(n: int) -> tuple[list[Detection], list[Tensor]]:
    """True boxes, and detections around them, some too far off, some missing, some invented."""
    generator = torch.Generator().manual_seed(3)
    found, truths = [], []
    for _ in range(n):
        corner = torch.rand(3, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + 10 + 10 * torch.rand(3, 2, generator=generator)], 1)
        moved = boxes + 3 * torch.randn(3, 4, generator=generator)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)  # COCO leaves out empty boxes
        truths.append(boxes[:2])
        scores = torch.rand(3, generator=generator)
        found.append({"boxes": moved, "labels": torch.ones(3, dtype=torch.int64), "scores": scores})
    return found, truths


def test_recall_counts_each_detection_once() -> None:
    truths = torch.tensor([NEAR, [1.0, 0, 11, 10], FAR])
    found = detection((0.9, 1, NEAR), (0.3, 1, FAR), (0.9, 2, FAR))
    assert recalled(found, truths, label=1, threshold=0.5).tolist() == [True, False, False]
    assert recalled(found, truths, label=1, threshold=0.2).tolist() == [True, False, True]
    assert recalled(detection(), truths, label=1, threshold=0.2).tolist() == [False] * 3


def test_goals_are_met_only_where_the_object_is_gone_or_read_otherwise() -> None:
    box = torch.tensor([NEAR])
    gone, read = DetectionGoal(1), DetectionGoal(1, target=2)
    shrunk = detection((0.9, 1, [0.0, 0, 4, 4]))
    cases: list[tuple[Detection, bool, bool]] = [
        (detection((0.9, 1, NEAR)), False, False),
        (shrunk, False, False),  # a box that only shrank is still there
        (detection((0.4, 1, NEAR)), True, False),
        (detection((0.9, 1, FAR)), True, False),
        (detection((0.4, 1, NEAR), (0.9, 2, NEAR)), True, True),
        (detection((0.9, 1, NEAR), (0.9, 2, NEAR)), False, False),
        (detection((0.9, 2, [0.0, 0, 4, 4])), True, False),  # read as the target, but not there
    ]
    for found, is_gone, is_read in cases:
        assert (gone.met(found, box).item(), read.met(found, box).item()) == (is_gone, is_read), found
        # The loss agrees: 0 only where the goal is met.
        assert is_gone or gone.loss(found, box) > 0
        assert is_read or read.loss(found, box) > 0
    assert gone.met(shrunk, torch.zeros(0, 4)).shape == (0,)


def test_a_detector_that_breaks_the_protocol_is_named() -> None:
    images = [torch.zeros(3, 8, 8)]
    with pytest.raises(InputError, match="one dictionary for each of 1 images"):
        detect(lambda _: [], images)
    with pytest.raises(InputError, match="boxes, labels and scores"):
        detect(lambda _: [{"boxes": torch.zeros(0, 4)}], images)
    with pytest.raises(InputError, match=r"not \(2, 4\), \(1,\), \(1,\)"):
        detect(lambda _: [{**detection((0.9, 1, NEAR)), "boxes": torch.zeros(2, 4)}], images)


def tiny_fcos() -> nn.Module:
    """torchvision's own FCOS on a backbone of one convolution, with random weights."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone = nn.Conv2d(3, 32, 8, 8)
    backbone.out_channels = 32  # type: ignore[assignment]
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    detector = FCOS(backbone, 3, min_size=64, max_size=64, anchor_generator=anchors, score_thresh=0.9)
    # Boxes of half an anchor to each side; random ones are empty.
    nn.init.constant_(detector.head.regression_head.bbox_reg.bias, 0.5)
    return detector


def test_torchvision_detectors_are_used_as_they_are() -> None:
    detector = tiny_fcos().train()
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    with sensitive(detector, 0.001):
        found = detect(detector, list(images))
        goal = DetectionGoal(source=int(found[0]["labels"][0]), threshold=0.1)
        loss = goal.loss(found[0], found[0]["boxes"][:1].detach())
        (gradient,) = torch.autograd.grad(loss, images)
    assert len(found[0]["scores"]) > 0
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0
    assert (detector.score_thresh, detector.training) == (0.9, True)
    assert not len(detector.eval()([images[0].detach()])[0]["scores"])  # its own threshold is back


def test_fastestdet_finds_the_real_stop_signs() -> None:
    """The architecture fits the published weights: the signs of 40 photographs, each as large as its photograph."""
    if "ROBUST_DATA" not in os.environ:
        pytest.skip("ROBUST_DATA names no data folder")
    import numpy as np
    from PIL import Image

    detector = load_factory(f"{_EXAMPLES / 'fastestdet.py'}:load_detector")
    photos = sorted(Path(os.environ["ROBUST_DATA"], "us_stop_signs", "highres").glob("*.png"))
    images = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255 for file in photos]
    with torch.no_grad():
        found = detect(detector, images)
    whole = [torch.tensor([[0.0, 0, 256, 256]])] * 40
    assert sum(recalled(*each, label=11, threshold=0.5).item() for each in zip(found, whole, strict=True)) == 40
    assert average_precision(found, whole, label=11).value > 0.95


def test_a_patch_brings_down_a_torchvision_detector() -> None:
    detector = tiny_fcos()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad(), sensitive(detector, 0.001):
        found = detect(detector, list(images))[0]
    source, box = int(found["labels"][0]), found["boxes"][:1].clamp(0, 64)
    # Just under the surest score: the patch has to push every other detection of the class below it as well.
    goal = DetectionGoal(source, threshold=float(found["scores"][0]) * 0.98)
    whole, boxes = OnSign(torch.ones(16, 16)), box.expand(2, 4)
    result = attack_detector(detector, images, boxes, goal, whole, attack=PatchAttack(steps=25))
    measured = measure_detector(detector, images, boxes, goal, result.patch, whole, draws=1)
    gone = measured.sights["patch"].gone
    assert gone is not None
    assert gone.value == 1
    assert result.history[0] < 1
