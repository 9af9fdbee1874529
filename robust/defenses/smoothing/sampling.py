"""Noise, made and counted on the device: how often noisy copies of an image are given a class.

Every draw belongs to an image: its noise is fixed by the image's own pixels, the seed and the draw's number, however
images and draws are batched. Draws come in blocks of 32, each from a generator of its own. CPU and CUDA generators
differ, so the same seed gives other draws on another kind of device.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor, nn

from robust.batching import comfortable_batch
from robust.defenses.smoothing.anytime import Counts
from robust.randomness import image_seeds

BLOCK = 32
_CPU_COPIES = 128


class Stream(IntEnum):
    """What draws are for. Draws of different streams never share noise."""

    SELECTION = 0
    ESTIMATION = 1
    COHEN_SELECTION = 2
    COHEN_ESTIMATION = 3
    PREDICTION = 4
    VERIFICATION = 5


class Sampler:
    """Counts the classes that ``network`` gives to noisy copies of images.

    Args:
        network: images (N, C, H, W), not confined to [0, 1], to logits (N, K); frozen and in eval mode.
        sigma: standard deviation of the noise in pixel units.
        seed: another seed gives other noise.
        batch: noisy copies passed forward at a time.

    A copy whose logits hold NaN counts for no class.
    """

    def __init__(self, network: nn.Module, sigma: float, seed: int, batch: int) -> None:
        self.network, self.sigma, self.seed, self.batch = network, sigma, seed, max(1, batch)
        self.passes = 0

    def histogram(self, images: Tensor, stream: Stream, draws: int, classes: int) -> Counts:
        """Votes for each class (N, K) among the first ``draws`` draws of every image (N, C, H, W)."""
        votes = torch.zeros(len(images), classes, dtype=torch.int64, device=images.device)
        none = np.zeros(len(images), np.int64)
        for rows, given in self._blocks(images, stream, none, none + draws):
            valid = given >= 0
            place = rows[:, None].expand_as(given)[valid], given[valid]
            votes.index_put_(place, torch.ones_like(place[0]), accumulate=True)
        return votes.cpu().numpy()

    def hits(self, images: Tensor, classes: Tensor, stream: Stream, done: Counts, more: Counts) -> Counts:
        """How many of the draws number ``done`` to ``done + more`` - 1 of each image, (N,), give ``classes`` (N,).

        ``done`` are multiples of 32.
        """
        hits = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        for rows, given in self._blocks(images, stream, done, more):
            hits.index_add_(0, rows, (given == classes[rows, None]).sum(1))
        return hits.cpu().numpy()

    def _blocks(self, images: Tensor, stream: Stream, done: Counts, more: Counts) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (B,) of images and the classes (B, 32) given to one block of draws of each; -1 for no class or draw."""
        if (done % BLOCK).any():
            raise ValueError("draws go on at a whole block")
        seeds = [int(value) for value in image_seeds(images, self.seed).tolist()]
        tasks = [
            (row, first // BLOCK, min(BLOCK, end - first))
            for row, (start, end) in enumerate(zip(done.tolist(), (done + more).tolist(), strict=True))
            for first in range(start, end, BLOCK)
        ]
        together = max(1, self.batch // BLOCK)
        device = images.device
        noise = torch.empty(min(together, len(tasks)), BLOCK, *images.shape[1:], device=device)
        generator = torch.Generator(device)
        for start in range(0, len(tasks), together):
            part = tasks[start : start + together]
            for place, (row, block, _) in enumerate(part):
                generator.manual_seed(_block_seed(seeds[row], stream, block))
                torch.randn(noise.shape[1:], generator=generator, out=noise[place])
            rows = torch.tensor([row for row, *_ in part], device=device)
            taken = torch.tensor([take for *_, take in part], device=device)
            copies = torch.add(images[rows][:, None], noise[: len(part)], alpha=self.sigma)
            given = self._classes(copies.flatten(0, 1)).view(len(part), BLOCK)
            asked = torch.arange(BLOCK, device=device) < taken[:, None]
            self.passes += len(part) * BLOCK
            yield rows, given.where(asked, -1)

    def _classes(self, copies: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([self.network(part) for part in torch.split(copies, self.batch)])
        return logits.argmax(1).where(~logits.isnan().any(1), -1)


def copies_at_a_time(network: nn.Module, image: Tensor) -> int:
    """How many noisy copies of ``image`` (1, C, H, W) to pass forward at a time."""
    comfortable = comfortable_batch(network, image)
    # Noise, copies and activations are in use together: on a CPU twice as many take longer for each.
    return min(comfortable, _CPU_COPIES) if image.device.type == "cpu" else comfortable


def _block_seed(image: int, stream: Stream, block: int) -> int:
    # The CPU's generator uses 32 bits of its seed. Consecutive numbers keep all blocks of one image apart.
    return (image + (int(stream) << 26) + block) & 0xFFFFFFFF
