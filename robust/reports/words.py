"""What the report says in sentences: the headline, what a verdict means, what to do next."""

from __future__ import annotations

import math

from robust.reports.formats import (
    STEPS,
    attack_name,
    duration,
    interval,
    number,
    percent,
    sentence,
    size_text,
    step_text,
)
from robust.summary import (
    AttackRecord,
    AuditSummary,
    CheckRecord,
    RandomizedRecord,
    Rate,
    ThreatRecord,
    ThreatResult,
    Verdict,
)

WIDE = 0.10  # an interval wider than this many accuracy points asks for more images

VERDICTS: dict[Verdict, str] = {
    "sound": "Every planned attack ran to its end and every check of the evidence passed, so these figures can be "
    "quoted. They remain upper bounds: a stronger attack can only lower them.",
    "suspect": "At least one check says that the attacks may have been misled. The true robustness may be far lower "
    "than the figures here; do not rely on them.",
    "inconclusive": "The audit did not finish what it set out to do, so it can neither confirm nor deny robustness. "
    "Do not pass a release on these figures.",
}


# Of an audit for corruptions alone: nobody attacks, so nothing can mislead the measurement.
CORRUPTIONS: dict[Verdict, str] = {
    "sound": "Every combination was run on every image. These are accuracies on faults of a stated kind and strength, "
    "with no attacker who picks the worst; they say nothing about adversarial robustness.",
    "suspect": "A check failed; do not rely on these figures.",
    "inconclusive": "Not all combinations were run. Run the same command again to go on; nothing that was computed is "
    "lost.",
}


def attacker(threat: ThreatRecord, shape: tuple[int, int, int]) -> str:
    """The threat model as a person who does something, to continue with ``can make ...``.

    ``shape`` is the image's (C, H, W): sums over all color values say little until they are shared out.
    """
    values = math.prod(shape)
    size = size_text(threat, threat.eps)
    if threat.norm == "linf":
        return f"an attacker who changes every pixel by at most {size}"
    if threat.norm == "l2":
        each = step_text(threat.eps / math.sqrt(values))
        return f"an attacker who changes the image by at most {size} in l2 distance (about {each} per color value)"
    if threat.norm == "patch":
        side = math.floor(math.sqrt(threat.eps * shape[1] * shape[2] * (1 + 1e-6)))
        return f"an attacker who covers {size} of the image with a patch ({side} x {side} pixels, placed at will)"
    if threat.norm == "l1":
        each = number(threat.eps / shape[0])
        return f"an attacker whose changes add up to at most {size} (as much as {each} pixels from black to white)"
    return f"an attacker who changes at most {math.floor(threat.eps):,} of the image's {values:,} color values"


def deciding(summary: AuditSummary) -> ThreatResult:
    """The threat model that the headline speaks of: the one with the lowest score."""
    return min(summary.threats, key=lambda result: (result.score.value, result.threat.text))


def broken(clean: Rate, result: ThreatResult) -> int:
    """Images that are right unattacked and fell to an attack."""
    return max(0, clean.numerator - result.robust_accuracy.numerator)


def headline(clean: Rate, result: ThreatResult, shape: tuple[int, int, int]) -> str:
    """One threat model's result in one sentence, counted over the images the model reads right unattacked."""
    who, right, fallen = attacker(result.threat, shape), clean.numerator, broken(clean, result)
    capital = who[0].upper() + who[1:]
    them = f"{right:,} images" if right > 1 else "one image"
    if right == 0:
        return f"The model reads none of the {clean.n:,} audited images right, so there is nothing left to attack."
    if fallen == 0:
        return f"{capital} could not make the model misread a single one of the {them} it reads right."
    if fallen == right:
        return f"{capital} can make the model misread every one of the {them} it reads right."
    least = "" if result.verdict == "sound" else "at least "
    share = fallen / right
    if right < 100 or not 0.01 <= share <= 0.99:
        return f"Of the {them} the model reads right, {who} can make it misread {least}{fallen:,}."
    return f"Of 100 images the model reads right, {who} can make it misread {least}{round(100 * share)}."


