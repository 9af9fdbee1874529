"""The attack lane: agrees with the model, leaves it alone, and steps back wherever it must."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import Detached, Rounding, TinyNet
from torch import Tensor, nn
from torch.nn import functional as F

import robust.lane
from robust import load_model
from robust.attacks import APGD, DDN, PGD, Auto, Square, UniformNoise
from robust.attacks.base import Attack
from robust.calibration import measured_speedup, median_cosine
from robust.copying import Recipe, fast_copy
from robust.counting import CountedModel
from robust.errors import InputError
from robust.folding import fold, watch
from robust.lane import Lane, make_lane
from robust.models import CallableModel, ExportedModel, Normalized, evaluating

BFLOAT16, FLOAT32, PLAIN = "bfloat16, folded", "float32, folded", "plain"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(12, 3, 6, 6)


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(12) % 4


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every copy counts as twice as fast: the choice then rests on agreement alone, on any machine."""
    monkeypatch.setattr(robust.lane, "measured_speedup", lambda *_: 2.0)


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bfloat16 is tried; where the hardware has none, torch computes it slowly."""
    monkeypatch.setattr(robust.lane, "has_bfloat16", lambda _: True)


# Models


class Block(nn.Module):
    """A residual block whose layers are registered in another order than they run in."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm2, self.norm1 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """Stem, body, head; the images are standardized first, by a buffer."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = body
        self.head = nn.Linear(8 * 36, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(F.relu(self.stem_norm(self.stem((images - self.mean) / 0.25))))
        logits: Tensor = self.head(hidden.flatten(1))
        return logits


def settled(model: nn.Module) -> nn.Module:
    """Statistics and scales as after training, in eval mode."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.4
            module.weight.data = torch.rand(module.num_features, generator=generator) + 0.5
            module.bias.data = torch.randn(module.num_features, generator=generator) * 0.2
    return model.eval()


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)[0]


def agree(lane: nn.Module, model: nn.Module, images: Tensor, labels: Tensor, tolerance: float = 1e-4) -> None:
    """Logits and gradient of both are equal to ``tolerance`` of the largest."""
    (logits, slope), (wanted, wanted_slope) = gradient(lane, images, labels), gradient(model, images, labels)
    assert logits.dtype == slope.dtype == torch.float32
    torch.testing.assert_close(logits, wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))
    torch.testing.assert_close(slope, wanted_slope, rtol=0, atol=tolerance * float(wanted_slope.abs().max()))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


# Agreement


@pytest.mark.usefixtures("faster")
def test_float32_lane_is_folded_and_equals_the_model(images: Tensor, labels: Tensor) -> None:
    model = settled(Net(nn.Sequential(Block(), Block())))
    lane = make_lane(model, images, labels, precision="float32")
    assert (lane.report.kind, norms(model), norms(lane)) == (FLOAT32, 5, 0)
    assert "5 batch normalizations folded" in lane.report.detail
    assert lane.report.cosine == pytest.approx(1, abs=1e-6)
    agree(lane, model, torch.rand(5, 3, 6, 6), labels[:5])


@pytest.mark.usefixtures("faster", "with_bfloat16")
def test_bfloat16_lane_is_close_and_its_logits_are_not_rounded(images: Tensor, labels: Tensor) -> None:
    model = settled(Net(nn.Sequential(Block(), Block())))
    lane = make_lane(model, images, labels)
    assert lane.report.kind == BFLOAT16
    assert 0.99 < lane.report.cosine < 1
    logits, slope = gradient(lane, images, labels)
    wanted = model(images).detach()
    assert float((logits - wanted).abs().max() / wanted.abs().max()) < 0.02
    assert not torch.equal(logits, logits.bfloat16().float())
    assert slope.is_contiguous()
    # First and last layer in float32, the four convolutions between them in bfloat16.
    dtypes = [module.weight.dtype for module in lane.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert dtypes == [torch.float32, *[torch.bfloat16] * 4, torch.float32]


@pytest.mark.usefixtures("faster")
def test_cosine_is_the_median_over_images(images: Tensor, labels: Tensor) -> None:
    class Half(nn.Module):
        """For images brighter at the first pixel the gradient has the wrong sign."""

        def forward(self, images: Tensor) -> Tensor:
            sign = torch.where(images[:, :1, :1, :1] > 0.5, -1.0, 1.0)
            return (images.detach() + sign * (images - images.detach())).flatten(1)[:, :4]

    _, found = gradient(Half(), images, labels)
    _, right = gradient(nn.Sequential(nn.Flatten(), Slice()), images, labels)
    cosines = [float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0)) for a, b in zip(found, right, strict=True)]
    assert {round(value) for value in cosines} == {-1, 1}
    assert median_cosine(found, right) == pytest.approx(sorted(cosines)[5])


class Slice(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values[:, :4]


@pytest.mark.usefixtures("faster", "with_bfloat16")
def test_bfloat16_that_loses_the_gradient_steps_back_to_float32(images: Tensor, labels: Tensor) -> None:
    class Waves(nn.Module):
        """The sine of large numbers: rounded to bfloat16 they land anywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8 * 36, 4)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head((self.conv2(self.conv1(images)) * 2000).sin().flatten(1))
            return logits

    lane = make_lane(Waves().eval(), images, labels)
    assert lane.report.kind == FLOAT32
    assert "bfloat16, folded: gradient cosine" in lane.report.detail
    assert lane.report.cosine > 0.99


