"""Which attacks an audit runs, in which order, on which images: the one place where that is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robust.threats import ThreatModel

# What the model gives an attacker: gradients that look useful; gradients that are zero or not finite; none, but scores;
# none, and only the class (hard labels).
Access = Literal["gradients", "masked", "scores", "labels"]

# Each list ends with the attack that decides; what goes before is cheaper and leaves it fewer images.
_STANDARD = {
    "linf": ("fgsm", "auto"),
    "l2": ("fgsm", "auto"),
    "l1": ("fgsm", "pgd(steps=20)", "apgd-ce(steps=100)", "apgd-t(steps=50)"),
    "l0": ("fgsm", "sigma-zero(steps=300)", "pgd(steps=100, restarts=3)"),
}

# Any one of these, as written in --attacks, is at least the standard list for linf and l2.
_STRONGER = ("auto", "auto(effort='exhaustive')", "autoattack", "autoattack-plus")

# Where gradients are zero or not finite, these go first; where there are none, these are all.
_NOISE = "noise(draws=100)"
_SCORES = {
    "linf": (_NOISE, "square(queries=2000)", "rays(queries=2000)"),
    "l2": (_NOISE, "square(queries=2000)", "simba(queries=2000)", "hopskipjump(queries=2000)"),
    "l1": (_NOISE, "simba(queries=2000)"),
    "l0": (_NOISE, "simba(queries=2000)", "foolbox:PointwiseAttack(queries=2000)"),
}
_LABELS = {
    "linf": (_NOISE, "rays(queries=2000)"),
    "l2": (_NOISE, "hopskipjump(queries=2000)"),
    "l1": (_NOISE,),
    "l0": (_NOISE, "foolbox:PointwiseAttack(queries=2000)"),
}

# Sentinels watch over the attacks above: what they break was missed, which a check reports.
_CONVERGED = {
    "linf": "apgd-dlr(steps=100)",
    "l2": "apgd-dlr(steps=100)",
    "l1": "apgd-dlr(steps=200)",
    "l0": "fmn(steps=300)",
}
# The same where there are no gradients: more queries.
_LONGER = {
    "scores": {
        "linf": "square(queries=5000)", "l2": "simba(queries=5000)", "l1": "simba(queries=5000)",
        "l0": "simba(queries=5000)",
    },
    "labels": {
        "linf": "rays(queries=5000)", "l2": "hopskipjump(queries=5000)", "l1": "noise(draws=1000)",
        "l0": "foolbox:PointwiseAttack(queries=5000)",
    },
}  # fmt: skip
_QUERIES = {"linf": "square(queries=500)", "l2": "square(queries=500)"}
SENTINEL_IMAGES = 100
_ON = " on "


@dataclass(frozen=True)
class Step:
    """One attack of the plan. ``limit`` caps the images; ``check`` names the check it feeds, if any.

    A sentinel that breaks an image is run again on everything still standing (``escalates``).
    """

    attack: str
    limit: int | None = None
    check: str | None = None

    @property
    def escalates(self) -> bool:
        return self.check is not None

    @property
    def label(self) -> str:
        """The name under which the ledger knows this step."""
        return self.attack if self.limit is None else f"{self.attack}{_ON}{self.limit}"

    @staticmethod
    def attack_of(label: str) -> str:
        """The attack that a step's label names."""
        return label.split(_ON)[0]


def standard_attacks(threat: ThreatModel, access: Access = "gradients") -> tuple[str, ...]:
    """The default attacks for a threat model, in order, for a model that gives an attacker this much."""
    if access == "gradients":
        return _STANDARD[threat.norm]
    black_box = (_LABELS if access == "labels" else _SCORES)[threat.norm]
    return black_box + _STANDARD[threat.norm] if access == "masked" else black_box


def left_out(threat: ThreatModel, chosen: tuple[str, ...], access: Access = "gradients") -> list[str]:
    """The standard attacks that a user's own list leaves out without having a stronger one in their place."""
    if access in ("scores", "labels"):
        return [attack for attack in standard_attacks(threat, access) if attack not in chosen]
    if threat.norm in ("linf", "l2") and any(attack.replace('"', "'") in _STRONGER for attack in chosen):
        return []
    return [attack for attack in _STANDARD[threat.norm] if attack not in chosen]


def steps(threat: ThreatModel, attacks: tuple[str, ...] | None, access: Access) -> list[Step]:
    """The audit's steps: the attacks asked for (None: the standard ones), then the sentinels.

    Where gradients are zero or not finite, black-box attacks are put in front, and gradient attacks still run, for what
    they may find. Where there are none at all, only black-box attacks run.
    """
    chosen = standard_attacks(threat, access) if attacks is None else attacks
    if access == "masked" and attacks is not None:
        chosen = _SCORES[threat.norm] + attacks
    plan = [Step(attack) for attack in dict.fromkeys(chosen)]
    longer = _LONGER[access] if access in ("scores", "labels") else _CONVERGED
    plan.append(Step(longer[threat.norm], SENTINEL_IMAGES, "converged"))
    if threat.norm in _QUERIES and access == "gradients":
        plan.append(Step(_QUERIES[threat.norm], SENTINEL_IMAGES, "black-box"))
    return plan
