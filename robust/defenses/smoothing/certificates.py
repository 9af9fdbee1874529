"""Certificates for many images at once: the class from some draws, what is certified of it from others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robust.defenses.smoothing.anytime import Counts, VoteTest
from robust.defenses.smoothing.sampling import Sampler, Stream


@dataclass(frozen=True)
class Certificate:
    """What is proven of one image, with confidence 1 - alpha.

    prediction: the class that most of the selecting draws gave. radius: l2, in pixel units, within which the smoothed
    classifier keeps it; 0 where it abstains. draws: all that were spent, selection included. hits, estimated: how many
    of how many estimating draws gave that class.
    """

    prediction: int
    radius: float
    draws: int
    hits: int
    estimated: int

    @property
    def abstains(self) -> bool:
        return self.radius == 0


def certify_images(
    sampler: Sampler, images: Tensor, classes: int, test: VoteTest, selection: int, streams: tuple[Stream, Stream]
) -> Iterator[tuple[int, Certificate]]:
    """The certificate of each image (N, C, H, W) in [0, 1] with its row, in the order in which they are decided.

    ``selection`` draws of the first stream choose the class, draws of the second decide about it: independent, so that
    the choice does not flatter the estimate. Images are on the sampler's device; ``classes`` is K.
    """
    chosen = sampler.histogram(images, streams[0], selection, classes).argmax(1)
    for row, hits, draws in decide(sampler, images, torch.from_numpy(chosen).to(images.device), test, streams[1]):
        yield row, Certificate(int(chosen[row]), test.radius(row), selection + draws, hits, draws)


def decide(
    sampler: Sampler, images: Tensor, classes: Tensor, test: VoteTest, stream: Stream, against: bool = False
) -> Iterator[tuple[int, int, int]]:
    """Draw until the test has decided every image; each is yielded then: its row, hits and draws.

    A hit is a vote for ``classes`` (N,), or with ``against`` a vote for anything else. Images leave as they are
    decided, so the batches stay full of those that are still open.
    """
    test.start(len(images))
    rows = np.arange(len(images))
    hits: Counts = np.zeros(len(images), np.int64)
    draws: Counts = np.zeros(len(images), np.int64)
    while len(rows):
        more: Counts = np.array([test.more(int(drawn)) for drawn in draws[rows]], np.int64)
        place = torch.from_numpy(rows).to(images.device)
        found = sampler.hits(images[place], classes[place], stream, draws[rows], more)
        hits[rows] += more - found if against else found
        draws[rows] += more
        done = test.look(rows, hits[rows], draws[rows])
        for row in rows[done].tolist():
            yield row, int(hits[row]), int(draws[row])
        rows = rows[~done]
