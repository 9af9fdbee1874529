#!/usr/bin/env python3
"""Double masking around a traffic sign classifier: clean and certified accuracy, passes, and patches tried on it.

    ROBUST_GTSRB_WEIGHTS=weights.safetensors python benchmarks/patch_certificates.py GTSRB_TEST.npz
        [--train GTSRB_TRAIN.npz --steps 600 [--skip-plain]] [--patch 5] [--n 300] [--attacked 20]

The classifier is examples/gtsrb_model.py. With --train a copy of it is trained on with two random masks on each image,
since a classifier that knows masks certifies more. "all masks" runs every mask, "early" stops when the outcome is
settled; both must give the same verdicts. Of the certified images, --attacked are given a patch by 10 steps of PGD on
every third placement in either direction, against the classifier seen through random masks; one that turns the defended
prediction is an error.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robust import ImageSet, load_data, load_model
from robust.defenses.patch import MaskedClassifier
from robust.defenses.patch.masking import masks
from robust.stats import rate

SIDE = 32


def masked(images: Tensor, chosen: list[tuple[int, int, int, int]], count: int, generator: torch.Generator) -> Tensor:
    """Each image under ``count`` random masks of the set."""
    result = images.clone()
    for row in range(len(images)):
        for index in torch.randint(len(chosen), (count,), generator=generator).tolist():
            top, left, height, width = chosen[index]
            result[row, :, top : top + height, left : left + width] = 0.5
    return result


def tuned(model: nn.Module, data: ImageSet, steps: int, patch: int) -> nn.Module:
    """A copy trained on for ``steps`` batches of 128 with two random masks."""
    model = copy.deepcopy(model).train()
    generator, chosen = torch.Generator().manual_seed(0), masks((SIDE, SIDE), (patch, patch), 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    for _ in range(steps):
        ids = torch.randint(len(data), (128,), generator=generator).tolist()
        images, labels = data.batch(ids), data.labels[ids]
        loss = F.cross_entropy(model(masked(images, chosen, 2, generator)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return model


def attacked(model: nn.Module, image: Tensor, label: Tensor, patch: int) -> Tensor:
    """The image with one patch for each of the placements, each by PGD on itself and on a randomly masked copy."""
    starts = [*range(0, SIDE - patch, 3), SIDE - patch]
    places = [(top, left) for top in starts for left in starts]
    inside = torch.zeros(len(places), 1, SIDE, SIDE)
    for row, (top, left) in enumerate(places):
        inside[row, :, top : top + patch, left : left + patch] = 1
    generator = torch.Generator().manual_seed(int(label))
    chosen = masks((SIDE, SIDE), (patch, patch), 6)
    clean, labels = image.expand(len(places), -1, -1, -1), label.expand(2 * len(places))
    points = torch.where(inside > 0, torch.rand(clean.shape, generator=generator), clean)
    for _ in range(10):
        points = points.detach().requires_grad_()
        both = torch.cat([points, masked(points, chosen, 1, generator)])
        gradient = torch.autograd.grad(F.cross_entropy(model(both), labels, reduction="sum"), points)[0]
        points = (points + 0.25 * gradient.sign() * inside).clamp(0, 1)
    return points.detach()


def report(name: str, model: nn.Module, data: ImageSet, patch: int, tried: int) -> None:
    images, labels = data.batch(range(len(data))), data.labels
    early, whole = MaskedClassifier(model, patch), MaskedClassifier(model, patch, early=False)
    with torch.no_grad():
        plain = int((model(images).argmax(1) == labels).sum())
    began = time.process_time()
    certificates, predictions = early.certify(images), early.predict(images)
    seconds = time.process_time() - began
    all_certificates, all_predictions = whole.certify(images), whole.predict(images)
    for quick, slow in ((certificates, all_certificates), (predictions, all_predictions)):
        if not (torch.equal(quick.predicted, slow.predicted) and torch.equal(quick.certified, slow.certified)):
            sys.exit("stopping early changed a verdict")
    correct = certificates.correct(labels)
    counts = (plain, int((predictions.predicted == labels).sum()), int(correct.sum()))
    figures = "  ".join(
        f"{what} {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
        for what, found in zip(("plain", "defended", "certified"), (rate(k, len(data)) for k in counts), strict=True)
    )
    print(f"{name}: {figures}")
    for what, quick, slow in (
        ("certificate", certificates, all_certificates),
        ("prediction", predictions, all_predictions),
    ):
        a, b = quick.passes.double().mean(), slow.passes.double().mean()
        print(f"  passes an image, {what}: early {a:.1f}, all masks {b:.1f} (1/{b / a:.1f})")
    print(f"  {1000 * seconds / len(data):.1f} ms of CPU an image for both, stopping early")
    undefended = turned = placements = 0
    sample = correct.nonzero().squeeze(1)[:tried].tolist()
    for index in sample:
        points = attacked(model, images[index : index + 1], labels[index], patch)
        with torch.no_grad():
            undefended += int((model(points).argmax(1) != labels[index]).any())
        turned += int((early.predict(points).predicted != labels[index]).any())
        placements = len(points)
    print(f"  {len(sample)} certified images x {placements} placements: the classifier alone falls on {undefended}, "
          f"the defended one on {turned}", flush=True)  # fmt: skip
    if turned:
        sys.exit("a certified image fell")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", help="GTSRB test set as .npz")
    parser.add_argument("--train", help="GTSRB training set as .npz: also a copy trained with masks")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--skip-plain", action="store_true", help="only the copy trained with masks")
    parser.add_argument("--patch", type=int, default=5, help="side in pixels of 32: 5 is 2.4 % of the image")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--attacked", type=int, default=20)
    arguments = parser.parse_args()
    model = load_model(f"{Path(__file__).parent.parent / 'examples' / 'gtsrb_model.py'}:load_model")
    data = load_data(arguments.test).limited(arguments.n, seed=0)
    print(f"{len(data)} random test images, patch {arguments.patch}x{arguments.patch}, 6x6 masks, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    if not arguments.skip_plain:
        report("as trained", model, data, arguments.patch, arguments.attacked)
    if arguments.train:
        began = time.process_time()
        model = tuned(model, load_data(arguments.train), arguments.steps, arguments.patch)
        print(f"trained on with masks: {arguments.steps} batches of 128 in {time.process_time() - began:.0f} s of CPU")
        report("with masks", model, data, arguments.patch, arguments.attacked)


if __name__ == "__main__":
    main()
