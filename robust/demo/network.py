"""The demo's classifier: a small convolutional network, quick enough to be attacked on a laptop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Mean and deviation of the training images' pixels, rounded; part of the model.
MEAN = (0.49, 0.41, 0.40)
STD = (0.25, 0.25, 0.25)


def _block(inside: int, outside: int, kernel: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU; the map comes out half as wide and half as high."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, 2, kernel // 2, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


class SignNet(nn.Module):
    """Images (N, 3, 32, 32) in [0, 1] to logits (N, K), K the number of ``class_names``.

    Three convolutions of stride 2, then one linear layer on the 4 x 4 map: 78,568 parameters for 16 classes and
    1.8 million multiplications an image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.class_names = class_names
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.features = nn.Sequential(_block(3, 24, 5), _block(24, 48, 3), _block(48, 96, 3))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(96 * 4 * 4, len(class_names)))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features((images - self.mean) / self.std))
        return logits
