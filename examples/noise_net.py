#!/usr/bin/env python3
"""A small classifier trained with Gaussian noise, to be certified by randomized smoothing.

    python examples/noise_net.py gtsrb gtsrb_train.npz --sigma 0.25
    robust certify examples/noise_net.py:gtsrb gtsrb_test.npz --sigma 0.25

Every image gets fresh noise N(0, sigma^2) in pixel units before it enters the network (Cohen et al., ICML 2019,
section 3.4). Weights go to, and are read from, the folder that the environment variable ROBUST_NOISE_NETS names, else
runs/noise in the repository, one file a data set and sigma; ROBUST_NOISE_SIGMA picks the file (default: 0.25).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from robust.errors import InputError

BATCH, PEAK_RATE, WEIGHT_DECAY = 128, 0.2, 5e-4
CLASSES = {"gtsrb": 43, "cifar10": 10}
FOLDER = Path(os.environ.get("ROBUST_NOISE_NETS") or Path(__file__).resolve().parent.parent / "runs" / "noise")


class NoiseNet(nn.Module):
    """Images in [0, 1] or with noise on them, (N, 3, 32, 32), to logits (N, K); 5.1 million multiply-adds an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((3, 32, 4, 2), (32, 64, 3, 2), (64, 64, 3, 1), (64, 128, 3, 2)):
            padding = (kernel - 1) // 2
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features((images - 0.45) / 0.27).flatten(1))
        return logits


def gtsrb() -> NoiseNet:
    return _load("gtsrb")


def cifar10() -> NoiseNet:
    return _load("cifar10")


def _file(data: str, sigma: str) -> Path:
    return FOLDER / f"{data}-{float(sigma):g}.safetensors"


def _load(data: str) -> NoiseNet:
    file = _file(data, os.environ.get("ROBUST_NOISE_SIGMA") or "0.25")
    if not file.is_file():
        raise InputError(f"{file}: no weights here; train them with `python examples/noise_net.py {data} TRAIN.npz`")
    network = NoiseNet(CLASSES[data])
    network.load_state_dict(load_file(file))
    return network.eval()


def moved(images: Tensor, mirror: bool, generator: torch.Generator) -> Tensor:
    """Each batch shifted by up to 3 pixels and, where ``mirror``, each image mirrored with probability one half."""
    up, left = (int(shift) for shift in torch.randint(0, 7, (2,), generator=generator))
    height, width = images.shape[2:]
    shifted = F.pad(images, (3, 3, 3, 3), mode="replicate")[:, :, up : up + height, left : left + width]
    if not mirror:
        return shifted
    flips = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flips, shifted.flip(3), shifted)


def train(images: np.ndarray, labels: Tensor, data: str, sigma: float, epochs: int, seed: int) -> NoiseNet:
    """SGD with Nesterov momentum, the learning rate rising and falling once, in bfloat16; the last weights are kept."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = NoiseNet(CLASSES[data]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(labels), generator=generator).split(BATCH):
            if len(index) < BATCH:
                continue
            clean = torch.from_numpy(images[index.numpy()]).permute(0, 3, 1, 2).float() / 255
            noisy = moved(clean, data == "cifar10", generator)
            noisy = noisy + sigma * torch.randn(noisy.shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(noisy.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1:>3}  loss {total / (steps / epochs):.4f}  {time.perf_counter() - start:6.1f} s",
            flush=True,
        )
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small classifier with Gaussian noise.")
    parser.add_argument("data", choices=sorted(CLASSES))
    parser.add_argument("file", type=Path, help="npz with images (N, 32, 32, 3) uint8 and labels (N,)")
    parser.add_argument("--sigma", type=float, default=0.25, help="standard deviation of the noise, pixels in [0, 1]")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(chosen.file) as held:
        images, labels = held["images"], torch.from_numpy(held["labels"].astype(np.int64))
    model = train(images, labels, chosen.data, chosen.sigma, chosen.epochs, chosen.seed)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = _file(chosen.data, str(chosen.sigma))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, file)
    print(f"written to {file}")


if __name__ == "__main__":
    main()
