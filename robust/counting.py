"""Accounting: how many images pass through a model, forward and backward, whoever sends them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Passes:
    """Images passed forward and backward, all together."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: Passes) -> Passes:
        return Passes(self.forward - other.forward, self.backward - other.backward)


class CountedModel(nn.Module):
    """The model itself, with every image that passes it counted.

    A backward pass is counted when a gradient arrives at the logits, once for each time a graph is walked, so attacks
    of any library are charged alike and none counts itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = Passes()

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        self.passes = Passes(self.passes.forward + count, self.passes.backward)
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(count))  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, count: int) -> None:
        self.passes = Passes(self.passes.forward, self.passes.backward + count)
