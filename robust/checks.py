"""Checks that say whether an audit's numbers can be trusted.

Each is a function from a :class:`Sample` to a :class:`~robust.summary.CheckRecord`. A failed check of evidence makes
the verdict suspect. Sources: Carlini et al. 2019 (arXiv 1902.06705), sections 4 and 5; Pintor et al. 2022
(arXiv 2106.09947); the flags of AutoAttack (Croce and Hein, ICML 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from robust.attacks import FGSM, PGD, UniformNoise
from robust.attacks.base import Attack, Goal, loss_and_gradient
from robust.attacks.losses import cross_entropy, margin
from robust.errors import NoGradientError
from robust.models import evaluating
from robust.plan import Access
from robust.summary import CheckRecord
from robust.threats import ThreatModel


@dataclass(frozen=True)
class Sample:
    """What the checks look at: images that are classified right unattacked, on the model's device.

    ``gradients`` says whether the model gives any.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    seed: int
    batch_size: int
    gradients: bool = True

    def __len__(self) -> int:
        return len(self.labels)


Check = Callable[[Sample], CheckRecord]
_NEEDS_GRADIENTS = "it needs gradients, and the model gives none"


def access(sample: Sample) -> Access:
    """What the model gives an attacker: gradients (good or not), scores, or only the class."""
    few = sample.images[: min(8, sample.batch_size)]
    try:
        with evaluating(sample.model):
            loss_and_gradient(sample.model, few, Goal(sample.labels[: len(few)]), margin)
    except NoGradientError:
        parts = torch.split(sample.images, sample.batch_size)
        logits = torch.cat([_logits(sample.model, part) for part in parts])
        return "labels" if len(torch.unique(logits)) <= 2 else "scores"
    return "gradients"


def outputs_are_logits(sample: Sample) -> CheckRecord:
    logits = _logits(sample.model, sample.images)
    sums = logits.double().sum(1)
    probabilities = bool((logits >= 0).all() and (logits <= 1).all() and ((sums - 1).abs() < 1e-4).all())
    log_probabilities = bool((logits <= 0).all() and ((logits.double().exp().sum(1) - 1).abs() < 1e-4).all())
    what = "probabilities" if probabilities else "log-probabilities" if log_probabilities else "logits"
    return _record(
        "logits", "Outputs are logits", None if probabilities and not sample.gradients else not probabilities,
        f"on {len(sample)} images the outputs are {what} (from {logits.min():.3g} to {logits.max():.3g})",
        "A softmax inside the model saturates: gradients vanish in rounding and attacks look weaker than they are. "
        "Remove the softmax and audit the logits.",
    )  # fmt: skip


def output_is_deterministic(sample: Sample) -> CheckRecord:
    runs = torch.stack([_logits(sample.model, sample.images) for _ in range(5)])
    changed = int((runs.argmax(2) != runs.argmax(2)[0]).any(0).sum())
    spread = (runs - runs[0]).flatten(2).norm(dim=2) / runs[0].norm(dim=1).clamp_min(1e-12)
    return _record(
        "deterministic", "Same image, same answer", bool(spread.max() <= 1e-4) and changed == 0,
        f"five passes over {len(sample)} images: {changed} predictions changed, logits moved by up to "
        f"{float(spread.max()):.2g} of their length",
        "A model that draws random numbers can survive one attack by luck. Success must be a rate over fresh draws, "
        "which this audit does not measure.",
    )  # fmt: skip


def batch_does_not_matter(sample: Sample) -> CheckRecord:
    few = sample.images[:32]
    together = _logits(sample.model, few).argmax(1)
    alone = torch.cat([_logits(sample.model, image[None]) for image in few]).argmax(1)
    differ = int((together != alone).sum())
    return _record(
        "batch", "Alone or in a batch, same answer", differ == 0,
        f"{differ} of {len(few)} images are classified otherwise alone than in a batch",
        "The model looks at the other images of the batch, often because batch normalization is not in eval mode. "
        "Figures then depend on how images happen to be grouped.",
    )  # fmt: skip


