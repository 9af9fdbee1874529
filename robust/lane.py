"""The attack lane: a faster copy of the model for searching. What it finds, the float32 model still has to confirm.

The copy is frozen, its batch normalization is folded, its convolutions are laid out channels-last, and it runs in
bfloat16 where the hardware has it. A copy is only used where its gradient was seen to agree with the model's and was
measured to be faster; else the next safer one is tried, down to the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn

from robust.calibration import Basis, basis_of, first_line, gradient_at, measured_speedup, median_cosine
from robust.copying import Recipe, fast_copy, unfit
from robust.errors import InputError, unknown
from robust.models import evaluating
from robust.randomness import own_random

PRECISIONS = ("auto", "float32", "plain")
KINDS = ("bfloat16, folded", "float32, folded", "plain")
# A lane's gradient must point the model's way (median over images), and its class be the model's on as many images.
COSINE = 0.9
AGREEMENT = 0.9
# Below these gains a copy is not worth its memory and its rounding; above the last one no second copy is tried.
_WORTH = {torch.bfloat16: 1.15, torch.float32: 1.1}
_MUCH_FASTER = 1.5
_MOST_IMAGES = 256


@dataclass(frozen=True)
class LaneReport:
    """What was chosen and why.

    kind: ``bfloat16, folded``, ``float32, folded`` or ``plain``.
    cosine: median over the calibration images of the cosine between the lane's and the model's gradient of
        cross-entropy at the input, -1 to 1.
    speedup: seconds of one gradient pass of the model over those of the lane, on the calibration batch.
    detail: one line, what was tried and why it was taken or left.
    """

    kind: str
    cosine: float
    speedup: float
    detail: str


class Lane(nn.Module):
    """Float32 images (N, C, H, W) in [0, 1] to float32 logits (N, K), differentiable to its input.

    ``evidence`` is the untouched model, the same object. It is no sub-module: neither ``parameters`` nor ``modules``
    nor ``deepcopy`` reach it. A plain lane calls it, frozen and in eval mode for that call.
    """

    def __init__(self, evidence: nn.Module, network: nn.Module | None, report: LaneReport) -> None:
        super().__init__()
        self._evidence = _Reference(evidence)
        self.network = network
        self.report = report
        self.training = False

    @property
    def evidence(self) -> nn.Module:
        return self._evidence.model

    def forward(self, images: Tensor) -> Tensor:
        if self.network is not None:
            logits: Tensor = self.network(images)
            return logits
        model = self.evidence
        if _at_rest(model):
            return _float(model(images))
        with evaluating(model):
            return _float(model(images))


def make_lane(
    model: nn.Module, images: Tensor, labels: Tensor, *, precision: str = "auto", kind: str | None = None
) -> Lane:
    """The fastest lane that agrees with ``model``, calibrated on ``images`` (N, C, H, W) and ``labels`` (N,).

    Give one batch as the attacks will, on the model's device: at most 256 images of it are used, for the comparison
    and for the timing. It costs ten to twenty gradient passes. The model, its flags and the global random state are as
    before. While the lane is used, ``evidence`` is for the caller to guard (`robust.models.evaluating`).

    precision: ``auto``; ``float32``, which never uses bfloat16; ``plain``, the model itself.
    kind: a kind from the report of an earlier lane. That kind again if it agrees, however fast it is: what is measured
        must not change the course of a run that is resumed or repeated.

    Whatever cannot be copied, has hooks or is no ordinary module, draws random numbers, mixes the images of a batch or
    gives no gradient runs in a plain lane. Raises InputError for an unknown precision and images without labels.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if len(images) != len(labels):
        raise InputError(f"a lane is calibrated on labeled images: got {len(images)} images and {len(labels)} labels")
    if kind is not None and kind not in KINDS:
        raise unknown("kind of lane", kind, KINDS)
    if "plain" in (precision, kind):
        return _plain(model, "as asked")
    if not len(images):
        return _plain(model, "no images to calibrate on")
    reason = unfit(model)
    if reason:
        return _plain(model, reason)
    images, labels = images[:_MOST_IMAGES].detach().float(), labels[:_MOST_IMAGES]
    with torch.inference_mode(False), own_random(images.device), evaluating(model), torch.no_grad():
        dtypes = _dtypes(images.device, precision, kind)
        return _calibrated(model, images.clone(), labels.clone(), dtypes, by_speed=kind is None)


