"""The package on a device that is not the CPU: everything stays there, and comes out as it does on the CPU.

The device is simulated (see :mod:`second_device`): what is shown is that no two devices meet and nothing is read from
the wrong one. That CUDA itself computes the same is not.
"""

from __future__ import annotations

import contract
import pytest
import second_device
import torch
from contract import Case
from oracles import EPS
from second_device import NAME, Elsewhere
from test_attacks import EACH
from torch import Tensor, nn

from robust.attacks import FGSM
from robust.attacks.base import Goal, Model

pytestmark = pytest.mark.skipif(bool(second_device.MISSING), reason=f"NO DEVICE IS SIMULATED: {second_device.MISSING}")


@pytest.fixture(autouse=True)
def _generators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", second_device.Generator)


def there(model: nn.Module) -> nn.Module:
    return model.to(NAME)


# Attacks


@pytest.mark.parametrize(("case", "norm"), EACH)
def test_an_attack_finds_there_what_it_finds_here(case: Case, norm: str) -> None:
    images = contract.batch(4)
    labels = contract.predictions(contract.net(), images)
    labels[1] = (labels[1] + 1) % 4
    eps = EPS[norm] * torch.tensor([1.0, 1.0, 0.0, 2.0])
    expected = case(eps, norm)(contract.net(), images, labels)
    found = case(eps, norm)(there(contract.net()), images.to(NAME), labels.to(NAME))
    assert isinstance(found, Elsewhere)
    assert torch.equal(found.cpu(), expected)
    assert (expected != images).any()


class Careless(FGSM):
    """FGSM with one tensor left on the CPU, in the way that ``how`` says."""

    how = ""

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        n = len(images)
        if self.how == "arithmetic":
            images = images + torch.zeros(n, 1, 1, 1)
        elif self.how == "indices":
            images = images.gather(0, torch.zeros(images.shape, dtype=torch.long))
        elif self.how == "assignment":
            torch.zeros(n)[goal.labels >= 0] = 1
        elif self.how == "labels":
            nn.functional.cross_entropy(model(images), goal.labels.cpu())
        elif self.how == "generator":
            images = images + torch.randn(n, 1, 1, 1, device=images.device, generator=torch.Generator())
        elif self.how == "joined":
            images = torch.cat([images, torch.zeros(images.shape)])[:n]
        elif self.how == "in place":
            torch.zeros(images.shape).add_(images)
        elif self.how == "number":
            torch.zeros(()).add_(images.sum())
        elif self.how == "numpy":
            images.numpy()
        return super().run(model, images, goal, eps, seeds)


@pytest.mark.parametrize(
    "how", ["arithmetic", "indices", "assignment", "labels", "generator", "joined", "in place", "number", "numpy"]
)
def test_the_device_refuses_what_cuda_refuses(how: str) -> None:
    """Each of these runs on the CPU, and on CUDA raises what it raises here."""
    attack = type("Careless", (Careless,), {"how": how})(EPS["linf"])
    images = contract.batch(4)
    labels = contract.predictions(contract.net(), images)
    attack(contract.net(), images, labels)
    with pytest.raises((RuntimeError, TypeError), match=r"same device|device type for generator|numpy"):
        attack(there(contract.net()), images.to(NAME), labels.to(NAME))


def test_the_device_takes_what_cuda_takes() -> None:
    images = torch.rand(4, 3)
    far = images.to(NAME)
    assert torch.equal((far * torch.tensor(2.0)).cpu(), images * 2)
    assert torch.equal(far[torch.tensor([2, 0])].cpu(), images[[2, 0]])
    far[torch.tensor([True, False, False, True])] = torch.tensor(0.5)
    far[1] = torch.ones(3)
    assert far[0].tolist() == [0.5] * 3
    assert far[1].tolist() == [1.0] * 3
    assert torch.zeros(4, 3).copy_(far).sum() == far.sum().item()
