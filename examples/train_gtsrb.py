"""Train TrafficSignNet on the German traffic signs (GTSRB); the test set is looked at once, at the end.

    python examples/train_gtsrb.py --data FOLDER --out runs/gtsrb

Writes into --out: weights.safetensors, log.json (settings, history, accuracies, seconds) and gtsrb_test.npz (the test
images, ready for `robust audit`). See README.md beside this file for what FOLDER may be.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gtsrb_data import CLASS_NAMES, Signs, read_signs, split_by_track
from gtsrb_model import TrafficSignNet
from safetensors.torch import save_file
from torch import Tensor

from robust.errors import InputError

BATCH = 256
PEAK_RATE = 0.3
WEIGHT_DECAY = 5e-4


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear, shift and relight each image by its own draw. Never mirrored: a mirrored sign is another one.

    ``images``: float in [0, 1], shape (N, 3, H, W); returned in the same shape and range.
    """

    def draw(half_width: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * half_width

    angle, shear, stretch = draw(math.radians(15)), draw(0.15), draw(0.1).exp()
    scale = draw(0.2).exp()
    theta = torch.stack(
        [
            torch.stack([scale * stretch * angle.cos(), -scale * angle.sin() + shear, draw(0.2)], 1),
            torch.stack([scale * angle.sin(), scale / stretch * angle.cos(), draw(0.2)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, offset = draw(0.7).exp().view(-1, 1, 1, 1), draw(0.1).view(-1, 1, 1, 1)
    middle = moved.mean((1, 2, 3), keepdim=True)
    contrast = draw(0.4).exp().view(-1, 1, 1, 1)
    return (((moved - middle) * contrast + middle) * gain + offset).clamp(0, 1)


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) to float in [0, 1], (N, C, H, W), channels last in memory (the faster layout on a CPU)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


@torch.no_grad()
def accuracy(model: TrafficSignNet, signs: Signs) -> float:
    """Fraction classified correctly, in float32."""
    model.eval()
    guesses = [model(to_float(signs.images[i : i + 1000])).argmax(1) for i in range(0, len(signs.images), 1000)]
    return float((torch.cat(guesses).numpy() == signs.labels).mean())


def train_epoch(
    model: TrafficSignNet,
    signs: Signs,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    bfloat16: bool,
) -> float:
    """One pass over the shuffled images; returns the mean training loss."""
    model.train()
    labels, total = torch.from_numpy(signs.labels), torch.zeros(())
    batches = torch.randperm(len(labels), generator=generator).split(BATCH)
    for index in batches:
        images = augment(to_float(signs.images[index.numpy()]), generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
    return total.item() / len(batches)


def train(signs: Signs, epochs: int, seed: int, bfloat16: bool, validation: Signs | None) -> tuple[TrafficSignNet, Any]:
    """SGD with Nesterov momentum, the learning rate rising and falling once. The last epoch's weights are kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = TrafficSignNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(len(signs.labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    history, start = [], time.perf_counter()
    for epoch in range(1, epochs + 1):
        row = {"epoch": epoch, "loss": train_epoch(model, signs, optimizer, schedule, generator, bfloat16)}
        if validation is not None:
            row["validation_accuracy"] = accuracy(model, validation)
        row["seconds"] = time.perf_counter() - start
        history.append(row)
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return model.eval(), history


def arguments() -> argparse.Namespace:
    runs = Path(__file__).resolve().parent.parent / "runs" / "gtsrb"
    parser = argparse.ArgumentParser(description="Train a classifier of German traffic signs (GTSRB).")
    add = parser.add_argument
    add("--data", type=Path, default=os.environ.get("ROBUST_DATA"), help="folder with GTSRB (default: $ROBUST_DATA)")
    add("--out", type=Path, default=runs, help="folder for weights.safetensors, log.json and gtsrb_test.npz")
    add("--epochs", type=int, default=15)
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=1, help="CPU threads; two runs are equal only at the same number (default: 1)")
    add("--validation", type=float, default=0.1, help="share of the tracks held out, 0 for none (default: 0.1)")
    add("--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of the training's forward pass")
    chosen = parser.parse_args()
    if chosen.data is None:
        raise InputError("no data: name the folder with GTSRB in --data, or in the environment variable ROBUST_DATA")
    if chosen.epochs < 1 or chosen.threads < 1 or not 0 <= chosen.validation < 1:
        raise InputError("--epochs and --threads must be at least 1, and --validation in [0, 1)")
    return chosen


def wants_bfloat16(precision: str) -> bool:
    """bfloat16 pays only where the CPU multiplies it itself (README.md has the measurement)."""
    if precision != "auto":
        return precision == "bfloat16"
    supported: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return supported()


def hold_out(signs: Signs, share: float, seed: int) -> tuple[Signs, Signs | None]:
    if share == 0:
        return signs, None
    if signs.tracks is None:
        print("the training images are not in the official order and name no tracks: no validation", file=sys.stderr)
        return signs, None
    return split_by_track(signs, share, seed)


def run(chosen: argparse.Namespace) -> None:
    data, out = Path(chosen.data), chosen.out
    test = read_signs(data, "test")  # read now, so that a damaged file is found before the training; used at the end
    signs, validation = hold_out(read_signs(data, "train"), chosen.validation, chosen.seed)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(chosen.threads)
    bfloat16 = wants_bfloat16(chosen.precision)
    start = time.perf_counter()
    model, history = train(signs, chosen.epochs, chosen.seed, bfloat16, validation)
    seconds = time.perf_counter() - start

    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out / "weights.safetensors")
    result = accuracy(model, test)
    np.savez(out / "gtsrb_test.npz", images=test.images, labels=test.labels, class_names=np.array(CLASS_NAMES))
    log = {
        "test_accuracy": result,
        "test_images": len(test.labels),
        "train_images": len(signs.labels),
        "validation_images": 0 if validation is None else len(validation.labels),
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "settings": {
            "epochs": chosen.epochs,
            "seed": chosen.seed,
            "threads": chosen.threads,
            "validation": chosen.validation,
            "bfloat16": bfloat16,
        },
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "python": platform.python_version()},
        "history": history,
    }
    (out / "log.json").write_text(json.dumps(log, indent=2) + "\n")
    print(f"test accuracy {result:.4f} on {len(test.labels)} images, trained in {seconds:.0f} s; written to {out}")


def main() -> int:
    try:
        run(arguments())
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
