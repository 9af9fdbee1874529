"""Train the demo's classifier: ``python -m robust.demo.train --out DIR`` writes its weights and the log of the run.

Half of every batch is attacked while it trains (two steps of PGD inside a small linf ball), so that the demo has
something to show: a model that is neither helpless nor safe. The loop is this script's own and short on purpose;
hardening a model for real is `robust harden`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from robust.demo import WEIGHTS
from robust.demo.network import SignNet
from robust.demo.signs import CLASS_NAMES, FIRST_TRAINING_SEED, signs
from robust.errors import InputError

LOG = "training.json"
BATCH = 128
RATE = 4e-3  # highest learning rate of the one-cycle schedule
DECAY = 1e-3
SHIFT = 2  # batches are rolled by up to this many pixels each way
EPS = 2 / 255
TEST_IMAGES = 2000
ATTACKED_IMAGES = 500


def _tensors(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` images of a seed, (n, 3, 32, 32) float32 in [0, 1], and their labels, (n,) int64."""
    images, labels = signs(n, seed)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255, torch.from_numpy(labels)


def _attacked(model: SignNet, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """PGD from a random start on the cross-entropy (Madry et al. 2018, eq. 2.1), within ``eps`` in linf."""
    step = eps * min(1.0, 2.5 / steps)
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    moved = low + (high - low) * torch.rand_like(images)
    for _ in range(steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels), moved)
        moved = torch.clamp(moved.detach() + step * gradient.sign(), low, high)
    return moved


def _epoch(
    model: SignNet,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> tuple[float, float]:
    """One pass over the training images in random order, whole batches only; mean loss and accuracy as trained on."""
    model.train()
    loss_sum, right, seen = 0.0, 0, 0
    order = torch.randperm(len(images))
    for start in range(0, len(images) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        down, across = torch.randint(-SHIFT, SHIFT + 1, (2,)).tolist()
        batch, truth = torch.roll(images[chosen], (down, across), (2, 3)), labels[chosen]
        half = BATCH // 2
        batch = torch.cat([_attacked(model, batch[:half], truth[:half], EPS, 2), batch[half:]])
        logits = model(batch)
        loss = F.cross_entropy(logits, truth)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        loss_sum += float(loss.detach()) * len(batch)
        right += int((logits.argmax(1) == truth).sum())
        seen += len(batch)
    return loss_sum / seen, right / seen


def _right(model: SignNet, images: Tensor, labels: Tensor) -> float:
    """The share of images that the model, in eval mode, classifies correctly."""
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).double().mean())


def _test(model: SignNet, seed: int) -> dict[str, Any]:
    """Accuracy on fresh images, and under 20 steps of PGD on the first few hundred of them."""
    images, labels = _tensors(TEST_IMAGES, 2 * FIRST_TRAINING_SEED + seed)
    result: dict[str, Any] = {"n": TEST_IMAGES, "accuracy": _right(model, images, labels), "attacked": []}
    images, labels = images[:ATTACKED_IMAGES], labels[:ATTACKED_IMAGES]
    for pixels in (2, 4, 8):
        adversarial = _attacked(model, images, labels, pixels / 255, 20)
        accuracy = _right(model, adversarial, labels)
        result["attacked"].append({"attack": "PGD-20", "norm": "linf", "eps": f"{pixels}/255", "n": len(images),
                                   "accuracy": accuracy})  # fmt: skip
    return result


def _check(seed: int, images: int, epochs: int) -> None:
    if not 0 <= seed < FIRST_TRAINING_SEED:
        raise InputError(f"--seed must be from 0 to {FIRST_TRAINING_SEED - 1}, got {seed}")
    if images < BATCH:
        raise InputError(f"--images must be at least {BATCH}, got {images}")
    if epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {epochs}")


def train(seed: int, images: int, epochs: int) -> tuple[SignNet, dict[str, Any]]:
    """A model trained on ``images`` images drawn for ``seed``, and the log: a JSON object.

    The same arguments give the same model on one machine with one number of threads. The global random state of
    torch is given back as it was. Raises `InputError` for numbers out of range.
    """
    _check(seed, images, epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(seed, images, epochs)


def _train(seed: int, n: int, epochs: int) -> tuple[SignNet, dict[str, Any]]:
    began = time.perf_counter()
    images, labels = _tensors(n, FIRST_TRAINING_SEED + seed)
    drawn = time.perf_counter()
    print(f"drew {n} training images in {drawn - began:.0f} s", flush=True)
    model = SignNet(CLASS_NAMES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * (n // BATCH), pct_start=0.25)
    history = []
    for number in range(1, epochs + 1):
        loss, accuracy = _epoch(model, images, labels, optimizer, schedule)
        history.append({"epoch": number, "loss": round(loss, 4), "accuracy": round(accuracy, 4)})
        print(f"epoch {number}/{epochs}: loss {loss:.3f}, accuracy {accuracy:.3f} on its batches", flush=True)
    trained = time.perf_counter()
    test = _test(model, seed)
    seconds = {"drawing": drawn - began, "training": trained - drawn, "total": time.perf_counter() - began}
    log = {
        "seed": seed,
        "training_images": n,
        "classes": list(CLASS_NAMES),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": {"batch": BATCH, "epochs": epochs, "highest_rate": RATE, "weight_decay": DECAY, "shift": SHIFT,
                     "adversarial_share": 0.5, "adversarial_eps": "2/255", "adversarial_steps": 2},
        "epochs": history,
        "test": test,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "pillow": PIL.__version__},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return model, log


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()  # a folder that takes no files is found before the work, not after
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); name another folder") from None
    return path


def _write(out: Path, model: SignNet, log: dict[str, Any]) -> None:
    weights = save(model.state_dict(), {"format": "pt"})
    log["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    (out / WEIGHTS).write_bytes(weights)
    (out / LOG).write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m robust.demo.train", description="Train the demo's sign classifier.")
    parser.add_argument("--out", type=Path, default=Path("demo-model"), help="folder to write to (default: demo-model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=16000, help="training images to draw (default: 16000)")
    parser.add_argument("--epochs", type=int, default=14)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 when done, 2 after one line about bad input."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    try:
        _check(options.seed, options.images, options.epochs)
        out = _folder(options.out)
        model, log = train(options.seed, options.images, options.epochs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log["command"] = " ".join(["python -m robust.demo.train", *given])
    _write(out, model, log)
    print(f"test accuracy {log['test']['accuracy']:.4f} on {log['test']['n']} images; wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
