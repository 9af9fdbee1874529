"""PatchCleanser: a classifier looked at through masks, whose predictions must agree.

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

from robust.defenses.patch.certificates import Certificates, Patch, Size, doubtful, patch_size
from robust.defenses.patch.masking import kept, masks
from robust.errors import InputError
from robust.models import evaluating

_FIRST_LOOKS = 4


class MaskedClassifier(nn.Module):
    """A classifier that one patch of the size ``patch`` cannot turn where it certifies.

    Called, it is a model from images (N, C, H, W) in [0, 1] to scores (N, K) whose largest is the defended label
    (algorithm 1). Its gradient is that of the mean logits under the single masks, so that attacks see through the
    masks; a label that wins against that mean is lifted above it.

    Args:
        model: the classifier, images to logits (N, K). Its weights are not changed.
        patch: a side in pixels, height and width, or a text such as ``5%`` (of the image's area).
        count: masks along each axis: more are smaller, certify more and cost the square in passes (``count`` ** 2, and
            half its square for a certificate).
        fill: the masks' value in [0, 1].
        batch: masked images at a time.
        early: stop when the outcome is settled; False runs every mask, as the algorithms are written.

    Raises InputError for a count or fill out of range and a patch that does not fit the images.
    """

    def __init__(
        self, model: nn.Module, patch: Patch, count: int = 6, fill: float = 0.5, batch: int = 256, early: bool = True
    ) -> None:
        super().__init__()
        if count < 2:
            raise InputError(f"count {count}: give at least 2 masks along each axis")
        if not 0 <= fill <= 1:
            raise InputError(f"fill {fill:g}: give a pixel value from 0 to 1")
        self.model, self.patch, self.count, self.fill, self.batch, self.early = model, patch, count, fill, batch, early
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        looks = self._looks(images)
        with evaluating(self.model):
            single = looks.single()
            with torch.no_grad():
                label = self._decided(looks, single).to(images.device)[:, None]
        scores = single.mean(1)
        with torch.no_grad():
            behind = scores.argmax(1, keepdim=True) != label
            lift = behind * (scores.amax(1, keepdim=True) - scores.gather(1, label) + 1)
        return scores + torch.zeros_like(scores).scatter_(1, label, lift)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Certificates:
        """Algorithm 1 on images (N, C, H, W) in [0, 1]; ``certified`` is False throughout, nothing is certified."""
        looks = self._looks(images)
        with evaluating(self.model):
            predicted = self._decided(looks, looks.single())
        return Certificates(predicted, torch.zeros(len(images), dtype=torch.bool), looks.passes)

    @torch.no_grad()
    def certify(self, images: Tensor) -> Certificates:
        """Algorithm 2 on clean images (N, C, H, W) in [0, 1]: whether every pair of masks leaves one prediction.

        A view whose two best logits are closer than rounding can tell counts as one that differs. ``predicted`` is that
        of algorithm 1 on the same image. Passes are those of the certificate alone.
        """
        looks = self._looks(images)
        with evaluating(self.model):
            single = looks.single()
            found = single.argmax(2).cpu()
            agree = ((found == found[:, :1]) & ~doubtful(single).cpu()).all(1)
            asked = agree.nonzero().squeeze(1) if self.early else torch.arange(len(images))
            certified = torch.zeros(len(images), dtype=torch.bool)
            certified[asked] = self._pairs_agree(looks, asked, single)
            spent = looks.passes.clone()
            predicted = self._decided(looks, single)
        return Certificates(predicted, certified & agree, spent)

    def masks(self, shape: Size) -> Tensor:
        """What each mask leaves of an image of this height and width: (masks, 1, H, W), False under the mask."""
        return kept(shape, masks(shape, patch_size(self.patch, shape), self.count))

    @torch.no_grad()
    def strong_masks(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N, masks): whether the image under this mask and any other reads as its label. All of them: certified."""
        looks = self._looks(images)
        with evaluating(self.model):
            single = looks.single()
            n, count = single.shape[:2]
            image, mask = torch.arange(n).repeat_interleave(count), torch.arange(count).repeat(n)
            return self._second_round(looks, image, mask, labels.cpu()[image], single).view(n, count)

    def _looks(self, images: Tensor) -> _Looks:
        shape = (int(images.shape[-2]), int(images.shape[-1]))
        return _Looks(self.model, images, self.masks(shape).to(images.device), self.fill, self.batch, self.early)

    def _decided(self, looks: _Looks, single: Tensor) -> Tensor:
        """From the logits (N, masks, K) under single masks to the defended labels (N,), on the CPU.

        A second round for each mask that disagrees with the majority. Two of them with different labels cannot both
        pass, since they share the view under both masks, so their order is free: the surest first.
        """
        found = single.argmax(2).cpu()
        decided = found.mode(1).values
        differs = found != decided[:, None]
        order = torch.where(differs, _margins(single, found), -torch.inf).argsort(1, descending=True)
        undecided = differs.any(1)
        for rank in range(int(differs.sum(1).max()) if len(found) else 0):
            asked = (undecided & (differs.sum(1) > rank)).nonzero().squeeze(1)
            if not len(asked):
                break
            mask = order[asked, rank]
            label = found[asked, mask]
            passed = self._second_round(looks, asked, mask, label, single)
            decided[asked[passed]] = label[passed]
            undecided[asked[passed]] = not self.early
        return decided

    def _second_round(self, looks: _Looks, asked: Tensor, mask: Tensor, label: Tensor, single: Tensor) -> Tensor:
        """Whether every further mask on images ``asked`` under ``mask`` leaves ``label``; all (Q,), answers (Q,)."""
        # Views that alone speak least for the label come first, for they decide soonest that it fails.
        doubt = _margins(single[asked.to(single.device)], label[:, None].expand(-1, single.shape[1]))
        return looks.unanimous(asked, mask[:, None].expand_as(doubt), doubt.argsort(1), label)

    def _pairs_agree(self, looks: _Looks, asked: Tensor, single: Tensor) -> Tensor:
        """Whether all pairs of different masks give the label of the first, those likeliest not to first."""
        logits = single[asked.to(single.device)]
        label = logits[:, 0].argmax(1).cpu()
        margin = _margins(logits, label[:, None].expand(-1, logits.shape[1]))
        first, second = torch.triu_indices(logits.shape[1], logits.shape[1], 1)
        order = (margin[:, first] + margin[:, second]).argsort(1)
        return looks.unanimous(asked, first[order], second[order], label, surely=True)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much each view's logit (N, masks, K) of its label (N, masks) exceeds the best other, on the CPU."""
    labels = labels.to(logits.device)[:, :, None]
    others = logits.scatter(2, labels, -torch.inf).amax(2)
    return (logits.gather(2, labels).squeeze(2) - others).float().cpu()


@dataclass(eq=False)
class _Looks:
    """Views of images under masks, each run once and counted. ``keep`` (masks, 1, H, W): what masks leave."""

    model: nn.Module
    images: Tensor
    keep: Tensor
    fill: float
    batch: int
    early: bool
    passes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.passes = torch.zeros(len(self.images), dtype=torch.long)

    def single(self) -> Tensor:
        """Logits (N, masks, K) of every image under every single mask; differentiable."""
        n, count = len(self.images), len(self.keep)
        image = torch.arange(n).repeat_interleave(count)
        mask = torch.arange(count).repeat(n)
        found = self._logits(image, mask, mask)
        return found.view(n, count, found.shape[1])

    def unanimous(self, image: Tensor, first: Tensor, second: Tensor, label: Tensor, surely: bool = False) -> Tensor:
        """Whether image ``image[q]`` is read as ``label[q]`` under all pairs ``first[q]``, ``second[q]``: (Q,) bool.

        ``surely``: and would be whatever other views are in the batch.

        image and label (Q,), first and second (Q, pairs). All questions go on side by side, a few pairs at first, more
        later; one that has its answer asks no more.
        """
        holds = torch.ones(len(image), dtype=torch.bool)
        start, size = 0, _FIRST_LOOKS
        while start < first.shape[1]:
            asked = (holds if self.early else torch.ones_like(holds)).nonzero().squeeze(1)
            if not len(asked):
                break
            piece = slice(start, start + size)
            a, b = first[asked, piece], second[asked, piece]
            logits = self._logits(image[asked].repeat_interleave(a.shape[1]), a.flatten(), b.flatten())
            read = logits.argmax(1).cpu().view_as(a) == label[asked, None]
            if surely:
                read &= ~doubtful(logits).cpu().view_as(a)
            holds[asked] &= read.all(1)
            start, size = start + size, 2 * size
        return holds

    def _logits(self, image: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The model's logits (V, K) of views: each an image under two masks, all (V,)."""
        self.passes += torch.bincount(image, minlength=len(self.images))
        found = []
        for part in torch.split(torch.arange(len(image)), self.batch):
            at, a, b = (index[part].to(self.images.device) for index in (image, first, second))
            views = torch.where(self.keep[a] & self.keep[b], self.images[at], self.fill)
            found.append(self.model(views).float())
        return torch.cat(found) if found else torch.zeros(0, 1)
