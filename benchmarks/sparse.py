#!/usr/bin/env python3
"""Verdict against cost in l1 and l0: the `auto` cascade beside a long ensemble, on the same images.

    pip install -c constraints.txt '.[benchmarks]'
    ROBUST_DATA=path/to/data python benchmarks/sparse.py [--models cifar_kw_base,mnist_kw] [--norms l1,l0] [--n 200]

The folder holds `export.py` (writes the image sets as .npz) and `zoo.py` (the models); `gtsrb` is the traffic sign
classifier of examples/gtsrb_model.py, on its test images. The ensemble runs attack after attack, each on what still
stands, with seed 0:

    l1: APGD-CE 100 steps x 5 restarts, APGD-T and FAB-T 100 x 9 targets, FMN 1,000, adv-lib's PDPGD 1,000 and FMN 1,000
    l0: sigma-zero 1,000, FMN 1,000, PGD 300 x 5 restarts, adv-lib's sigma-zero 1,000 and PDPGD 1,000

`standard` is the list that an audit ran before `auto` had these norms. Robust accuracy counts images that are right
unattacked and right on the returned image (or that came back outside ball or box), evaluated afresh in float32. "only"
counts images that this row broke and the ensemble did not, "missed" those that only the ensemble broke. Passes are
counted by a wrapper around the model and are per image of the whole set. The cascade runs once per seed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robust import ImageSet, load_data, load_model
from robust.attacks.registry import build
from robust.counting import CountedModel
from robust.threats import NORMS

# Radii at which about half of the images that are right unattacked stand.
EPS = {
    "cifar_resnet4b": {"l1": 4.0, "l0": 8},
    "cifar_cnn_a_adv": {"l1": 4.0, "l0": 7},
    "cifar_kw_base": {"l1": 2.5, "l0": 5},
    "mnist_kw": {"l1": 4.0, "l0": 5},
    "mnist_lenet5_adv": {"l1": 7.5, "l0": 6},
    "gtsrb": {"l1": 2.0, "l0": 4},
}
ENSEMBLE = {
    "l1": ("apgd-ce(steps=100, restarts=5)", "apgd-t(steps=100)", "fab-t(steps=100)", "fmn(steps=1000)"),
    "l0": ("sigma-zero(steps=1000)", "fmn(steps=1000)", "pgd(steps=300, restarts=5)"),
}
STANDARD = {
    "l1": ("fgsm", "pgd(steps=20)", "apgd-ce(steps=100)", "apgd-t(steps=50)"),
    "l0": ("fgsm", "sigma-zero(steps=300)", "pgd(steps=100, restarts=3)"),
}
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """Which images stand, and the passes per image and seconds it took."""

    standing: Tensor
    forward: float
    backward: float
    seconds: float


def named(attacks: tuple[str, ...], norm: str, eps: float, seed: int) -> list[Method]:
    return [build(attack, norm=norm, eps=eps, seed=seed) for attack in attacks]


def adv_lib(norm: str) -> list[Method]:
    """adv-lib's attacks for this norm; it is no dependency, and without it the ensemble is ours alone."""
    try:
        from adv_lib.attacks import fmn, pdpgd, sigma_zero
    except ImportError:
        print("adv-lib is not installed: the ensemble runs without it", file=sys.stderr)
        return []
    if norm == "l1":
        return [
            lambda m, x, y: pdpgd(m, x, y, 1, num_steps=1000),
            lambda m, x, y: fmn(m, x, y, norm=1, steps=1000),
        ]
    return [
        lambda m, x, y: sigma_zero(m, x, y, num_steps=1000),
        lambda m, x, y: pdpgd(m, x, y, 0, num_steps=1000, proximal_operator=23),
    ]


def measure(
    model: nn.Module, methods: list[Method], data: ImageSet, norm: str, eps: float, batch: int = 250
) -> Outcome:
    """The methods one after another, each on the images that stand so far, in batches of the whole set."""
    counted, seconds = CountedModel(model), 0.0
    images, labels = data.batch(range(len(data))), data.labels
    with torch.no_grad():
        standing = model(images).argmax(1) == labels
    for method in methods:
        for ids in standing.nonzero().squeeze(1).split(batch):
            if not len(ids):
                continue
            began = time.perf_counter()
            found = method(counted, images[ids], labels[ids]).detach()
            seconds += time.perf_counter() - began
            with torch.no_grad():
                fooled = model(found).argmax(1) != labels[ids]
            standing[ids] = ~(fooled & NORMS[norm].contains(found, images[ids], eps))
    n = len(data)
    return Outcome(standing, counted.passes.forward / n, counted.passes.backward / n, seconds)


def row(name: str, threat: str, attack: str, found: Outcome, reference: Outcome) -> str:
    only = int((reference.standing & ~found.standing).sum())
    missed = int((found.standing & ~reference.standing).sum())
    return (
        f"{name:<18}{threat:<8}{attack:<14}{float(found.standing.float().mean()):>7.1%}{only:>6}{missed:>8}"
        f"{found.forward:>10.1f}{found.backward:>10.1f}{reference.backward / found.backward:>7.1f}{found.seconds:>9.1f}"
    )


def load(name: str, folder: Path, scratch: Path, n: int) -> tuple[nn.Module, ImageSet]:
    source = "gtsrb" if name == "gtsrb" else name.split("_")[0].replace("cifar", "cifar10")
    data = load_data(scratch / f"{source}_test.npz")
    examples = Path(__file__).resolve().parent.parent / "examples"
    spec = f"{examples / 'gtsrb_model.py'}:load_model" if name == "gtsrb" else f"{folder / 'zoo.py'}:{name}"
    return load_model(spec).requires_grad_(False), data.take(range(min(n, len(data))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ROBUST_DATA"), help="folder of export.py and zoo.py")
    parser.add_argument("--models", default=",".join(EPS))
    parser.add_argument("--norms", default="l1,l0")
    parser.add_argument("--n", type=int, default=200, help="the first n images of the test set")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    if not arguments.data:
        sys.exit("give --data, or set ROBUST_DATA")
    warnings.filterwarnings("ignore")
    folder, seeds = Path(arguments.data), [int(seed) for seed in arguments.seeds.split(",")]
    print(f"n = {arguments.n}, ensemble seed 0, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'model':<18}{'threat':<8}{'attack':<14}{'robust':>7}{'only':>6}{'missed':>8}{'forward':>10}"
          f"{'backward':>10}{'ratio':>7}{'seconds':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, folder / "export.py", scratch], check=True, stdout=subprocess.DEVNULL)
        for name in arguments.models.split(","):
            model, data = load(name, folder, Path(scratch), arguments.n)
            for norm in arguments.norms.split(","):
                eps = EPS[name][norm]
                methods = {"standard": named(STANDARD[norm], norm, eps, 0)}
                methods |= {f"auto, seed {seed}": named(("auto",), norm, eps, seed) for seed in seeds}
                reference = measure(model, named(ENSEMBLE[norm], norm, eps, 0) + adv_lib(norm), data, norm, eps)
                print(row(name, f"{norm} {eps:g}", "ensemble", reference, reference), flush=True)
                for label, attacks in methods.items():
                    found = measure(model, attacks, data, norm, eps)
                    print(row(name, f"{norm} {eps:g}", label, found, reference), flush=True)


if __name__ == "__main__":
    main()
