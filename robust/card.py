"""The model card of a hardened model: what it was made from, how, what it withstands, and what that cost."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robust.comparison import Paired
from robust.places import write_text
from robust.summary import AuditSummary, Rate

if TYPE_CHECKING:
    from robust.data import ImageSet
    from robust.defenses.training.defense import Defense
    from robust.defenses.training.history import History
    from robust.hardening import Parts

CARD, README = "card.json", "README.md"


def write_card(
    folder: Path, *, defense: Defense, name: str, before: AuditSummary, after: AuditSummary, clean: Paired,
    robust: Paired, history: History, parts: Parts, weights: str, command: str | None, use: str,
    masking: list[dict[str, Any]] | None,
) -> dict[str, Any]:  # fmt: skip
    """Write card.json and README.md into ``folder``; the content of card.json."""
    import torch

    card = {
        "schema_version": 1,
        "robust_version": after.robust_version,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "name": name,
        "method": {"name": defense.name, "source": defense.source, "settings": defense.settings()},
        "threat": defense.ball.text,
        "weights": {"file": "weights.safetensors", "sha256": weights, "made_from": before.model.sha256},
        "data": {kind: _described(getattr(parts, kind)) for kind in ("train", "validation", "test")},
        "training": {
            "epochs": len(history.epochs),
            "best_epoch": history.best,
            "chosen_by": history.measure,
            "seconds": history.seconds,
            "stopped": history.stopped,
        },
        "figures": {
            "images": after.data.n,
            "clean": _change(before.clean_accuracy, after.clean_accuracy, clean),
            "robust": _change(before.threats[0].robust_accuracy, after.threats[0].robust_accuracy, robust),
            "certified": {
                stage: None if found is None else found.model_dump()
                for stage, found in (
                    ("before", before.threats[0].certified_accuracy),
                    ("after", after.threats[0].certified_accuracy),
                )
            },
            "verdict": {"before": before.verdict, "after": after.verdict},
        },
        "remarks": [*history.remarks, *parts.remarks, *_remarks(defense, before, after, robust)],
        "masking": masking,
        "command": command,
        "use": use,
        "machine": after.machine,
        "versions": {**after.versions, "threads": str(torch.get_num_threads()), "python": platform.python_version()},
    }
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
    write_text(folder / README, _readme(card))
    return card


def _described(data: ImageSet) -> dict[str, Any]:
    return {"name": data.name, "n": len(data), "sha256": data.sha256()}


def _change(before: Rate, after: Rate, paired: Paired) -> dict[str, Any]:
    """``p`` is McNemar's exact two-sided test on the images that only one of the models holds."""
    return {
        "before": before.model_dump(), "after": after.model_dump(), "both": paired.both,
        "only_before": paired.only_first, "only_after": paired.only_second, "neither": paired.neither,
        "difference": paired.difference, "p": paired.p,
    }  # fmt: skip


def _remarks(defense: Defense, before: AuditSummary, after: AuditSummary, robust: Paired) -> list[str]:
    """What whoever uses the model should hear at once."""
    found = []
    if robust.difference <= 0 or robust.p >= 0.05:
        found.append(
            f"No gain was shown: robust accuracy went from {before.threats[0].robust_accuracy.value:.1%} to "
            f"{after.threats[0].robust_accuracy.value:.1%} (p = {robust.p:.2g})."
        )
    if after.verdict != "sound":
        found.append(f"The audit of the hardened model is {after.verdict}: {after.threats[0].reasons[0]}")
    sigma = getattr(defense, "sigma", None)
    if sigma is not None:
        found.append(
            f"Made to be smoothed: certify it with sigma {sigma:g}. The audit here is of the bare model, without noise."
        )
    if defense.name == "distillation":
        found.append(
            "Defensive distillation masks gradients: attacks on the cross-entropy fail, those on the logits, from "
            "another model or by queries do not. It gives no robustness; use pgd or trades."
        )
    return found


def _readme(card: dict[str, Any]) -> str:
    figures, method = card["figures"], card["method"]
    rows = "\n".join(
        f"| {label} | {_rate(figures[key]['before'])} | {_rate(figures[key]['after'])} | {figures[key]['p']:.2g} |"
        for key, label in (("clean", "clean, unattacked"), ("robust", f"robust, {card['threat']}"))
    )
    certified = figures["certified"]
    if any(certified.values()):
        shown = (_rate(found) if found else "none" for found in certified.values())
        rows += f"\n| certified, {card['threat']} | {' | '.join(shown)} | |"
    data = "\n".join(f"- {kind}: {part['name']}, {part['n']:,} images" for kind, part in card["data"].items())
    settings = ", ".join(f"{name}={value}" for name, value in method["settings"].items() if value is not None)
    remarks = "\n".join(f"- {remark}" for remark in card["remarks"]) or "- none"
    training = card["training"]
    return f"""# {card["name"]}, hardened by {method["name"]}

{figures["images"]} test images, audited before and after by the same attacks, seeds and budget. Robust: right, and no
attack inside the threat model changed that. An attacked accuracy is an upper bound. p: McNemar's exact test.

| accuracy | before | after | p |
|---|---|---|---|
{rows}

Verdict on the evidence: before {figures["verdict"]["before"]}, after {figures["verdict"]["after"]}.

## Use

    {card["use"]}

`weights.safetensors` holds the weights (SHA-256 of names and values: `{card["weights"]["sha256"]}`).

## Training

- method: {method["name"]} ({method["source"]})
- threat model: {card["threat"]}
- epoch {training["best_epoch"]} of {training["epochs"]}, chosen by {training["chosen_by"]} on the validation images; \
{training["seconds"]:.0f} s
- settings: {settings}
{data}

## Remarks

{remarks}

## Made with

{", ".join(f"{name} {version}" for name, version in card["versions"].items())}; {card["machine"]}; {card["created"]}
"""


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"
