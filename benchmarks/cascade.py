#!/usr/bin/env python3
"""Verdict against cost: the `auto` cascade beside AutoAttack standard, exactly as published, on the same images.

    ROBUST_DATA=path/to/data python benchmarks/cascade.py [--models cifar_cnn_a_adv,mnist_kw] [--n 500] [--seeds 0,1,2]

The folder holds `export.py` (writes the image sets as .npz) and `zoo.py` (the models). Robust accuracy counts images
that are right unattacked and right on the returned image, evaluated afresh in float32. "only" counts images that one
broke and AutoAttack did not. Passes are counted by a wrapper around the model and are per image of the whole set.
Batches are as large as an audit's. AutoAttack runs once, with seed 0; the cascade once per seed, searching on the copy
of the model that an audit would take (`--precision plain`: on the model itself), the choice of which is part of its
seconds. Seconds are processor time, which other processes on the machine disturb little; those of the cascade, which
are few, are the median of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robust import ImageSet, load_data, load_model
from robust.attacks import Auto, AutoAttack
from robust.attacks.base import Attack
from robust.batching import comfortable_batch
from robust.counting import CountedModel
from robust.lane import PRECISIONS, make_lane

MODELS = {
    "cifar_cnn_a_adv": ("cifar10_test", 2 / 255),
    "cifar_cnn_a_adv4": ("cifar10_test", 2 / 255),
    "cifar_cnn_a_mix": ("cifar10_test", 2 / 255),
    "cifar_kw_base": ("cifar10_test", 8 / 255),
    "cifar_resnet2b": ("cifar10_test", 2 / 255),
    "cifar_resnet4b": ("cifar10_test", 2 / 255),
    "cifar_resnet18w32_fast": ("cifar10_test", 8 / 255),
    "mnist_kw": ("mnist_test", 0.1),
    "mnist_lenet5_adv": ("mnist_test", 0.3),
}


@dataclass(frozen=True)
class Outcome:
    """Which images stand, and the passes per image and seconds it took."""

    standing: Tensor
    forward: float
    backward: float
    seconds: float


def measure(model: nn.Module, attack: Attack, data: ImageSet, precision: str = "plain") -> Outcome:
    began, batch = time.process_time(), comfortable_batch(model, data.batch([0]))
    lane = None if precision == "plain" else make_lane(model, *first(model, data), precision=precision)
    counted = CountedModel(model, None if lane is None or lane.report.kind == "plain" else lane)
    standing, seconds = [], time.process_time() - began
    for start in range(0, len(data), batch):
        ids = range(start, min(start + batch, len(data)))
        images, labels = data.batch(ids), data.labels[list(ids)]
        began = time.process_time()
        found = attack(counted, images, labels)
        seconds += time.process_time() - began
        with torch.no_grad():
            standing.append((model(images).argmax(1) == labels) & (model(found).argmax(1) == labels))
    n = len(data)
    return Outcome(torch.cat(standing), counted.passes.forward / n, counted.passes.backward / n, seconds)


def typical(model: nn.Module, attack: Attack, data: ImageSet, arguments: argparse.Namespace) -> Outcome:
    """The same outcome every time, with the median of the seconds."""
    runs = [measure(model, attack, data, arguments.precision) for _ in range(arguments.repeats)]
    return replace(runs[0], seconds=statistics.median(run.seconds for run in runs))


def first(model: nn.Module, data: ImageSet) -> tuple[Tensor, Tensor]:
    """The first images that are right unattacked, to choose a copy by."""
    images, labels = data.batch(range(min(128, len(data)))), data.labels[: min(128, len(data))]
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    return images[right][:64], labels[right][:64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ROBUST_DATA"), help="folder of export.py and zoo.py")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--n", type=int, default=500, help="the first n images of the test set")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the cascade for each seed")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    arguments = parser.parse_args()
    if not arguments.data:
        sys.exit("give --data, or set ROBUST_DATA")
    folder, seeds = Path(arguments.data), [int(seed) for seed in arguments.seeds.split(",")]
    print(f"n = {arguments.n}, linf, AutoAttack seed 0, precision {arguments.precision}, {torch.get_num_threads()} "
          "threads; ratio: AutoAttack over auto")  # fmt: skip
    print(f"{'model':<24}{'attack':<13}{'robust':>8}{'only':>6}{'forward':>9}{'ratio':>7}{'backward':>10}{'ratio':>7}"
          f"{'seconds':>9}{'ratio':>7}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, folder / "export.py", scratch, "cifar10", "mnist"], check=True, stdout=subprocess.DEVNULL
        )
        for name in arguments.models.split(","):
            source, eps = MODELS[name]
            data = load_data(Path(scratch) / f"{source}.npz")
            data = data.take(range(min(arguments.n, len(data))))
            model = load_model(f"{folder / 'zoo.py'}:{name}")
            reference = measure(model, AutoAttack(eps), data)
            outcomes = [(f"auto, seed {seed}", typical(model, Auto(eps, seed=seed), data, arguments)) for seed in seeds]
            for label, found in [("AutoAttack", reference), *outcomes]:
                only = "" if found is reference else int((reference.standing & ~found.standing).sum())
                print(f"{name:<24}{label:<13}{float(found.standing.float().mean()):>8.1%}{only:>6}"
                      f"{found.forward:>9.1f}{reference.forward / found.forward:>7.1f}"
                      f"{found.backward:>10.1f}{reference.backward / found.backward:>7.1f}"
                      f"{found.seconds:>9.1f}{reference.seconds / found.seconds:>7.1f}", flush=True)  # fmt: skip
                if found is not reference:
                    missed = int((found.standing & ~reference.standing).sum())
                    if missed:
                        print(f"{'':<24}{'':<13}  AutoAttack alone broke {missed}", flush=True)


if __name__ == "__main__":
    main()