# Choosing


def _recipes(dtype: torch.dtype) -> list[Recipe]:
    """The fastest first; the next is tried only where the one before does not run or does not agree."""
    wide = (False,) if dtype == torch.float32 else (False, True)
    return [Recipe(dtype, layout, w) for layout in (torch.channels_last, torch.contiguous_format) for w in wide]


def _dtypes(device: torch.device, precision: str, kind: str | None) -> list[torch.dtype]:
    if kind is not None:
        return [dtype for dtype in _WORTH if Recipe(dtype, torch.channels_last).kind == kind]
    return [torch.bfloat16, torch.float32] if precision == "auto" and has_bfloat16(device) else [torch.float32]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 runs at all; whether it pays is measured."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _calibrated(model: nn.Module, images: Tensor, labels: Tensor, dtypes: list[torch.dtype], by_speed: bool) -> Lane:
    basis = basis_of(model, images, labels)
    if isinstance(basis, str):
        return _plain(model, basis)
    best: Lane | None = None
    notes: list[str] = []
    for dtype in dtypes:
        lane = _agreeing(dtype, basis, notes)
        if lane is None:
            continue
        if by_speed and lane.report.speedup < _WORTH[dtype]:
            notes.append(f"{lane.report.kind}: only {lane.report.speedup:.2f} times as fast")
        elif best is None or lane.report.speedup > best.report.speedup:
            best = lane
        if best is not None and best.report.speedup >= _MUCH_FASTER:
            break
    if best is None:
        return _plain(model, "; ".join(notes))
    return Lane(model, best.network, replaced(best.report, detail="; ".join([best.report.detail, *notes])))


def _agreeing(dtype: torch.dtype, basis: Basis, notes: list[str]) -> Lane | None:
    """The first copy in this precision that agrees with the model; why others did not is added to ``notes``."""
    for recipe in _recipes(dtype):
        lane = _try(recipe, basis)
        if isinstance(lane, Lane):
            return lane
        notes.append(f"{recipe.title}: {lane}")
    return None


def _try(recipe: Recipe, basis: Basis) -> Lane | str:
    """The lane by this recipe, or why it must not be used."""
    try:
        network, folded = fast_copy(basis.model, recipe, basis.images, basis.logits)
        logits, gradient = gradient_at(network, basis.images, basis.labels)
    except Exception as error:
        return first_line(error)
    if gradient is None:
        return "no gradient reaches the copy's input"
    cosine = median_cosine(gradient, basis.gradient)
    same = int((logits.argmax(1) == basis.logits.argmax(1)).sum())
    if not cosine >= COSINE:
        return f"gradient cosine {cosine:.3f}, below {COSINE}"
    if same < AGREEMENT * len(logits):
        return f"same class on {same} of {len(logits)} images only"
    speedup = measured_speedup(basis.model, network, basis.images, basis.labels)
    detail = (
        f"{recipe.title}: {speedup:.2f} times as fast, gradient cosine {cosine:.4f}, same class on {same} of "
        f"{len(logits)} images, {folded} batch normalizations folded"
    )
    return Lane(basis.model, network, LaneReport(recipe.kind, cosine, speedup, detail))


class _Reference:
    """Keeps a module out of its owner's sub-modules, and out of the owner's copies."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return self


# Small parts


def _plain(model: nn.Module, reason: str) -> Lane:
    return Lane(model, None, LaneReport("plain", 1.0, 1.0, reason))


def _float(logits: Any) -> Tensor:
    return logits.float()  # type: ignore[no-any-return]


def _at_rest(model: nn.Module) -> bool:
    """In eval mode and frozen throughout, so that a call needs no guard."""
    return not any(module.training for module in model.modules()) and not any(
        parameter.requires_grad for parameter in model.parameters()
    )
