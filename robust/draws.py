"""Models that draw random numbers: as attacks see them, an average over draws, and as they are judged, a majority.

A model counts as random if the check `deterministic` says so. Attacks then follow the expected probabilities (EOT,
Athalye et al., ICML 2018), and an image counts as broken if another class clearly wins among many fresh draws. How
often it is misread in the mean is measured apart, in :mod:`robust.rates`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust.counting import CountedModel
from robust.ledger import Ledger
from robust.randomness import own_random
from robust.summary import CheckRecord

ATTACK_DRAWS = 8
VOTES = 40
_LEVEL = 0.005


class Averaged(CountedModel):
    """Images (N, C, H, W) to the logarithms (N, K) of the model's probabilities, averaged over ``draws`` passes.

    Differentiable; every pass is counted. ``seed`` starts a stream of random numbers that goes on from call to call, so
    that no two calls draw the same; the global random state is as before.
    """

    def __init__(self, model: nn.Module, seed: int, draws: int = ATTACK_DRAWS) -> None:
        super().__init__(model)
        self.draws = draws
        self.stream = Stream(2 * seed)

    def forward(self, images: Tensor) -> Tensor:
        with self.stream.next(images.device):
            draws = [super(Averaged, self).forward(images).float().log_softmax(1) for _ in range(self.draws)]
        return torch.stack(draws).logsumexp(0) - math.log(self.draws)

    def misread(self, images: Tensor, labels: Tensor, draws: int) -> Tensor:
        """The share of so many fresh passes that misread each image, (N,)."""
        total = torch.zeros_like(labels, dtype=torch.float64)
        with self.stream.next(images.device):
            for _ in range(draws):
                total += super().forward(images).argmax(1) != labels
        return total / draws


class Voting(nn.Module):
    """Images (N, C, H, W) to the logarithms (N, K) of each class's share among the answers of ``votes`` fresh passes.

    ``clear``: NaN where the two most frequent answers do not differ at 0.5 % (two-sided binomial test: 30 of 40
    votes), so that an image counts as fooled only if another class clearly wins, also after many attempts. Source:
    Cohen et al., ICML 2019, PREDICT.
    """

    def __init__(self, model: nn.Module, seed: int, votes: int = VOTES, *, clear: bool = True) -> None:
        super().__init__()
        self.model = model
        self.seed = seed
        self.votes = votes
        self.clear = clear
        self.stream = Stream(2 * seed + 1)

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor | None = None
        with self.stream.next(images.device), torch.no_grad():
            for _ in range(self.votes):
                logits = self.model(images)
                vote = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
                total = vote if total is None else total + vote
        assert total is not None
        shares = (total / self.votes).clamp_min(1e-6).log()
        if not self.clear:
            return shares
        first, second = total.topk(2, dim=1).values.unbind(1)
        return shares.masked_fill((first < _least(first + second))[:, None], torch.nan)

    def again(self) -> Voting:
        """Another jury, three times as large, of which a simple majority decides: for what was found already."""
        return Voting(self.model, self.seed + 1, 3 * self.votes + 1, clear=False)


def _least(trials: Tensor) -> Tensor:
    """How many of so many answers must be one of two classes for a binomial test to tell them apart."""
    from scipy.stats import binom

    table = [binom.isf(_LEVEL / 2, n, 0.5) + 1 for n in range(int(trials.max()) + 1)]
    return torch.tensor(table, device=trials.device)[trials]


class Stream:
    """Fresh random numbers for each call of a model, the same in every program run; the global state is untouched."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls = 0

    @contextmanager
    def next(self, device: torch.device) -> Iterator[None]:
        self.calls += 1
        with own_random(device, (self.seed * 0x9E3779B97F4A7C15 + self.calls) % 2**63):
            yield


def drawn(ledger: Ledger) -> bool:
    """Whether the audit of this ledger found the model to draw random numbers."""
    found = ledger.checks("").get("deterministic")
    return found is not None and CheckRecord.model_validate_json(found).passed is False
