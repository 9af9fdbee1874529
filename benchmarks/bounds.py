#!/usr/bin/env python3
"""Certified beside attacked accuracy, ours and published, on the same images.

    ROBUST_DATA=path/to/data python benchmarks/bounds.py [--models mnist_kw] [--threats linf:0.1] [--n N]

The folder holds `export.py` (writes the image sets as .npz), `zoo.py` (the models) and `cifar10_sdp200.npz`, the 200
images on which the CNN-A figures are published (verified: the best published; attacked: an upper bound). "certified" is
ours by interval and linear bounds, "attacked" is what the `auto` cascade leaves, both over all n images. A proven image
that falls is an error. Seconds are the process's own
(CPU time of the stated threads together), per image classified right.
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

from robust import ThreatModel, load_data, load_model
from robust.attacks import Auto
from robust.defenses.bounds import prove


@dataclass(frozen=True)
class Case:
    """A model, a data set, a threat, how many images, and what is published in percent: verified, attacked."""

    model: str
    data: str
    threat: str
    n: int
    verified: float | None = None
    attacked: float | None = None
    same: bool = False  # the published figures are on exactly these images


CASES = (
    Case("cifar_cnn_a_adv", "cifar10_sdp200", "linf:2/255", 200, 48.5, 50.0, True),
    Case("cifar_cnn_a_adv4", "cifar10_sdp200", "linf:2/255", 200, 48.5, 49.5, True),
    Case("cifar_cnn_a_mix", "cifar10_sdp200", "linf:2/255", 200, 48.0, 53.0, True),
    Case("mnist_kw", "mnist_test", "linf:0.1", 200, 94.2, 95.9),
    Case("cifar_kw_base", "cifar10_test", "linf:2/255", 100),
    Case("cifar_kw_base", "cifar10_test", "linf:8/255", 20),
    Case("cifar_resnet2b", "cifar10_test", "linf:1/255", 50, None, 62.24),
    Case("cifar_resnet2b", "cifar10_test", "linf:2/255", 50, None, 54.82),
    Case("cifar_resnet4b", "cifar10_test", "linf:1/255", 20, None, 69.75),
    Case("mnist_kw", "mnist_test", "l2:0.3", 100),
)


def run(case: Case, folder: Path, scratch: Path, n: int | None, attack: bool, batch: int = 16) -> str:
    source = folder if case.data == "cifar10_sdp200" else scratch
    data = load_data(source / f"{case.data}.npz")
    data = data.take(range(min(n or case.n, len(data))))
    model, threat = load_model(f"{folder / 'zoo.py'}:{case.model}"), ThreatModel.parse(case.threat)
    proven = attacked = right = 0
    proving = attacking = functions = 0.0
    for start in range(0, len(data), batch):
        ids = range(start, min(start + batch, len(data)))
        images, labels = data.batch(ids), data.labels[list(ids)]
        with torch.no_grad():
            correct = model(images).argmax(1) == labels
        images, labels = images[correct], labels[correct]
        right += len(labels)
        if not len(labels):
            continue
        began = time.process_time()
        proofs = prove(model, images, labels, threat)
        proving += time.process_time() - began
        proven, functions = proven + int(proofs.proven.sum()), functions + float(proofs.functions.sum())
        if attack:
            began = time.process_time()
            found = Auto(threat.eps, norm=threat.norm)(model, images, labels)
            attacking += time.process_time() - began
            with torch.no_grad():
                stands = model(found).argmax(1) == labels
            if (proofs.proven & ~stands).any():
                sys.exit(f"{case.model} {case.threat}: a proven image fell")
            attacked += int(stands.sum())
    percent = 100 / len(data)
    published = " to ".join("?" if value is None else f"{value:g}" for value in (case.verified, case.attacked))
    inside = ""
    if attack and case.same and case.verified is not None and case.attacked is not None:
        holds = case.verified <= attacked * percent + 1e-9 and attacked * percent <= case.attacked + 1e-9
        inside = "inside" if holds else "OUTSIDE"
    shown = f"{attacked * percent:.1f}" if attack else ""
    return (
        f"{case.model:<18}{case.threat:>11}{len(data):>5}{right * percent:>7.1f}{proven * percent:>10.1f}{shown:>9}"
        f"{published:>14} {inside:<8}{functions / right:>9.0f}{proving / right:>9.3f}{attacking / right:>9.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("ROBUST_DATA"), help="folder of export.py and zoo.py")
    parser.add_argument("--models", default=None, help="only these, separated by commas")
    parser.add_argument("--threats", default=None, help="only these, separated by commas")
    parser.add_argument("--n", type=int, default=None, help="the first n images of each set (default: see CASES)")
    parser.add_argument("--no-attack", action="store_true", help="prove only")
    arguments = parser.parse_args()
    if not arguments.data:
        sys.exit("give --data, or set ROBUST_DATA")
    folder = Path(arguments.data)
    chosen, threats = (None if one is None else one.split(",") for one in (arguments.models, arguments.threats))
    print(f"accuracies in percent of n images; {torch.get_num_threads()} threads")
    print(f"{'model':<18}{'threat':>11}{'n':>5}{'clean':>7}{'certified':>10}{'attacked':>9}{'published':>14} "
          f"{'':<8}{'linear':>9}{'s proof':>9}{'s attack':>9}")  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, folder / "export.py", scratch, "cifar10", "mnist"], check=True, stdout=subprocess.DEVNULL
        )
        for case in CASES:
            if (chosen is None or case.model in chosen) and (threats is None or case.threat in threats):
                print(run(case, folder, Path(scratch), arguments.n, not arguments.no_attack), flush=True)


if __name__ == "__main__":
    main()
