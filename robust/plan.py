"""Which attacks an audit runs, in which order, on which images: the one place where that is written."""

from __future__ import annotations

from dataclasses import dataclass

from robust.threats import ThreatModel

# Each list ends with the attack that decides; what goes before is cheaper and leaves it fewer images.
_STANDARD = {
    "linf": ("fgsm", "auto"),
    "l2": ("fgsm", "auto"),
    "l1": ("fgsm", "auto"),
    "l0": ("fgsm", "auto"),
}

# Any one of these, as written in --attacks, is at least the standard list.
_STRONGER = ("auto", "auto(effort='exhaustive')", "autoattack", "autoattack-plus")

# Where no gradient reaches the input, or only zeros: what still works.
_BLACK_BOX = {
    "linf": ("noise(draws=100)", "square(queries=2000)"),
    "l2": ("noise(draws=100)", "square(queries=2000)"),
    "l1": ("noise(draws=100)",),
    "l0": ("noise(draws=100)",),
}

# Sentinels watch over the attacks above: what they break was missed, which a check reports.
_CONVERGED = {
    "linf": "apgd-dlr(steps=100)",
    "l2": "apgd-dlr(steps=100)",
    "l1": "apgd-dlr(steps=200)",
    "l0": "fmn(steps=300)",
}
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


def standard_attacks(threat: ThreatModel) -> tuple[str, ...]:
    """The default attacks for a threat model, in order."""
    return _STANDARD[threat.norm]


def left_out(threat: ThreatModel, chosen: tuple[str, ...]) -> list[str]:
    """The standard attacks that a user's own list leaves out without having a stronger one in their place."""
    if any(attack.replace('"', "'") in _STRONGER for attack in chosen):
        return []
    return [attack for attack in _STANDARD[threat.norm] if attack not in chosen]


def steps(threat: ThreatModel, attacks: tuple[str, ...] | None, gradients: bool) -> list[Step]:
    """The audit's steps: the attacks asked for (None: the standard ones), then the sentinels.

    Without useful gradients the black-box attacks are put in front; gradient attacks still run, for what they may find.
    """
    chosen = standard_attacks(threat) if attacks is None else attacks
    if not gradients:
        chosen = _BLACK_BOX[threat.norm] + chosen
    plan = [Step(attack) for attack in dict.fromkeys(chosen)]
    plan.append(Step(_CONVERGED[threat.norm], SENTINEL_IMAGES, "converged"))
    if threat.norm in _QUERIES and gradients:
        plan.append(Step(_QUERIES[threat.norm], SENTINEL_IMAGES, "black-box"))
    return plan
