#!/usr/bin/env python3
"""The attack lane beside the model itself: what is chosen, how well its gradient agrees, what a gradient pass costs.

    python benchmarks/lane.py --pair zoo.py:cifar_resnet4b cifar10_test.npz --pair demo demo

One row a model. Times are milliseconds of one gradient pass of a batch, medians over rounds in which the variants take
turns; on a CPU those that the calling thread computed, so that what else the machine does is not counted. `ratio` is
the chosen lane's over the model's, the median over rounds, and 1 by definition where the model itself was chosen.
`cosine` (median over the images) and `class` (images that keep their class) compare the chosen lane with the model on
images that it was not calibrated on, halfway to a random corner of the linf ball of radius 8/255.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust import load_data, load_model
from robust.calibration import clock_for
from robust.copying import Recipe, fast_copy
from robust.lane import Lane, make_lane

VARIANTS = {
    "float32": Recipe(torch.float32, torch.channels_last),
    "bfloat16": Recipe(torch.bfloat16, torch.channels_last),
}


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)[0]


def seconds(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    clock = clock_for(images.device)
    start = clock()
    gradient(model, images, labels)
    if images.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def timed(models: dict[str, nn.Module], images: Tensor, labels: Tensor, rounds: int) -> dict[str, list[float]]:
    for model in models.values():
        seconds(model, images, labels)
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            found[name].append(seconds(model, images, labels))
    return found


def agreement(lane: Lane, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Median gradient cosine, and the share of images on which lane and model see the same class."""
    signs = torch.randint(0, 2, images.shape, generator=torch.Generator().manual_seed(0)).to(images.device) * 2 - 1
    moved = (images + signs * 4 / 255).clamp(0, 1)
    (logits, found), (right, wanted) = (gradient(model, moved, labels) for model in (lane, lane.evidence))
    a, b = found.flatten(1).double(), wanted.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)
    return float(cosine.median()), float((logits.argmax(1) == right.argmax(1)).float().mean())


def row(spec: str, data: str, arguments: argparse.Namespace) -> str:
    model = load_model(spec).to(arguments.device).requires_grad_(False)
    drawn = load_data(data).limited(2 * arguments.batch, 0)
    size = len(drawn) // 2
    images, labels = drawn.batch(range(2 * size)).to(arguments.device), drawn.labels[: 2 * size].to(arguments.device)
    lane = make_lane(model, images[:size], labels[:size], precision=arguments.precision)
    x, y = images[size:], labels[size:]
    with torch.no_grad():
        logits = model(x)
    variants = {name: fast_copy(model, recipe, x, logits)[0] for name, recipe in VARIANTS.items()}
    measured = timed({"plain": model, **variants, "lane": lane}, x, y, arguments.rounds)
    times = "".join(f"{1000 * statistics.median(measured[name]):>10.1f}" for name in ("plain", *VARIANTS, "lane"))
    ratio = statistics.median(a / b for a, b in zip(measured["lane"], measured["plain"], strict=True))
    ratio = 1.0 if lane.report.kind == "plain" else ratio
    cosine, same = agreement(lane, x, y)
    name = Path(spec).name.replace(".py", "")
    return f"{name:<28}{lane.report.kind:<18}{cosine:>8.4f}{same:>8.1%}{times}{ratio:>8.2f}\n  {lane.report.detail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", nargs=2, action="append", metavar=("MODEL", "DATA"))
    parser.add_argument("--batch", default=128, type=int)
    parser.add_argument("--rounds", default=7, type=int)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "plain"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(
        f"batch {arguments.batch}, {arguments.rounds} rounds, precision {arguments.precision}, {arguments.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}, seed 0"
    )
    names = "".join(f"{name:>10}" for name in ("plain", *VARIANTS, "lane"))
    print(f"{'model':<28}{'kind':<18}{'cosine':>8}{'class':>8}{names}{'ratio':>8}")
    for spec, data in arguments.pair or [("demo", "demo")]:
        print(row(spec, data, arguments), flush=True)


if __name__ == "__main__":
    main()
