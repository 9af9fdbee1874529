"""Images that a small network learns in a second: the class is the quarter that is bright."""

from __future__ import annotations

import torch

from robust.data import ImageSet, load_data


def quarters(n: int = 96, classes: int = 4, seed: int = 0, noise: float = 0.25) -> ImageSet:
    """Images (n, 3, 6, 6) of whole 255ths, classes in turn: one quarter is brighter by a half than the noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, 3, 6, 6, generator=generator) * noise
    for at, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[at, :, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 0.5
    return load_data(((images.clamp(0, 1) * 255).round() / 255, labels))
