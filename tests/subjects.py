"""Small models and images to audit, with robust accuracies known in closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SHAPE = (3, 6, 6)
CLASSES = 4


class LinearModel(nn.Module):
    """Logits of a fixed linear map, the same for the same seed."""

    def __init__(self, seed: int = 0, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.head = nn.Linear(int(np.prod(SHAPE)), classes)
        self.head.weight.data = torch.randn(self.head.weight.shape, generator=generator)
        self.head.bias.data.zero_()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head((images - 0.5).flatten(1))
        return logits


def images_of(model: nn.Module, n: int = 40, wrong: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images away from the box's ends with the model's own labels, the first ``wrong`` of them mislabeled."""
    images = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return images, labels


def distances(model: LinearModel, images: Tensor, labels: Tensor, norm: str) -> np.ndarray:
    """The exact distance of each image to the nearest other class, in numpy, while the box does not bind."""
    weights, bias = model.head.weight.detach().double().numpy(), model.head.bias.detach().double().numpy()
    logits = (images.double().numpy() - 0.5).reshape(len(images), -1) @ weights.T + bias
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    found = np.zeros(len(images))
    for i, label in enumerate(labels.tolist()):
        others = [k for k in range(len(bias)) if k != label]
        gaps = [
            (logits[i, label] - logits[i, k]) / np.linalg.norm(weights[label] - weights[k], ord=dual) for k in others
        ]
        found[i] = max(min(gaps), 0.0)
    return found


class Unproven(LinearModel):
    """The same, in a form that bounds cannot follow, so that attacks meet the images that stand."""

    def forward(self, images: Tensor) -> Tensor:
        if not bool(images.isfinite().all()):
            raise ValueError("images must be finite")
        return super().forward(images)


class Masked(nn.Module):
    """A model behind something that hides its gradient or its answer."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "quantize":
            return self._logits(torch.round(images * 15) / 15)
        if self.how == "noise":
            return self._logits(images + 0.05 * torch.randn_like(images))
        if self.how == "detach":
            return self._logits(images.detach())
        if self.how == "softmax":
            return (self._logits(images) * 20).softmax(1)
        if self.how == "saturate":
            return self._logits(images) * 1e4
        if self.how == "batch":
            return self._logits(images - images.mean(0, keepdim=True) + 0.5)
        raise AssertionError(self.how)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits


def write_factory(path: object, body: str = "") -> None:
    """A model file for the command: a factory of :class:`LinearModel`, with ``body`` run on each forward pass."""
    from pathlib import Path

    Path(str(path)).write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from subjects import LinearModel\n"
        "class Model(LinearModel):\n"
        "    def forward(self, images):\n"
        f"        {body or 'pass'}\n"
        "        return super().forward(images)\n"
        "def load():\n"
        "    return Model()\n"
    )


def write_npz(path: object, n: int = 40) -> tuple[Tensor, Tensor]:
    """An .npz of 8-bit images for :class:`LinearModel`; returns them as (images, labels)."""
    images, _ = images_of(LinearModel(), n)
    array = (images.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    images = torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        labels = LinearModel()(images).argmax(1)
    labels[:4] = (labels[:4] + 1) % CLASSES
    np.savez(str(path), images=array, labels=labels.numpy(), class_names=np.array(["stop", "yield", "go", "30"]))
    return images, labels
