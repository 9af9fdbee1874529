"""The smoothed classifier: a model whose class is the one that noisy copies of an image are given most often."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from robust.defenses.smoothing.sampling import Sampler, Stream, copies_at_a_time
from robust.errors import InputError
from robust.models import evaluating

ABSTAINS = -1


class SmoothedClassifier(nn.Module):
    """g(x) = the most likely class of f(x + noise), noise ~ N(0, sigma^2) in every pixel value.

    Called, it is a differentiable and deterministic model from images (N, C, H, W) to the logarithm of f's mean
    softmax over ``draws`` noise patterns (N, K), the same patterns for every image and call: the function that
    SmoothAdv's gradients climb (Salman et al., NeurIPS 2019, equation 16), so any attack on models takes it. What it
    returns estimates g but is not g: :meth:`predict` votes, and certificates are about that vote.

    Args:
        model: f, images to logits (N, K); noisy copies leave [0, 1].
        sigma: standard deviation of the noise in pixel units, > 0.
        draws: noise patterns of a call.
        seed: of the patterns and of the votes.

    Raises InputError for a sigma or draws that are no positive numbers.
    """

    def __init__(self, model: nn.Module, sigma: float, *, draws: int = 32, seed: int = 0) -> None:
        super().__init__()
        check_sigma(sigma)
        if draws < 1:
            raise InputError(f"draws {draws}: a smoothed classifier needs at least 1")
        self.model, self.sigma, self.draws, self.seed = model, float(sigma), draws, seed
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        noise = self._patterns(images)
        copies = (images[:, None] + self.sigma * noise).flatten(0, 1)
        logits: Tensor = self.model(copies)
        chances = logits.float().log_softmax(1).view(len(images), self.draws, -1)
        return chances.logsumexp(1) - math.log(self.draws)

    def _patterns(self, images: Tensor) -> Tensor:
        # Drawn on the CPU, so that the function is the same on every device.
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.draws, *images.shape[1:], generator=generator)
        return noise.to(images.device, images.dtype)

    @torch.no_grad()
    def predict(self, images: Tensor, *, draws: int = 1000, alpha: float = 0.001) -> Tensor:
        """The class of each image (N,), int64; -1 where it abstains.

        It abstains unless the two classes with most of ``draws`` votes differ with two-sided binomial p-value at most
        ``alpha``: then the class is g's, except with probability ``alpha``. Source: Cohen et al., ICML 2019, section
        3.2.1, Predict.
        """
        from scipy.stats import binomtest

        if draws < 1 or not 0 < alpha < 1:
            raise InputError(f"predict needs draws >= 1 and alpha in (0, 1), not {draws} and {alpha:g}")
        if not len(images):
            return torch.zeros(0, dtype=torch.int64, device=images.device)
        with evaluating(self.model):
            classes = int(self.model(images[:1]).shape[1])
            sampler = Sampler(self.model, self.sigma, self.seed, copies_at_a_time(self.model, images[:1]))
            votes = sampler.histogram(images, Stream.PREDICTION, draws, classes)
        first, second = np.sort(votes, axis=1)[:, :-3:-1].T
        sure = [
            top > 0 and binomtest(int(top), int(top + next_)).pvalue <= alpha
            for top, next_ in zip(first, second, strict=True)
        ]
        return torch.from_numpy(np.where(sure, votes.argmax(1), ABSTAINS)).to(images.device)


def check_sigma(sigma: float) -> None:
    """Raises InputError for a sigma that is no positive number."""
    if not (isinstance(sigma, (int, float)) and math.isfinite(sigma) and sigma > 0):
        raise InputError(f"sigma {sigma}: give the noise's standard deviation, above 0, in [0, 1] pixel units: 0.25")
