"""From checks and attacks to a verdict: sound, suspect or inconclusive."""

from __future__ import annotations

from collections.abc import Sequence

from robust.plan import Access, Step
from robust.reports.formats import STEPS
from robust.summary import AttackRecord, CheckRecord, Verdict

# Checks that say nothing of a model without gradients.
_NEED_GRADIENTS = (
    "gradients", "stable", "bpda", "unbounded", "order", "growth", "agreement", "silent", "transfer", "converged",
)  # fmt: skip
# Square has no l0 form, and a transfer attack needs linf or l2 and a surrogate: the absence of one is stated but spoils
# nothing. Where it was planned and did not run, the attack itself is incomplete.
_OPTIONAL = ("black-box", "surrogate")


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
    incomplete = [attack for attack in attacks if attack.status != "done" and not done_otherwise(attack, attacks)]
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
    # That attacks are incomplete has just been said.
    not_run = [check for check in not_run if check.name != "complete"]
    if missing:
        reasons.append(
            f"The attacks chosen leave out {', '.join(missing)}, so this audit is weaker than the standard one."
        )
    if failed:
        return "suspect", reasons
    spared = (*_OPTIONAL, *(_NEED_GRADIENTS if blind else ()))
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run if check.name not in spared]
    if reasons:
        return "inconclusive", reasons
    passed = sum(check.passed is True for check in checks)
    advice = [check for check in checks if check.passed is False]
    reasons = [f"All attacks ran to their end and all {passed} checks{' of evidence' if advice else ''} passed."]
    round_about = {_WAY_ROUND[check.name][1]: check for check in reversed(advice) if check.name in _WAY_ROUND}
    reasons += [_went_round(check, checks) for check in round_about.values()]
    # A surrogate that nobody named is said in the table of checks alone.
    reasons += [f"{check.title}: not checked ({check.detail})." for check in not_run if check.name != "surrogate"]
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


# What the audit does about a finding that would otherwise condemn its figures, and the check that watches over that.
_WAY_ROUND = {
    "deterministic": ("So it was attacked and judged over many draws", "draws"),
    "gradients": ("So attacks went through a copy with another backward function", "bpda"),
    "stable": ("So attacks went through a copy with another backward function", "bpda"),
}


def _went_round(check: CheckRecord, checks: Sequence[CheckRecord]) -> str:
    what, name = _WAY_ROUND[check.name]
    detail = next((other.detail for other in checks if other.name == name), "")
    return f"{check.title}: no. {what}: {detail}."


def done_otherwise(attack: AttackRecord, attacks: Sequence[AttackRecord]) -> bool:
    """Whether an attack that found no gradient was followed by others on a copy with another backward function."""
    way = " on bpda("
    return (
        attack.status in ("skipped", "failed")
        and attack.knowledge == "white-box"
        and way not in attack.name
        and any(way in other.name and other.status == "done" for other in attacks)
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
