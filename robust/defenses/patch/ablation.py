"""De-randomized smoothing: votes of a classifier that sees one band or block of the image at a time.

Source: Levine and Feizi, NeurIPS 2020 (arXiv 2002.10733), sections 3 and 4. A patch of m columns touches at most
m + b - 1 of the bands of b columns (wrapped around), so it moves no more votes than that. A class gets a vote wherever
its probability reaches the threshold. The classifier must have been trained on such ablations to vote usefully.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robust.defenses.patch.certificates import Certificates, Patch, Size, patch_size, rounding
from robust.errors import InputError, unknown
from robust.models import evaluating

KINDS = ("columns", "rows", "blocks")


@dataclass(eq=False)
class Ablation:
    """Everything but ``size`` columns, rows, or a block of that side, replaced by ``fill``."""

    kind: str
    size: int
    fill: float

    def starts(self, shape: Size) -> list[Size]:
        rows = range(shape[0]) if self.kind != "columns" else range(1)
        columns = range(shape[1]) if self.kind != "rows" else range(1)
        return [(row, column) for row in rows for column in columns]

    def touched(self, patch: Size, shape: Size) -> int:
        """The most ablations that one patch meets."""
        tall, wide = (min(side + self.size - 1, whole) for side, whole in zip(patch, shape, strict=True))
        return {"columns": wide, "rows": tall, "blocks": tall * wide}[self.kind]

    def apply(self, images: Tensor, starts: Tensor) -> Tensor:
        """The images (N, C, H, W) as seen through the band or block that begins, wrapped around, at row and column
        ``starts``, (2,) or (N, 2)."""
        height, width = images.shape[-2:]
        first = starts.view(-1, 2, 1)
        rows = (torch.arange(height, device=images.device) - first[:, 0]) % height < self.size
        columns = (torch.arange(width, device=images.device) - first[:, 1]) % width < self.size
        rows = rows | (self.kind == "columns")
        columns = columns | (self.kind == "rows")
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], images, self.fill)


class BandSmoothing(nn.Module):
    """The vote of ``model`` over ablated copies of the image that keep ``size`` columns, rows, or a block of that side.

    ``patch`` is a side in pixels, height and width, or a text such as ``5%``; ``threshold`` the probability from which
    a class has a vote. Raises InputError for settings out of range.
    """

    def __init__(
        self, model: nn.Module, patch: Patch, size: int = 4, threshold: float = 0.3,
        kind: Literal["columns", "rows", "blocks"] = "columns", fill: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
        if size < 1:
            raise InputError(f"size {size}: give at least 1 pixel")
        if not (0 < threshold <= 1 and 0 <= fill <= 1):
            raise InputError(f"threshold {threshold:g}, fill {fill:g}: give numbers from 0 to 1")
        self.model, self.patch, self.threshold = model, patch, threshold
        self.ablation = Ablation(kind, size, fill)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Votes (N, K) of images (N, C, H, W) in [0, 1]; of equal ones the first class wins.

        Votes are whole numbers; their gradient is that of the sum of probabilities, so that attacks see where to go.
        """
        total: Tensor | float = 0.0
        with evaluating(self.model):
            for logits in self._looks(images):
                chances = logits.softmax(1)
                votes = (chances >= self.threshold).to(chances)
                total = total + votes + (chances - chances.detach())
        assert isinstance(total, Tensor)
        return total

    @torch.no_grad()
    def certify(self, images: Tensor) -> Certificates:
        """Whether the winner stays ahead when every vote that a patch touches goes against it.

        A vote so near the threshold that rounding may change it counts against the winner too.
        """
        shape = (int(images.shape[-2]), int(images.shape[-1]))
        total: Tensor | float = 0.0
        with evaluating(self.model):
            for logits in self._looks(images):
                chances = logits.softmax(1)
                slack = rounding(logits.device) * logits.abs().amax(1, keepdim=True)
                total = total + torch.stack([chances >= self.threshold + more for more in (0, slack, -slack)]).float()
        assert isinstance(total, Tensor)
        votes, sure, possible = total.cpu().unbind()
        predicted = votes.argmax(1)
        classes = torch.arange(votes.shape[1])
        # A rival of smaller index wins a tie.
        needed = 2 * self.ablation.touched(patch_size(self.patch, shape), shape) + (classes < predicted[:, None])
        ahead = (sure.gather(1, predicted[:, None]) - possible >= needed) | (classes == predicted[:, None])
        passes = torch.full((len(images),), len(self.ablation.starts(shape)))
        return Certificates(predicted, ahead.all(1), passes)

    def chances(self, images: Tensor) -> Tensor:
        """The mean probabilities (N, K) over all bands: smooth, and what the votes' gradient is taken from."""
        with evaluating(self.model):
            found = [logits.softmax(1) for logits in self._looks(images)]
        return torch.stack(found).mean(0)

    def _looks(self, images: Tensor) -> Iterator[Tensor]:
        """The model's logits (N, K) through each band or block."""
        for start in self.ablation.starts((int(images.shape[-2]), int(images.shape[-1]))):
            seen = self.ablation.apply(images, torch.tensor(start, device=images.device))
            yield self.model(seen).float()
