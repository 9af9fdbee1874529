#!/usr/bin/env python3
"""Transfer and ACG on trained models: what each setting breaks, on the same images.

    python benchmarks/single_attacks.py acg --zoo zoo.py --data cifar10_test.npz --model cifar_resnet4b --eps 2/255
    python benchmarks/single_attacks.py transfer --zoo zoo.py --data cifar10_test.npz --model cifar_resnet56 \
        --eps 4/255 --surrogate cifar_resnet20

Only images classified right unattacked are attacked; broken means misclassified in float32 and inside ball and box.
"""

from __future__ import annotations

import argparse
import time
from fractions import Fraction

import torch
from minimum_norm import classified_right

from robust import load_model
from robust.attacks import ACG, APGD, Attack, Transfer
from robust.counting import CountedModel
from robust.threats import NORMS


def attacks(arguments: argparse.Namespace) -> dict[str, Attack]:
    eps, norm, steps = arguments.eps, arguments.norm, arguments.steps
    if arguments.what == "acg":
        found: dict[str, Attack] = {
            f"APGD {loss}": APGD(eps, norm=norm, steps=steps, loss=loss) for loss in ("ce", "margin", "dlr")
        }
        return found | {f"ACG {loss}": ACG(eps, norm=norm, steps=steps, loss=loss) for loss in ("ce", "margin", "dlr")}
    surrogates = tuple(load_model(f"{arguments.zoo}:{name}") for name in arguments.surrogate)
    settings: dict[str, dict[str, float]] = {
        "plain": {"momentum": 0.0, "diversity": 0.0, "kernel": 1},
        "momentum": {"diversity": 0.0, "kernel": 1},
        "momentum, diversity": {"kernel": 1},
        "momentum, diversity, kernel (default)": {},
    }
    return {
        name: Transfer(eps, norm=norm, steps=steps, surrogates=surrogates, **chosen)  # type: ignore[arg-type]
        for name, chosen in settings.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("acg", "transfer"))
    parser.add_argument("--zoo", required=True, help="Python file of model factories")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--surrogate", action="append", default=[])
    parser.add_argument("--eps", default="2/255", type=lambda text: float(Fraction(text)))
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--n", default=200, type=int)
    parser.add_argument("--steps", default=50, type=int)
    arguments = parser.parse_args()

    model = load_model(f"{arguments.zoo}:{arguments.model}").requires_grad_(False)
    images, labels = classified_right(arguments.data, model, arguments.n, 100)
    print(
        f"{arguments.model}, surrogates {arguments.surrogate}, {arguments.norm} {arguments.eps:.4g}, n = {len(images)} "
        f"classified right, {arguments.steps} steps, seed 0, {torch.get_num_threads()} threads"
    )
    for name, attack in attacks(arguments).items():
        counted, start = CountedModel(model), time.perf_counter()
        found = torch.cat([attack(counted, x, y) for x, y in zip(images.split(100), labels.split(100), strict=True)])
        with torch.no_grad():
            wrong = torch.cat([model(points) for points in found.split(100)]).argmax(1) != labels
        broken = int((wrong & NORMS[arguments.norm].contains(found, images, arguments.eps)).sum())
        passes, seconds = counted.passes, time.perf_counter() - start
        print(
            f"{name:<40} broken {broken:>4} of {len(images)}   forward {passes.forward / len(images):7.1f}   "
            f"backward {passes.backward / len(images):7.1f}   {seconds:6.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
