"""Which attacks an audit runs, in which order, on which images: the one place where that is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robust.threats import ThreatModel

# What the model gives an attacker: gradients (of whatever use); none, but scores; only the class (hard labels).
Access = Literal["gradients", "scores", "labels"]

# Each list ends with the attack that decides; what goes before is cheaper and leaves it fewer images.
_STANDARD = {
    "linf": ("fgsm", "auto"),
    "l2": ("fgsm", "auto"),
    "l1": ("fgsm", "auto"),
    # In l0 a short random search breaks some images, on MNIST above all, of which gradients say little.
    "l0": ("fgsm", "auto", "sparse-rs(queries=500)"),
    "patch": ("fgsm", "auto"),
}

# Any one of these, as written in --attacks, is at least the standard list, where it has a form for the norm.
_STRONGER = ("auto", "auto(effort='exhaustive')", "autoattack", "autoattack-plus")

# Where gradients are zero or not finite, these go first; where there are none, these are all.
_NOISE = "noise(draws=100)"
_SCORES = {
    "linf": (_NOISE, "square(queries=2000)", "rays(queries=2000)"),
    "l2": (_NOISE, "square(queries=2000)", "simba(queries=2000)", "hopskipjump(queries=2000)"),
    "l1": (_NOISE, "square(queries=2000)", "simba(queries=2000)"),
    "l0": (_NOISE, "sparse-rs(queries=2000)", "foolbox:PointwiseAttack(queries=2000)"),
    "patch": (_NOISE, "patch-search(queries=2000)"),
}
_LABELS = {
    "linf": (_NOISE, "rays(queries=2000)"),
    "l2": (_NOISE, "hopskipjump(queries=2000)"),
    "l1": (_NOISE,),
    "l0": (_NOISE, "foolbox:PointwiseAttack(queries=2000)"),
    "patch": (_NOISE,),
}

# What shows how the model looks without BPDA, where its own gradients are known to be of no use.
_WITHOUT = ("fgsm", "pgd(steps=20)")

# Sentinels watch over the attacks above: what they break was missed, which a check reports.
_CONVERGED = {
    "linf": "apgd-dlr(steps=100)",
    "l2": "apgd-dlr(steps=100)",
    "l1": "apgd-dlr(steps=200)",
    "l0": "sigma-zero(steps=300)",
    "patch": "pgd(steps=100, restarts=5, loss='margin')",
}
# The same where there are no gradients: more queries.
_LONGER = {
    "scores": {
        "linf": "square(queries=5000)", "l2": "simba(queries=5000)", "l1": "simba(queries=5000)",
        "l0": "sparse-rs(queries=5000)", "patch": "patch-search(queries=5000)",
    },
    "labels": {
        "linf": "rays(queries=5000)", "l2": "hopskipjump(queries=5000)", "l1": "noise(draws=1000)",
        "l0": "foolbox:PointwiseAttack(queries=5000)", "patch": "noise(draws=1000)",
    },
}  # fmt: skip
_OVER_DRAWS, _OVER_DRAWS_LONGER = "pgd-eot(steps=30, eot=1)", "pgd-eot(steps=60, eot=2)"
_TRANSFER = {"linf": "transfer", "l2": "transfer"}
_QUERIES = {
    "linf": "square(queries=500)", "l2": "square(queries=500)", "l1": "square(queries=500)",
    "patch": "patch-search(queries=500)",
}  # fmt: skip
SENTINEL_IMAGES = 100
_ON = " on "


@dataclass(frozen=True)
class Step:
    """One attack of the plan. ``limit`` caps the images; ``check`` names the check it feeds, if any; ``via`` says that
    gradients go through a copy with another backward function, such as ``bpda(preprocess)``.

    A sentinel that breaks an image is run again on everything still standing (``escalates``). ``exact``: gradients come
    from the model itself and not from a fast copy, over which this step watches too.
    """

    attack: str
    limit: int | None = None
    check: str | None = None
    via: str | None = None
    exact: bool = False

    @property
    def escalates(self) -> bool:
        return self.check is not None

    @property
    def label(self) -> str:
        """The name under which the ledger knows this step."""
        via = "" if self.via is None else f"{_ON}{self.via}"
        return self.attack + via if self.limit is None else f"{self.attack}{via}{_ON}{self.limit}"

    @staticmethod
    def attack_of(label: str) -> str:
        """The attack that a step's label names."""
        return label.split(_ON)[0]


