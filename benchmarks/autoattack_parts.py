#!/usr/bin/env python3
"""AutoAttack's parts beside the same parts of adv-lib and ART: which images each breaks and the other does not.

    pip install -c constraints.txt '.[benchmarks]'
    python benchmarks/autoattack_parts.py --model zoo.py:cifar_resnet2b --data cifar10_test.npz --eps 2/255 --n 200

Every part runs alone, at its published budget, on all images that are right unattacked; `autoattack` is the whole
(standard), beside the union of those of the peers' parts that ran. An image counts as broken where the returned image
lies in ball and box to 1e-6 and is misclassified in float32, one function for all. Foolbox has none of these attacks.
Passes are per attacked image, counted by one wrapper around the model.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from robust import load_data, load_model
from robust.attacks import APGD, FAB, Attack, AutoAttack, Square
from robust.counting import CountedModel, Passes
from robust.threats import NORMS

warnings.filterwarnings("ignore")
Runner = Callable[[Tensor, Tensor], Tensor]
PARTS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "autoattack")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


def ours(part: str, eps: float, norm: str, seed: int, queries: int) -> Attack:
    if part == "autoattack":
        return AutoAttack(eps, norm=norm, seed=seed)
    if part == "square":
        square = AutoAttack(eps, norm=norm, seed=seed).parts()[STANDARD.index("square")]
        assert isinstance(square, Square)
        return replace(square, queries=queries)
    if part.startswith("fab"):
        return FAB(eps, norm=norm, seed=seed, n_targets=9 if part == "fab-t" else 0, minimize=False)
    if part == "apgd-t":
        return APGD(eps, norm=norm, seed=seed, loss="dlr", n_targets=_budget(norm)["num_targets"])
    return APGD(eps, norm=norm, seed=seed, loss=part.removeprefix("apgd-"), restarts=_budget(norm)["n_restarts"])


def _budget(norm: str) -> dict[str, int]:
    """What differs in l1, by adv-lib's names."""
    return {"n_restarts": 5, "num_targets": 5} if norm == "l1" else {"n_restarts": 1, "num_targets": 9}


def adv_lib(model: nn.Module, part: str, eps: float, norm: str) -> Runner | None:
    from adv_lib.attacks import apgd, apgd_targeted, fab

    order, wide = {"linf": float("inf"), "l2": 2, "l1": 1}[norm], norm == "l1"
    restarts, targets = _budget(norm).values()
    if part == "apgd-t":
        return lambda x, y: apgd_targeted(model, x, y, eps, norm=order, num_targets=targets, use_large_reps=wide)
    if part in ("apgd-ce", "apgd-dlr"):
        loss = part.removeprefix("apgd-")
        return lambda x, y: apgd(
            model, x, y, eps, norm=order, loss_function=loss, n_restarts=restarts, use_large_reps=wide
        )
    if part == "fab":
        return lambda x, y: fab(model, x, y, norm=order, restarts=1)
    if part == "fab-t":
        return lambda x, y: fab(model, x, y, norm=order, restarts=9, targeted_restarts=True)
    return None


def art(model: nn.Module, part: str, eps: float, norm: str, queries: int, shape: tuple[int, ...]) -> Runner | None:
    from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(torch.zeros(1, *shape)).shape[1]
    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0, 1), device_type="cpu"
    )
    if norm == "l1":  # it has no Square there, and its APGD has no l1 schedule
        return None
    order = np.inf if norm == "linf" else 2
    losses = {"apgd-ce": "cross_entropy", "apgd-dlr": "difference_logits_ratio"}
    if part in losses:
        method = AutoProjectedGradientDescent(
            classifier, norm=order, eps=eps, eps_step=2 * eps, max_iter=100, nb_random_init=1, batch_size=10_000,
            loss_type=losses[part], verbose=False,
        )  # fmt: skip
    elif part == "square":
        method = SquareAttack(
            classifier, norm=order, eps=eps, max_iter=queries, nb_restarts=1, batch_size=10_000, verbose=False
        )
    else:
        return None
    return lambda x, y: torch.from_numpy(method.generate(x.numpy(), y.numpy()))


