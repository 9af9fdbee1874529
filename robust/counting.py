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

    ``lane``: a fast copy (see :mod:`robust.lane`). Calls then go to it, ``evidence`` is the model, counted in the same
    account, and attacks that know of lanes confirm there what the copy shows them.
    """

    def __init__(self, model: nn.Module, lane: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model if lane is None else lane
        self._evidence = None if lane is None else CountedModel(model)
        self._own = Passes()

    @property
    def evidence(self) -> CountedModel:
        """The model that decides: without a lane, this one."""
        return self if self._evidence is None else self._evidence

    @property
    def passes(self) -> Passes:
        if self._evidence is None:
            return self._own
        return Passes(
            self._own.forward + self._evidence._own.forward, self._own.backward + self._evidence._own.backward
        )

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        self._own = Passes(self._own.forward + count, self._own.backward)
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count_backward(count))  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, count: int) -> None:
        self._own = Passes(self._own.forward, self._own.backward + count)
