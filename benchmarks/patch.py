#!/usr/bin/env python3
"""A patch on stop signs that reads as a speed limit: beside ART's, and its success on held-out images.

    ROBUST_DATA=DATA ROBUST_GTSRB_WEIGHTS=weights.safetensors python benchmarks/patch.py [peer] [claim] [single] [quick]

The classifier is examples/gtsrb_model.py, the images are GTSRB's stop signs: patches are made on those of the training
split (780) and judged on those of the test split that are not among them (262 of 270), each framed by its annotated
sign.

peer   AdversarialPatchPyTorch of the Adversarial Robustness Toolbox beside `train_patch`: same model, training images,
       square of a tenth of the mean sign's area, batches, passes forward and backward, and transformations. Where ART
       has a transformation of its own (place, size, rotation) both get that range; the camera (`seen`) stands in front
       of the model for both. Each patch is judged under both libraries' pasting, in the same draws. The seconds are CPU
       seconds of one thread, of the making alone, one maker after the other.
claim  A patch and two stickers of a tenth of the sign's area, their layout chosen on training images: success as is,
       and under the `mild` and the `physical` conditions, with controls and strata.
single A patch for each of 100 test images (LaVAN), in the frame's corner, beside the sign, and in its middle.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from gtsrb_data import read_signs
from gtsrb_model import load_model

from robust.attacks.patch import (
    Anywhere,
    Conditions,
    OnSign,
    PatchAttack,
    PatchMeasurement,
    Success,
    apply,
    choose_layout,
    default_palette,
    layouts,
    measure_patch,
    octagon,
    printed,
    train_patch,
)
from robust.randomness import image_seeds
from robust.summary import MeanRate

STOP, TARGET, AREA = 14, 1, 0.1
OCTAGON = 2 * 2**0.5 - 2


@dataclass(frozen=True)
class Signs:
    """Stop signs (N, 3, 32, 32) and the box of each sign, (N, 4) in pixels."""

    images: Tensor
    boxes: Tensor

    @property
    def labels(self) -> Tensor:
        return torch.full((len(self.images),), STOP)


def stop_signs(folder: Path, split: str, limit: int | None) -> Signs:
    signs = read_signs(folder, split)
    chosen = np.flatnonzero(signs.labels == STOP)[:limit]
    with np.load(folder / "gtsrb" / "labels.npz") as file:
        width, height, *box = file[f"{split}_meta"][chosen].T.astype(np.float32)
    boxes = np.stack([box[0] / width, box[1] / height, box[2] / width, box[3] / height], axis=1) * 32
    images = torch.from_numpy(signs.images[chosen]).permute(0, 3, 1, 2).float() / 255
    return Signs(images, torch.from_numpy(boxes))


def without(signs: Signs, others: Signs) -> Signs:
    """The signs of which no copy, to the last bit, is among the others."""
    known = {image.numpy().tobytes() for image in others.images}
    kept = torch.tensor([image.numpy().tobytes() not in known for image in signs.images])
    return Signs(signs.images[kept], signs.boxes[kept])


def shown(rate: MeanRate | None) -> str:
    return "none" if rate is None else f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


class Camera(nn.Module):
    """The model behind a camera: every call sees its images under fresh conditions."""

    def __init__(self, model: nn.Module, conditions: Conditions, seed: int) -> None:
        super().__init__()
        self.model, self.conditions, self.seed, self.calls = model, conditions, seed, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        seeds = image_seeds(images, self.seed)
        logits: Tensor = self.model(apply(images, self.conditions.draw(seeds, self.calls)))
        return logits


def art_patch(
    model: nn.Module, train: Signs, region: Anywhere, conditions: Conditions, epochs: int, seed: int, **settings: object
) -> tuple[object, float]:
    """ART's attack, its patch made, and the seconds that took."""
    from art.attacks.evasion import AdversarialPatchPyTorch
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(seed)
    torch.manual_seed(seed)
    camera = Camera(model, conditions, seed)
    classifier = PyTorchClassifier(
        camera, nn.CrossEntropyLoss(), (3, 32, 32), 43, clip_values=(0, 1), device_type="cpu"
    )
    side = region.cover((32, 32)).shape[0]
    location = None if region.center is None else ((32 - side) // 2, (32 - side) // 2)
    low, high = region.scale
    attack = AdversarialPatchPyTorch(
        classifier, rotation_max=region.rotation, scale_min=region.side * low, scale_max=region.side * high,
        patch_shape=(3, side, side), patch_type="square", patch_location=location,
        max_iter=epochs, batch_size=32, verbose=False, **settings,
    )  # fmt: skip
    targets = np.eye(43, dtype=np.float32)[np.full(len(train.images), TARGET)]
    start = time.process_time()
    attack.generate(train.images.numpy(), targets)
    return attack, time.process_time() - start


def under_art(
    attack: object, patch: Tensor, model: nn.Module, test: Signs, conditions: Conditions, draws: int
) -> float:
    """Targeted success with ART's own pasting, on draws in which the unpatched image is read right."""
    hits, counted = 0, 0
    np.random.seed(7)
    torch.manual_seed(7)
    with torch.no_grad():
        for turn in range(draws):
            drawn = conditions.draw(image_seeds(test.images, 7), turn)
            right = model(apply(test.images, drawn)).argmax(1) == STOP
            pasted = attack._random_overlay(test.images, patch).clamp(0, 1)  # type: ignore[attr-defined]
            hit = model(apply(pasted, drawn)).argmax(1) == TARGET
            hits, counted = hits + int((hit & right).sum()), counted + int(right.sum())
    return hits / counted


def peer(model: nn.Module, train: Signs, test: Signs, epochs: int, seeds: int, draws: int, only: str) -> None:
    boxes = train.boxes
    area = float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean()) * OCTAGON * AREA / 32**2
    # ART's last batch of a round is smaller: never more images passed than it passes.
    steps = epochs * len(train.images) // 32
    print(f"\npeer: square of {area:.3f} of the frame, {steps} steps of up to 32 images, {len(test.images)} held out")
    turned = Anywhere(area=area, scale=(0.8, 1.2), rotation=22.5)
    still = replace(turned, scale=(1.0, 1.0))
    camera = replace(Conditions.named("mild"), yaw=(0, 0), pitch=(0, 0))
    middle = replace(still, area=(round(still.side * 32) / 32) ** 2, center=(0.5, 0.5))
    cases = {
        "on the sign's middle, 22.5 degrees": (middle, Conditions()),
        "on the sign's middle, 22.5 degrees, seen": (middle, camera),
        "anywhere, scale 0.8 to 1.2, 22.5 degrees": (turned, Conditions()),
        "anywhere, one size, 22.5 degrees": (still, Conditions()),
        "anywhere, scale 0.8 to 1.2, 22.5 degrees, seen": (turned, camera),
    }
    makers: dict[str, dict[str, object]] = {
        "ART Adam, rate 5 (default)": {"learning_rate": 5.0},
        "ART Adam, rate 0.2": {"learning_rate": 0.2},
        "ART pgd, rate 0.05": {"learning_rate": 0.05, "optimizer": "pgd"},
    }
    print("| transformations | maker | seed | seconds | targeted, our pasting | targeted, ART's pasting |")
    print("|---|---|---|---|---|---|")
    for name, (region, conditions) in cases.items():
        if only not in name:
            continue
        for seed in range(seeds):
            art = None
            for maker, settings in makers.items():
                art, seconds = art_patch(model, train, region, conditions, epochs, seed, **settings)
                patch = art._patch.detach().float()  # type: ignore[attr-defined]
                judge(name, maker, seed, seconds, patch, art, model, test, region, conditions, draws)
            start = time.process_time()
            made = train_patch(
                model, train.images, train.labels, TARGET, region, conditions, PatchAttack(steps, 32, seed=seed)
            )
            seconds = time.process_time() - start
            judge(name, "robust", seed, seconds, made.patch, art, model, test, region, conditions, draws)