@pytest.mark.usefixtures("faster", "with_bfloat16")
def test_bfloat16_that_changes_classes_steps_back_to_float32(images: Tensor, labels: Tensor) -> None:
    class Ties(nn.Module):
        """Logits that differ in the fourth digit."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 4)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.conv2(self.conv1(images)).flatten(1)
            return logits

    model = Ties().eval()
    model.conv2.bias.data += 1000
    lane = make_lane(model, images, labels)
    assert lane.report.kind == FLOAT32
    assert "same class on" in lane.report.detail


@pytest.mark.usefixtures("faster", "with_bfloat16")
def test_rounded_activations_that_tie_are_kept_in_float32(labels: Tensor) -> None:
    class Pooled(nn.Module):
        """What max-pooling compares differs in the fourth digit."""

        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 2)
            self.head = nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            pooled = F.max_pool2d(self.conv1(images), 3) - 100
            logits: Tensor = self.head(self.conv2(pooled).flatten(1))
            return logits

    model = Pooled().eval()
    model.conv1.bias.data += 100
    lane = make_lane(model, torch.rand(12, 3, 6, 6), labels)
    assert lane.report.kind == BFLOAT16
    assert lane.report.cosine > 0.99
    assert lane.report.detail.startswith("bfloat16, folded, first activations float32: 2.00 times as fast")
    assert "; bfloat16, folded: gradient cosine" in lane.report.detail


# Folding


class Custom(nn.Module):
    """A body whose forward pass is given by a function of its layers and the input."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.how(self, x)
        return result


def _branch(body: Custom, x: Tensor) -> Tensor:
    norm = body.norm if float(x.detach().mean()) > 0.5 else body.norm2
    hidden: Tensor = norm(body.conv(x)) + body.conv2(x)
    return hidden


# How many of the body's two normalizations may be folded, the stem's not counted; None: nothing at all may be.
BODIES = {
    "one after the other": (lambda b, x: b.norm2(b.conv2(b.norm(b.conv(x)).relu())), 2),
    "crossed": (lambda b, x: b.norm(b.conv2(b.norm2(b.conv(x)).relu())), 2),
    "convolution used twice": (lambda b, x: b.norm(b.conv(b.conv(x))) + b.norm2(b.conv2(x)), 1),
    "normalization used twice": (lambda b, x: b.norm(b.conv(x)) + b.norm(b.conv2(x)) + b.norm2(x), 0),
    "block used twice": (lambda b, x: b.norm(b.conv(b.norm(b.conv(x)).relu())) + b.norm2(b.conv2(x)), 1),
    "something between": (lambda b, x: b.norm(b.conv(x)) + b.norm2(b.conv2(x) + 1), 1),
    "two normalizations of one convolution": (lambda b, x: _both(b.conv(x), b) + b.conv2(x), None),
    "in place between": (lambda b, x: b.norm(b.conv(x).relu_()) + b.norm2(b.conv2(x)), 1),
    "normalization first": (lambda b, x: b.conv2(b.norm2(b.conv(b.norm(x)))), 1),
    "output read elsewhere": (lambda b, x: _read_twice(b.conv(x), b) + b.norm2(b.conv2(x)), None),
    "weights read elsewhere": (lambda b, x: b.norm(b.conv(x)) * b.norm.weight.sum() + b.norm2(b.conv2(x)), None),
    "branch": (_branch, None),
}


