"""Training defenses on real traffic signs: clean and robust accuracy against the time that they took.

    ROBUST_DATA=FOLDER python benchmarks/hardening.py --out runs/hardening --methods pgd,fast,nfgsm --seeds 0,1

Every method starts from the same plain classifier (examples/gtsrb_model.py), with the same images, epochs, schedule and
averaging, on one thread. Validation is split off by track. A run that was stopped goes on where it was; one that is
done is not run again. Each hardened model is audited with `auto` on the same random test images. The table counts
processor seconds beside wall time, because a shared machine is never idle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import robust
from robust.data import ImageSet, load_data
from robust.defenses.training import method
from robust.progress import Plain

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gtsrb_data import CLASS_NAMES, Signs, read_signs, split_by_track
from gtsrb_model import TrafficSignNet, load_model

RESULT = "result.json"


def images(signs: Signs, limit: int | None = None) -> ImageSet:
    return load_data((signs.images, signs.labels), class_names=CLASS_NAMES).limited(limit, 0)


def harden(chosen: argparse.Namespace, label: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one model, or go on with it, or read what is already there; its record."""
    out = chosen.out / f"{label}-{seed}"
    if (out / RESULT).is_file():
        record: dict[str, Any] = json.loads((out / RESULT).read_text())
        return record
    signs, held = split_by_track(read_signs(chosen.data, "train"), 0.1, 0)
    name = options.pop("method", label)
    defense = method(name)(chosen.threat, seed=seed, **{"epochs": chosen.epochs, **options})
    found = defense.fit(
        load_model(chosen.weights), images(signs, chosen.images), images(held), out=out, progress=Plain()
    )
    save_file(
        {name: value.contiguous() for name, value in found.model.state_dict().items()}, out / "weights.safetensors"
    )
    history = found.history
    record = {
        "label": label, "seed": seed, "settings": defense.settings(), "wall": history.seconds,
        "processor": history.epochs[-1].processor,
        "best": history.best, "validation": history.epochs[history.best - 1].robust, "remarks": history.remarks,
    }  # fmt: skip
    (out / RESULT).write_text(json.dumps(record, indent=2) + "\n")
    return record


def audit(chosen: argparse.Namespace, folder: Path, weights: Path) -> dict[str, Any]:
    """Clean and robust accuracy by the standard audit; kept in the folder."""
    summary_file = folder / "audit" / "audit.json"
    if not summary_file.is_file():
        model = TrafficSignNet()
        model.load_state_dict(load_file(weights))
        test = images(read_signs(chosen.data, "test"))
        robust.audit(model.eval(), test, [chosen.threat], limit=chosen.audit, out=folder / "audit", progress=Plain())
    summary = robust.AuditSummary.read(summary_file)
    result = summary.threats[0]
    return {
        "clean": summary.clean_accuracy.value, "robust": result.robust_accuracy.value, "verdict": summary.verdict,
        "low": result.robust_accuracy.low, "high": result.robust_accuracy.high, "n": summary.clean_accuracy.n,
    }  # fmt: skip


def row(label: str, record: dict[str, Any], found: dict[str, Any]) -> str:
    return (
        f"| {label} | {record.get('seed', '')} | {100 * found['clean']:.1f} | {100 * found['robust']:.1f} "
        f"({100 * found['low']:.1f} to {100 * found['high']:.1f}) | {record.get('processor', 0):.0f} | "
        f"{record.get('wall', 0):.0f} | {found['verdict']} | {len(record.get('remarks', []))} |"
    )


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``nfgsm`` or ``LABEL=method:setting=value,...`` with values as JSON."""
    label, equals, rest = text.partition("=")
    if not equals:
        return text, {}
    name, _, settings = rest.partition(":")
    pairs = [part.split("=", 1) for part in settings.split(",") if part]
    return label, {"method": name, **{key: json.loads(value) for key, value in pairs}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Training defenses on GTSRB: accuracy against time.")
    add = parser.add_argument
    add("--data", type=Path, default=Path(os.environ.get("ROBUST_DATA", "data")))
    add("--weights", type=Path, help="of the plain classifier (default: as examples/gtsrb_model.py finds them)")
    add("--out", type=Path, default=Path("runs/hardening"))
    add("--methods", default="pgd trades fast nfgsm free", help="apart by spaces; LABEL=method:setting=value,... too")
    add("--seeds", default="0")
    add("--threat", default="linf:8/255")
    add("--images", type=int, default=8000)
    add("--epochs", type=int, default=6)
    add("--audit", type=int, default=500, help="test images to audit; 0 for none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | seed | clean | robust (95 % interval) | processor s | wall s | verdict | rollbacks |")
    print("|---|---|---|---|---|---|---|---|")
    if chosen.audit:
        chosen.out.mkdir(parents=True, exist_ok=True)
        save_file(load_model(chosen.weights).state_dict(), chosen.out / "plain.safetensors")
        print(row("plain", {}, audit(chosen, chosen.out / "plain", chosen.out / "plain.safetensors")), flush=True)
    for text in chosen.methods.split():
        for seed in map(int, chosen.seeds.split(",")):
            label, options = parse(text)
            record = harden(chosen, label, options, seed)
            if chosen.audit:
                folder = chosen.out / f"{label}-{seed}"
                print(row(label, record, audit(chosen, folder, folder / "weights.safetensors")), flush=True)


if __name__ == "__main__":
    main()