def judge(
    name: str, maker: str, seed: int, seconds: float, patch: Tensor, art: object, model: nn.Module, test: Signs,
    region: Anywhere, conditions: Conditions, draws: int,
) -> None:  # fmt: skip
    found = measure_patch(
        model, test.images, test.labels, TARGET, patch, region.cover((32, 32)), region, conditions,
        draws=draws, controls=False, seed=7,
    )  # fmt: skip
    theirs = under_art(art, patch, model, test, conditions, draws)
    ours = shown(found.patch.targeted)
    print(f"| {name} | {maker} | {seed} | {seconds:.1f} | {ours} | {100 * theirs:.1f} |", flush=True)


def claim(
    model: nn.Module, train: Signs, test: Signs, steps: int, draws: int, pieces: list[int], presets: list[str]
) -> None:
    sign = octagon(32, 32, 1.0)
    for count in pieces:
        kind, masks = "patch" if count == 1 else f"{count} stickers", layouts(sign, AREA, count)
        for name in presets:
            conditions = Conditions.named(name)
            start = time.process_time()
            region, _ = choose_layout(
                model, train.images, train.labels, TARGET, masks, conditions, PatchAttack(batch=16),
                boxes=train.boxes,
            )  # fmt: skip
            chosen = time.process_time() - start
            made = train_patch(
                model, train.images, train.labels, TARGET, region, conditions, PatchAttack(steps), boxes=train.boxes
            )
            seconds = time.process_time() - start - chosen
            found = measure_patch(
                model, test.images, test.labels, TARGET, made.patch, made.cover, region, conditions,
                boxes=test.boxes, draws=draws,
            )  # fmt: skip
            inked = measure_patch(
                model, test.images, test.labels, TARGET, printed(made.patch, default_palette()), made.cover, region,
                conditions, boxes=test.boxes, draws=draws, controls=False, bins=1,
            )  # fmt: skip
            told(f"{kind}, {name}", region, chosen, seconds, found, inked.patch, float(sign.mean()))


