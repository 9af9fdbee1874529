"""Defensive distillation, told honestly: what each attack finds as the temperature rises.

    ROBUST_DATA=FOLDER python benchmarks/distillation.py gtsrb --out runs/distillation

Distils a classifier of GTSRB (examples/gtsrb_model.py, linf 4/255) or of MNIST (a small network, linf 0.1) at the
temperatures 1, 10, 20, 50 and 100, and attacks each in seven ways on the same test images. Then the margin attack is
doubted: twice 100 steps in float64, and the `auto` cascade, each against the undefended classifier of the example
(where its weights are) or the lowest temperature by McNemar's exact test on the same images. At last the models of the
lowest and the highest temperature are audited. A training that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import robust
from robust.attacks import PGD, Auto
from robust.batching import batches
from robust.data import ImageSet, load_data
from robust.defenses.masking import IMAGES, TEMPERATURES, temperature_sweep
from robust.defenses.training.distillation import DefensiveDistillation
from robust.defenses.training.images import hold_out
from robust.progress import Plain
from robust.stats import mcnemar
from robust.threats import ThreatModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gtsrb_data import CLASS_NAMES, read_signs, split_by_track
from gtsrb_model import DEFAULT_WEIGHTS, TrafficSignNet, load_model

Problem = tuple[nn.Module, ImageSet, ImageSet, ImageSet, str]


def gtsrb(folder: Path, n: int) -> Problem:
    signs, held = split_by_track(read_signs(folder, "train"), 0.1, 0)
    test = read_signs(folder, "test")
    parts = [load_data((part.images, part.labels), class_names=CLASS_NAMES) for part in (signs, held, test)]
    torch.manual_seed(0)
    return TrafficSignNet(), parts[0].limited(n, 0), parts[1], parts[2], "linf:4/255"


def mnist(folder: Path, n: int) -> Problem:
    train, test = (_mnist_part(folder, split) for split in ("train", "test"))
    train, held = hold_out(train.limited(n + n // 9, 0), 0.1, 0)
    torch.manual_seed(0)
    layers = OrderedDict(
        c1=nn.Conv2d(1, 16, 4, 2, 1), r1=nn.ReLU(), c2=nn.Conv2d(16, 32, 4, 2, 1), r2=nn.ReLU(), flat=nn.Flatten(),
        l1=nn.Linear(32 * 49, 100), r3=nn.ReLU(), l2=nn.Linear(100, 10),
    )  # fmt: skip
    return nn.Sequential(layers), train, held, test, "linf:0.1"


def _mnist_part(folder: Path, split: str) -> ImageSet:
    ready = folder / f"mnist_{split}.npz"
    if ready.is_file():
        with np.load(ready) as file:
            return load_data((file["images"], file["labels"]))
    return load_data(f"torchvision:MNIST:{split}@{folder}")


def standing(model: nn.Module, data: ImageSet, threat: ThreatModel, strong: str) -> list[bool]:
    """Which images the model still reads right, after one strong attack: ``margin`` in float64, or ``auto``."""
    model, found = model.eval(), []
    for ids in batches(list(range(len(data))), 100):
        images, labels = data.batch(ids), data.labels[ids]
        if strong == "auto":
            attacked = Auto(threat.eps, norm=threat.norm)(model, images, labels)
        else:
            attack = PGD(threat.eps, norm=threat.norm, steps=100, restarts=2, loss="margin")
            attacked = attack(copy.deepcopy(model).double(), images.double(), labels).float()
        with torch.no_grad():
            found += (model(attacked).argmax(1) == labels).tolist()
    return found


def doubted(models: dict[str, nn.Module], data: ImageSet, threat: ThreatModel) -> None:
    """Print what strong attacks leave of each model, and whether that differs from the first one's."""
    print(f"\nthe margin doubted, {len(data)} test images; p against {next(iter(models))} on the same images\n")
    print("| temperature | clean | margin, float64, 2 x 100 steps | p | auto | p |\n" + "|---" * 6 + "|")
    first: dict[str, list[bool]] = {}
    for label, model in models.items():
        with torch.no_grad():
            clean = (model.eval()(data.batch(range(len(data)))).argmax(1) == data.labels).float().mean()
        cells = [label, f"{100 * clean:.0f}"]
        for strong in ("margin", "auto"):
            own = standing(model, data, threat, strong)
            pairs = list(zip(first.setdefault(strong, own), own, strict=True))
            p = mcnemar(pairs.count((True, False)), pairs.count((False, True)))
            cells += [f"{100 * sum(own) / len(own):.0f}", "" if own is first[strong] else f"{p:.2g}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Defensive distillation under seven attacks.")
    add = parser.add_argument
    add("problem", choices=("gtsrb", "mnist"))
    add("--data", type=Path, default=Path(os.environ.get("ROBUST_DATA", "data")))
    add("--out", type=Path, default=Path("runs/distillation"))
    add("--images", type=int, default=8000, help="training images")
    add("--epochs", type=int, default=6)
    add("--learning-rate", type=float, help="its peak (default: AdamW's 0.002); high temperatures need more")
    add("--test", type=int, default=IMAGES, help="test images under the seven attacks and the strong ones")
    add("--temperatures", default=",".join(f"{temperature:g}" for temperature in TEMPERATURES))
    add("--audit", type=int, default=200, help="test images of the two audits; 0 for none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model, train, held, test, threat = {"gtsrb": gtsrb, "mnist": mnist}[chosen.problem](chosen.data, chosen.images)
    defense = DefensiveDistillation(threat, epochs=chosen.epochs, learning_rate=chosen.learning_rate)
    temperatures = [float(text) for text in chosen.temperatures.split(",")]
    start, out = time.perf_counter(), chosen.out / chosen.problem
    rows = temperature_sweep(defense, model, train, held, test, temperatures, out, Plain(), chosen.test)
    names = list(dict.fromkeys(row["attack"] for row in rows))
    print(f"\n{chosen.problem}, {threat}, {rows[0]['n']} test images, {time.perf_counter() - start:.0f} s\n")
    print(f"| temperature | {' | '.join(names)} | zero gradients | mean logit |")
    print("|" + "---|" * (len(names) + 3))
    for temperature in temperatures:
        own = {row["attack"]: row for row in rows if row["temperature"] == temperature}
        any_row = own[names[0]]
        cells = [f"{100 * own[name]['accuracy']:.0f}" for name in names]
        zeros = f"{100 * any_row['zero_gradients']:.0f} %"
        print(f"| {temperature:g} | {' | '.join(cells)} | {zeros} | {any_row['logit']:.1f} |")
    models = {
        temperature: replace(defense, temperature=temperature)
        .fit(model, train, held, out=out / f"temperature-{temperature:g}")
        .model
        for temperature in temperatures
    }
    undefended = {"undefended": load_model()} if chosen.problem == "gtsrb" and DEFAULT_WEIGHTS.is_file() else {}
    named = {f"{temperature:g}": model for temperature, model in sorted(models.items())}
    doubted(undefended | named, test.limited(chosen.test, defense.seed), ThreatModel.parse(threat))
    for temperature in (temperatures[0], temperatures[-1]) if chosen.audit else ():
        folder = out / f"temperature-{temperature:g}"
        summary = robust.audit(models[temperature], test, [threat], limit=chosen.audit, out=folder / "audit")
        result = summary.threats[0]
        print(
            f"\naudit, temperature {temperature:g}: clean {summary.clean_accuracy.value:.1%}, robust "
            f"{result.robust_accuracy.value:.1%} of {summary.data.n}, {summary.verdict}: {'; '.join(result.reasons)}"
        )


if __name__ == "__main__":
    main()
