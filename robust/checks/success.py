"""Checks of what attacks break on a sample: stronger ones more, larger balls more, no ball at all everything."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from robust.attacks import FGSM, PGD, PGDEOT, Attack, UniformNoise
from robust.checks.sample import Sample, broken, fooled, pgd, record, size_text
from robust.checks.silent import Watched
from robust.checks.substitute import transferred
from robust.errors import NoGradientError
from robust.memory import Fitting
from robust.summary import CheckRecord

# Honest nets trained against attacks differ by up to 7 images in 100.
_LOSSES_APART = 0.15


def stronger_attacks_break_more(sample: Sample) -> CheckRecord:
    threat = sample.threat
    # A patch of noise, unlike a ball of it, changes all it may: the best of ten beats one step of a gradient.
    draws = 1 if threat.norm == "patch" else 10
    noise = round(float(broken(sample, UniformNoise(threat.eps, draws, norm=threat.norm, seed=sample.seed)).sum()))
    single = round(float(broken(sample, FGSM(threat.eps, norm=threat.norm, seed=sample.seed)).sum()))
    iterated = round(float(broken(sample, pgd(sample, threat.eps)).sum()))
    slack = sample.slack
    return record(
        "order", "PGD ≥ FGSM ≥ noise", iterated + slack >= single and single + slack >= noise,
        f"of {len(sample)} images noise breaks {noise}, FGSM {single}, PGD-20 {iterated}",
        "Following the gradient for longer must not find less. Where it does, the gradient points the wrong way, as "
        "it does after catastrophic overfitting or with a masked gradient.",
    )  # fmt: skip


def success_grows_with_eps(sample: Sample) -> CheckRecord:
    # Each radius is attacked afresh: carrying successes over would make the check pass by construction.
    factors = (0.25, 0.5, 1.0, 2.0)
    radii = [sample.threat.eps * factor for factor in factors]
    if sample.threat.norm == "l0":
        radii = [max(1.0, float(round(radius))) for radius in radii]
    found = [round(float(broken(sample, pgd(sample, radius)).sum())) for radius in radii]
    slack = max(sample.slack, len(sample) // 50)
    good = all(later + slack >= earlier for earlier, later in pairwise(found))
    steps = ", ".join(f"{count} at {size_text(radius, sample)}" for count, radius in zip(found, radii, strict=True))
    return record(
        "growth", "Success grows with eps", good, f"of {len(sample)} images PGD-20 breaks {steps}",
        "A larger ball holds the smaller one. An attack that loses images as eps grows is badly tuned or misled, and "
        "so is the figure at the audit's eps.",
    )  # fmt: skip


def losses_agree(sample: Sample) -> CheckRecord:
    eps = sample.threat.eps
    entropy, margin = (round(float(broken(sample, pgd(sample, eps, loss)).sum())) for loss in ("ce", "margin"))
    allowed = max(2 * sample.slack, round(_LOSSES_APART * len(sample)))
    return record(
        "agreement", "Both losses find as much", abs(entropy - margin) <= allowed,
        f"of {len(sample)} images PGD-20 breaks {entropy} by cross-entropy and {margin} by the margin",
        "Where one loss breaks far more than the other, the scale of the logits hides the gradient of one of them "
        "(saturation, distillation). Results that rest on that loss are too high.",
    )  # fmt: skip


def unbounded_attack_breaks_all(sample: Sample) -> CheckRecord:
    # Without any bound but the box, whatever the audit's norm.
    attack: Attack = PGD(1.0, norm="linf", seed=sample.seed, steps=50, step_size=0.1, loss="margin", restarts=2)
    if sample.random:
        attack = PGDEOT(1.0, norm="linf", seed=sample.seed, steps=20, eot=1)
    left = len(sample) - round(float(broken(sample, attack).sum()))
    return record(
        "unbounded", "Without a bound everything breaks", left <= max(sample.slack, 0.02 * len(sample)),
        f"PGD free to change pixels at will breaks {len(sample) - left} of {len(sample)} images",
        "With no bound on the change any image can be turned into another. Images that still stand show that the "
        "attack is not working on this model, so its figures say nothing.",
    )  # fmt: skip


def successes_are_kept(sample: Sample) -> CheckRecord:
    """Whether an attack walked over an adversarial point and came back with none (silent success)."""
    title = "No success is lost on the way"
    meaning = (
        "An attack that passes an adversarial image without returning it makes the model look more robust than it is; "
        "so does a model that answers otherwise when asked again."
    )
    if sample.random:
        return record("silent", title, None, "a random model answers otherwise by chance", meaning, weight="advice")
    few = slice(0, 32)
    images, labels = sample.images[few], sample.labels[few]
    watched = Watched(sample.model, images, labels, sample.threat)
    attack = pgd(sample, sample.threat.eps, "margin")
    try:
        parts = Fitting(sample.batch_size).run(lambda part: attack(watched, images[part], labels[part]), len(images))
        found = torch.cat(parts)
    except NoGradientError as error:
        return record("silent", title, None, str(error).splitlines()[0], meaning, weight="advice")
    returned = fooled(_part(sample, few), found)
    lost = int((watched.fooled & (returned == 0)).sum())
    return record(
        "silent", title, lost == 0,
        f"PGD-20 passed an adversarial point on {int(watched.fooled.sum())} of {len(images)} images and came back "
        f"without one on {lost}", meaning,
    )  # fmt: skip


def transfer_finds_no_more(sample: Sample) -> CheckRecord:
    """Whether a substitute trained on the model's answers leads to images that the model's own gradient missed."""
    eps = sample.threat.eps
    direct = broken(sample, pgd(sample, eps)).maximum(broken(sample, pgd(sample, eps, "margin")))
    found = transferred(sample)
    more = round(float(found.sum() - direct.sum() if sample.random else (found - direct).clamp_min(0).sum()))
    return record(
        "transfer", "Nothing transfers that gradients missed", more <= 2 * sample.slack,
        f"adversarial images of a substitute, trained on the model's answers, break {round(float(found.sum()))} of "
        f"{len(sample)} images, {more} of which PGD-20 on the model itself did not",
        "A small net that imitates the model must not be a better guide than the model's own gradient. If it is, the "
        "gradient misleads (gradient masking).",
    )  # fmt: skip


def _part(sample: Sample, piece: slice) -> Sample:
    return replace(sample, images=sample.images[piece], labels=sample.labels[piece], results={})
