"""Attacks of Foolbox, called like our own."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robust import randomness
from robust.attacks.adapters.base import AdaptedAttack, import_failure
from robust.attacks.adapters.bridge import Bridge
from robust.attacks.adapters.catalog import Catalog, Setting
from robust.attacks.adapters.foolbox_attacks import CATALOG
from robust.attacks.base import Goal
from robust.silence import quiet
from robust.threats import NORMS

# These start from an adversarial image and raise an error where they find none.
_STARTED = {"BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"} | {
    f"{norm}BrendelBethgeAttack" for norm in ("L0", "L1", "L2", "Linfinity")
}


@dataclass(frozen=True)
class FoolboxAttack(AdaptedAttack):
    """An attack of Foolbox: ``FoolboxAttack(0.5, norm="l2", attack="DDNAttack", options=(("steps", 50),))``.

    Foolbox works on torch tensors, so nothing is copied. Its distance and radius follow from ``norm`` and ``eps``;
    images of different radii are run in groups of one radius.

    Source: Rauber et al., JOSS 2020; of each attack: ``source``.
    """

    catalog: ClassVar[Catalog] = CATALOG
    reserved: ClassVar[frozenset[str]] = frozenset({"distance", "constraint", "init_attack", "tensorboard"})

    @classmethod
    def find_class(cls, attack: str) -> type | None:
        found: type | None = getattr(_library().attacks, attack, None)
        return _mended(found) if found is not None and attack in ("L0FMNAttack", "L2FMNAttack") else found

    def search(self, bridge: Bridge, images: Tensor, goal: Goal, setting: Setting, seeds: Tensor) -> Tensor:
        foolbox = _library()
        model = foolbox.PyTorchModel(bridge, bounds=(0, 1), device=images.device)
        if goal.targets is None:
            criterion = foolbox.criteria.Misclassification(goal.labels)
        else:
            criterion = foolbox.criteria.TargetedMisclassification(goal.targets)
        attack = self.construct(**self._settings(setting))
        radius = "epsilon" if isinstance(attack, foolbox.attacks.base.FixedEpsilonAttack) else "early_stop"
        extra: dict[str, Any] = {radius: setting.eps}
        with _drawn_per_image(seeds):
            if self.attack in _STARTED:
                start = _start(self.attack, model, bridge, images, goal, criterion)
                if start is None:
                    return images
                extra["starting_points"] = start
            # ``run``, not the call: that would clip to the ball and query the model again, which we do ourselves.
            found: Tensor = attack.run(model, images, criterion, **extra)
        return found

    def _settings(self, setting: Setting) -> dict[str, Any]:
        known = {"distance": getattr(_library().distances, setting.norm), **self.entry.options(setting)}
        accepted = self.accepted()
        return {name: value for name, value in known.items() if name in accepted}


def _library() -> Any:
    try:
        with quiet():
            return importlib.import_module("foolbox")
    except ImportError as error:
        raise import_failure("foolbox", error) from error


@contextmanager
def _drawn_per_image(seeds: Tensor) -> Iterator[None]:
    """Random numbers that are drawn for a whole batch, one block for each image, come from the images' own seeds.

    Foolbox draws through two methods of EagerPy's tensors, which are swapped for the time of the run. Numbers of other
    shapes come from the global generator.
    """
    tensor = importlib.import_module("eagerpy").PyTorchTensor
    plain_uniform, plain_normal, streams = tensor.uniform, tensor.normal, itertools.count()

    def per_image(shape: Any) -> bool:
        return not isinstance(shape, int) and len(shape) > 1 and shape[0] == len(seeds)

    def uniform(self: Any, shape: Any, low: float = 0.0, high: float = 1.0) -> Any:
        if not per_image(shape):
            return plain_uniform(self, shape, low, high)
        numbers = randomness.uniform(seeds, next(streams), shape[1:], self.raw.dtype)
        return type(self)(numbers * (high - low) + low)

    def normal(self: Any, shape: Any, mean: float = 0.0, stddev: float = 1.0) -> Any:
        if not per_image(shape):
            return plain_normal(self, shape, mean, stddev)
        return type(self)(randomness.normal(seeds, next(streams), shape[1:], self.raw.dtype) * stddev + mean)

    tensor.uniform, tensor.normal = uniform, normal
    try:
        yield
    finally:
        tensor.uniform, tensor.normal = plain_uniform, plain_normal


def _start(name: str, model: Any, bridge: Bridge, images: Tensor, goal: Goal, criterion: Any) -> Tensor | None:
    """An adversarial image, however far away, for one image, by the attack's own default; None where it finds none."""
    attacks = _library().attacks
    if name == "PointwiseAttack":
        first = attacks.SaltAndPepperNoiseAttack()
    else:
        first = attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
    found: Tensor = first.run(model, images, criterion)
    with torch.no_grad():
        return found if bool(goal.met(bridge(found)).all()) else None


def _mended(attack: type) -> type:
    """The fast minimum norm attack with our own projection.

    Foolbox's divides an l2 norm by itself, so it never projects, and its l0 form keeps one value too many and runs past
    the end of the image once the ball holds all of it.
    """

    class Mended(attack):  # type: ignore[misc]
        def project(self, x: Any, x0: Any, epsilon: Any) -> Any:
            return type(x)(NORMS[f"l{self.p}"].project(x.raw, x0.raw, epsilon.raw))

    Mended.__name__ = attack.__name__
    return Mended
