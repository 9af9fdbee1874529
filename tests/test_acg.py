"""ACG: its directions against the formula written out, and its verdicts beside APGD's and ART's."""

from __future__ import annotations

import contract
import numpy as np
import pytest
import torch
from oracles import EPS, Recording
from torch import Tensor, nn

from robust.attacks import ACG, APGD
from robust.attacks.apgd import _start, _Task
from robust.attacks.base import Goal
from robust.attacks.losses import margin
from robust.randomness import image_seeds
from robust.threats import NORMS


def literal(model: nn.Module, image: Tensor, label: Tensor, eps: float, norm: str, steps: int) -> list[Tensor]:
    """The points of the first steps, before any checkpoint, for one image (1, C, H, W)."""
    task = _Task(model, margin, NORMS[norm], image, Goal(label), Goal(label), torch.tensor([eps], dtype=image.dtype),
                 image_seeds(image, 0), 0, 1)  # fmt: skip
    point = NORMS[norm].project(_start(task, image, task.eps, torch.tensor([0])), image, eps)
    points, direction, before = [point], None, None
    for _ in range(steps):
        leaf = points[-1].clone().requires_grad_()
        logits = model(leaf)[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        (gradient,) = torch.autograd.grad(others.max() - logits[label], leaf)
        if direction is None:
            direction = gradient
        else:
            # Hestenes and Stiefel for the descent on minus the loss: <g', g' - g> / <d, g' - g>, all of the descent.
            new, old = -gradient.flatten(), -before.flatten()
            beta = (new @ (new - old)) / (direction.flatten() @ (new - old))
            direction = gradient + beta * direction
        before = gradient
        step = direction.sign() if norm == "linf" else direction / direction.norm()
        moved = points[-1] + 2 * eps * step - image
        moved = moved.clamp(-eps, eps) if norm == "linf" else moved * min(1.0, float(eps / moved.norm()))
        points.append((image + moved).clamp(0, 1))
        if (points[-1] - points[-2]).abs().max() < 1e-3 * eps:
            break  # from here on beta is a ratio of rounding errors
    return points


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_steps_follow_the_conjugate_directions(norm: str) -> None:
    model, images = contract.net(dtype=torch.float64), contract.batch(12, dtype=torch.float64)
    labels = contract.predictions(model, images)
    eps, compared = EPS[norm] / 4, 0
    for i in range(12):
        watched, image, label = Recording(model), images[i : i + 1], labels[i : i + 1]
        ACG(eps, norm=norm, steps=60)(watched, image, label)
        if watched.calls < 15:
            continue
        wanted = literal(model, image, label, eps, norm, 10)
        for seen, point in zip(watched.seen[1:], wanted, strict=False):
            torch.testing.assert_close(seen, point, rtol=0, atol=1e-8)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_breaks_about_what_apgd_breaks(norm: str) -> None:
    model, images = contract.net(), contract.batch(200)
    labels = contract.predictions(model, images)
    settings = {"norm": norm, "steps": 50}
    own = contract.predictions(model, ACG(EPS[norm] / 2, **settings)(model, images, labels)) != labels
    its = contract.predictions(model, APGD(EPS[norm] / 2, loss="margin", **settings)(model, images, labels)) != labels
    assert 20 < its.sum() < 180
    assert abs(int(own.sum()) - int(its.sum())) <= 4


def test_beside_art() -> None:
    from art.attacks.evasion import AutoConjugateGradient
    from art.estimators.classification import PyTorchClassifier

    model, images = contract.net(), contract.batch(200)
    labels = contract.predictions(model, images)
    eps = EPS["linf"] / 2
    classifier = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 6, 6), nb_classes=4, clip_values=(0, 1), device_type="cpu"
    )
    attack = AutoConjugateGradient(
        classifier, norm=np.inf, eps=eps, eps_step=2 * eps, max_iter=50, nb_random_init=1, batch_size=200,
        loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    theirs = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    its = contract.predictions(model, theirs) != labels
    own = contract.predictions(model, ACG(eps, steps=50, loss="ce")(model, images, labels)) != labels
    assert 20 < its.sum() < 180
    assert int(own.sum()) >= int(its.sum()) - 4
