#!/usr/bin/env python3
"""The published perturbations of Eykholt et al. (CVPR 2018) on their photographs: as published, and as prints.

    ROBUST_DATA=DATA python benchmarks/photographs.py

Published: added to the 32x32 images and clipped. Printed: what they make of the mean photograph, in colors that exist,
composed on every photograph at full resolution in its own perspective and light, and seen from distances and angles.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from robust.models import load_model
from robust.photos import Print, load_photographs, try_photographs
from robust.photos.composing import centered

STOP, SPEED_LIMIT_45, SHARE = 14, 12, 0.98


def main() -> None:
    data = Path(os.environ["ROBUST_DATA"])
    folder = data / "us_stop_signs"
    model = load_model(f"{data / 'zoo.py'}:lisa_cnn")
    photographs = load_photographs(folder)

    def picture(*parts: str) -> np.ndarray:
        with Image.open(folder.joinpath(*parts)) as image:
            return np.array(image.convert("RGB")) / 255

    mean = np.mean([picture("px32", f"{held.name}.png") for held in photographs], axis=0)
    for name, mask in (("sticker", "uniform_rectangles_32"), ("poster", "octagon_32")):
        cover = picture("masks", f"{mask}.png")
        noise = np.load(folder / "lisa_cnn" / f"{name}_noise_hwc.npy")
        colors = np.clip(mean + noise * cover, 0, 1)
        print_ = Print(colors, cover.max(2), centered(1 / SHARE))
        trial = try_photographs(model, photographs, {name: print_}, size=(32, 32), share=SHARE)
        counted = trial.counted(STOP)
        hits = counted & (trial.classes[name] == SPEED_LIMIT_45)
        print(f"{name}: {cover.mean():.1%} of the frame; as a print {hits.sum()} of {counted.sum()} views")
        print("       " + "".join(f"{angle:>9g}°" for angle in trial.angles))
        for row, distance in enumerate(trial.distances):
            cells = zip(hits[:, row].sum(0), counted[:, row].sum(0), strict=True)
            print(f"{distance:>5g} m" + "".join(f"{f'{hit}/{of}':>10}" for hit, of in cells))


if __name__ == "__main__":
    main()