def single(model: nn.Module, test: Signs) -> None:
    """A patch for each image, beside the sign or on it, made and judged on the same images."""
    signs = Signs(test.images[:100], test.boxes[:100])
    print("\n| one patch per image | images | targeted % | untargeted % |\n|---|---|---|---|")
    for place, area in itertools.product(("corner", "middle"), (0.02, 0.05)):
        half = area**0.5 / 2 if place == "corner" else 0.5
        region = Anywhere(area=area, scale=(1, 1), rotation=0, center=(half, half))
        attack = PatchAttack(steps=100, batch=50, per_image=True)
        made = train_patch(model, signs.images, signs.labels, TARGET, region, attack=attack)
        found = measure_patch(
            model, signs.images, signs.labels, TARGET, made.patch, made.cover, region, controls=False, bins=1
        )
        rates = f"{shown(found.patch.targeted)} | {shown(found.patch.untargeted)}"
        print(f"| {100 * area:.0f} % of the frame, {place} | {found.images} | {rates} |", flush=True)


def told(
    name: str, region: OnSign, chosen: float, seconds: float, found: PatchMeasurement, inked: Success, sign: float
) -> None:
    rows, columns = (region.mask > 0).nonzero().T
    print(
        f"\n{name}: {100 * region.area / sign:.1f} % of the sign's area, within x {int(columns.min())} to "
        f"{int(columns.max()) + 1}, y {int(rows.min())} to {int(rows.max()) + 1} of 32; layout {chosen:.0f} s, patch "
        f"{seconds:.0f} s; unpatched read right {shown(found.read)}, {found.images} images x {found.draws}"
    )
    print("| what | draws | targeted % | untargeted % |\n|---|---|---|---|")
    lines: dict[str, Success] = {"patch": found.patch, "patch in a press's colors": inked, **found.controls}
    lines |= {f"patch, {part.of} {part.low:.2f} to {part.high:.2f}": part.success for part in found.strata}
    for what, success in lines.items():
        print(f"| {what} | {success.draws} | {shown(success.targeted)} | {shown(success.untargeted)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="peer, claim, single, quick (a trial)")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8, help="rounds over the training images in peer")
    parser.add_argument("--only", default="", help="words of the transformations in peer")
    parser.add_argument("--steps", type=int, default=200, help="steps in claim")
    parser.add_argument("--pieces", type=int, nargs="*", default=[1, 2], help="patches (1) or stickers (2) in claim")
    parser.add_argument("--conditions", nargs="*", default=["none", "mild", "physical"], help="presets in claim")
    parser.add_argument("--draws", type=int, default=4, help="of each test image")
    options = parser.parse_args()
    if not os.environ.get("ROBUST_DATA"):
        parser.error("ROBUST_DATA must name the folder of real images and trained models")
    folder = Path(os.environ["ROBUST_DATA"])
    quick = "quick" in options.parts
    torch.set_num_threads(1)
    model = load_model()
    train = stop_signs(folder, "train", 64 if quick else None)
    test = without(stop_signs(folder, "test", 20 if quick else None), stop_signs(folder, "train", None))
    parts = [part for part in options.parts if part != "quick"] or ["peer", "claim", "single"]
    if "peer" in parts:
        peer(
            model,
            train,
            test,
            1 if quick else options.epochs,
            1 if quick else options.seeds,
            options.draws,
            options.only,
        )
    if "claim" in parts:
        steps = 10 if quick else options.steps
        claim(model, train, test, steps, options.draws, options.pieces, options.conditions)
    if "single" in parts:
        single(model, test)


if __name__ == "__main__":
    main()
