"""Object detectors: the protocol they keep to, patches against them, and how these are scored."""

from robust.detection.attack import attack_detector
from robust.detection.average_precision import AveragePrecision, average_precision, recalled
from robust.detection.detector import Detection, Detector, detect, sensitive
from robust.detection.goals import DetectionGoal
from robust.detection.measure import DetectionMeasurement, DistanceBand, Sight, measure_detector
from robust.detection.scenes import patched, seen
from robust.detection.sheet import drawn_detections, sheet

__all__ = [
    "AveragePrecision", "Detection", "DetectionGoal", "DetectionMeasurement", "Detector", "DistanceBand", "Sight",
    "attack_detector", "average_precision", "detect", "drawn_detections", "measure_detector", "patched", "recalled",
    "seen", "sensitive", "sheet",
]  # fmt: skip
