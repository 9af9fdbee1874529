"""Checks of the audit's own books: what ran, and how it was counted. They need nothing but its attack records."""

from __future__ import annotations

from collections.abc import Sequence

from robust.checks.sample import record
from robust.summary import AttackRecord, CheckRecord

_PARTS_OF_AUDIT = ("curve", "checks")


def clean_accuracy_is_plausible(right: int, images: int, classes: int) -> CheckRecord:
    share, floor = right / images, max(1.5 / classes, 0.2)
    return record(
        "clean", "Clean accuracy is above chance", share >= floor,
        f"{right} of {images} images are classified right unattacked ({share:.1%}; chance is {1 / classes:.1%})",
        "Robust accuracy says little of a model that is wrong without any attack. Check the order of the labels, and "
        "that normalization is part of the model (--mean, --std).", weight="advice",
    )  # fmt: skip


def every_success_counts(attacks: Sequence[AttackRecord], standing: int, right: int) -> CheckRecord:
    """Worst case per image: what is left standing is what was right, less all that any attack broke."""
    broken = sum(attack.broken for attack in attacks)
    return record(
        "worst-case", "Every success of every attack counts", right - broken == standing,
        f"{right} right unattacked, {broken} broken by one attack or another, {standing} counted as standing",
        "Per image the worst over all attacks is taken, never an average of attacks.",
    )  # fmt: skip


def kinds_of_attack(attacks: Sequence[AttackRecord]) -> CheckRecord:
    """Whether attacks without gradients ran too: one that sees scores, one that sees decisions only."""
    done = [attack for attack in attacks if attack.status == "done" and attack.name not in _PARTS_OF_AUDIT]
    names = {kind: [attack.name for attack in done if attack.knowledge == kind] for kind in ("score", "decision")}
    missing = [f"that sees {kind}s only" for kind in names if not names[kind]]
    found = ", ".join(name for kind in names.values() for name in kind) or "none"
    return record(
        "gradient-free", "Attacks without gradients ran too", None if missing else True,
        f"without gradients ran: {found}" + (f"; no attack {' and none '.join(missing)}" if missing else ""),
        "Gradients can be hidden, scores rounded off; decisions are always there to attack. Add one such attack with "
        "--attacks, such as art:HopSkipJump, where the deployed model shows decisions only.", weight="advice",
    )  # fmt: skip


def every_attack_ended(attacks: Sequence[AttackRecord]) -> CheckRecord:
    ended = [attack for attack in attacks if attack.status == "done"]
    open_ends = [f"{attack.name} ({attack.status})" for attack in attacks if attack.status != "done"]
    return record(
        "complete", "Every attack ran to its end", True if not open_ends else None,
        f"{len(ended)} of {len(attacks)} steps ran to their end"
        + (f", not {', '.join(open_ends)}" if open_ends else ""),
        "An attack that failed, was skipped or ran out of time may have broken more: then the verdict is inconclusive.",
    )  # fmt: skip
