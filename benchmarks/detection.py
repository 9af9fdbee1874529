"""A patch on real stop signs against a real detector: signs lost, signs taken for something else, beside controls.

    ROBUST_DATA=... python benchmarks/detection.py [--steps 150] [--draws 8] [--goals gone "cell phone"] [--out DIR]

FastestDet sees the 40 photographs of us_stop_signs, every sign as large as its photograph. The patch, a square of a
tenth of the sign's box, is made on every second photograph and measured on the others, under the conditions below.
A goal is `gone`, or the class that signs are to be taken for. Writes detection.json, the patches and a contact sheet of
the photographs that the patches were not made on. A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from robust.attacks.patch import Conditions, OnSign, PatchAttack, PatchResult, rectangle
from robust.detection import (
    AveragePrecision,
    DetectionGoal,
    DetectionMeasurement,
    attack_detector,
    detect,
    drawn_detections,
    measure_detector,
    patched,
    seen,
    sheet,
)
from robust.progress import terminal_progress
from robust.randomness import image_seeds
from robust.summary import MeanRate

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from fastestdet import NAMES, STOP_SIGN, FastestDet, load_detector

AREA = 0.10
THRESHOLD = 0.3
CONDITIONS = Conditions(
    distance=(1.25, 4), yaw=(-20, 20), pitch=(-10, 10), roll=(-10, 10), shift=(-0.08, 0.08), brightness=(0.7, 1.3),
    contrast=(0.8, 1.2), blur=(0, 0.7), noise=(0, 0.02), jpeg=(60, 95), eight_bit=True, relit=True,
)  # fmt: skip


def photographs(folder: Path) -> tuple[list[str], Tensor]:
    """Names and images (N, 3, 256, 256) in [0, 1]."""
    files = sorted(folder.glob("*.png"), key=lambda file: int(file.stem))
    pixels = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    return [file.name for file in files], torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def boxes_of(images: Tensor) -> Tensor:
    """Every sign fills its photograph."""
    height, width = images.shape[2:]
    return images.new_tensor([0, 0, width, height]).expand(len(images), 4)


def made(
    detector: FastestDet, images: Tensor, goal: DetectionGoal, region: OnSign, attack: PatchAttack, file: Path
) -> PatchResult:
    state = torch.load(file, weights_only=True) if file.is_file() else None
    with terminal_progress() as progress:
        return attack_detector(
            detector, images, boxes_of(images), goal, region, CONDITIONS, attack,
            progress=progress, state=state, keep=lambda state: torch.save(state, file), keep_every=10,
        )  # fmt: skip


def table(title: str, measured: DetectionMeasurement) -> str:
    lines = [
        f"{title}: {measured.images} held-out photographs, {measured.draws} draws of each, patch of "
        f"{100 * measured.area:.1f} % of the sign's box",
        "| on the sign | recall | average precision | gone | misread |",
        "|---|---|---|---|---|",
    ]
    for name, sight in measured.sights.items():
        cells = [percent(sight.recall), percent(sight.average_precision), percent(sight.gone), percent(sight.misread)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for band in measured.bands:
        lines.append(f"met at distance {band.low:.2f} to {band.high:.2f}: {percent(band.met)}, {band.draws} draws")
    return "\n".join(lines)


def percent(value: MeanRate | AveragePrecision | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.value:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def as_record(measured: DetectionMeasurement, history: list[float], seconds: float) -> dict[str, object]:
    record = asdict(measured)
    return {**record, "history": [round(share, 3) for share in history], "seconds": round(seconds, 1)}


def contact_sheet(
    detector: FastestDet, images: Tensor, goals: dict[str, DetectionGoal], patches: dict[str, Tensor], region: OnSign
) -> Image.Image:
    """Every held-out photograph under one draw of the conditions: untouched, and with each patch."""
    boxes = boxes_of(images)
    drawn = CONDITIONS.draw(image_seeds(images, 1))
    columns = {}
    for title, texture in {"untouched": None, **patches}.items():
        goal = goals.get(title, DetectionGoal(STOP_SIGN, threshold=THRESHOLD))
        scene = images if texture is None else patched(images, boxes, texture, region, drawn)
        pictures, _ = seen(scene, boxes, drawn)
        with torch.no_grad():
            found = detect(detector, list(pictures))
        columns[title] = [
            drawn_detections(picture, each, NAMES, goal.source, goal.target, THRESHOLD, side=190)
            for picture, each in zip(pictures, found, strict=True)
        ]
    return sheet(columns, across=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--goals", nargs="+", default=["gone", "cell phone"], choices=("gone", *NAMES), metavar="GOAL")
    parser.add_argument("--out", type=Path, default=Path("runs/detection"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    detector = load_detector()
    names, images = photographs(Path(os.environ["ROBUST_DATA"], "us_stop_signs", "highres"))
    train, held_out = images[0::2], images[1::2]
    region = OnSign(rectangle(128, 128, AREA))
    attack = PatchAttack(steps=options.steps, batch=options.batch, rate=0.1)
    goals = {
        name: DetectionGoal(STOP_SIGN, None if name == "gone" else NAMES.index(name), THRESHOLD)
        for name in options.goals
    }
    record: dict[str, object] = {
        "steps": options.steps, "batch": options.batch, "threshold": THRESHOLD, "conditions": asdict(CONDITIONS),
        "made_on": names[0::2], "measured_on": names[1::2],
    }  # fmt: skip
    patches = {}
    for title, goal in goals.items():
        start = time.perf_counter()
        stem = title.replace(" ", "_")
        result = made(detector, train, goal, region, attack, options.out / f"{stem}.pt")
        seconds = time.perf_counter() - start
        patches[title] = result.patch
        measured = measure_detector(
            detector, held_out, boxes_of(held_out), goal, result.patch, region, CONDITIONS, draws=options.draws
        )
        print(table(title, measured), f"made in {seconds:.0f} s", sep="\n", flush=True)
        record[title] = as_record(measured, result.history, seconds)
        to_pil_image(result.patch * result.cover + 1 - result.cover).save(options.out / f"{stem}.png")
    (options.out / "detection.json").write_text(json.dumps(record, indent=1, default=lambda value: value.model_dump()))
    contact_sheet(detector, held_out, goals, patches, region).save(options.out / "detection.png")


if __name__ == "__main__":
    main()
