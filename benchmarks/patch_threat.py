"""The cascade under a patch threat beside trying every place: what each breaks, in how many passes.

    python benchmarks/patch_threat.py [--n 100] [--threat patch:1% --threat patch:2%] [--seed 0]

Model and images: the traffic-sign classifier of examples/ and its test set (runs/gtsrb). The reference paints a patch
at every place (stride 1), 64 places side by side, by plain signed steps on the margin, as LaVAN does at one place
(Karmon et al., ICML 2018); an image leaves at its first success. Every success is counted on the plain model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from gtsrb_model import load_model

from robust.attacks import FGSM, PGD, Auto, PatchSearch, UniformNoise
from robust.attacks.base import Goal, loss_and_gradient
from robust.attacks.losses import margin
from robust.counting import CountedModel
from robust.data import load_data
from robust.patch_norm import window, window_size
from robust.threats import ThreatModel

Method = Callable[[CountedModel, Tensor, Tensor], Tensor]


def every_place(model: CountedModel, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """The adversarial images that any place gave, else the images themselves; places in chunks, image by image."""
    found = images.clone()
    height, width = images.shape[2:]
    rows, columns = (int(size[0]) for size in window_size(eps, images))
    places = torch.arange((height - rows + 1) * (width - columns + 1))
    top, left = places // (width - columns + 1), places % (width - columns + 1)
    masks = window(top, left, torch.full_like(top, rows), torch.full_like(top, columns), height, width)
    for image, label, result in zip(images, labels, found, strict=True):
        for chunk in masks.split(_PLACES):
            adversarial = _climb(model, image, label, chunk, steps)
            if adversarial is not None:
                result.copy_(adversarial)
                break
    return found


_PLACES = 64


def _climb(model: CountedModel, image: Tensor, label: Tensor, masks: Tensor, steps: int) -> Tensor | None:
    """Signed steps at all places of ``masks`` side by side, until one of them fools the model."""
    points, goal = image.expand(len(masks), -1, -1, -1), Goal(label.expand(len(masks)))
    for step in range(steps):
        _, logits, slope = loss_and_gradient(model, points, goal, margin)
        fooled = goal.met(logits)
        if bool(fooled.any()):
            return points[fooled][0]
        size = 0.5 * (1 - step / steps)
        points = torch.where(masks, (points + size * slope.sign()).clamp(0, 1), points)
    return None


def methods(threat: ThreatModel, seed: int, steps: int) -> dict[str, Method]:
    eps = threat.eps
    attacks = {
        "noise, 100 draws": UniformNoise(eps, 100, norm="patch", seed=seed),
        "fgsm": FGSM(eps, norm="patch", seed=seed),
        "pgd, 100 steps, 5 starts": PGD(eps, norm="patch", seed=seed, steps=100, restarts=5, loss="margin"),
        "patch-search, 2,000 queries": PatchSearch(eps, seed=seed, queries=2000),
        "auto, quick": Auto(eps, norm="patch", seed=seed, effort="quick"),
        "auto": Auto(eps, norm="patch", seed=seed),
        "auto, exhaustive": Auto(eps, norm="patch", seed=seed, effort="exhaustive"),
    }
    return {**attacks, f"every place, {steps} steps": lambda *call: every_place(*call, eps, steps)}  # type: ignore[dict-item]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="runs/gtsrb/gtsrb_test.npz")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--threat", action="append")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="methods whose name starts so")
    chosen = parser.parse_args()
    data, model = load_data(chosen.data).limited(chosen.n, chosen.seed), load_model().eval()
    images, labels = data.batch(range(len(data))), data.labels
    with torch.no_grad():
        right = model(images).argmax(1) == labels
    images, labels = images[right], labels[right]
    print(f"{len(images)} images read right of {len(data)}, seed {chosen.seed}, {torch.get_num_threads()} threads")
    for text in chosen.threat or ["patch:1%", "patch:2%"]:
        threat = ThreatModel.parse(text).fitted(data.shape)
        print(f"\n{text}, a square of {int(window_size(threat.eps, images)[0][0])} pixels")
        broken: dict[str, Tensor] = {}
        for name, method in methods(threat, chosen.seed, chosen.steps).items():
            if chosen.only and not name.startswith(tuple(chosen.only)):
                continue
            counted, start = CountedModel(model), time.perf_counter()
            found = method(counted, images, labels)
            seconds = time.perf_counter() - start
            with torch.no_grad():
                broken[name] = model(found).argmax(1) != labels
            assert bool(threat.geometry.contains(found, images, threat.eps).all())
            each = counted.passes.forward / len(images), counted.passes.backward / len(images)
            print(
                f"| {name} | {int(broken[name].sum())} | {each[0]:,.0f} | {each[1]:,.0f} | {seconds:.1f} s |",
                flush=True,
            )
        if "auto" in broken:
            for name, held in broken.items():
                print(f"  broken by {name} and not by auto: {int((held & ~broken['auto']).sum())}")


if __name__ == "__main__":
    main()
