"""How a model reads photographs of signs with a print on them, from a list of distances and angles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robust.errors import InputError
from robust.models import device_of, evaluating
from robust.photos.camera import Camera, Scene, View, crop, fitted, scene
from robust.photos.composing import Print, composed
from robust.photos.photographs import Photograph
from robust.progress import Progress, Silent

DISTANCES, ANGLES = (5.0, 10.0, 20.0, 30.0, 40.0, 60.0), (-30.0, -15.0, 0.0, 15.0, 30.0)
CLEAN = "clean"


@dataclass(frozen=True)
class Trial:
    """What a model read. ``classes`` and ``confidences``: for ``clean`` and the name of each print, arrays of shape
    (photographs, distances, angles)."""

    names: list[str]
    distances: list[float]
    angles: list[float]
    camera: Camera
    classes: dict[str, NDArray[np.int64]]
    confidences: dict[str, NDArray[np.float64]]

    def counted(self, source: int) -> NDArray[np.bool_]:
        """The views of which the clean sign is read as the source class: the only ones that a print can spoil."""
        return np.asarray(self.classes[CLEAN] == source)


def try_photographs(
    model: nn.Module, photographs: Sequence[Photograph], prints: Mapping[str, Print], *, size: tuple[int, int],
    share: float, camera: Camera | None = None, distances: Sequence[float] = DISTANCES,
    angles: Sequence[float] = ANGLES, seed: int = 0, progress: Progress | None = None,
) -> Trial:  # fmt: skip
    """Every photograph with every print and without any, from every distance and angle.

    Args:
        model: from images (N, 3, H, W) in [0, 1] to logits.
        prints: by name; each is composed on the sign at the photograph's full resolution.
        size: (H, W) of the model's input. share: how much of its side the sign takes there, in (0, 1].
        distances: in meters, of a camera that sees the sign under ``angles`` in degrees beside the photograph's own.

    Raises InputError for a model that does not take color images, or an empty list.
    """
    if not photographs or not distances or not angles:
        raise InputError("photographs: give at least one photograph, one distance and one angle")
    camera, progress = camera or Camera(), progress or Silent()
    kinds = (CLEAN, *prints)
    shape = (len(photographs), len(distances), len(angles))
    classes = {kind: np.zeros(shape, np.int64) for kind in kinds}
    confidences = {kind: np.zeros(shape) for kind in kinds}
    progress.stage("photographs", len(photographs))
    for at, photograph in enumerate(photographs):
        held = with_prints(photograph, prints)
        seen = torch.cat([
            look(held, camera, View(distance, angle), share, size, seed) for distance in distances for angle in angles
        ])  # fmt: skip
        read, sure = readings(model, seen)
        for number, kind in enumerate(kinds):
            classes[kind][at] = read[number :: len(kinds)].reshape(shape[1:])
            confidences[kind][at] = sure[number :: len(kinds)].reshape(shape[1:])
        progress.advance(1)
    names = [photograph.name for photograph in photographs]
    return Trial(names, list(distances), list(angles), camera, classes, confidences)


def with_prints(photograph: Photograph, prints: Mapping[str, Print]) -> Scene:
    """The scene in its variants: clean, then with each print."""
    return scene(photograph, [photograph.pixels, *(composed(photograph, print_) for print_ in prints.values())])


def look(held: Scene, camera: Camera, view: View, share: float, size: tuple[int, int], seed: int) -> Tensor:
    """What the model is given of every variant, (K, 3, H, W); the same numbers make the same picture."""
    numbers = [
        seed % 2**64,
        *held.photograph.name.encode(),
        round(1000 * view.distance),
        round(1000 * (view.angle + 90)),
    ]
    return fitted(crop(held, camera, view, share, np.random.default_rng(numbers)), size)


def readings(model: nn.Module, images: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The class that the model reads in each image, and its confidence in [0, 1]."""
    place = device_of(model)
    with evaluating(model), torch.no_grad():
        parts = [model(part.to(place)).float().softmax(1).cpu() for part in torch.split(images, 64)]
    sure, read = torch.cat(parts).max(1)
    return read.numpy(), sure.double().numpy()
