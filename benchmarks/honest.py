#!/usr/bin/env python3
"""No honest model may look suspect: every check of models and of attacks, over real trained models.

    ROBUST_DATA=path/to/data python benchmarks/honest.py [--models mnist_kw,cifar_resnet20] [--n 60]

The folder holds `export.py` (writes the image sets as .npz) and `zoo.py` (the models). Prints per model the checks that
did not pass, the figures of those whose thresholds were set on these models, and what the checks cost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from robust import load_data, load_model
from robust.checks import ANSWER_CHECKS, ATTACK_CHECKS, GRADIENT_CHECKS, RANDOM_CHECKS, Sample
from robust.counting import CountedModel
from robust.models import evaluating
from robust.threats import ThreatModel

OTHERS = ("l2:0.5", "l1:12", "l0:30")
MODELS = {
    "cifar_resnet2b": ("cifar10_test", ("linf:2/255", *OTHERS)),
    "cifar_resnet4b": ("cifar10_test", ("linf:2/255",)),
    "cifar_cnn_a_adv": ("cifar10_test", ("linf:2/255",)),
    "cifar_cnn_a_adv4": ("cifar10_test", ("linf:4/255",)),
    "cifar_cnn_a_mix": ("cifar10_test", ("linf:2/255",)),
    "cifar_kw_base": ("cifar10_test", ("linf:8/255",)),
    "cifar_resnet18w32_fast": ("cifar10_test", ("linf:8/255",)),
    "cifar_resnet20": ("cifar10_test", ("linf:8/255", *OTHERS)),
    "cifar_resnet56": ("cifar10_test", ("linf:8/255",)),
    "mnist_kw": ("mnist_test", ("linf:0.1",)),
    "mnist_lenet5_adv": ("mnist_test", ("linf:0.3",)),
    "mnist_lenet5": ("mnist_test", ("linf:0.3",)),
}
SHOWN = ("stable", "agreement", "transfer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--n", type=int, default=60, help="images that the model reads right")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ["ROBUST_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, root / "export.py", folder], check=True, stdout=subprocess.DEVNULL)
        failed = 0
        for name in options.models.split(","):
            images, threats = MODELS[name]
            for threat in threats:
                failed += _check(f"{root / 'zoo.py'}:{name}", str(Path(folder) / f"{images}.npz"), threat, options.n)
    print(f"{failed} checks did not pass")


def _check(spec: str, data: str, threat: str, n: int) -> int:
    """Prints what the checks say of one model under one threat; returns how many did not pass."""
    model, images = load_model(spec), load_data(data).limited(6 * n, 0)
    points, labels = images.batch(range(len(images))), images.labels
    with evaluating(model), torch.no_grad():
        right = (model(points).argmax(1) == labels).nonzero().squeeze(1)[:n]
    counted, start, failed = CountedModel(model), time.perf_counter(), 0
    sample = Sample(counted, points[right], labels[right], ThreatModel.parse(threat), 0, 64)
    lines = []
    for check in (*RANDOM_CHECKS, *ANSWER_CHECKS, *GRADIENT_CHECKS, *ATTACK_CHECKS):
        record = check(sample)
        failed += record.passed is not True
        if record.passed is not True or record.name in SHOWN:
            lines.append(f"  {'passed' if record.passed else 'NOT PASSED'} {record.name}: {record.detail}")
    cost = f"{counted.passes.forward / n:.0f} forward, {counted.passes.backward / n:.0f} backward passes an image"
    print(f"{spec.split(':')[-1]} {threat}: {cost}, {time.perf_counter() - start:.1f} s", *lines, sep="\n", flush=True)
    return failed


if __name__ == "__main__":
    main()
