"""What a library is given in place of the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.attacks.adapters.isolation import ModelError
from robust.attacks.base import Goal, Model
from robust.attacks.losses import margin
from robust.errors import NoGradientError, RobustError
from robust.threats import Norm

# A margin below this share of the largest logit may be rounding.
_ROUNDING = 1e-5
_NO_PATH = "no gradient reaches the model's input: it detaches, quantizes or runs without grad"


class Stop(RobustError):
    """Ends a library's search: every image is fooled, or its patience is spent. Caught by who started it."""


class _InputGradient(torch.autograd.Function):
    """The model's logits, with a backward pass that goes to the input and nowhere else.

    Libraries call ``backward()``, which would add to ``.grad`` of every parameter that no guard of ours can see, such
    as those of a module inside a plain function.
    """

    @staticmethod
    def forward(ctx: Any, points: Tensor, model: Model) -> Tensor:
        with torch.enable_grad():
            ctx.leaf = points.detach().requires_grad_()
            ctx.logits = model(ctx.leaf)
        if not ctx.logits.requires_grad:
            raise NoGradientError(_NO_PATH)
        logits: Tensor = ctx.logits.detach()
        return logits

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        try:
            found = torch.autograd.grad(ctx.logits, ctx.leaf, gradients[0], retain_graph=True, allow_unused=True)[0]
        except Exception as error:
            raise ModelError from error
        if found is None:
            raise NoGradientError(_NO_PATH)
        return found, None


class Bridge(nn.Module):
    """Stands in for the model while a library attacks ``images`` (n, C, H, W), none of them fooled yet.

    The model is not one of its sub-modules, so nothing that a library does to the module it is given (move it, switch
    its mode, clear its gradients, look for layers) reaches the model; only calls do.

    It also keeps what it sees: ``found`` holds, for each image that is ``fooled`` (n,), the first point asked about
    that fools the model inside ball and box, so that an attack which passes through a success has it. ``solved`` (n,)
    are those whose margin is more than rounding; a point on the boundary itself may be on either side of it in another
    batch, so there the search goes on. A query with as many points as there are images is taken to hold them in order,
    which membership then confirms.

    ``asked`` counts the points that reached the model, never more than ``patience``; ``asked_first`` is the number of
    the one that first ``fooled``, where there is but one image.
    """

    def __init__(
        self, model: Model, images: Tensor, goal: Goal, eps: Tensor, geometry: Norm, *, probabilities: bool = False,
        patience: int | None = None, stop: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self._model = (model,)
        self._images, self._goal, self._eps, self._geometry = images, goal, eps, geometry
        self._probabilities = probabilities
        self._patience = math.inf if patience is None else patience
        self._stop = stop
        self.found = images.clone()
        self.fooled = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.solved = self.fooled.clone()
        self.asked = self.asked_first = 0
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.asked + len(images) > self._patience:
            raise Stop("the patience with these images is spent")
        self.asked += len(images)
        points = images.to(self._images)
        try:
            if points.requires_grad and torch.is_grad_enabled():
                logits: Tensor = _InputGradient.apply(points, self._model[0])  # type: ignore[no-untyped-call]
            else:
                with torch.no_grad():
                    logits = self._model[0](points)
        except RobustError:
            raise
        except Exception as error:
            raise ModelError from error
        with torch.no_grad():
            self._keep(points.detach(), logits.detach())
        logits = logits.to(images.device)
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        return F.softmax(logits, 1) if self._probabilities else logits

    def _keep(self, points: Tensor, logits: Tensor) -> None:
        if len(points) != len(self._images) and len(self._images) != 1:
            return
        # One image may be asked about at many points: then all of them are its own.
        targets = self._goal.targets
        goal = Goal(self._goal.labels.expand(len(points)), None if targets is None else targets.expand(len(points)))
        fooled = goal.met(logits)
        if not bool(fooled.any()):
            return
        fooled &= self._geometry.contains(points, self._images.expand_as(points), self._eps.expand(len(points)))
        safe = fooled & (margin(logits, goal) > _ROUNDING * logits.abs().amax(1))
        if len(self._images) == 1 and not self.asked_first and bool(fooled.any()):
            self.asked_first = self.asked - len(points) + 1 + int(fooled.nonzero()[0])
        for new, known in ((fooled, self.fooled), (safe, self.solved)):
            if len(self._images) == 1 and bool(new.any()) and not bool(known):
                self.found, known[0] = points[new.nonzero()[0]].clone(), True
            elif len(self._images) > 1:
                fresh = new & ~known
                self.found[fresh], known[fresh] = points[fresh], True
        if self._stop and bool(self.solved.all()):
            raise Stop("every image is fooled")
