#!/usr/bin/env python3
"""Query attacks: success and distance at equal queries, ours beside ART's, on the same images.

    pip install -c constraints.txt '.[benchmarks]'
    python benchmarks/queries.py --model zoo.py:cifar_resnet4b --data cifar10_test.npz --threat linf:8/255 --n 200

Only images classified right unattacked are attacked. A query is one forward pass of one image, the clean one included,
counted at the model. What counts as success is decided by one function for all: misclassified in float32, inside eps
and inside [0, 1].

`square`: one run for each budget, since the schedule of the windows depends on it. ART counts iterations, and asks the
model three times in each (once where the image is solved already): `ART SquareAttack` gets a third as many iterations
as there are queries; with `--iterations` it is also run with as many iterations as queries, three times the cost.
`decision`: ART's HopSkipJump runs on one image at a time and is stopped at the limit; what it had found by then is read
off its queries. Distances are the nearest adversarial point's, inf where there is none.
`simba`: the same for ART's SimBA (l2; waves). Ours keeps inside eps; ART's does not, and each of its queries counts as
a success that happens to be inside.
`sparse`: Sparse-RS and SimBA in l0.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from minimum_norm import classified_right
from torch import Tensor, nn

from robust import load_model
from robust.attacks import HopSkipJump, RayS, SimBA, SparseRS, Square
from robust.attacks.queries import DecisionAttack
from robust.counting import CountedModel
from robust.silence import quiet
from robust.threats import NORMS, ThreatModel

_ORDERS = {"linf": np.inf, "l2": 2}


class Enough(Exception):
    """The budget of an image is spent."""


class Watched(nn.Module):
    """One image's model: notes for each query how far its point is (inf where it does not fool), up to the limit."""

    def __init__(self, model: nn.Module, image: Tensor, label: Tensor, norm: str, limit: int) -> None:
        super().__init__()
        self.model, self.image, self.label, self.norm, self.limit = model, image, label, norm, limit
        self.distances: list[float] = []

    @torch.no_grad()
    def forward(self, points: Tensor) -> Tensor:
        left = self.limit - len(self.distances)
        if left <= 0:
            raise Enough
        points = points.to(self.image)  # ART asks in float64 now and then
        logits: Tensor = self.model(points[:left])
        inside = (points[:left].flatten(1).amin(1) >= -1e-6) & (points[:left].flatten(1).amax(1) <= 1 + 1e-6)
        fooled = (logits.argmax(1) != self.label) & inside
        far = NORMS[self.norm].length(points[:left] - self.image)
        self.distances += torch.where(fooled, far, torch.inf).tolist()
        if len(points) > left:
            raise Enough
        return logits

    def nearest(self, queries: int) -> float:
        return min(self.distances[:queries], default=float("inf"))


def classifier(model: nn.Module, images: Tensor, classes: int) -> object:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model=model, loss=nn.CrossEntropyLoss(), input_shape=tuple(images.shape[1:]), nb_classes=classes,
        clip_values=(0.0, 1.0), device_type="cpu" if images.device.type == "cpu" else "gpu",
    )  # fmt: skip


@torch.no_grad()
def broken(model: nn.Module, images: Tensor, points: Tensor, labels: Tensor, threat: ThreatModel, batch: int) -> Tensor:
    wrong = torch.cat([model(part).argmax(1) for part in torch.split(points, batch)]) != labels
    return wrong & threat.geometry.contains(points, images, threat.eps)


