"""Checks of the model's answers: what they are, and that they depend on the image alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust.attacks.base import Goal
from robust.attacks.losses import dlr
from robust.checks.sample import Sample, logits_of, record
from robust.checks.state import inner_backward, remembered
from robust.errors import NoGradientError
from robust.models import evaluating
from robust.summary import CheckRecord

_PASSES = 5
_MOVED = 1e-4  # of the length of an image's logits, as in AutoAttack's flag
_COUPLED = 0.05  # allows for other kernels in other batch sizes or with a gradient, in half precision too


def outputs_are_logits(sample: Sample) -> CheckRecord:
    logits = logits_of(sample.model, sample.images)
    sums = logits.double().sum(1)
    probabilities = bool((logits >= 0).all() and (logits <= 1).all() and ((sums - 1).abs() < 1e-4).all())
    log_probabilities = bool((logits <= 0).all() and ((logits.double().exp().sum(1) - 1).abs() < 1e-4).all())
    what = "probabilities" if probabilities else "log-probabilities" if log_probabilities else "logits"
    return record(
        "logits", "Outputs are logits", not probabilities,
        f"on {len(sample)} images the outputs are {what} (from {logits.min():.3g} to {logits.max():.3g})",
        "A softmax inside the model saturates: gradients vanish in rounding and attacks look weaker than they are. "
        "Remove the softmax and audit the logits.",
    )  # fmt: skip


def losses_fit_the_classes(sample: Sample) -> CheckRecord:
    logits = logits_of(sample.model, sample.images)
    classes = logits.shape[1]
    spread = logits.topk(min(3, classes), dim=1).values
    undefined = ~(spread[:, 0] > spread[:, -1]) | ~dlr(logits, Goal(sample.labels)).isfinite()
    odd = int(undefined.sum())
    instead = "" if classes >= 4 else f"; with fewer than {4 if classes == 3 else 3} the margin stands in for it"
    return record(
        "classes", "The losses fit the number of classes", odd == 0,
        f"{classes} classes, up to {min(9, classes - 1)} targets a run; the ratio of logits is undefined on {odd} of "
        f"{len(sample)} images{instead}",
        "The difference of logits ratio (DLR) needs 3 classes, towards a target 4, and logits that differ. Where it is "
        "undefined, attacks that rest on it are weaker than their name says.", weight="advice",
    )  # fmt: skip


def output_is_deterministic(sample: Sample) -> CheckRecord:
    runs = torch.stack([logits_of(sample.model, sample.images) for _ in range(_PASSES)])
    changed = int((runs.argmax(2) != runs.argmax(2)[0]).any(0).sum())
    spread = _moved(runs, runs[0])
    return record(
        "deterministic", "Same image, same answer", bool(spread.max() <= _MOVED) and changed == 0,
        f"{_PASSES} passes over {len(sample)} images: {changed} predictions changed, logits moved by up to "
        f"{float(spread.max()):.2g} of their length",
        "A model that draws random numbers can survive one attack by luck. It is attacked and judged over many draws "
        "instead: see the check 'draws', which says whether that settles it.", weight="advice",
    )  # fmt: skip


def batch_does_not_matter(sample: Sample) -> CheckRecord:
    few = sample.images[:16] if sample.random else sample.images[:32]
    title, meaning = (
        "Alone or in a batch, same answer",
        "The model looks at the other images of the batch, often because batch normalization is not in eval mode. "
        "Figures then depend on how images happen to be grouped.",
    )
    if sample.random:
        apart = _apart(sample.model, few)
        return record(
            "batch", title, apart <= 2,
            f"the mean logits of {len(few)} images over 16 draws differ alone and in a batch by {apart:.2g} standard "
            "errors (median)", meaning,
        )  # fmt: skip
    together = logits_of(sample.model, few)
    alone = torch.cat([logits_of(sample.model, image[None]) for image in few])
    differ, moved = int((together.argmax(1) != alone.argmax(1)).sum()), float(_moved(alone, together).max())
    return record(
        "batch", title, differ == 0 and moved <= _COUPLED,
        f"{differ} of {len(few)} images are classified otherwise alone than in a batch; logits moved by up to "
        f"{moved:.2g} of their length", meaning,
    )  # fmt: skip


def answers_leave_no_trace(sample: Sample) -> CheckRecord:
    """Whether the model remembers what it was shown, or answers otherwise while gradients are taken."""
    few = sample.images[:16]
    moved = traced = 0.0
    with evaluating(sample.model), torch.no_grad():
        first = sample.model(few).float()
        kept = remembered(sample.model, few, tensors=not sample.random)
        if not sample.random:
            for other in (1 - few, few.flip(0), few.roll(1, 0), few.flip(3)):
                sample.model(other)
            moved = float(_moved(sample.model(few).float(), first).max())
            traced = float(_moved(_traced(sample.model, few), first).max())
    shown = f", in {', '.join(kept[:3])}" if kept else ""
    return record(
        "state", "Answers leave no trace", not kept and moved <= _MOVED and traced <= _COUPLED,
        f"{len(kept)} values inside the model changed by a pass in eval mode{shown}; logits moved by up to "
        f"{moved:.2g} of their length after other images, by {traced:.2g} while a gradient is taken",
        "A model that remembers earlier images, or can tell an attack from use, need not answer later as it did here. "
        "Freeze running statistics and counters in eval mode.",
    )  # fmt: skip


def no_optimization_inside(sample: Sample) -> CheckRecord:
    walks = inner_backward(sample.model, sample.images[:8])
    found = "walks gradients backward" if walks else "walks no gradient backward"
    return record(
        "dynamic", "No optimization inside the model", walks == 0,
        f"a forward pass without gradients {found} ({walks} tensors read for it)",
        "A model that optimizes while it answers (purification, adaptation at test time) hides its real gradient from "
        "attacks that see one pass. Attack it through the whole loop, or audit the classifier alone.",
    )  # fmt: skip


def _traced(model: nn.Module, images: Tensor) -> Tensor:
    """The logits while a gradient is taken; as ever where the model cannot be run so, which the gradient checks say."""
    try:
        with torch.enable_grad():
            return model(images.clone().requires_grad_()).detach().float()  # type: ignore[no-any-return]
    except (RuntimeError, NoGradientError):
        return model(images).float()  # type: ignore[no-any-return]


def _moved(logits: Tensor, reference: Tensor) -> Tensor:
    """How far logits (..., N, K) lie from the reference (N, K), in lengths of the latter. NaN counts as far."""
    change: Tensor = (logits - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-12)
    return torch.nan_to_num(change, nan=torch.inf)


def _apart(model: nn.Module, images: Tensor, draws: int = 16) -> float:
    """The median difference of mean logits, alone and in a batch, in standard errors."""
    together = torch.stack([logits_of(model, images) for _ in range(draws)])
    alone = torch.stack([torch.cat([logits_of(model, image[None]) for image in images]) for _ in range(draws)])
    error = ((together.var(0) + alone.var(0)) / draws).sqrt().clamp_min(1e-12)
    return float(((together.mean(0) - alone.mean(0)).abs() / error).median())
