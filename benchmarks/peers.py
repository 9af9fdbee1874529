#!/usr/bin/env python3
"""FGSM, PGD and APGD beside the same attack of ART, Foolbox and adv-lib: same model, images, steps and step size.

    pip install -c constraints.txt '.[benchmarks]'
    python benchmarks/peers.py --model zoo.py:cifar_resnet4b --data cifar10_test.npz --eps 2/255 --n 512

Each library is called as its own documentation shows, on a model whose parameters are frozen beforehand (which spares
the libraries that would otherwise compute gradients for the weights). The runs alternate; times are medians over the
rounds. With ``--precision auto`` or ``float32`` FGSM and PGD search on the copy of the model that an audit would take;
its choice, made once per audit, is timed apart. Robust accuracy counts images right unattacked and right on the
returned images, clipped into the ball and re-evaluated in float32 by one function for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from robust import load_data, load_model
from robust.attacks import APGD, FGSM, PGD
from robust.counting import CountedModel
from robust.lane import PRECISIONS, make_lane
from robust.threats import NORMS

warnings.filterwarnings("ignore")
Runner = Callable[[Tensor, Tensor], Tensor]


def ours(model: nn.Module, attack: str, norm: str, eps: float, steps: int, size: float) -> Runner:
    if attack == "fgsm":
        return lambda x, y: FGSM(eps, norm=norm)(model, x, y)
    if attack == "pgd":
        return lambda x, y: PGD(eps, norm=norm, steps=steps, step_size=size)(model, x, y)
    return lambda x, y: APGD(eps, norm=norm, steps=steps)(model, x, y)


def art(
    model: nn.Module, attack: str, norm: str, eps: float, steps: int, size: float, shape: tuple[int, ...]
) -> Runner:
    from art.attacks.evasion import AutoProjectedGradientDescent, FastGradientMethod, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(torch.zeros(1, *shape)).shape[1]
    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=shape, nb_classes=classes, clip_values=(0, 1), device_type="cpu"
    )
    order = np.inf if norm == "linf" else 2
    common = {"norm": order, "eps": eps, "batch_size": 10_000}
    if attack == "fgsm":
        method = FastGradientMethod(classifier, **common)
    elif attack == "pgd":
        method = ProjectedGradientDescentPyTorch(
            classifier, eps_step=size, max_iter=steps, num_random_init=1, verbose=False, **common
        )
    else:
        method = AutoProjectedGradientDescent(
            classifier, eps_step=2 * eps, max_iter=steps, nb_random_init=1, loss_type="cross_entropy", verbose=False,
            **common,
        )  # fmt: skip
    return lambda x, y: torch.from_numpy(method.generate(x.numpy(), y.numpy()))


def foolbox(model: nn.Module, attack: str, norm: str, eps: float, steps: int, size: float) -> Runner | None:
    import foolbox as fb

    wrapped = fb.PyTorchModel(model, bounds=(0, 1), device="cpu")
    if attack == "fgsm":
        method = fb.attacks.FGSM() if norm == "linf" else fb.attacks.FGM()
    elif attack == "pgd":
        kind = fb.attacks.LinfPGD if norm == "linf" else fb.attacks.L2PGD
        method = kind(abs_stepsize=size, steps=steps, random_start=True)
    else:
        return None
    return lambda x, y: method(wrapped, x, y, epsilons=eps)[1]


def adv_lib(model: nn.Module, attack: str, norm: str, eps: float, steps: int, size: float) -> Runner | None:
    from adv_lib.attacks import apgd, pgd_linf

    if attack == "pgd" and norm == "linf":
        return lambda x, y: pgd_linf(model, x, y, eps, steps=steps, absolute_step_size=size)
    if attack == "apgd":
        return lambda x, y: apgd(
            model, x, y, eps, norm=float("inf") if norm == "linf" else 2, n_iter=steps, loss_function="ce"
        )
    return None


@torch.no_grad()
def robust_accuracy(model: nn.Module, x: Tensor, found: Tensor, y: Tensor, norm: str, eps: float) -> float:
    inside = NORMS[norm].project(found.detach().float(), x, eps)
    return float(((model(x).argmax(1) == y) & (model(inside).argmax(1) == y)).float().mean())


def measure(
    runners: dict[str, Runner], batches: list[tuple[Tensor, Tensor]], rounds: int
) -> dict[str, tuple[list[float], list[Tensor]]]:
    """Seconds per round and the last round's results, the libraries taking turns batch by batch."""
    seconds = {name: [0.0] * rounds for name in runners}
    results: dict[str, list[Tensor]] = {name: [] for name in runners}
    for turn in range(-1, rounds):  # the first turn warms up
        results = {name: [] for name in runners}
        for x, y in batches if turn >= 0 else batches[:1]:
            for name, run in runners.items():
                torch.manual_seed(turn)
                np.random.seed(turn + 1)
                start = time.perf_counter()
                results[name].append(run(x, y))
                if turn >= 0:
                    seconds[name][turn] += time.perf_counter() - start
    return {name: (seconds[name], results[name]) for name in runners}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--eps", default="8/255", type=lambda text: float(Fraction(text)))
    parser.add_argument("--norm", default="linf", choices=("linf", "l2"))
    parser.add_argument("--steps", default=20, type=int)
    parser.add_argument("--n", default=512, type=int)
    parser.add_argument("--batch", default=128, type=int)
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--precision", default="plain", choices=PRECISIONS)
    parser.add_argument("--attacks", default="fgsm,pgd,apgd")
    arguments = parser.parse_args()

    model = load_model(arguments.model).requires_grad_(False)
    data = load_data(arguments.data).limited(arguments.n, 0)
    ids = list(range(len(data)))
    batches = [
        (data.batch(ids[i : i + arguments.batch]), data.labels[i : i + arguments.batch])
        for i in range(0, len(ids), arguments.batch)
    ]
    eps, size = arguments.eps, arguments.eps / 4
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    print(
        f"{arguments.model}, {data.name}, n = {len(data)}, {arguments.norm} {eps:.4g}, {arguments.steps} steps of "
        f"eps/4, batch {arguments.batch}, {arguments.rounds} rounds, {torch.get_num_threads()} threads, seed 0"
    )
    began = time.perf_counter()
    lane = make_lane(model, batches[0][0][:64], batches[0][1][:64], precision=arguments.precision)
    print(f"ours on: {lane.report.kind} ({lane.report.detail}); chosen in {time.perf_counter() - began:.2f} s")
    searched = CountedModel(model, None if lane.report.kind == "plain" else lane)
    print(f"{'attack':<8}{'library':<10}{'robust':>9}{'seconds':>10}{'ours / it':>11}")
    for attack in arguments.attacks.split(","):
        settings = (attack, arguments.norm, eps, arguments.steps, size)
        runners = {
            "robust": ours(searched, *settings), "ART": art(model, *settings, data.shape),
            "Foolbox": foolbox(model, *settings), "adv-lib": adv_lib(model, *settings),
        }  # fmt: skip
        measured = measure({k: run for k, run in runners.items() if run is not None}, batches, arguments.rounds)
        own = measured["robust"][0]
        for name, (seconds, results) in measured.items():
            accuracy = robust_accuracy(model, x, torch.cat(results), y, arguments.norm, eps)
            ratio = statistics.median(a / b for a, b in zip(own, seconds, strict=True))
            print(f"{attack:<8}{name:<10}{accuracy:>9.2%}{statistics.median(seconds):>10.2f}{ratio:>11.2f}", flush=True)


if __name__ == "__main__":
    main()
