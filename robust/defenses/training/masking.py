"""Training on what a classifier behind a patch defense is shown: images under masks, and single bands of them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.defenses.patch.ablation import Ablation, BandSmoothing
from robust.defenses.patch.certificates import Size, window
from robust.defenses.patch.cleansing import MaskedClassifier
from robust.defenses.patch.masking import kept, masks
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.validation import Held
from robust.errors import InputError


@dataclass(frozen=True)
class _Certified(Defense):
    """Trained to be used behind a patch defense; the epoch that certifies most is kept."""

    norms: ClassVar[tuple[str, ...]] = ("patch",)
    guarded: ClassVar[bool] = False
    measure: ClassVar[str] = "certified"

    def robust_accuracy(self, held: Held, network: Network) -> float:
        return held.certified(lambda shape: self.deployed(network.model, shape))


@dataclass(frozen=True)
class MaskTraining(_Certified):
    """Cross-entropy at images under two masks of PatchCleanser, then used behind it (:class:`MaskedClassifier`).

    Of ``candidates`` random pairs for each image the one of highest loss is trained on. ``count`` masks along each
    axis.

    Source: Xiang, Mahloujifar and Mittal, USENIX Security 2022, section 5.1 (masked images in training); Saha et al.,
    TMLR 2023 (arXiv 2306.12610), for taking bad pairs rather than any.
    """

    _: KW_ONLY
    count: int = 6
    candidates: int = 4

    name: ClassVar[str] = "masking"
    source: ClassVar[str] = "Xiang, Mahloujifar and Mittal, USENIX Security 2022"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2 or self.candidates < 1:
            raise InputError(f"masking needs count >= 2 and candidates >= 1, not {self.count} and {self.candidates}")

    def attack(self, batch: Batch) -> Tensor:
        images = batch.images
        shape = (int(images.shape[2]), int(images.shape[3]))
        keep = kept(shape, masks(shape, window(batch.threat.eps, shape), self.count)).to(images.device)
        pairs = batch.drawn(
            lambda like: torch.randint(len(keep), (self.candidates, 2, len(like)), device=like.device), dim=2
        )
        tried = [torch.where(keep[first] & keep[second], images, 0.5) for first, second in pairs]
        if len(tried) == 1:
            return tried[0]
        with batch.network.still(), torch.no_grad():
            losses = [F.cross_entropy(batch.network(one), batch.labels, reduction="none") for one in tried]
        worst = torch.stack(losses).argmax(0)
        return torch.stack(tried)[worst, torch.arange(len(images), device=images.device)]

    @property
    def behind(self) -> str:
        return f"masking(count={self.count})"

    def deployed(self, model: nn.Module, shape: Size) -> nn.Module:
        return MaskedClassifier(model, window(self.ball.eps, shape), self.count)


@dataclass(frozen=True)
class BandTraining(_Certified):
    """Cross-entropy at single bands of images, then used as their vote (:class:`BandSmoothing`).

    ``size`` columns, rows or side of a block by ``kind``; ``threshold`` the probability from which a class has a vote.

    Source: Levine and Feizi, NeurIPS 2020, section 4.
    """

    _: KW_ONLY
    size: int = 4
    kind: str = "columns"
    threshold: float = 0.3

    name: ClassVar[str] = "bands"
    source: ClassVar[str] = "Levine and Feizi, NeurIPS 2020"

    def __post_init__(self) -> None:
        super().__post_init__()
        BandSmoothing(nn.Identity(), 1, self.size, self.threshold, self.kind)  # type: ignore[arg-type]

    def attack(self, batch: Batch) -> Tensor:
        ablation = Ablation(self.kind, self.size, 0.5)
        starts = torch.tensor(ablation.starts((int(batch.images.shape[2]), int(batch.images.shape[3]))))
        places = batch.drawn(lambda like: torch.randint(len(starts), (len(like),)))
        drawn = starts[places].to(batch.images.device)
        return ablation.apply(batch.images, drawn)

    @property
    def behind(self) -> str:
        return f'bands(size={self.size}, kind="{self.kind}", threshold={self.threshold!r})'

    def deployed(self, model: nn.Module, shape: Size) -> nn.Module:
        size = window(self.ball.eps, shape)
        return BandSmoothing(model, size, self.size, self.threshold, self.kind)  # type: ignore[arg-type]
