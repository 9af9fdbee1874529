#!/usr/bin/env python3
"""Clean and PGD accuracy of trained models beside their published figures.

    ROBUST_DATA=path/to/data python benchmarks/published.py [--n 10000]

The folder holds `export.py` (writes the image sets as .npz), `zoo.py` (the models) and `cifar10_sdp200.npz`. A
published accuracy agrees where it lies in the 95 % Clopper-Pearson interval of the measured one. Where a proof is
published too, the attacked accuracy must not fall below the verified one. PGD here has 2 restarts and the stated loss;
the published attack may be another one, so a lower figure than the published is a stronger attack, and is marked so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from robust import ImageSet, load_data, load_model
from robust.attacks import PGD
from robust.stats import rate
from robust.summary import Rate


@dataclass(frozen=True)
class Case:
    """A model, a threat, and what is published of it: ``proven`` <= robust accuracy <= ``attacked``, in percent."""

    model: str
    data: str
    eps: float  # 0: clean accuracy
    steps: int
    attacked: float
    proven: float | None = None


CASES = (
    Case("cifar_resnet2b", "cifar10_test", 0, 0, 69.25),
    Case("cifar_resnet2b", "cifar10_test", 1 / 255, 20, 62.24),
    Case("cifar_resnet2b", "cifar10_test", 2 / 255, 20, 54.82),
    Case("cifar_resnet4b", "cifar10_test", 0, 0, 77.20),
    Case("cifar_resnet4b", "cifar10_test", 1 / 255, 20, 69.75),
    Case("cifar_resnet4b", "cifar10_test", 2 / 255, 20, 61.41),
    Case("mnist_kw", "mnist_test", 0, 0, 98.2),
    Case("mnist_kw", "mnist_test", 0.1, 40, 95.9, proven=94.2),
    Case("cifar_cnn_a_adv", "cifar10_sdp200", 2 / 255, 40, 50.0, proven=48.5),
    Case("cifar_cnn_a_adv4", "cifar10_sdp200", 2 / 255, 40, 49.5, proven=48.5),
    Case("cifar_cnn_a_mix", "cifar10_sdp200", 2 / 255, 40, 53.0, proven=48.0),
    Case("cifar_resnet20", "cifar10_test", 0, 0, 91.73),
    Case("cifar_resnet56", "cifar10_test", 0, 0, 93.39),
)


def measure(model: nn.Module, data: ImageSet, case: Case, loss: str, batch: int = 256) -> Rate:
    """Accuracy under PGD (clean at eps 0), every returned image classified afresh in float32."""
    right = 0
    for start in range(0, len(data), batch):
        ids = range(start, min(start + batch, len(data)))
        images, labels = data.batch(ids), data.labels[list(ids)]
        if case.eps:
            images = PGD(case.eps, steps=case.steps, restarts=2, loss=loss)(model, images, labels)
        with torch.no_grad():
            right += int((model(images).argmax(1) == labels).sum())
    return rate(right, len(data))


def judgement(found: Rate, case: Case) -> str:
    published = case.attacked / 100
    if case.proven is not None and found.value < case.proven / 100 - 1e-9 and found.n <= 200:
        return "BELOW THE PROOF"
    if found.low <= published <= found.high:
        return "agrees"
    return "lower: a stronger attack" if found.value < published and case.eps else "DIFFERS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ROBUST_DATA"), help="folder of export.py and zoo.py")
    parser.add_argument("--n", type=int, default=None, help="the first n images of each set (default: all)")
    parser.add_argument("--loss", default="ce", choices=("ce", "margin"))
    arguments = parser.parse_args()
    if not arguments.data:
        sys.exit("give --data, or set ROBUST_DATA")
    folder = Path(arguments.data)
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, folder / "export.py", scratch, "cifar10", "mnist"], check=True, stdout=subprocess.DEVNULL
        )
        print(f"PGD with {arguments.loss} loss, steps of eps/4, 2 restarts, seed 0; {torch.get_num_threads()} threads")
        print(f"{'model':<18}{'eps':>7}{'steps':>6}{'n':>7}{'measured':>10}{'95 % interval':>16}{'published':>11}"
              f"{'proven':>8}{'seconds':>9}  agreement")  # fmt: skip
        for case in CASES:
            source = folder if case.data == "cifar10_sdp200" else Path(scratch)
            data = load_data(source / f"{case.data}.npz")
            if arguments.n is not None:
                data = data.take(range(min(arguments.n, len(data))))
            model = load_model(f"{folder / 'zoo.py'}:{case.model}")
            start = time.perf_counter()
            found = measure(model, data, case, arguments.loss)
            seconds = time.perf_counter() - start
            interval = f"{100 * found.low:.2f} to {100 * found.high:.2f}"
            proven = "" if case.proven is None else f"{case.proven:.1f}"
            eps = "clean" if not case.eps else f"{case.eps * 255:.3g}/255" if case.eps < 0.1 else f"{case.eps:g}"
            print(f"{case.model:<18}{eps:>7}{case.steps:>6}{found.n:>7}{100 * found.value:>9.2f}%{interval:>16}"
                  f"{case.attacked:>10.2f}%{proven:>8}{seconds:>9.1f}  "
                  f"{judgement(found, case)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