def _both(hidden: Tensor, body: Custom) -> Tensor:
    normed: Tensor = body.norm(hidden) + body.norm2(hidden)
    return normed


def _read_twice(hidden: Tensor, body: Custom) -> Tensor:
    normed: Tensor = body.norm(hidden)
    return normed + hidden


@pytest.mark.usefixtures("faster")
@pytest.mark.parametrize("name", BODIES)
def test_only_what_may_be_folded_is(name: str, images: Tensor, labels: Tensor) -> None:
    how, folded = BODIES[name]
    model = settled(Net(Custom(how)))
    lane = make_lane(model, images, labels, precision="float32")
    assert lane.report.kind == FLOAT32
    assert norms(model) - norms(lane) == (0 if folded is None else folded + 1)
    for shade in (0.2, 0.9):
        agree(lane, model, images * 0.1 + shade, labels)


def test_folding_keeps_weights_that_are_shared() -> None:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    model = settled(nn.Sequential(first, nn.BatchNorm2d(3), second, nn.Flatten())).requires_grad_(False)
    images = torch.rand(2, 3, 5, 5)
    wanted = model(images)
    assert fold(model, images) == 1
    torch.testing.assert_close(model(images), wanted)


def test_statistics_of_the_batch_are_not_folded() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()))
    model[1].running_mean = model[1].running_var = None
    assert fold(model, torch.rand(2, 3, 5, 5)) == 0


def test_watching_leaves_no_hook_behind(tiny_model: nn.Module, tiny_images: Tensor) -> None:
    seen = watch(tiny_model, tiny_images)
    assert seen.last is tiny_model.head
    assert not any(module._forward_hooks for module in tiny_model.modules())


@pytest.mark.usefixtures("faster")
def test_a_model_that_needs_its_memory_layout_gets_it(images: Tensor, labels: Tensor) -> None:
    class Views(TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.conv(images).view(len(images), -1))
            return logits

    model = Views().eval()
    lane = make_lane(model, images, labels, precision="float32")
    assert lane.report.kind == FLOAT32
    assert "not channels-last" in lane.report.detail
    agree(lane, model, images, labels)


# Models that run as they are, or step back


class Straight(torch.autograd.Function):
    """Rounds forward, the identity backward."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return (values * 8).round() / 8

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


@pytest.mark.usefixtures("faster")
def test_custom_autograd_keeps_its_backward_pass(images: Tensor, labels: Tensor) -> None:
    model = settled(Net(Custom(lambda body, x: Straight.apply(body.norm(body.conv(x))) + body.norm2(body.conv2(x)))))
    lane = make_lane(model, images, labels, precision="float32")
    assert lane.report.kind == FLOAT32
    logits, slope = gradient(lane, images, labels)
    wanted, wanted_slope = gradient(model, images, labels)
    assert float((logits - wanted).abs().mean()) < 0.01  # a value on the edge may round the other way
    assert float(F.cosine_similarity(slope.flatten(1), wanted_slope.flatten(1)).min()) > 0.98


@pytest.mark.usefixtures("faster")
def test_a_network_that_is_no_submodule_is_copied_too(images: Tensor, labels: Tensor) -> None:
    class Hides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [TinyNet().eval()]

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.parts[0](images)
            return logits

    model = Hides().eval()
    lane = make_lane(model, images, labels, precision="float32")
    assert lane.report.kind == FLOAT32
    assert model.parts[0].conv.weight.requires_grad
    agree(lane, model, images, labels)


class Copied(TinyNet):
    """Hands itself out as its own copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        return self


