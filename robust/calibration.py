"""How a copy of a model is compared with it: the gradient at real images, the classes, the time of a pass."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust.copying import close

# Two speeds are compared for about so long, unless two passes of each take longer.
_SECONDS = 0.4


@dataclass(frozen=True)
class Basis:
    """The model on the calibration images: what every copy is compared with."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor
    gradient: Tensor


def basis_of(model: nn.Module, images: Tensor, labels: Tensor) -> Basis | str:
    """The comparison's fixed side, or why there can be none."""
    try:
        logits, gradient = gradient_at(model, images, labels)
    except Exception as error:
        return f"its gradient pass failed: {first_line(error)}"
    if gradient is None:
        return "no gradient reaches its input"
    if not bool(logits.isfinite().all()):
        return "its logits are not finite"
    if not close(model(images).float(), logits, 1e-5):
        return "its logits change from call to call"
    half = (len(images) + 1) // 2
    if not close(model(images[:half]).float(), logits[:half], 5e-3):
        return "its logits depend on the other images of the batch"
    size = gradient.flatten(1).abs().amax(1)
    if int(((size > 0) & size.isfinite()).sum()) * 2 < len(images):
        return "its gradient vanishes on most images"
    return Basis(model, images, labels, logits, gradient)


def gradient_at(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Float32 logits (N, K) and the gradient of cross-entropy at the images; None where none arrives."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf).float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        if not loss.requires_grad:
            return logits.detach(), None
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return logits.detach(), gradient


def median_cosine(found: Tensor, reference: Tensor) -> float:
    """Median over the images that have a finite gradient. One that the copy has lost counts as 0."""
    a, b = (gradient.flatten(1).double() for gradient in (found, reference))
    size = b.abs().amax(1)
    told = (size > 0) & size.isfinite()
    a, b = (part[told] / part[told].abs().amax(1, keepdim=True) for part in (a, b))
    return float(F.cosine_similarity(a, b).nan_to_num(0).median())


def measured_speedup(model: nn.Module, network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Seconds of a gradient pass of ``model`` over those of ``network``, which take turns.

    The median over the turns or the ratio of the fastest passes, whichever is less: a busy machine must not make a
    slower copy look faster.
    """
    once = _seconds(network, images, labels, 1)
    repeats = max(1, math.ceil(0.01 / once))
    slow: list[float] = []
    fast: list[float] = []
    start = time.perf_counter()
    while len(slow) < 2 or (len(slow) < 7 and time.perf_counter() - start < _SECONDS):
        slow.append(_seconds(model, images, labels, repeats))
        fast.append(_seconds(network, images, labels, repeats))
    return min(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), min(slow) / min(fast))


def _seconds(model: nn.Module, images: Tensor, labels: Tensor, repeats: int) -> float:
    clock = clock_for(images.device)
    _finish(images.device)
    start = clock()
    for _ in range(repeats):
        gradient_at(model, images, labels)
    _finish(images.device)
    return clock() - start


def clock_for(device: torch.device) -> Callable[[], float]:
    """On a CPU the time this thread computes, which stands still while other programs have the processor."""
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    return time.thread_time if device.type == "cpu" and fine else time.perf_counter


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_line(error: Exception) -> str:
    """What went wrong, in at most 160 characters."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:160]
