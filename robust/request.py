"""The arguments of an audit, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from robust.attacks import Transfer
from robust.attacks.auto import EFFORTS
from robust.attacks.registry import build
from robust.corruptions import SEVERITIES
from robust.errors import InputError, unknown
from robust.lane import PRECISIONS
from robust.threats import ThreatModel

LEDGER, SUMMARY, REPORT = "ledger.sqlite", "audit.json", "report.html"
DEFAULT_THREATS = ("linf:8/255",)
DEMO_THREATS = ("linf:8/255", "patch:2%")


@dataclass(frozen=True)
class Request:
    """The checked arguments that cost nothing to check. ``corruptions``: the severities to measure; none: not asked."""

    threats: tuple[ThreatModel, ...]
    corruptions: tuple[int, ...]
    attacks: tuple[str, ...] | None
    seed: int
    device: torch.device
    out: Path | None
    precision: str
    effort: str
    behind: str | None = None


def parse_threats(given: Sequence[str | ThreatModel]) -> tuple[ThreatModel, ...]:
    """Threat models from objects or text, at least one and none twice. Raises InputError."""
    if isinstance(given, (str, ThreatModel)):
        given = [given]
    threats = tuple(threat if isinstance(threat, ThreatModel) else ThreatModel.parse(threat) for threat in given)
    if not threats:
        raise InputError("threats: give at least one, such as linf:8/255")
    texts = [threat.text for threat in threats]
    for text in texts:
        if texts.count(text) > 1:
            raise InputError(f"threat {text} is given twice")
    return threats


def split_threats(given: Sequence[str | ThreatModel]) -> tuple[tuple[ThreatModel, ...], tuple[int, ...]]:
    """The threat models among ``given``, and the severities of ``corruptions`` or ``corruptions:3`` (1 to 3).

    Raises InputError.
    """
    if isinstance(given, (str, ThreatModel)):
        given = [given]
    asked = [threat for threat in given if isinstance(threat, str) and _named_corruptions(threat)]
    others = [threat for threat in given if threat not in asked]
    if not asked:
        return parse_threats(others), ()
    if len(asked) > 1:
        raise InputError(f"threat {asked[1]} is given twice")
    highest = asked[0].partition(":")[2].strip() or str(max(SEVERITIES))
    if not re.fullmatch("[1-5]", highest):
        raise InputError(
            f"threat {asked[0]}: severities go from 1 to 5; write corruptions, or corruptions:3 for 1 to 3"
        )
    return parse_threats(others) if others else (), SEVERITIES[: int(highest)]


def _named_corruptions(text: str) -> bool:
    return text.partition(":")[0].strip().lower() in ("corruptions", "corruption")


def default_threats(model: object, data: object, attacks: Sequence[str] | None = None) -> tuple[str, ...]:
    """What is audited where no threat is named. The demo also meets a patch, so small that its signs stay legible.

    Not where attacks are named, most of which have no form for a patch.
    """
    demo = isinstance(model, str) and isinstance(data, str) and model == data == "demo"
    return DEMO_THREATS if demo and attacks is None else DEFAULT_THREATS


def check_attacks(request: Request, surrogates: bool = False) -> None:
    """Names, settings and norms of the attacks asked for, before anything is computed."""
    if request.attacks is not None and not request.threats:
        raise InputError("attacks: corruptions are none; add a norm ball such as linf:8/255, or leave the attacks out")
    if request.attacks == ():
        raise InputError("attacks: give at least one, or none at all for the standard list")
    for threat in request.threats:
        for text in request.attacks or ():
            attack = build(text, norm=threat.norm, eps=threat.eps, seed=request.seed)
            if isinstance(attack, Transfer) and not surrogates:
                raise InputError(f"--attacks {text}: needs a model to take gradients from; give --surrogate MODEL")
            if threat.norm not in attack.norms:
                raise InputError(
                    f"--attacks {text}: has no {threat.norm} form, which threat {threat.text} needs; it supports "
                    f"{', '.join(attack.norms)}"
                )


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA where there is one. Raises InputError where it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # which "meta", a device without numbers, cannot give
    except (RuntimeError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({message}); choose cpu, cuda or auto") from None
    return device


def check_budget(budget: float | None) -> None:
    """Raises InputError for a budget of no time."""
    if budget is not None and not budget > 0:
        raise InputError(f"budget {budget:g} s: give more than 0 seconds")


def check_effort(effort: str, attacks: Sequence[str] | None) -> str:
    """Raises InputError for an unknown effort, and for one beside a list of attacks, which it would not touch."""
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    if effort != "standard" and attacks is not None:
        raise InputError(
            f"effort {effort} is for the standard list: write it into the attack, as in auto(effort='{effort}')"
        )
    return effort


def check_precision(precision: str) -> str:
    """Raises InputError for an unknown precision."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    return precision
