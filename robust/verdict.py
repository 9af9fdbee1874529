"""From checks and attacks to a verdict: sound, suspect or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence

from robust.plan import Access, Step
from robust.reports.formats import STEPS
from robust.summary import AttackRecord, CheckRecord, Verdict

# Checks that say nothing of a model without gradients.
_NEED_GRADIENTS = ("logits", "gradients", "unbounded", "order", "growth")


def verdict(
    checks: Sequence[CheckRecord],
    attacks: Sequence[AttackRecord],
    missing: Sequence[str],
    access: Access = "gradients",
) -> tuple[Verdict, list[str]]:
    """The verdict on one threat model, and the sentences that justify it.

    Args:
        checks: all checks of evidence and advice.
        attacks: all attacks of the plan, with their status.
        missing: standard attacks that the user's own list left out.
        access: what the model gives an attacker. Without gradients the verdict is never sound: it rests on attacks that
            only ask, and says on which.

    A failed check of evidence makes the figure suspect; otherwise anything failed, skipped or left out makes it
    inconclusive (gates fail closed).
    """
    failed = [check for check in checks if check.passed is False and check.weight == "evidence"]
    not_run = [check for check in checks if check.passed is None and check.weight == "evidence"]
    incomplete = [attack for attack in attacks if attack.status != "done"]
    reasons = [f"{check.title}: no. {check.detail[0].upper()}{check.detail[1:]}." for check in failed]
    blind = access in ("scores", "labels")
    if blind:
        reasons.append(_black_box(attacks, access))
        more = [check for check in checks if check.name == "converged" and check.passed is False]
        reasons += [f"More queries break more: {check.detail}." for check in more]
    elif any(check.name == "gradients" for check in failed):
        reasons.append(
            "So attacks that need no gradient went first, on every image; what they left standing is not shown to be "
            "robust."
        )
    reasons += [_incomplete(attack) for attack in incomplete]
    if missing:
        reasons.append(
            f"The attacks chosen leave out {', '.join(missing)}, so this audit is weaker than the standard one."
        )
    if failed:
        return "suspect", reasons
    # A query attack exists for linf and l2 alone; its absence elsewhere is stated but spoils nothing.
    spared = ("black-box", *(_NEED_GRADIENTS if blind else ()))
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run if check.name not in spared]
    if reasons:
        return "inconclusive", reasons
    passed = sum(check.passed is True for check in checks)
    reasons = [f"All attacks ran to their end and all {passed} checks passed."]
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run]
    return "sound", reasons


def _black_box(attacks: Sequence[AttackRecord], access: Access) -> str:
    """What a verdict on a model without gradients rests on."""
    asking = [attack for attack in attacks if attack.knowledge in ("score", "decision") and attack.name not in STEPS]
    ran = [attack.name for attack in asking if attack.tried and Step.attack_of(attack.name) == attack.name]
    what = " and ".join([", ".join(ran[:-1]), ran[-1]] if len(ran) > 1 else ran) or "noise"
    gives = "scores" if access == "scores" else "only the class"
    return (
        f"The model gives no gradients but {gives}, so it was audited as a black box: the figure rests on {what} "
        "alone, and an attacker who has the model itself may break more."
    )


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on the whole audit."""
    for candidate in ("suspect", "inconclusive"):
        if candidate in verdicts:
            return candidate
    return "sound"


def _incomplete(attack: AttackRecord) -> str:
    what = {
        "failed": "failed",
        "skipped": "did not run",
        "unfinished": "was cut off",
    }[attack.status]
    return f"{attack.name} {what}{': ' + attack.detail if attack.detail else ''}."