def footing(clean: Rate, result: ThreatResult) -> str:
    """The counts behind the headline."""
    robust, fallen = result.robust_accuracy, broken(clean, result)
    return (
        f"Counted on {clean.n:,} audited images: {clean.numerator:,} are read right unattacked ({percent(clean.value)})"
        f", {fallen:,} of these were made to be misread, {robust.numerator:,} stand ({percent(robust.value)})."
    )


def failed_evidence(result: ThreatResult) -> list[CheckRecord]:
    return [check for check in result.checks if check.passed is False and check.weight == "evidence"]


def next_steps(summary: AuditSummary) -> list[str]:
    """What the reader should do, the most urgent first; never empty."""
    steps: list[str] = []
    for result in summary.threats:
        steps += [
            f"{result.threat.text}, {check.title}: failed. {sentence(check.meaning)}"
            for check in failed_evidence(result)
        ]
    open_ends = {
        f"{attack_name(attack.name)} ({attack.status})"
        for result in summary.threats
        for attack in result.attacks
        if attack.status != "done"
    }
    if open_ends:
        steps.append(
            f"Finish the audit: {', '.join(sorted(open_ends))}. Remove the cause, or give it a longer budget, and run "
            "the same command again; it goes on from the ledger."
        )
    elif summary.verdict == "inconclusive" and all(black_box_only(result) for result in summary.threats):
        steps.append(
            "Audit the model itself, with its gradients, where you can: what stands here stands against attackers who "
            "only ask it."
        )
    elif summary.verdict == "inconclusive":
        steps.append("Remove the cause named above and run the same command again.")
    if summary.verdict == "sound":
        steps.append(_after_sound(summary))
    widest = max(result.robust_accuracy.high - result.robust_accuracy.low for result in summary.threats)
    if widest > WIDE:
        steps.append(
            f"Audit more images: the robust accuracy is known only to within {100 * widest:.0f} points "
            f"({summary.data.n:,} of {summary.data.available:,} images were used)."
        )
    return steps


def _after_sound(summary: AuditSummary) -> str:
    result = deciding(summary)
    right, fallen = summary.clean_accuracy.numerator, broken(summary.clean_accuracy, result)
    if right == 0:
        return "Repair the model first: it is wrong without any attack. Check labels, class order and normalization."
    if fallen > right / 2:
        return (
            "Do not deploy this model where somebody gains by fooling it. Harden it, by adversarial training for "
            f"instance, and repeat this audit under {result.threat.text} unchanged."
        )
    if fallen > right / 10:
        return (
            f"Decide whether losing {percent(fallen / right)} of the right answers to an attacker is acceptable in "
            "use; if not, harden the model and repeat this audit unchanged."
        )
    audited = {result.threat.norm for result in summary.threats}
    others = ["patches"] * ("patch" not in audited) + ["rotations"] + ["weather"] * (summary.corruptions is None)
    return (
        "Keep this audit as the baseline and repeat it, unchanged, for every new version of the model. Attacks of "
        f"other kinds ({', '.join(others)}) are not covered."
    )


def attacks(result: ThreatResult) -> list[AttackRecord]:
    """The attacks proper, without the audit's other steps."""
    return [attack for attack in result.attacks if attack.name not in STEPS]


def black_box_only(result: ThreatResult) -> bool:
    """Whether attacks were run, but none that uses gradients."""
    kinds = {attack.knowledge for attack in attacks(result) if attack.status == "done"}
    return bool(kinds) and "white-box" not in kinds


def cost_text(result: ThreatResult) -> str:
    cost = result.cost
    return (
        f"{number(cost.forward_per_image)} forward and {number(cost.backward_per_image)} backward passes per image, "
        f"{duration(cost.seconds)}"
    )


def over_draws(found: RandomizedRecord) -> str:
    """What was measured of a model that draws random numbers."""
    robust, clean = found.robust_accuracy, found.clean_accuracy
    return (
        f"mean over {found.draws} draws: {percent(robust.value)} robust (95% interval "
        f"{interval(robust.low, robust.high)}), {percent(clean.value)} clean"
    )
