"""From checks and attacks to a verdict: sound, suspect or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence

from robust.summary import AttackRecord, CheckRecord, Verdict

# Square has no l0 form, and a transfer attack needs linf or l2 and a surrogate: the absence of one is stated but spoils
# nothing. Where it was planned and did not run, the attack itself is incomplete.
_OPTIONAL = ("black-box", "transfer")


def verdict(
    checks: Sequence[CheckRecord], attacks: Sequence[AttackRecord], missing: Sequence[str]
) -> tuple[Verdict, list[str]]:
    """The verdict on one threat model, and the sentences that justify it.

    Args:
        checks: all checks of evidence and advice.
        attacks: all attacks of the plan, with their status.
        missing: standard attacks that the user's own list left out.

    A failed check of evidence makes the figure suspect; otherwise anything failed, skipped or left out makes it
    inconclusive (gates fail closed).
    """
    failed = [check for check in checks if check.passed is False and check.weight == "evidence"]
    not_run = [check for check in checks if check.passed is None and check.weight == "evidence"]
    incomplete = [attack for attack in attacks if attack.status != "done"]
    reasons = [f"{check.title}: no. {check.detail[0].upper()}{check.detail[1:]}." for check in failed]
    if any(check.name == "gradients" for check in failed):
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
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run if check.name not in _OPTIONAL]
    if reasons:
        return "inconclusive", reasons
    passed = sum(check.passed is True for check in checks)
    reasons = [f"All attacks ran to their end and all {passed} checks passed."]
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run]
    return "sound", reasons


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