def square(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, budgets: list[int], seed: int,
    iterations: bool = False,
) -> None:  # fmt: skip
    classes = model(images[:1]).shape[1]

    def ours(budget: int, counted: CountedModel) -> Tensor:
        return Square(threat.eps, norm=threat.norm, seed=seed, queries=budget)(counted, images, labels)

    def art(budget: int, counted: CountedModel) -> Tensor:
        from art.attacks.evasion import SquareAttack

        np.random.seed(seed)
        attack = SquareAttack(
            classifier(counted, images, classes), norm=_ORDERS[threat.norm], eps=threat.eps, max_iter=budget,
            batch_size=len(images), verbose=False,
        )  # fmt: skip
        found = attack.generate(images.cpu().numpy(), np.eye(classes, dtype=np.float32)[labels.cpu().numpy()])
        return torch.from_numpy(found).to(images)

    rows: dict[str, Callable[[int, CountedModel], Tensor]] = {
        "robust Square": ours, "ART SquareAttack": lambda budget, counted: art(budget // 3, counted),
    }  # fmt: skip
    if iterations:
        rows["ART, iterations"] = art
    print(f"{'Square':<22}{'queries':>9}{'passes/image':>14}{'broken':>8}{'success':>9}{'seconds':>9}", flush=True)
    for name, run in rows.items():
        for budget in budgets:
            counted, start = CountedModel(model), time.perf_counter()
            with quiet():
                points = run(budget, counted)
            seconds = time.perf_counter() - start
            count = int(broken(model, images, points, labels, threat, 256).sum())
            passes = counted.passes.forward / len(images)
            print(
                f"{name:<22}{budget:>9}{passes:>14.1f}{count:>8}{count / len(images):>9.1%}{seconds:>9.1f}", flush=True
            )


def watch(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, limit: int, seed: int
) -> list[Watched]:
    """Runs an ART attack on one image after another, each to its limit of queries."""
    import art.attacks.evasion as evasion

    settings: dict[str, dict[str, object]] = {
        "HopSkipJump": {"norm": _ORDERS[threat.norm], "max_iter": 10_000, "batch_size": 256},
        "SimBA": {"attack": "dct", "max_iter": limit, "order": "random", "freq_dim": 8},
    }
    classes, done = model(images[:1]).shape[1], []
    for image, label in zip(images, labels, strict=True):
        watched = Watched(model, image, label, threat.norm, limit)
        network: nn.Module = nn.Sequential(watched, nn.Softmax(1)) if name == "SimBA" else watched
        np.random.seed(seed)
        try:
            with quiet():
                attack = getattr(evasion, name)(
                    classifier(network, image[None], classes), verbose=False, **settings[name]
                )
                attack.generate(image[None].cpu().numpy(), np.eye(classes, dtype=np.float32)[[int(label)]])
        except Enough:
            pass
        done.append(watched)
    return done


def line(name: str, queries: int, distance: Tensor, eps: float, seconds: float | None) -> None:
    inside = distance <= eps * (1 + 1e-6) + 1e-6
    spent = "" if seconds is None else f"{seconds:>9.1f}"
    print(
        f"{name:<22}{queries:>9}{int(inside.sum()):>9}{float(inside.float().mean()):>9.1%}"
        f"{float(distance.median()):>11.4f}{spent}", flush=True,
    )  # fmt: skip


def decision(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, budgets: list[int], seed: int
) -> None:
    print(f"{'decision':<22}{'queries':>9}{'inside':>9}{'success':>9}{'median d':>11}{'seconds':>9}", flush=True)
    kinds: list[type[DecisionAttack]] = [HopSkipJump, *([RayS] if threat.norm == "linf" else [])]
    for kind in kinds:
        for budget in budgets:
            start = time.perf_counter()
            _, found = kind(norm=threat.norm, queries=budget, seed=seed).smallest(model, images, labels)
            line(f"robust {kind.__name__}", budget, found, threat.eps, time.perf_counter() - start)
    start = time.perf_counter()
    watched = watch("HopSkipJump", model, images, labels, threat, max(budgets), seed)
    seconds = time.perf_counter() - start
    for budget in budgets:
        far = torch.tensor([image.nearest(budget) for image in watched])
        line("ART HopSkipJump", budget, far, threat.eps, seconds if budget == max(budgets) else None)


def simba(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, budgets: list[int], seed: int) -> None:
    print(f"{'SimBA':<22}{'queries':>9}{'inside':>9}{'success':>9}{'seconds':>18}", flush=True)

    def row(name: str, budget: int, count: int, seconds: float) -> None:
        print(f"{name:<22}{budget:>9}{count:>9}{count / len(images):>9.1%}{seconds:>18.1f}", flush=True)

    for basis in ("dct", "pixel"):
        start = time.perf_counter()
        attack = SimBA(threat.eps, norm=threat.norm, queries=max(budgets), seed=seed, basis=basis)
        asked = attack.queried(model, images, labels)
        seconds = time.perf_counter() - start
        for budget in budgets:
            count = int(((asked.broken_at > 0) & (asked.broken_at <= budget)).sum())
            row(f"robust SimBA {basis}", budget, count, seconds)
    if threat.norm != "l2":
        return
    start = time.perf_counter()
    watched = watch("SimBA", model, images, labels, threat, max(budgets), seed)
    seconds = time.perf_counter() - start
    for budget in budgets:
        inside = sum(image.nearest(budget) <= threat.eps * (1 + 1e-6) + 1e-6 for image in watched)
        row("ART SimBA dct", budget, inside, seconds)


def sparse(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, budgets: list[int], seed: int
) -> None:
    """In l0, one run for each budget: Sparse-RS follows a schedule."""
    print(f"{'l0':<22}{'queries':>9}{'inside':>9}{'success':>9}{'seconds':>18}", flush=True)
    for kind in (SparseRS, SimBA):
        for budget in budgets:
            start = time.perf_counter()
            points = kind(threat.eps, norm="l0", queries=budget, seed=seed)(model, images, labels)
            count, seconds = int(broken(model, images, points, labels, threat, 256).sum()), time.perf_counter() - start
            print(
                f"robust {kind.__name__:<15}{budget:>9}{count:>9}{count / len(images):>9.1%}{seconds:>18.1f}",
                flush=True,
            )


PARTS: dict[str, Callable[..., None]] = {"square": square, "decision": decision, "simba": simba, "sparse": sparse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--weights")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--threat", default="linf:8/255")
    parser.add_argument("--parts", default="square", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--n", default=200, type=int, help="images, all classified right")
    parser.add_argument("--budgets", default="100,200,500,1000,2000")
    parser.add_argument("--iterations", action="store_true", help="ART's Square with as many iterations as queries too")
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")

    threat = ThreatModel.parse(arguments.threat)
    model = load_model(arguments.model, weights=arguments.weights).requires_grad_(False)
    budgets = [int(budget) for budget in arguments.budgets.split(",")]
    images, labels = classified_right(arguments.data, model, arguments.n, 256)
    print(
        f"{arguments.model}, {arguments.data}, {threat.text}, n = {len(images)} classified right, seed "
        f"{arguments.seed}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for part in arguments.parts.split(","):
        with torch.no_grad():
            extra = {"iterations": arguments.iterations} if part == "square" else {}
            PARTS[part](model, images, labels, threat, budgets, arguments.seed, **extra)


if __name__ == "__main__":
    main()