def gradients_are_useful(sample: Sample) -> CheckRecord:
    title, meaning = (
        "Gradients reach the input",
        "Gradient attacks are blind where the gradient is missing, zero or not finite, and the model looks robust "
        "without being so (gradient masking). Query attacks, which need none, are run on every image instead; audit "
        "the model without the step that hides the gradient to learn more.",
    )
    if not sample.gradients and not any(True for _ in sample.model.parameters()):
        return _record("gradients", title, None, "the model is a function that gives none", meaning)
    details, good = [], True
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        try:
            gradient = _gradient(sample, loss)
        except NoGradientError as error:
            return _record("gradients", title, False, str(error), meaning)
        flat = gradient.flatten(1)
        zero = int((flat == 0).all(1).sum())
        infinite = int((~flat.isfinite()).any(1).sum())
        details.append(f"{name}: {zero} zero and {infinite} not finite of {len(sample)}")
        # One dead image in a hundred happens in honest nets whose logits saturate float32.
        good = good and infinite == 0 and zero <= max(1, len(sample) // 100)
    return _record("gradients", title, good, "; ".join(details), meaning)


def stronger_attacks_break_more(sample: Sample) -> CheckRecord:
    title, meaning = (
        "PGD ≥ FGSM ≥ noise",
        "Following the gradient for longer must not find less. Where it does, the gradient points the wrong way, as "
        "it does after catastrophic overfitting or with a masked gradient.",
    )
    if not sample.gradients:
        return _record("order", title, None, _NEEDS_GRADIENTS, meaning)
    threat = sample.threat
    noise = _broken(sample, UniformNoise(threat.eps, norm=threat.norm, seed=sample.seed))
    single = _broken(sample, FGSM(threat.eps, norm=threat.norm, seed=sample.seed))
    iterated = _broken(sample, _pgd(sample, threat.eps))
    slack = max(1, len(sample) // 100)
    return _record(
        "order", title, iterated + slack >= single and single + slack >= noise,
        f"of {len(sample)} images noise breaks {noise}, FGSM {single}, PGD-20 {iterated}", meaning,
    )  # fmt: skip


def success_grows_with_eps(sample: Sample) -> CheckRecord:
    title, meaning = (
        "Success grows with eps",
        "A larger ball holds the smaller one. An attack that loses images as eps grows is badly tuned or misled, and "
        "so is the figure at the audit's eps.",
    )
    if not sample.gradients:
        return _record("growth", title, None, _NEEDS_GRADIENTS, meaning)
    # Each radius is attacked afresh: carrying successes over would make the check pass by construction.
    factors = (0.25, 0.5, 1.0, 2.0)
    radii = [sample.threat.eps * factor for factor in factors]
    if sample.threat.norm == "l0":
        radii = [max(1.0, float(round(radius))) for radius in radii]
    broken = [_broken(sample, _pgd(sample, radius)) for radius in radii]
    slack = max(1, len(sample) // 50)
    good = all(later + slack >= earlier for earlier, later in pairwise(broken))
    steps = ", ".join(f"{count} at {_size(radius, sample)}" for count, radius in zip(broken, radii, strict=True))
    return _record(
        "growth", title, good, f"of {len(sample)} images PGD-20 breaks {steps}", meaning,
    )  # fmt: skip


def unbounded_attack_breaks_all(sample: Sample) -> CheckRecord:
    title, meaning = (
        "Without a bound everything breaks",
        "With no bound on the change any image can be turned into another. Images that still stand show that the "
        "attack is not working on this model, so its figures say nothing.",
    )
    if not sample.gradients:
        return _record("unbounded", title, None, _NEEDS_GRADIENTS, meaning)
    # Without any bound but the box, whatever the audit's norm.
    attack = PGD(1.0, norm="linf", seed=sample.seed, steps=50, step_size=0.1, loss="margin", restarts=2)
    broken = _broken(sample, attack)
    share = broken / len(sample)
    return _record(
        "unbounded", title, share >= 0.98,
        f"PGD free to change pixels at will breaks {broken} of {len(sample)} images", meaning,
    )  # fmt: skip


def queries_find_no_more(tried: int | None, broken: int) -> CheckRecord:
    """From a query attack on images that stood against every gradient attack; ``tried`` None: it did not run."""
    passed = None if tried is None else broken == 0
    return _record(
        "black-box", "No query attack finds what gradients missed", passed,
        _sentinel("the query attack", tried, broken),
        "An attack that only sees outputs must not succeed where attacks with full knowledge failed. If it does, the "
        "gradients mislead (gradient masking) and the true robustness is lower.",
    )  # fmt: skip


def steps_find_no_more(tried: int | None, broken: int, images: int, gradients: bool = True) -> CheckRecord:
    """From a longer run on images still standing; ``images`` counts the audit's, of which one in 100 may change.

    Without gradients it is advice: who may ask more often breaks more, and nothing is wrong with that.
    """
    passed = None if tried is None else broken <= max(1, round(0.01 * images))
    return _record(
        "converged", "More steps change nothing", passed, _sentinel("a fresh, longer run", tried, broken),
        "An attack that still gains from more steps had not converged, and its robust accuracy is too high. Audit with "
        "more effort, such as --attacks \"auto(effort='exhaustive')\".",
        weight="evidence" if gradients else "advice",
    )  # fmt: skip


def _sentinel(what: str, tried: int | None, broken: int) -> str:
    if tried is None:
        return f"{what} did not run"
    return f"{what} breaks {broken} of {tried} images still standing" if tried else "no image is left standing"


def eight_bit_survival(survive: int, broken: int) -> CheckRecord:
    passed = None if not broken else survive >= 0.9 * broken
    found = f"{survive} of {broken} adversarial images still fool the model as 8-bit images"
    return _record(
        "8-bit", "Successes survive 8-bit color", passed,
        found if broken else "nothing broken",
        "An image file holds 256 levels a channel. Successes that need finer steps are real for the model but cannot "
        "be stored in a picture.", weight="advice",
    )  # fmt: skip


def evidence_replays(replayed: int, failed: int) -> CheckRecord:
    return _record(
        "replay", "Every stored adversarial image still fools the model", failed == 0,
        f"{replayed} images read back from the ledger and run again in float32: {replayed - failed} hold",
        "The count of broken images rests on these stored images and nothing else; the command 'robust verify' runs "
        "them again.",
    )  # fmt: skip


MODEL_CHECKS: tuple[Check, ...] = (
    outputs_are_logits,
    output_is_deterministic,
    batch_does_not_matter,
    gradients_are_useful,
    unbounded_attack_breaks_all,
)
ATTACK_CHECKS: tuple[Check, ...] = (stronger_attacks_break_more, success_grows_with_eps)
CHECK_NAMES = (
    "logits", "deterministic", "batch", "gradients", "unbounded", "order", "growth", "black-box", "converged", "8-bit",
    "replay",
)  # fmt: skip


def _record(
    name: str, title: str, passed: bool | None, detail: str, meaning: str,
    weight: Literal["evidence", "advice"] = "evidence",
) -> CheckRecord:  # fmt: skip
    return CheckRecord(name=name, title=title, passed=passed, detail=detail, meaning=meaning, weight=weight)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        return model(images)  # type: ignore[no-any-return]


def _gradient(sample: Sample, loss: Callable[[Tensor, Goal], Tensor]) -> Tensor:
    parts = []
    with evaluating(sample.model):
        for start in range(0, len(sample), sample.batch_size):
            piece = slice(start, start + sample.batch_size)
            parts.append(loss_and_gradient(sample.model, sample.images[piece], Goal(sample.labels[piece]), loss)[2])
    return torch.cat(parts)


def _size(eps: float, sample: Sample) -> str:
    return f"{eps * 255:.3g}/255" if sample.threat.norm == "linf" else f"{eps:.4g}"


def _pgd(sample: Sample, eps: float) -> PGD:
    return PGD(eps, norm=sample.threat.norm, seed=sample.seed, steps=20)


def _broken(sample: Sample, attack: Attack) -> int:
    """How many images of the sample an attack breaks; 0 where it finds no gradient."""
    broken = 0
    for start in range(0, len(sample), sample.batch_size):
        images, labels = (part[start : start + sample.batch_size] for part in (sample.images, sample.labels))
        try:
            logits = _logits(sample.model, attack(sample.model, images, labels))
        except NoGradientError:
            continue
        broken += int(((logits.argmax(1) != labels) & ~logits.isnan().any(1)).sum())
    return broken
