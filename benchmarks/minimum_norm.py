#!/usr/bin/env python3
"""Smallest perturbations: our minimum-norm attacks beside those of adv-lib, on the same images.

    pip install -c constraints.txt '.[benchmarks]'
    python benchmarks/minimum_norm.py --model zoo.py:cifar_resnet4b --data cifar10_test.npz --n 64 --steps 100

Only images classified right unattacked are attacked. Every method gets --steps gradient steps; sigma-zero of adv-lib is
also run with three times as many, and its FAB, which takes a gradient per class and step, with a ninth. Passes are
counted at the model and given per image. What a method returns is evaluated by one function for all: misclassified in
float32 and inside [0, 1], or it counts as not found. `optimality` is the mean over images of d_best / d (0 where not
found), d_best being the smallest distance that any method of the table found on that image: AttackBench's local
optimality (Cina et al., AAAI 2025). Medians count not found as infinite.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust import load_data, load_model
from robust.attacks import DDN, FAB, FMN, SigmaZero
from robust.attacks.minimum import MinimumNorm
from robust.attacks.registry import build
from robust.counting import CountedModel
from robust.threats import NORMS, TOLERANCE

ORDER = {"linf": float("inf"), "l2": 2, "l1": 1, "l0": 0}
# FAB wants an eps; these hold every image of 3 x 32 x 32 values.
_WIDEST = {"linf": 1.0, "l2": 60.0, "l1": 3072.0}
Method = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Result:
    """What one method found and spent; ``distance`` (N,), inf where it found nothing."""

    distance: Tensor
    gradients: float
    forwards: float
    seconds: float


def deepfool_and_cw() -> dict[str, Method]:
    """DeepFool and C&W in l2, as each library has them; C&W in 10 rounds of 100 steps."""
    from adv_lib.attacks import carlini_wagner_l2, df, sdf

    methods: dict[str, Method] = {
        "adv-lib DeepFool": df,
        "adv-lib SuperDeepFool": sdf,
        "adv-lib C&W": lambda m, x, y: carlini_wagner_l2(
            m, x, y, binary_search_steps=10, max_iterations=100, learning_rate=0.05, initial_const=1.0
        ),
    }
    for text in (
        "foolbox:L2DeepFoolAttack(steps=100)",
        "foolbox:L2CarliniWagnerAttack(binary_search_steps=10, steps=100, stepsize=0.05)",
        "art:DeepFool(max_iter=100)",
        "art:CarliniL2Method(binary_search_steps=10, max_iter=100, learning_rate=0.05)",
    ):
        methods[text.partition("(")[0]] = build(text, norm="l2", eps=_WIDEST["l2"], seed=0)
    return methods


def ours(norm: str, steps: int) -> dict[str, Method]:
    attacks: dict[str, MinimumNorm] = {"FMN": FMN(norm=norm, steps=steps)}
    if norm == "l2":
        attacks["DDN"] = DDN(steps=steps)
    if norm == "l0":
        attacks["sigma-zero"] = SigmaZero(steps=steps)
    methods = {f"robust {name}": _points(attack) for name, attack in attacks.items()}
    if norm != "l0":
        methods["robust FAB"] = FAB(_WIDEST[norm], norm=norm, steps=steps)
        methods["robust FAB-T"] = FAB(_WIDEST[norm], norm=norm, steps=max(steps // 9, 1), n_targets=9)
    return methods


def _points(attack: MinimumNorm) -> Method:
    return lambda model, images, labels: attack.smallest(model, images, labels)[0]


def adv_lib(norm: str, steps: int) -> dict[str, Method]:
    try:
        from adv_lib.attacks import ddn, fab, fmn, pdgd, pdpgd, sigma_zero
    except ImportError:
        sys.exit("adv-lib is not installed: pip install wheel, then pip install --no-build-isolation adv-lib")
    order = ORDER[norm]
    methods: dict[str, Method] = {"adv-lib FMN": lambda m, x, y: fmn(m, x, y, norm=order, steps=steps)}
    if norm == "l0":
        methods["adv-lib PDPGD 2/3"] = lambda m, x, y: pdpgd(m, x, y, 0, num_steps=steps, proximal_operator=23)
        methods["adv-lib sigma-zero"] = lambda m, x, y: sigma_zero(m, x, y, num_steps=steps)
        methods["adv-lib sigma-zero x3"] = lambda m, x, y: sigma_zero(m, x, y, num_steps=3 * steps)
    else:
        methods["adv-lib PDPGD"] = lambda m, x, y: pdpgd(m, x, y, order, num_steps=steps)
        methods["adv-lib FAB"] = lambda m, x, y: fab(m, x, y, order, n_iter=steps)
        methods["adv-lib FAB/9"] = lambda m, x, y: fab(m, x, y, order, n_iter=max(steps // 9, 1))
    if norm == "l2":
        methods["adv-lib DDN"] = lambda m, x, y: ddn(m, x, y, steps=steps, levels=None)
        methods["adv-lib PDGD"] = lambda m, x, y: pdgd(m, x, y, num_steps=steps)
    return methods


def measure(method: Method, model: nn.Module, images: Tensor, labels: Tensor, norm: str, batch: int) -> Result:
    counted, found = CountedModel(model), []
    start = time.perf_counter()
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        found.append(method(counted, x, y).detach())
    seconds = time.perf_counter() - start
    distance = torch.cat([
        checked_distance(model, x, points, y, norm)
        for x, points, y in zip(images.split(batch), found, labels.split(batch), strict=True)
    ])  # fmt: skip
    passes = counted.passes
    return Result(distance, passes.backward / len(images), passes.forward / len(images), seconds)


@torch.no_grad()
def checked_distance(model: nn.Module, images: Tensor, points: Tensor, labels: Tensor, norm: str) -> Tensor:
    flat = points.flatten(1)
    valid = (flat.amin(1) >= -TOLERANCE) & (flat.amax(1) <= 1 + TOLERANCE) & (model(points).argmax(1) != labels)
    return torch.where(valid, NORMS[norm].length(points - images), torch.inf)


@torch.no_grad()
def classified_right(spec: str, model: nn.Module, count: int, batch: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of a random sample that the model classifies right."""
    data = load_data(spec)
    data = data.limited(min(4 * count, len(data)), 0)
    images, labels = [], []
    for start in range(0, len(data), batch):
        ids = list(range(start, min(start + batch, len(data))))
        x, y = data.batch(ids), data.labels[ids]
        right = model(x).argmax(1) == y
        images.append(x[right])
        labels.append(y[right])
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--n", default=64, type=int, help="images, all classified right")
    parser.add_argument("--steps", default=100, type=int, help="gradient steps of every method")
    parser.add_argument("--batch", default=64, type=int)
    parser.add_argument("--deepfool-cw", action="store_true", help="in l2, also DeepFool and C&W of all libraries")
    parser.add_argument("--without", default="", help="leave out methods whose name holds one of these, such as FAB")
    parser.add_argument("--norms", default="linf,l2,l1,l0")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    model = load_model(arguments.model).requires_grad_(False)
    images, labels = classified_right(arguments.data, model, arguments.n, arguments.batch)
    print(
        f"{arguments.model}, {arguments.data}, n = {len(images)} classified right, seed 0, {arguments.steps} steps, "
        f"batch {arguments.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'norm':<6}{'method':<24}{'gradients':>10}{'forwards':>10}{'seconds':>9}{'broken':>9}", end="")
    print(f"{'median':>10}{'optimality':>12}")
    for norm in arguments.norms.split(","):
        methods = ours(norm, arguments.steps) | adv_lib(norm, arguments.steps)
        if norm == "l2" and arguments.deepfool_cw:
            methods |= deepfool_and_cw()
        left_out = arguments.without.split(",") if arguments.without else []
        methods = {name: method for name, method in methods.items() if not any(part in name for part in left_out)}
        results = {
            name: measure(method, model, images, labels, norm, arguments.batch) for name, method in methods.items()
        }
        best = torch.stack([result.distance for result in results.values()]).amin(0)
        for name, result in results.items():
            distance = result.distance
            optimality = torch.where(distance.isfinite(), best / distance, 0.0).mean()
            print(
                f"{norm:<6}{name:<24}{result.gradients:>10.1f}{result.forwards:>10.1f}{result.seconds:>9.1f}"
                f"{float(distance.isfinite().float().mean()):>9.1%}{float(distance.median()):>10.4f}"
                f"{float(optimality):>12.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
