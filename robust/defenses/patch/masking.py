"""Double masking (PatchCleanser): masks so laid that one of them covers any patch, and predictions that must agree.

Source: Xiang, Mahloujifar and Mittal, USENIX Security 2022 (arXiv 2108.09135), algorithms 1 and 2 and theorem 1. An
image is certified if every pair of masks on it (a mask with itself included) leaves the prediction the same: then one
round of masks shows that label for whichever mask covers the patch, and no other label can pass the second round. Works
around any classifier; one that saw masked images in training certifies more.

Both prediction and certificate stop as soon as nothing can change their outcome: the same verdicts in fewer passes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robust.defenses.patch.certificates import Certificates, Size, patch_size
from robust.errors import InputError
from robust.models import evaluating

Rectangle = tuple[int, int, int, int]  # top, left, height, width


def cover(length: int, patch: int, count: int) -> tuple[list[int], int]:
    """Along one axis: where masks start, and how long they are, so that each patch lies wholly in one of at most
    ``count`` (section 3.3)."""
    step = -(-(length - patch + 1) // count)
    size = patch + step - 1
    starts = [*range(0, length - size, step), length - size]
    return starts, size


def masks(shape: Size, patch: Size, count: int) -> list[Rectangle]:
    """At most ``count`` x ``count`` rectangles that between them cover every placement of the patch."""
    (tops, height), (lefts, width) = (cover(shape[axis], patch[axis], count) for axis in (0, 1))
    return [(top, left, height, width) for top in tops for left in lefts]


@dataclass(eq=False)
class _Looks:
    """Predictions of masked images, each run once and counted."""

    model: nn.Module
    images: Tensor
    masks: list[Rectangle]
    fill: float
    batch: int
    passes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.passes = torch.zeros(len(self.images), dtype=torch.long)

    def logits(self, which: list[tuple[int, int, int]]) -> Tensor:
        """For each (image, first mask, second mask): the model's logits, on the CPU."""
        found = []
        for start in range(0, len(which), self.batch):
            part = which[start : start + self.batch]
            masked = self.images[[image for image, _, _ in part]]
            for row, (image, first, second) in enumerate(part):
                for top, left, height, width in {self.masks[first], self.masks[second]}:
                    masked[row, :, top : top + height, left : left + width] = self.fill
                self.passes[image] += 1
            found.append(self.model(masked).float().cpu())
        return torch.cat(found)

    def labels(self, which: list[tuple[int, int, int]]) -> list[int]:
        return self.logits(which).argmax(1).tolist() if which else []


class DoubleMasking(nn.Module):
    """A classifier that one patch of ``patch`` pixels (a side, or height and width) cannot turn where it certifies.

    ``count`` masks along each axis: more are smaller, certify more and cost the square in passes (``count`` ** 2, and
    half its square for a certificate). ``fill`` is the masks' value in [0, 1]. ``early=False`` runs every mask, as the
    algorithms are written. The model's weights are not changed. Raises InputError for a count or fill out of range.
    """

    def __init__(
        self, model: nn.Module, patch: int | Size, count: int = 6, fill: float = 0.5, batch: int = 256,
        early: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if count < 2:
            raise InputError(f"count {count}: give at least 2 masks along each axis")
        if not 0 <= fill <= 1:
            raise InputError(f"fill {fill:g}: give a pixel value from 0 to 1")
        self.model, self.patch, self.count, self.fill, self.batch, self.early = model, patch, count, fill, batch, early
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """1 for the defended label and 0 for the others, (N, K): a decision, without a gradient."""
        with torch.no_grad(), evaluating(self.model):
            classes = self.model(images[:1]).shape[1]
        labels = self.predict(images).predicted.to(images.device)
        return torch.nn.functional.one_hot(labels, classes).to(images.dtype)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Certificates:
        """Algorithm 1 on images (N, C, H, W) in [0, 1]; ``certified`` is False throughout, nothing is certified."""
        looks = self._looks(images)
        with evaluating(self.model):
            single = self._single(looks).argmax(2)
            predicted = torch.stack([self._second_round(looks, image, row) for image, row in enumerate(single)])
        return Certificates(predicted, torch.zeros(len(images), dtype=torch.bool), looks.passes)

    @torch.no_grad()
    def certify(self, images: Tensor) -> Certificates:
        """Algorithm 2 on clean images (N, C, H, W) in [0, 1]: whether every pair of masks leaves one prediction.

        ``predicted`` is that of algorithm 1 on the same image. Passes are those of the certificate alone.
        """
        looks = self._looks(images)
        with evaluating(self.model):
            single = self._single(looks)
            agree = (single.argmax(2) == single.argmax(2)[:, :1]).all(1)
            certified = torch.tensor([
                self._pairs_agree(looks, image, single[image])
                if agree[image] or not self.early else False
                for image in range(len(images))
            ])  # fmt: skip
            spent = looks.passes.clone()
            predicted = torch.stack([
                self._second_round(looks, image, row) for image, row in enumerate(single.argmax(2))
            ])  # fmt: skip
        return Certificates(predicted, certified & agree, spent)

    def _looks(self, images: Tensor) -> _Looks:
        shape = (int(images.shape[-2]), int(images.shape[-1]))
        chosen = masks(shape, patch_size(self.patch, shape), self.count)
        return _Looks(self.model, images, chosen, self.fill, self.batch)

    def _single(self, looks: _Looks) -> Tensor:
        """Logits (N, masks, K) of every image under every single mask."""
        n, count = len(looks.images), len(looks.masks)
        found = looks.logits([(image, mask, mask) for image in range(n) for mask in range(count)])
        return found.view(n, count, -1)

    def _second_round(self, looks: _Looks, image: int, single: Tensor) -> Tensor:
        """From the predictions (masks,) under single masks to the defended one."""
        majority = single.mode().values
        for mask in (single != majority).nonzero().squeeze(1).tolist():
            others = [(image, mask, other) for other in range(len(single)) if other != mask]
            if self._all(looks, others, int(single[mask])):
                return single[mask]
        return majority

    def _pairs_agree(self, looks: _Looks, image: int, single: Tensor) -> bool:
        """Whether all pairs of different masks give the label of the first, those likeliest not to first."""
        label = int(single[0].argmax())
        others = single.clone()
        others[:, label] = -torch.inf
        margin = single[:, label] - others.amax(1)
        count = len(looks.masks)
        pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
        pairs.sort(key=lambda pair: float(margin[pair[0]] + margin[pair[1]]))
        return self._all(looks, [(image, *pair) for pair in pairs], label)

    def _all(self, looks: _Looks, which: list[tuple[int, int, int]], label: int) -> bool:
        """Whether all are read as ``label``; stops at the first few that are not, looking at few first."""
        if not self.early:
            return {label} >= set(looks.labels(which))
        start, size = 0, 8
        while start < len(which):
            if any(found != label for found in looks.labels(which[start : start + size])):
                return False
            start, size = start + size, min(2 * size, self.batch)
        return True
