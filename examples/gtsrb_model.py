"""A compact classifier of German traffic signs (GTSRB, 43 classes) and the factory that `robust` calls.

    robust audit examples/gtsrb_model.py:load_model runs/gtsrb/gtsrb_test.npz --threat linf:8/255

The weights come from train_gtsrb.py. They are read from the file that the environment variable
ROBUST_GTSRB_WEIGHTS names, else from runs/gtsrb/weights.safetensors in the repository.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robust.errors import InputError

VARIABLE = "ROBUST_GTSRB_WEIGHTS"
DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "runs" / "gtsrb" / "weights.safetensors"
CLASSES = 43


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    """Convolution that halves (stride 2) or keeps the side, then BatchNorm, which an attack can fold away, and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class TrafficSignNet(nn.Module):
    """Six convolutions and one linear layer: images in [0, 1], shape (N, 3, 32, 32), to logits (N, 43).

    376,235 parameters; 19.8 million floating-point operations (9.9 million multiply-adds) an image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Mean and standard deviation of the training images' pixels, all channels together: they are almost equal.
        self.register_buffer("mean", Tensor([0.324]).view(1, 1, 1, 1))
        self.register_buffer("std", Tensor([0.271]).view(1, 1, 1, 1))
        self.features = nn.Sequential(
            *_conv(3, 32, 4, 2),
            *_conv(32, 32, 3, 1),
            *_conv(32, 64, 3, 2),
            *_conv(64, 64, 3, 1),
            *_conv(64, 128, 3, 2),
            *_conv(128, 128, 3, 1),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 4 * 4, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features((images - self.mean) / self.std))
        return logits


def load_model(weights: str | Path | None = None) -> TrafficSignNet:
    """The trained network in eval mode. Raises InputError if the weights are missing or are another network's."""
    file = Path(weights or os.environ.get(VARIABLE) or DEFAULT_WEIGHTS)
    if not file.is_file():
        remedy = f"train them with `python examples/train_gtsrb.py`, or name a file in {VARIABLE}"
        raise InputError(f"{file}: no weights here; {remedy}")
    model = TrafficSignNet()
    try:
        model.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{file}: not the weights of TrafficSignNet; train them again or name another file") from error
    return model.eval()
