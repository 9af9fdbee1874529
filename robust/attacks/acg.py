"""Auto conjugate gradient: APGD's schedule along conjugate directions."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robust.attacks.apgd import APGD, _State
from robust.threats import per_image


@dataclass(frozen=True)
class ACG(APGD):
    """Auto conjugate gradient: as APGD, but each step follows the conjugate direction s = gradient + beta * s before.

    beta is that of Hestenes and Stiefel; where APGD goes back to the best point, the direction starts afresh. There is
    no momentum. Iterates move farther apart than APGD's, so that a run comes to more than one local maximum.

    Settings are APGD's, with the margin as loss.

    Source: Yamamura et al., ICML 2022, algorithm 1.
    """

    _: KW_ONLY
    loss: str = "margin"

    name: ClassVar[str] = "acg"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    source: ClassVar[str] = "Yamamura et al., ICML 2022"

    def _prepared(self, state: _State) -> _State:
        nothing = torch.zeros_like(state.gradient)
        return _Conjugate(**vars(state), direction=nothing, before=nothing)

    def _ascend(self, state: _State, step: int) -> Tensor:
        assert isinstance(state, _Conjugate)
        gradient = state.gradient.nan_to_num(0, 0, 0)
        flat, fall = gradient.flatten(1), (state.before - gradient).flatten(1)
        beta = -(flat * fall).sum(1) / (state.direction.flatten(1) * fall).sum(1)
        # Between gradients that differ by rounding alone, beta is noise; without a direction before, no number.
        noise = torch.linalg.vector_norm(fall, dim=1) <= 1e-5 * torch.linalg.vector_norm(flat, dim=1)
        beta = beta.masked_fill(noise, 0).nan_to_num(0, 0, 0)
        state.direction = gradient + per_image(beta, gradient) * state.direction
        state.before = gradient
        moved = self.geometry.steepest(state.direction, state.points, state.size)
        return self.geometry.project(moved, state.images, state.eps)

    def _returned(self, state: _State, back: Tensor) -> None:
        assert isinstance(state, _Conjugate)
        state.direction = torch.where(per_image(back, state.points).bool(), 0, state.direction)


@dataclass
class _Conjugate(_State):
    direction: Tensor
    before: Tensor  # the gradient of the step before