def standard_attacks(threat: ThreatModel, access: Access = "gradients", effort: str = "standard") -> tuple[str, ...]:
    """The default attacks for a threat model, in order, for a model that gives an attacker this much.

    ``effort`` is that of the cascade: ``quick``, ``standard`` or ``exhaustive``. The sentinels are the same for all, so
    a quick audit that misses much does not come out sound.
    """
    if access == "gradients" and effort == "standard":
        return _STANDARD[threat.norm]
    if access == "gradients":
        return tuple(f"auto(effort='{effort}')" if name == "auto" else name for name in _STANDARD[threat.norm])
    return (_LABELS if access == "labels" else _SCORES)[threat.norm]


def left_out(threat: ThreatModel, chosen: tuple[str, ...], access: Access = "gradients") -> list[str]:
    """The standard attacks that a user's own list leaves out without having a stronger one in their place."""
    if access != "gradients":
        return [attack for attack in standard_attacks(threat, access) if attack not in chosen]
    if any(attack.replace('"', "'") in _STRONGER for attack in chosen):
        return []
    return [attack for attack in _STANDARD[threat.norm] if attack not in chosen]


def steps(
    threat: ThreatModel,
    attacks: tuple[str, ...] | None,
    gradients: bool,
    via: str | None = None,
    random: bool = False,
    surrogates: bool = False,
    access: Access = "gradients",
    effort: str = "standard",
) -> list[Step]:
    """The audit's steps: the attacks asked for (None: the standard ones), then the sentinels.

    A function that gives no gradients (``access``) meets attacks that only ask, and a longer run of one of them.

    Without useful gradients the black-box attacks are put in front; gradient attacks still run, for what they may find.
    With ``via`` the gradient attacks go first, then once more in that way, then the black-box ones; the longer run that
    watches over them takes that way too. A ``random`` model also meets an attack that no lucky draw stops.
    With surrogate models one sentinel takes its gradients from them, on everything that stands.
    """
    asked = standard_attacks(threat, access, effort) if attacks is None else attacks
    if access != "gradients":
        plan = [Step(attack) for attack in dict.fromkeys(asked)]
        return [*plan, Step(_LONGER[access][threat.norm], SENTINEL_IMAGES, "converged")]
    if random:
        asked = (*asked, _OVER_DRAWS)
    blind = () if gradients else _SCORES[threat.norm]
    if via is None:
        plan = [Step(attack) for attack in dict.fromkeys(blind + asked)]
    else:
        first = asked if gradients or attacks is not None else _WITHOUT
        plan = [Step(attack) for attack in dict.fromkeys(first)]
        plan += [Step(attack, via=via) for attack in dict.fromkeys(asked)]
        plan += [Step(attack) for attack in blind if attack not in first]
    longer = _OVER_DRAWS_LONGER if random else _CONVERGED[threat.norm]
    plan.append(Step(longer, SENTINEL_IMAGES, "converged", via, exact=True))
    if threat.norm in _TRANSFER and surrogates:
        plan = [step for step in plan if step.attack != _TRANSFER[threat.norm]]  # once, and as a sentinel
        plan.append(Step(_TRANSFER[threat.norm], check="surrogate"))
    if threat.norm in _QUERIES and (gradients or via is not None):
        plan.append(Step(_QUERIES[threat.norm], SENTINEL_IMAGES, "black-box"))
    return plan