class Locked(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Noisy(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 0.1 * torch.randn_like(images))


class Coupled(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0, keepdim=True))


class Infinite(TinyNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * torch.inf


class Sees(TinyNet):
    """Fails on a copy of itself only: it knows its own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.known = id(self.conv)

    def forward(self, images: Tensor) -> Tensor:
        if id(self.conv) != self.known:
            raise RuntimeError("not my convolution")
        return super().forward(images)


def _hooked() -> nn.Module:
    model = TinyNet()
    model.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def _weight_normed() -> nn.Module:
    model = TinyNet()
    model.conv = nn.utils.weight_norm(model.conv)
    return model


def _exported() -> nn.Module:
    program = torch.export.export(TinyNet().eval(), (torch.rand(2, 3, 6, 6),))
    return ExportedModel(program.module(), 2, 2)


STEP_BACK = {
    "function": (lambda: CallableModel(TinyNet().eval()), "a function"),
    "function behind normalization": (lambda: Normalized(CallableModel(TinyNet().eval()), [0.5], [0.2]), "a function"),
    "TorchScript": (lambda: torch.jit.script(TinyNet().eval()), "TorchScript"),
    "TorchScript within": (lambda: nn.Sequential(torch.jit.script(TinyNet().eval())), "TorchScript"),
    "exported": (_exported, "exported"),
    "hooks": (_hooked, "hooks on Conv2d"),
    "weight normalization by hook": (_weight_normed, "hooks on Conv2d"),
    "double precision": (lambda: nn.Sequential(Doubling(), TinyNet().double()), "not float32"),
    "random": (Noisy, "change from call to call"),
    "coupled images": (Coupled, "other images of the batch"),
    "detached": (lambda: Detached(TinyNet()), "no gradient reaches"),
    "rounded": (lambda: Rounding(TinyNet()), "vanishes"),
    "not finite": (Infinite, "not finite"),
    "copies itself to itself": (Copied, "shares parts"),
    "cannot be copied": (Locked, "pickle"),
    "fails when copied": (Sees, "not my convolution"),
    "fails": (lambda: nn.Conv2d(7, 3, 3), "gradient pass failed"),
}


class Doubling(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.double()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*weight_norm:FutureWarning")
@pytest.mark.usefixtures("faster", "with_bfloat16")
@pytest.mark.parametrize("name", STEP_BACK)
def test_a_model_without_a_lane_of_its_own_runs_as_it_is(name: str, images: Tensor, labels: Tensor) -> None:
    build, reason = STEP_BACK[name]
    model = build().eval()
    lane = make_lane(model, images, labels)
    assert (lane.report.kind, lane.report.cosine, lane.report.speedup) == (PLAIN, 1.0, 1.0)
    assert reason in lane.report.detail
    if name == "fails":
        return
    torch.manual_seed(5)
    before = torch.get_rng_state()
    make_lane(model, images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    wanted = model(images).float()
    torch.manual_seed(5)
    found = lane(images)
    assert found.dtype == torch.float32
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())


@pytest.mark.usefixtures("with_bfloat16")
def test_a_copy_that_is_not_faster_is_not_used(
    images: Tensor, labels: Tensor, tiny_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust.lane, "measured_speedup", lambda *_: 1.09)
    lane = make_lane(tiny_model, images, labels)
    assert lane.report.kind == PLAIN
    assert lane.report.detail == "; ".join(f"{kind}: only 1.09 times as fast" for kind in (BFLOAT16, FLOAT32))


@pytest.mark.usefixtures("with_bfloat16")
def test_the_faster_of_two_copies_is_used(
    images: Tensor, labels: Tensor, tiny_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speedup(model: nn.Module, network: Any, *_: Tensor) -> float:
        return 1.27 if network.dtype == torch.bfloat16 else 1.3

    monkeypatch.setattr(robust.lane, "measured_speedup", speedup)
    report = make_lane(tiny_model, images, labels).report
    assert (report.kind, report.speedup) == (FLOAT32, 1.3)


def test_speedup_is_measured(images: Tensor, labels: Tensor, tiny_model: nn.Module) -> None:
    class Fourfold(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return sum((tiny_model(images) for _ in range(4)), torch.zeros(()))

    assert measured_speedup(Fourfold(), tiny_model, images, labels) > 1.5
    assert measured_speedup(tiny_model, Fourfold(), images, labels) < 0.67


def test_without_bfloat16_hardware_only_float32_is_tried(
    images: Tensor, labels: Tensor, tiny_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust.lane, "has_bfloat16", lambda _: False)
    monkeypatch.setattr(robust.lane, "measured_speedup", lambda *_: 1.2)
    report = make_lane(tiny_model, images, labels).report
    assert report.kind == FLOAT32
    assert "bfloat16" not in report.detail


@pytest.mark.parametrize("kind", [BFLOAT16, FLOAT32, PLAIN])
def test_a_kind_is_repeated_however_fast_it_is(
    kind: str, images: Tensor, labels: Tensor, tiny_model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust.lane, "measured_speedup", lambda *_: 0.5)
    lane = make_lane(tiny_model, images, labels, kind=kind)
    assert lane.report.kind == kind
    again = make_lane(tiny_model, images, labels, kind=kind)
    assert torch.equal(lane(images), again(images))


def test_plain_can_be_asked_for(images: Tensor, labels: Tensor, tiny_model: nn.Module) -> None:
    assert make_lane(tiny_model, images, labels, precision="plain").report.kind == PLAIN
    assert make_lane(tiny_model, images[:0], labels[:0]).report.detail == "no images to calibrate on"


def test_bad_input_is_said_in_one_line(images: Tensor, labels: Tensor, tiny_model: nn.Module) -> None:
    with pytest.raises(InputError, match="did you mean float32"):
        make_lane(tiny_model, images, labels, precision="float23")
    with pytest.raises(InputError, match="unknown kind of lane 'folded'"):
        make_lane(tiny_model, images, labels, kind="folded")
    with pytest.raises(InputError, match="12 images and 3 labels"):
        make_lane(tiny_model, images, labels[:3])


# The model stays as it is


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modules": [id(module) for module in model.modules()],
        "parameters": [(id(p), p.requires_grad, str(p.dtype), p.stride()) for p in model.parameters()],
        "without": [name for name, p in model.named_parameters() if p.grad is None],
        "gradients": [p.grad.clone() for p in model.parameters() if p.grad is not None],
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


@pytest.mark.usefixtures("faster", "with_bfloat16")
@pytest.mark.parametrize("precision", ["auto", "float32", "plain"])
def test_the_model_is_untouched(precision: str, images: Tensor, labels: Tensor) -> None:
    model = settled(Net(Block())).train()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(4)
    before, random = _state(model), torch.get_rng_state()
    lane = make_lane(model, images, labels, precision=precision)
    gradient(lane, images, labels)
    after = _state(model)
    torch.testing.assert_close(after.pop("weights"), before.pop("weights"), rtol=0, atol=0)
    assert torch.equal(after.pop("gradients")[-1], before.pop("gradients")[-1])
    assert after == before
    assert torch.equal(torch.get_rng_state(), random)
    with evaluating(model):
        wanted = model(images)
    # In eval mode, though the model is in training mode.
    torch.testing.assert_close(lane(images), wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.usefixtures("faster", "with_bfloat16")
@pytest.mark.parametrize("precision", ["auto", "float32", "plain"])
def test_evidence_is_the_model_and_no_part_of_the_lane(precision: str, images: Tensor, labels: Tensor) -> None:
    model = settled(Net(Block()))
    lane = make_lane(model, images, labels, precision=precision)
    assert lane.evidence is model
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    assert not any(id(part) in own for part in (*lane.modules(), *lane.parameters(), *lane.buffers()))
    assert not any(parameter.requires_grad for parameter in lane.parameters())
    again = copy.deepcopy(lane)
    assert isinstance(again, Lane)
    assert again.evidence is model
    torch.testing.assert_close(again(images), lane(images))


@pytest.mark.usefixtures("faster")
def test_inference_mode_outside_does_not_matter(images: Tensor, labels: Tensor, tiny_model: nn.Module) -> None:
    with torch.inference_mode():
        lane = make_lane(tiny_model, images * 1, labels * 1, precision="float32")
    assert lane.report.kind == FLOAT32
    agree(lane, tiny_model, images, labels)


@pytest.mark.usefixtures("faster", "with_bfloat16")
def test_an_attack_on_the_lane_fools_the_model_as_often(images: Tensor, labels: Tensor) -> None:
    model = settled(Net(Block()))
    labels = model(images).argmax(1)
    lane = make_lane(model, images, labels)
    assert lane.report.kind == BFLOAT16
    attack = PGD(0.1, steps=10)
    fooled = [int((model(attack(victim, images, labels)).argmax(1) != labels).sum()) for victim in (model, lane)]
    assert fooled[0] > 3
    assert abs(fooled[0] - fooled[1]) <= 1


def test_float32_recipe_on_real_weights(robust_data: Path) -> None:
    model = load_model(f"{robust_data}/zoo.py:cifar_resnet20").requires_grad_(False)
    images = torch.rand(4, 3, 32, 32)
    logits = model(images)
    network, folded = fast_copy(model, Recipe(torch.float32, torch.channels_last), images, logits)
    assert folded == 19
    agree(network, model, images, logits.argmin(1))


# Attacks on a lane


class Seen(nn.Module):
    """A copy that answers as told, and counts the images it sees."""

    def __init__(self, model: nn.Module, sign: float = 1.0) -> None:
        super().__init__()
        self.model, self.sign, self.images = model, sign, 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return self.sign * self.model(images)


@pytest.mark.parametrize(
    "attack", [PGD(0.001, steps=7), Auto(0.001), Auto(0.02, norm="l1"), Auto(1, norm="l0")],
    ids=lambda attack: f"{attack.name}-{attack.norm}",
)  # fmt: skip
def test_an_image_never_leaves_on_the_copys_word(attack: Attack, images: Tensor) -> None:
    model = TinyNet().eval()
    labels = model(images).argmax(1)
    liar = Seen(model, sign=-1.0)
    with torch.no_grad():
        assert not bool((liar(images).argmax(1) == labels).any()), "the copy must claim that every image is fooled"
    liar.images = 0
    counted = CountedModel(model, liar)
    found = attack(counted, images, labels)
    standing = int((model(found).argmax(1) == labels).sum())
    assert standing > 6
    assert liar.images >= 7 * standing


def test_what_the_copy_finds_is_counted_with_what_the_model_confirms(images: Tensor) -> None:
    model = TinyNet().eval()
    labels = model(images).argmax(1)
    copied = CountedModel(model, Seen(model))
    plain = CountedModel(model)
    attack = PGD(0.05, steps=5)
    assert torch.equal(attack(copied, images, labels), attack(plain, images, labels))
    broken = int((model(attack(plain, images, labels)).argmax(1) != labels).sum())
    assert broken > 0
    attack(copied, images, labels)
    assert copied.passes.backward == plain.passes.backward
    assert copied.evidence.passes.forward > 0


@pytest.mark.parametrize(
    "attack", [APGD(0.02, steps=3), Square(0.02, queries=5), UniformNoise(0.02), DDN(0.5, norm="l2", steps=3)],
    ids=lambda attack: attack.name,
)  # fmt: skip
def test_other_attacks_are_given_the_model_itself(attack: Attack, images: Tensor) -> None:
    model = TinyNet().eval()
    copy_ = Seen(model)
    attack(CountedModel(model, copy_), images, model(images).argmax(1))
    assert copy_.images == 0


def test_an_audit_on_the_copy_says_so_and_breaks_as_many(faster: None, with_bfloat16: None, tmp_path: Path) -> None:
    found = [robust.audit(limit=24, attacks=["pgd(steps=5)"], precision=precision) for precision in ("auto", "plain")]
    assert [summary.settings.lane for summary in found] == [BFLOAT16, PLAIN]
    robustness = [summary.threats[0].robust_accuracy.value for summary in found]
    assert abs(robustness[0] - robustness[1]) <= 1 / 24
    assert "--precision" in found[1].settings.command or "precision='plain'" in found[1].settings.command
