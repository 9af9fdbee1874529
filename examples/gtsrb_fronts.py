"""The traffic sign classifier behind steps that hide its gradient, or draw random numbers, without making it any safer.

    robust audit examples/gtsrb_fronts.py:jpeg runs/gtsrb/gtsrb_test.npz --limit 100 --bpda preprocess

Weights are found as in gtsrb_model.py. Without --bpda the audit looks for the step by itself.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Quantize(nn.Module):
    """Rounds to 2^bits levels a channel: a gradient of zero."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.largest = 2**bits - 1

    def forward(self, images: Tensor) -> Tensor:
        return torch.round(images * self.largest) / self.largest


class Jpeg(nn.Module):
    """Saves each image as JPEG and reads it back, outside of torch: no gradient at all."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        coded = np.stack([self._coded(image) for image in pixels])
        return torch.from_numpy(coded).permute(0, 3, 1, 2).to(images) / 255

    def _coded(self, image: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
        return np.asarray(Image.open(buffer))


class Ripple(nn.Module):
    """Adds a ripple that is smaller than an 8-bit step and far too steep to see past."""

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.003 * torch.sin(20_000 * images)


class Noise(nn.Module):
    """Adds Gaussian noise, afresh in every pass."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        return images + self.sigma * torch.randn_like(images)


class Fronted(nn.Module):
    """``classifier(preprocess(images))``."""

    def __init__(self, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.classifier = _classifier()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.preprocess(images))
        return logits


class QuantizedInline(nn.Module):
    """Quantizes in its own forward pass, so that there is no step to name."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = _classifier()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.round(images * 15) / 15)
        return logits


def _classifier() -> nn.Module:
    spec = importlib.util.spec_from_file_location("gtsrb_model", Path(__file__).with_name("gtsrb_model.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.load_model()
    return model


def quantized() -> nn.Module:
    return Fronted(Quantize(bits=4)).eval()


def jpeg() -> nn.Module:
    return Fronted(Jpeg(quality=75)).eval()


def ripple() -> nn.Module:
    return Fronted(Ripple()).eval()


def noisy() -> nn.Module:
    return Fronted(Noise(sigma=0.05)).eval()


def quantized_inline() -> nn.Module:
    return QuantizedInline().eval()
