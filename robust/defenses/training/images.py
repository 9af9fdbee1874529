"""Training and held-out images: checked, kept in memory where they fit, and handed out in batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust.batching import batches
from robust.data import ImageSet
from robust.errors import InputError

if TYPE_CHECKING:
    from robust.defenses.training.processes import Processes

FEWEST = 5  # images of a class, below which nothing can be learnt and held out
_KEPT_BYTES = 2 * 2**30
_PIECE = 512


@dataclass(eq=False)
class Images:
    """The images of a set by position, float32 (n, C, H, W) on ``device``, with their labels.

    Read once and kept as bytes where every pixel is a whole 255th and all fit into 2 GiB; read each time otherwise.
    """

    source: ImageSet
    device: torch.device
    labels: Tensor = field(init=False)
    _kept: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.labels = self.source.labels.to(self.device)
        self._kept = self._bytes()

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, index: Tensor, processes: Processes | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W) and labels (n,) at positions ``index`` (n,) on the CPU.

        Of images that are read each time, each of several ``processes`` reads its share for all.
        """
        if self._kept is None:
            own = index if processes is None else index[processes.rows(len(index))]
            images = self.source.batch(own.tolist()).to(self.device)
            images = images if processes is None else processes.whole(images, len(index))
        else:
            images = self._kept[index].to(self.device).float().div_(255)
        return images, self.labels[index.to(self.device)]

    def _bytes(self) -> Tensor | None:
        n, shape = len(self.source), self.source.shape
        if n * torch.Size(shape).numel() > _KEPT_BYTES:
            return None
        kept = torch.empty((n, *shape), dtype=torch.uint8)
        for ids in batches(list(range(n)), _PIECE):
            pixels = self.source.batch(ids)
            rounded = (pixels * 255).round()
            if not torch.equal(rounded / 255, pixels):
                return None
            kept[ids[0] : ids[-1] + 1] = rounded.to(torch.uint8)
        return kept


def check_training(data: ImageSet, classes: int) -> None:
    """Raises InputError where a class of the model (0 to ``classes`` - 1) has no or too few training images."""
    counts = torch.bincount(data.labels, minlength=classes)
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise InputError(
            f"{data.name}: no training image of class {_named(data, absent)}; training would unlearn it: add images of "
            "it, or give a model of the classes that there are"
        )
    few = (counts < FEWEST).nonzero().flatten().tolist()
    if few:
        raise InputError(
            f"{data.name}: {int(counts[few[0]])} training images of class {_named(data, few)}; give at least {FEWEST} "
            "of every class"
        )


def hold_out(data: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """(the rest, ``share`` of each class's images, at least one), drawn at random by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for label in torch.unique(data.labels).tolist():
        place = (data.labels == label).nonzero().squeeze(1)
        count = max(1, round(share * len(place)))
        held += place[torch.randperm(len(place), generator=generator)[:count]].tolist()
    chosen = set(held)
    return data.take([at for at in range(len(data)) if at not in chosen]), data.take(sorted(held))


def _named(data: ImageSet, classes: list[int]) -> str:
    names = [data.class_names[at] if at < len(data.class_names) else "unnamed" for at in classes[:3]]
    shown = ", ".join(f"{at} ({name})" for at, name in zip(classes, names, strict=False))
    return shown if len(classes) <= 3 else f"{shown} and {len(classes) - 3} more"
