"""Training defenses on real traffic signs: clean and robust accuracy against the time that they took.

    ROBUST_DATA=FOLDER python benchmarks/hardening.py --out runs/hardening --methods pgd,fast,nfgsm --seeds 0,1

Every method starts from the same plain classifier (examples/gtsrb_model.py), with the same images, epochs, schedule and
averaging, on one thread. Validation is split off by track. A run that was stopped goes on where it was; one that is
done is not run again. Each model is attacked with `auto` on the same random test images; p compares its robust images
with those of the first method named. The table counts processor seconds beside wall time, because a shared machine is
never idle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from robust.attacks.registry import build
from robust.batching import batches
from robust.data import ImageSet, load_data
from robust.defenses.training import method
from robust.evidence import confirm
from robust.progress import Plain
from robust.stats import mcnemar, rate
from robust.threats import ThreatModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gtsrb_data import CLASS_NAMES, Signs, read_signs, split_by_track
from gtsrb_model import TrafficSignNet, load_model

RESULT, ATTACKED = "result.json", "attacked.json"


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
    defense = method(name)(
        chosen.threat, seed=seed, **{"epochs": chosen.epochs, "learning_rate": chosen.learning_rate, **options}
    )
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


def attacked(chosen: argparse.Namespace, folder: Path, weights: Path) -> dict[str, Any]:
    """Which of the sampled test images the model reads right, and which of them withstand `auto`; kept in the folder.

    A success counts where float32 confirms it inside the ball.
    """
    file = folder / ATTACKED
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    model = TrafficSignNet()
    model.load_state_dict(load_file(weights))
    test, threat = images(read_signs(chosen.data, "test"), chosen.test), ThreatModel.parse(chosen.threat)
    attack = build("auto", norm=threat.norm, eps=threat.eps, seed=0)
    start, clean, standing = time.process_time(), [], []
    for ids in batches(list(range(len(test))), 250):
        points, labels = test.batch(ids), test.labels[ids]
        with torch.no_grad():
            right = model.eval()(points).argmax(1) == labels
        broken = confirm(model, points, attack(model, points, labels), labels, threat).broken
        clean += right.tolist()
        standing += (right & ~broken).tolist()
    record = {"clean": clean, "robust": standing, "processor": time.process_time() - start}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record) + "\n")
    return record


def row(label: str, record: dict[str, Any], found: dict[str, Any], against: dict[str, Any] | None) -> str:
    """One line of the table; p is McNemar's exact test of the robust images against those of the first method."""
    robust = rate(sum(found["robust"]), len(found["robust"]))
    p = "" if against is None else f"{p_value(against['robust'], found['robust']):.2g}"
    return (
        f"| {label} | {record.get('seed', '')} | {100 * sum(found['clean']) / robust.n:.1f} | {100 * robust.value:.1f} "
        f"({100 * robust.low:.1f} to {100 * robust.high:.1f}) | {p} | {record.get('processor', 0):.1f} | "
        f"{record.get('wall', 0):.0f} | {len(record.get('remarks', []))} |"
    )


def p_value(first: list[bool], second: list[bool]) -> float:
    pairs = list(zip(first, second, strict=True))
    return mcnemar(pairs.count((True, False)), pairs.count((False, True)))


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
    add("--learning-rate", type=float, default=0.3, help="its peak, that of the plain classifier's own training")
    add("--test", type=int, default=500, help="test images to attack; 0 for none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | seed | clean | robust (95 % interval) | p | processor s | wall s | rollbacks |")
    print("|---|---|---|---|---|---|---|---|")
    first = None
    if chosen.test:
        chosen.out.mkdir(parents=True, exist_ok=True)
        save_file(load_model(chosen.weights).state_dict(), chosen.out / "plain.safetensors")
        print(
            row("plain", {}, attacked(chosen, chosen.out / "plain", chosen.out / "plain.safetensors"), None), flush=True
        )
    for text in chosen.methods.split():
        for seed in map(int, chosen.seeds.split(",")):
            label, options = parse(text)
            record = harden(chosen, label, options, seed)
            if chosen.test:
                folder = chosen.out / f"{label}-{seed}"
                found = attacked(chosen, folder, folder / "weights.safetensors")
                print(row(label, record, found, first), flush=True)
                first = first or found


if __name__ == "__main__":
    main()