@dataclass(frozen=True)
class Outcome:
    broken: Tensor
    passes: Passes
    seconds: float


def measure(run: Runner, counted: CountedModel, x: Tensor, y: Tensor, eps: float, norm: str, seed: int) -> Outcome:
    torch.manual_seed(seed)
    np.random.seed(seed)
    before, start = counted.passes, time.perf_counter()
    found = run(x, y).detach().float()
    seconds, passes = time.perf_counter() - start, counted.passes - before
    with torch.no_grad():
        wrong = counted.model(found).argmax(1) != y
    return Outcome(wrong & NORMS[norm].contains(found, x, eps), passes, seconds)


def line(name: str, library: str, own: Outcome, its: Outcome) -> str:
    n = len(own.broken)
    only, missed = int((own.broken & ~its.broken).sum()), int((its.broken & ~own.broken).sum())
    ratio = f"{own.seconds / its.seconds:>9.2f}" if own is not its and its.seconds else f"{'':>9}"
    beside = f"{only:>11}{missed:>10}" if own is not its else f"{'':>21}"
    return (
        f"{name:<13}{library:<9}{int(its.broken.sum()):>7}{beside}{its.passes.forward / n:>10.1f}"
        f"{its.passes.backward / n:>10.1f}{its.seconds:>9.1f}{ratio}"
    )


def conclusion(whole: Outcome, n: int) -> str:
    standing = len(whole.broken) - int(whole.broken.sum())
    forward, backward = (count / max(standing, 1) for count in (whole.passes.forward, whole.passes.backward))
    return (
        f"robust accuracy {standing / n:.2%} ({standing} of {n}); per finally robust image {forward:.0f} forward and "
        f"{backward:.0f} backward passes, those on broken images included"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--eps", default="2/255", type=lambda text: float(Fraction(text)))
    parser.add_argument("--norm", default="linf", choices=("linf", "l2", "l1"))
    parser.add_argument("--n", default=200, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--queries", default=5000, type=int, help="Square's budget where it runs alone")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to run, in this order")
    parser.add_argument("--without", default="", help="libraries to leave out: adv-lib, ART")
    arguments = parser.parse_args()
    eps, norm, seed = arguments.eps, arguments.norm, arguments.seed

    counted = CountedModel(load_model(arguments.model).requires_grad_(False))
    data = load_data(arguments.data).limited(arguments.n, 0)
    x, y = data.batch(range(len(data))), data.labels
    with torch.no_grad():
        right = counted.model(x).argmax(1) == y
    x, y = x[right], y[right]
    print(
        f"{arguments.model}, {data.name}, {norm} {eps:.4g}, n = {len(data)}, {len(y)} right unattacked and attacked, "
        f"seed {seed}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"{'part':<13}{'library':<9}{'broken':>7}{'ours only':>11}{'it only':>10}{'forward':>10}{'backward':>10}"
          f"{'seconds':>9}{'ours/it':>9}")  # fmt: skip
    union, done = torch.zeros(len(y), dtype=torch.bool), set[str]()
    for part in arguments.parts.split(","):
        attack = ours(part, eps, norm, seed, arguments.queries)
        own = measure(lambda a, b, attack=attack: attack(counted, a, b), counted, x, y, eps, norm, seed)
        print(line(part, "robust", own, own), flush=True)
        peers = {
            "adv-lib": adv_lib(counted, part, eps, norm),
            "ART": art(counted, part, eps, norm, arguments.queries, data.shape),
        }
        for library, run in peers.items():
            if run is not None and library not in arguments.without.split(","):
                its = measure(run, counted, x, y, eps, norm, seed)
                union |= its.broken & (part in STANDARD)
                done.add(part)
                print(line(part, library, own, its), flush=True)
        if part == "autoattack":
            if done & set(STANDARD):
                print(f"peers: {', '.join(name for name in STANDARD if name in done)}")
                print(line(part, "peers", own, Outcome(union, Passes(), 0.0)))
            print(conclusion(own, len(data)))


if __name__ == "__main__":
    main()
