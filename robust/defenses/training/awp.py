"""Adversarial weight perturbation: the loss is taken where the weights are worst, a small way around."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def perturbed(
    model: nn.Module,
    loss: Callable[[], Tensor],
    gamma: float,
    total: Callable[[Sequence[Tensor]], Sequence[Tensor]] = list,
) -> Iterator[None]:
    """Weights moved up the gradient of ``loss`` inside, each tensor by ``gamma`` times its own norm; then put back.

    Vectors (biases, normalization) stay. gamma 0 changes nothing and costs nothing. ``total`` sums gradients over the
    processes that share the batch.
    Source: Wu, Xia and Wang, NeurIPS 2020, equations 7 to 9 (one step).
    """
    if gamma == 0:
        yield
        return
    weights = [weight for weight in model.parameters() if weight.requires_grad and weight.dim() > 1]
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, total(gradients), strict=True):
            weight.add_(gradient, alpha=float(gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, kept, strict=True):
                weight.copy_(old)
