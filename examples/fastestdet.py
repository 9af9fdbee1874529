"""FastestDet, a small detector of the 80 COCO classes, and the factory that `robust` calls.

The network follows its public description (github.com/dog-qiuqiu/FastestDet, BSD-3): a ShuffleNetV2-type backbone
(Ma et al., ECCV 2018), one feature map of stride 16 made of three stages, three branches of depthwise 5x5 convolutions,
and a head that says per cell: is there an object, where, of which class. No anchors. The weights (244,490 parameters)
are the project's own file `weight_AP05_0.253207_280-epoch.pth`; it is read from the file that the environment variable
ROBUST_FASTESTDET_WEIGHTS names, else from $ROBUST_DATA/detectors/fastestdet.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from robust.errors import InputError

VARIABLE = "ROBUST_FASTESTDET_WEIGHTS"
FILE = Path("detectors", "fastestdet", "weight_AP05_0.253207_280-epoch.pth")
CLASSES = 80
STOP_SIGN = 11
SIDE = 352  # the side of the square that every image is brought to
# COCO's class names in the order of the network's outputs.
NAMES = (
    "person", "bicycle", "car", "motorbike", "aeroplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "sofa", "potted plant", "bed", "dining table", "toilet",
    "tv monitor", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, relu: bool = True) -> list[nn.Module]:
    """Convolution and BatchNorm, then ReLU if asked; a kernel over 1 with as many outputs as inputs is depthwise."""
    groups = inputs if kernel > 1 and inputs == outputs else 1
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, nn.ReLU()] if relu else layers


class _Unit(nn.Module):
    """ShuffleNetV2's unit: even channels pass, odd ones are worked on; at stride 2 all are, on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 2
        self.stride = stride
        self.branch_main = nn.Sequential(
            *_conv(inputs, middle),
            *_conv(middle, middle, 3, stride, relu=False),
            *_conv(middle, outputs - inputs),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(*_conv(inputs, inputs, 3, 2, relu=False), *_conv(inputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, 0::2], self.branch_main(x[:, 1::2])], 1)


def _stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    rest = [_Unit(outputs // 2, outputs, 1) for _ in range(units - 1)]
    return nn.Sequential(_Unit(inputs, outputs, 2), *rest)


class _Backbone(nn.Module):
    """Three maps, of strides 8, 16 and 32, with 48, 96 and 192 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*_conv(3, 24, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = _stage(24, 48, 4), _stage(48, 96, 8), _stage(96, 192, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        near = self.stage2(self.maxpool(self.first_conv(x)))
        middle = self.stage3(near)
        return near, middle, self.stage4(middle)


class _Pointwise(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*_conv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv1x1(x)
        return out


class _Pyramid(nn.Module):
    """One, two and three depthwise 5x5 convolutions side by side, brought together and added to their input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv1x1 = _Pointwise(inputs, outputs)
        self.S1, self.S2, self.S3 = (
            nn.Sequential(*[layer for _ in range(depth) for layer in _conv(outputs, outputs, 5)]) for depth in (1, 2, 3)
        )
        self.output = nn.Sequential(*_conv(3 * outputs, outputs, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return torch.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class _Branch(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*_conv(inputs, inputs, 5), *_conv(inputs, outputs, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv5x5(x)
        return out


class _Head(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1x1 = _Pointwise(inputs, inputs)
        self.obj_layers, self.reg_layers = _Branch(inputs, 1), _Branch(inputs, 4)
        self.cls_layers = _Branch(inputs, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.conv1x1(x)
        return self.obj_layers(x).sigmoid(), self.reg_layers(x), self.cls_layers(x).softmax(1)


class FastestDet(nn.Module):
    """Images in [0, 1], each (3, H, W), to what torchvision's detectors return: boxes, labels, scores.

    Args:
        threshold: detections with a lower score are left out.
        overlap: the intersection over union above which the weaker of two boxes of one class is left out.

    Labels are 0 to 79 (``NAMES``); boxes are x0, y0, x1, y1 in pixels of the given image. ``class_scores`` (n, 80),
    beside them, says how each box scores for every class.
    """

    def __init__(self, threshold: float = 0.3, overlap: float = 0.45) -> None:
        super().__init__()
        self.score_thresh, self.nms_thresh = threshold, overlap
        self.backbone = _Backbone()
        self.SPP = _Pyramid(48 + 96 + 192, 96)
        self.detect_head = _Head(96)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        square = [interpolate(image[None], (SIDE, SIDE), mode="bilinear", antialias=True) for image in images]
        boxes, scores = self.cells(torch.cat(square))
        sizes = [image.shape[1:] for image in images]
        return [self._kept(*each) for each in zip(boxes, scores, sizes, strict=True)]

    def cells(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (N, cells, 4) as shares of the image, and class scores (N, cells, 80) of a batch (N, 3, 352, 352)."""
        near, middle, far = self.backbone(batch.flip(1))  # the weights expect blue, green, red
        near = nn.functional.avg_pool2d(near, 3, 2, 1)
        far = interpolate(far, scale_factor=2)
        objectness, place, classes = self.detect_head(self.SPP(torch.cat([near, middle, far], 1)))
        rows, columns = place.shape[2:]
        y, x = torch.meshgrid(*(torch.arange(n, device=batch.device) for n in (rows, columns)), indexing="ij")
        center_x, center_y = (place[:, 0].tanh() + x) / columns, (place[:, 1].tanh() + y) / rows
        half_width, half_height = place[:, 2].sigmoid() / 2, place[:, 3].sigmoid() / 2
        boxes = [center_x - half_width, center_y - half_height, center_x + half_width, center_y + half_height]
        scores = objectness**0.6 * classes**0.4
        return torch.stack(boxes, -1).flatten(1, 2), scores.flatten(2).transpose(1, 2)

    def _kept(self, boxes: Tensor, scores: Tensor, size: torch.Size) -> dict[str, Tensor]:
        best, labels = scores.max(1)
        height, width = size
        boxes = boxes * boxes.new_tensor([width, height, width, height])
        over = (best >= self.score_thresh).nonzero().flatten()
        kept = over[batched_nms(boxes[over], best[over], labels[over], self.nms_thresh)]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": best[kept], "class_scores": scores[kept]}


def load_detector(weights: str | Path | None = None) -> FastestDet:
    """The trained detector in eval mode. Raises InputError if the weights are missing or are another network's."""
    beside = Path(os.environ["ROBUST_DATA"]) / FILE if "ROBUST_DATA" in os.environ else None
    named = weights or os.environ.get(VARIABLE) or beside
    if not named or not Path(named).is_file():
        raise InputError(f"{named or FILE.name}: no weights of FastestDet here; name the file in {VARIABLE}")
    model = FastestDet()
    try:
        model.load_state_dict(torch.load(named, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{named}: not the weights of FastestDet; name the right file in {VARIABLE}") from error
    return model.eval()
