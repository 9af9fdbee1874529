"""Averages of the weights over training, which are flatter and more robust than the last ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KINDS = ("ema", "swa", "none")
_SWA_START = 0.75


class Average:
    """The average of a model's state: weights and running statistics.

    ``ema``: exponential with ``decay``, shorter at first so that the random start is forgotten: the share kept is
    min(decay, (1 + t) / (10 + t)) at step t. ``swa``: the plain mean over the last quarter of the training (Izmailov et
    al., UAI 2018); until then the weights themselves. Whole-number buffers are copied.
    """

    def __init__(self, kind: str, model: nn.Module, decay: float) -> None:
        self.kind, self.decay, self.count = kind, decay, 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, done: float) -> None:
        """Take in the model after a step; ``done`` is the share of the training that is over, 0 to 1."""
        self.count = self.count + 1 if self.kind == "ema" or done > _SWA_START else 0
        share = self._share()
        pairs = [(self.state[name], value) for name, value in model.state_dict().items()]
        floats = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [value.detach() for _, value in floats], share)
        for mean, value in pairs:
            if not mean.is_floating_point():
                mean.copy_(value)

    def _share(self) -> float:
        """The weight of the newest state."""
        if self.kind == "swa":
            return 1 / max(self.count, 1)
        return 1 - min(self.decay, (1 + self.count) / (10 + self.count))

    def saved(self) -> dict[str, Tensor | int]:
        return {"count": self.count, **{f"state.{name}": value for name, value in self.state.items()}}

    def restore(self, saved: dict[str, Tensor | int]) -> None:
        self.count = int(saved["count"])
        for name, value in self.state.items():
            value.copy_(torch.as_tensor(saved[f"state.{name}"]))
