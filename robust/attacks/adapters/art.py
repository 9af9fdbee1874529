"""Attacks of the Adversarial Robustness Toolbox (ART), called like our own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from robust.attacks.adapters.art_attacks import CATALOG
from robust.attacks.adapters.base import AdaptedAttack, import_failure
from robust.attacks.adapters.bridge import Bridge
from robust.attacks.adapters.catalog import Catalog, Setting
from robust.attacks.base import Goal
from robust.silence import quiet

_NORMS = {"linf": np.inf, "l2": 2, "l1": 1}
# These mistake two classes for a single output and refuse; told of a third class, which never occurs, they run.
_REFUSE_TWO = {"PixelAttack", "SignOPTAttack", "ThresholdAttack"}
_MENDED = {"BoundaryAttack", "BrendelBethgeAttack", "GeoDA", "HopSkipJump"}
# GeoDA's cosine bases, by the file name under which it would keep each in the working directory.
_BASES: dict[str, Any] = {}


@dataclass(frozen=True)
class ArtAttack(AdaptedAttack):
    """An evasion attack of ART: ``ArtAttack(8/255, attack="HopSkipJump", options=(("max_iter", 10),))``.

    ART works in NumPy and float32, so each call copies images between the model's device and the host. Its ``norm``,
    ``eps``, ``targeted`` and ``batch_size`` follow from the call; ``eps_step`` is a share of eps.

    Source: Nicolae et al., arXiv 1807.01069; of each attack: ``source``.
    """

    catalog: ClassVar[Catalog] = CATALOG
    reserved: ClassVar[frozenset[str]] = frozenset(
        {"classifier", "estimator", "norm", "eps", "targeted", "verbose", "summary_writer", "decision_rule"}
        | {"adv_criterion", "loss", "mask", "eval_perform"}
    )

    @classmethod
    def find_class(cls, attack: str) -> type | None:
        try:
            with quiet():
                evasion = importlib.import_module("art.attacks.evasion")
        except ImportError as error:
            raise import_failure("art (adversarial-robustness-toolbox)", error) from error
        found: type | None = getattr(evasion, attack, None)
        return found

    def search(self, bridge: Bridge, images: Tensor, goal: Goal, setting: Setting, seeds: Tensor) -> Tensor:
        labels = goal.labels if goal.targets is None else goal.targets
        classes = 3 if setting.classes == 2 and self.attack in _REFUSE_TWO else setting.classes
        extra: dict[str, Any] = {}
        if self.attack == "BrendelBethgeAttack":
            start = _start(bridge, images, goal)
            if start is None:
                return images
            extra["starting_points"] = start.to("cpu", torch.float32).numpy()
        module = importlib.import_module(self.library_class().__module__)
        with _mended(module) if self.attack in _MENDED else nullcontext(), _current(images.device):
            attack = self.construct(_classifier(bridge, images, classes), **self._settings(images, goal, setting))
            found = attack.generate(
                x=images.to("cpu", torch.float32).numpy(),
                y=F.one_hot(labels, classes).to("cpu", torch.float32).numpy(),
                **extra,
            )
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))

    def _settings(self, images: Tensor, goal: Goal, setting: Setting) -> dict[str, Any]:
        known = {
            "norm": _NORMS.get(setting.norm),
            "eps": setting.eps,
            "targeted": goal.targets is not None,
            "verbose": False,
            **({} if self.entry.alone else {"batch_size": len(images)}),
            **self.entry.options(setting),
        }
        accepted = self.accepted()
        return {name: value for name, value in known.items() if name in accepted}


def _classifier(bridge: Bridge, images: Tensor, classes: int) -> Any:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=bridge,
        # The sum, not the mean: so that an image's gradient does not depend on how many others there are.
        loss=torch.nn.CrossEntropyLoss(reduction="sum"),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu" if images.device.type == "cpu" else "gpu",
    )


def _start(bridge: Bridge, images: Tensor, goal: Goal) -> Tensor | None:
    """A random image that is adversarial for one image, in 100 draws; None where there is none.

    The draws are ART's own default, but ART raises an error where they fail.
    """
    for _ in range(100):
        points = torch.rand_like(images)
        with torch.no_grad():
            if bool(goal.met(bridge(points)).all()):
                return points
    return None


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Makes this the current CUDA device: ART takes whatever that is."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device):
        yield


@contextmanager
def _mended(module: ModuleType) -> Iterator[None]:
    """Swaps what an attack's module knows as ``np`` and ``os``, where it has them, for the time of the run.

    - ``np.random.RandomState()`` is seeded from the global generator; HopSkipJump and BoundaryAttack draw their starts
      from one that nobody can seed.
    - GeoDA keeps its cosine basis in memory instead of in a file in the working directory, and finds the ``np.mat``
      that NumPy 2 dropped.
    - BrendelBethgeAttack's progress bar, which has no switch, is left out.
    """
    numpy = _copy(np, mat=np.asmatrix, save=_BASES.__setitem__, load=_BASES.__getitem__)
    vars(numpy)["random"] = _copy(np.random, RandomState=_random_state)
    bars = importlib.import_module("tqdm.auto")
    swaps = [(module, "np", numpy), (bars, "trange", range)]
    if hasattr(module, "os"):
        swaps.append((module, "os", SimpleNamespace(path=SimpleNamespace(exists=_BASES.__contains__))))
    before = [(place, name, getattr(place, name)) for place, name, _ in swaps if hasattr(place, name)]
    try:
        for place, name, value in swaps:
            if hasattr(place, name):
                setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


def _copy(module: ModuleType, **changes: Any) -> ModuleType:
    copy = ModuleType(module.__name__)
    vars(copy).update(vars(module) | changes)
    return copy


def _random_state(seed: int | None = None) -> np.random.RandomState:
    return np.random.RandomState(np.random.randint(2**32, dtype=np.uint32) if seed is None else seed)
