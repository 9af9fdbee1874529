#!/usr/bin/env python3
"""Certificates by randomized smoothing: the anytime test beside Cohen's fixed procedure, and coverage by simulation.

    python benchmarks/smoothing.py coverage --runs 100000
    python benchmarks/smoothing.py anytime examples/noise_net.py:gtsrb gtsrb_test.npz --sigma 0.25 --limit 100
    robust certify examples/noise_net.py:gtsrb gtsrb_test.npz --sigma 0.25 --limit 100 --beside cohen --out both
    python benchmarks/smoothing.py both both/certify.json
    python benchmarks/smoothing.py port examples/noise_net.py:gtsrb gtsrb_test.npz --sigma 0.25 --images 3

`coverage`: images whose true chance is exactly the one that a radius needs, the worst case; how many are certified
there all the same, which must be at most alpha. `anytime`: certified accuracy, draws and seconds of the anytime test,
once for each radius alone and once for all. `both`: two methods on the same images, with draws of their own, and where
they differ. `port`: the plain loop, one image at a time, float32 batches of 1,000 copies and a count on the CPU, as the
method was published. Seconds are wall time; the process's processor time, which other load does not change, beside.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from robust import load_data, load_model
from robust.copying import Recipe, fast_copy
from robust.defenses.smoothing.anytime import RadiusTest, VoteTest
from robust.defenses.smoothing.bounds import lower_bound, radius_at
from robust.defenses.smoothing.certificates import certify_images
from robust.defenses.smoothing.cohen import ESTIMATION, SELECTION
from robust.defenses.smoothing.record import CertifySummary
from robust.defenses.smoothing.sampling import Sampler, Stream, copies_at_a_time


def coverage(chosen: argparse.Namespace) -> None:
    """False certificates at p = p_r, for each radius alone and for all radii in one run."""
    radii = tuple(sorted(chosen.radii))
    print(f"alpha {chosen.alpha:g}, sigma {chosen.sigma:g}, horizon {chosen.draws:,}, {chosen.runs:,} runs a row")
    print(f"{'asked':<24}{'true radius':>12}{'false':>8}{'rate':>10}{'99.9 % at most':>16}{'draws':>10}")
    cases = [((radius,), radius) for radius in (0.0, *radii)] + [(radii, radius) for radius in radii]
    for number, (asked, truth) in enumerate(cases):
        test = RadiusTest(asked, chosen.sigma, chosen.alpha, chosen.draws)
        chance = float(stats.norm.cdf(truth / chosen.sigma))
        draws = simulate(test, chance, chosen.runs, number)
        false = int((test.certified() > asked.index(truth)).sum())
        most = stats.beta.ppf(0.999, false + 1, chosen.runs - false)
        text = ", ".join(f"{radius:g}" for radius in asked)
        print(f"{text:<24}{truth:>12g}{false:>8}{false / chosen.runs:>10.5f}{most:>16.5f}{draws:>10,.0f}", flush=True)


def simulate(test: VoteTest, chance: float, runs: int, seed: int) -> float:
    """Feed coin throws to a test for ``runs`` images; returns the mean number of draws."""
    rng = np.random.default_rng(seed)
    test.start(runs)
    rows, hits, drawn, used = np.arange(runs), np.zeros(runs, np.int64), 0, 0
    while len(rows):
        more = test.more(drawn)
        drawn, used = drawn + more, used + more * len(rows)
        hits = hits + rng.binomial(more, chance, len(rows))
        open_ = ~test.look(rows, hits, np.full(len(rows), drawn))
        rows, hits = rows[open_], hits[open_]
    return used / runs


def anytime(chosen: argparse.Namespace) -> None:
    network, images, labels, classes = subject(chosen)
    batch = copies_at_a_time(network, images[:1])
    print(f"{chosen.model}, {len(images)} images, sigma {chosen.sigma:g}, alpha {chosen.alpha:g}, {chosen.precision}")
    print(f"batches of {batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, seed {chosen.seed}")
    columns = f"{'radius':>8}{'certified':>11}{'any class':>11}{'draws':>10}{'median':>9}{'wall s':>9}{'cpu s':>9}"
    print(f"{'asked':<20}{columns}")
    radii = tuple(chosen.radii)
    for asked in [(radius,) for radius in radii] + [radii] * (len(radii) > 1):
        sampler = Sampler(network, chosen.sigma, chosen.seed, batch)
        test = RadiusTest(asked, chosen.sigma, chosen.alpha, chosen.draws)
        wall, cpu = time.perf_counter(), time.process_time()
        made = dict(certify_images(sampler, images, classes, test, 64, (Stream.SELECTION, Stream.ESTIMATION)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        draws = [one.draws for one in made.values()]
        for number, radius in enumerate(asked):
            right = sum(one.radius >= radius and one.prediction == labels[row] for row, one in made.items())
            anyway = sum(one.radius >= radius for one in made.values())
            cost = f"{np.mean(draws):>10,.0f}{np.median(draws):>9,.0f}{wall:>9.1f}{cpu:>9.1f}" if number == 0 else ""
            name = ", ".join(f"{each:g}" for each in asked) if number == 0 else ""
            print(f"{name:<20}{radius:>8g}{right:>11}{anyway:>11}{cost}", flush=True)


def both(chosen: argparse.Namespace) -> None:
    """Two methods of one record side by side, and the images on which they differ."""
    summary = CertifySummary.read(chosen.record)
    print(f"{summary.model.name}, {summary.data.name}, {summary.data.n} images, sigma {summary.settings.sigma:g}")
    for method in summary.methods:
        shares = ", ".join(f"{point.certified.numerator} at {point.radius:g}" for point in method.points)
        print(f"{method.method:<8} certified {shares}; abstained {method.abstained.numerator}; ", end="")
        print(f"draws mean {method.draws_mean:,.0f}, most {method.draws_most:,}; {method.seconds:.0f} s")
    first, second = (method.rows for method in summary.methods)
    for radius in summary.settings.radii:
        pairs = [
            (a, b) for a, b in zip(first, second, strict=True) if (a.certified >= radius) != (b.certified >= radius)
        ]
        for a, b in pairs:
            alone = summary.methods[0 if a.certified >= radius else 1].method
            votes = f"votes {a.hits}/{a.estimated} and {b.hits}/{b.estimated}"
            print(f"radius {radius:g}: image {a.image} certified by {alone} alone, {votes}")
        print(f"radius {radius:g}: the methods differ on {len(pairs)} of {len(first)} images")


def port(chosen: argparse.Namespace) -> None:
    """The published loop: one image at a time, batches of 1,000 float32 copies, counted on the CPU."""
    network, images, labels, classes = subject(chosen)
    print(f"{chosen.model}, sigma {chosen.sigma:g}, n0 {SELECTION}, n {chosen.draws:,}, batches of {chosen.batch}")

    def counts(image: Tensor, draws: int) -> np.ndarray[Any, Any]:
        total = np.zeros(classes, dtype=int)
        with torch.no_grad():
            while draws > 0:
                size = min(chosen.batch, draws)
                draws -= size
                copies = image.repeat((size, 1, 1, 1))
                predictions = network(copies + torch.randn_like(copies) * chosen.sigma).argmax(1)
                for index in predictions.cpu().numpy():
                    total[index] += 1
        return total

    torch.manual_seed(chosen.seed)
    for place in range(chosen.images):
        wall, cpu = time.perf_counter(), time.process_time()
        guess = int(counts(images[place], SELECTION).argmax())
        low = float(lower_bound(int(counts(images[place], chosen.draws)[guess]), chosen.draws, chosen.alpha))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        radius = float(radius_at(low, chosen.sigma))
        print(
            f"image {place}  radius {radius:.4f}  right {guess == labels[place]}  {wall:.1f} s  cpu {cpu:.1f} s",
            flush=True,
        )


def subject(chosen: argparse.Namespace) -> tuple[nn.Module, Tensor, list[int], int]:
    data = load_data(chosen.data).limited(chosen.limit, chosen.seed)
    images = data.batch(range(len(data))).to(chosen.device)
    model = load_model(chosen.model).to(chosen.device).requires_grad_(False)
    with torch.no_grad():
        logits = model(images[:8])
        if chosen.precision == "bfloat16":
            model, _ = fast_copy(model, Recipe(torch.bfloat16, torch.channels_last), images[:8], logits)
    return model, images, data.labels.tolist(), int(logits.shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in (("coverage", coverage), ("anytime", anytime), ("both", both), ("port", port)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        if name == "both":
            command.add_argument("record", type=Path)
            continue
        if name != "coverage":
            command.add_argument("model")
            command.add_argument("data", type=Path)
        command.add_argument("--sigma", type=float, default=0.25)
        command.add_argument("--radii", type=float, nargs="+", default=[0.25, 0.5, 0.75])
        command.add_argument("--alpha", type=float, default=0.001)
        command.add_argument("--draws", type=int, default=ESTIMATION)
        command.add_argument("--runs", type=int, default=100_000)
        command.add_argument("--limit", type=int, default=100)
        command.add_argument("--images", type=int, default=3)
        command.add_argument("--batch", type=int, default=1000)
        command.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
        command.add_argument("--device", default="cpu")
        command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    chosen.function(chosen)


if __name__ == "__main__":
    main()
