"""Adversarial training: each method against its formula, and what a long run needs."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import TinyNet
from quarters import quarters
from torch import Tensor, nn
from torch.nn import functional as F

from robust.data import load_data
from robust.defenses.training import METHODS, method
from robust.defenses.training import loop as loop_module
from robust.defenses.training.augmentation import Flip, Shift, augmentation
from robust.defenses.training.averaging import Average
from robust.defenses.training.awp import perturbed
from robust.defenses.training.batch import Batch, Network
from robust.defenses.training.defense import Defense
from robust.defenses.training.guard import Guard
from robust.defenses.training.images import Images, hold_out
from robust.defenses.training.schedule import rate
from robust.defenses.training.validation import Gap
from robust.errors import InputError, RobustError
from robust.models import identify
from robust.threats import ThreatModel

EPS = 0.1
"""Radius of most tests, linf."""


def _small(name: str, **settings: Any) -> Defense:
    chosen = {"epochs": 2, "batch_size": 24, "precision": "float32", "device": "cpu", **settings}
    kind = method(name)
    return kind("patch:2x2" if kind.norms == ("patch",) else f"linf:{EPS}", **chosen)


class Linear(nn.Module):
    """Logits W x + b of (N, 3, 6, 6), two classes: closed forms for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(108, 2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def _batch(model: nn.Module, n: int = 6, threat: str = f"linf:{EPS}", **more: Any) -> Batch:
    images = 0.2 + 0.6 * torch.rand(n, 3, 6, 6)
    return Batch(Network(model, torch.float32), images, torch.arange(n) % 2, ThreatModel.parse(threat), **more)


# Methods


def test_on_a_linear_model_pgd_reaches_the_exact_worst_point() -> None:
    model = Linear()
    batch = _batch(model)
    points = _small("pgd", steps=10).attack(batch)
    other = 1 - batch.labels
    direction = (model.layer.weight[other] - model.layer.weight[batch.labels]).sign().view_as(points)
    assert torch.allclose(points, batch.images + EPS * direction.detach(), atol=1e-6)


def test_one_step_of_fast_stays_inside_and_of_nfgsm_need_not() -> None:
    batch = _batch(Linear())
    fast, nfgsm = (_small(name).attack(batch) for name in ("fast", "nfgsm"))
    assert float((fast - batch.images).abs().max()) <= EPS + 1e-6
    assert EPS < float((nfgsm - batch.images).abs().max()) <= 3 * EPS + 1e-6
    assert 0 <= float(nfgsm.min()) <= float(nfgsm.max()) <= 1


def test_free_carries_its_perturbation_to_the_next_batch() -> None:
    defense, model, memory = _small("free", replays=2), Linear(), {}
    first, second = _batch(model, memory=memory), _batch(model, n=4, memory=memory)
    points = defense.attack(first)
    assert torch.equal(points, first.images)
    gradient = torch.randn_like(points)
    defense.learn(first, gradient)
    assert torch.allclose(defense.attack(first), first.images + EPS * gradient.sign(), atol=1e-6)
    assert torch.allclose(defense.attack(second), second.images + EPS * gradient[:4].sign(), atol=1e-6)


def test_trades_loss_by_hand() -> None:
    model, beta = Linear(), 3.0
    batch = _batch(model)
    points = batch.images.flip(0)
    p, q = (model(at).softmax(1).double().detach() for at in (batch.images, points))
    by_hand = -p[torch.arange(6), batch.labels].log().mean() + beta * (p * (p / q).log()).sum(1).mean()
    assert float(_small("trades", beta=beta).loss(batch, points).detach()) == pytest.approx(float(by_hand), rel=1e-5)


def test_trades_attack_raises_the_divergence_more_than_noise() -> None:
    model = TinyNet().eval()
    batch = _batch(model)
    batch = Batch(batch.network, batch.images, batch.labels, batch.threat)
    clean = model(batch.images).log_softmax(1).detach()

    def divergence(points: Tensor) -> float:
        with torch.no_grad():
            return float(F.kl_div(model(points).log_softmax(1), clean, log_target=True, reduction="sum"))

    points = _small("trades").attack(batch)
    assert float((points - batch.images).abs().max()) <= EPS + 1e-6
    assert divergence(points) > 2 * divergence(batch.noise(EPS))


def test_mart_loss_by_hand() -> None:
    model, weight = Linear(), 2.0
    batch = _batch(model)
    points = batch.images.flip(0)
    p, q = (model(at).softmax(1).double().detach() for at in (batch.images, points))
    rows = torch.arange(6)
    boosted = -q[rows, batch.labels].log() - (1.0001 - q[rows, 1 - batch.labels]).log()
    by_hand = (boosted + weight * (p * (p / q).log()).sum(1) * (1 - p[rows, batch.labels])).mean()
    assert float(_small("mart", weight=weight).loss(batch, points).detach()) == pytest.approx(float(by_hand), rel=1e-5)


def test_smoothadv_attacks_the_mean_of_the_noisy_softmax() -> None:
    model = TinyNet().eval()
    batch = _batch(model, n=4, threat="l2:1.0")
    defense = method("smoothadv")("l2:1.0", sigma=0.1, draws=3, steps=4)
    torch.manual_seed(7)
    points = defense.attack(batch).view(3, 4, 3, 6, 6)
    torch.manual_seed(7)
    noise = 0.1 * torch.randn(3, 4, 3, 6, 6)
    moved = points - noise
    assert torch.allclose(moved[0], moved[2], atol=1e-6), "the same point under every draw"
    assert float((moved[0] - batch.images).flatten(1).norm(dim=1).max()) <= 1 + 1e-5

    def chance(at: Tensor) -> Tensor:
        soft = model((at + noise).flatten(0, 1)).softmax(1).view(3, 4, -1).mean(0)
        return soft[torch.arange(4), batch.labels]

    assert bool((chance(moved[0]) <= chance(batch.images) + 1e-6).all())
    assert bool((chance(moved[0]) < chance(batch.images) - 1e-3).any())
    whole = defense.loss(batch, points.flatten(0, 1))
    by_hand = torch.stack([F.cross_entropy(model(part), batch.labels) for part in points]).mean()
    assert float(whole.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_consistency_loss_by_hand() -> None:
    batch = _batch(Linear())
    defense = method("consistency")("l2:0.5", sigma=0.3, weight=4.0, entropy=0.7)
    points = defense.attack(batch)
    assert float((points - batch.images.repeat(2, 1, 1, 1)).std()) == pytest.approx(0.3, rel=0.1)
    p = batch.network(points).softmax(1).double().view(2, 6, 2)
    mean, rows = p.mean(0), torch.arange(6)
    fit = -p[:, rows, batch.labels].log().mean()
    apart = (mean * (mean / p).log()).sum(2).mean()
    unsure = -(mean * mean.log()).sum(1).mean()
    by_hand = fit + 4 * apart + 0.7 * unsure
    assert float(defense.loss(batch, points).detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_distillation_makes_logits_large_in_proportion_to_the_temperature() -> None:
    def size(temperature: float) -> float:
        defense = _small("distillation", temperature=temperature, epochs=10, learning_rate=0.05)
        found = defense.fit(TinyNet(), quarters(), quarters(48, seed=1))
        assert found.history.epochs[-1].clean > 0.9
        with torch.no_grad():
            return float(found.model(quarters(48, seed=1).batch(range(48))).abs().mean())

    assert size(50) > 4 * size(1)


def test_distillation_of_a_killed_run_trains_its_teacher_once(tmp_path: Path) -> None:
    defense = _small("distillation")
    first = defense.fit(TinyNet(), quarters(), quarters(48, seed=1), out=tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    teacher = (tmp_path / "teacher" / "checkpoint.pt").stat().st_mtime_ns
    again = defense.fit(TinyNet(), quarters(), quarters(48, seed=1), out=tmp_path)
    assert (tmp_path / "teacher" / "checkpoint.pt").stat().st_mtime_ns == teacher
    assert identify(first.model) == identify(again.model)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_fills_the_ball_and_stays_in_it(norm: str) -> None:
    batch = _batch(Linear(), n=200, threat=f"{norm}:{EPS}")
    length = batch.threat.geometry.length(batch.noise(EPS) - batch.images)
    assert float(length.max()) <= EPS + 1e-6
    assert float(length.mean()) > 0.9 * EPS


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_a_model_that_withstands_more(name: str) -> None:
    model, data = TinyNet(), quarters()
    before, flags = identify(model), [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    found = _small(name, epochs=8, fresh=True).fit(model, data, quarters(48, seed=1))
    assert identify(model) == before, "the model given stays as it is"
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state too"
    best = found.history.epochs[found.history.best - 1]
    if name == "bands":  # 6 columns are too few for votes that a patch cannot turn
        assert best.clean > 0.9
    elif name != "distillation":
        assert best.robust > 0.6
    assert not any(module.training for module in found.model.modules())


# The run


def _fit(out: Path | None = None, **settings: Any) -> Any:
    return _small("nfgsm", epochs=3, augment=["shift:1"], **settings).fit(
        TinyNet(), quarters(), quarters(48, seed=1), out=out
    )


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    first, second, other = _fit(), _fit(), _fit(seed=1)
    assert identify(first.model) == identify(second.model) != identify(other.model)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["nfgsm", "free"])
@pytest.mark.parametrize("averaging", ["ema", "swa", "none"])
def test_a_killed_run_goes_on_and_ends_with_the_same_model(
    name: str, averaging: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, held, model = quarters(), quarters(48, seed=1), TinyNet()
    defense = _small(name, epochs=4, averaging=averaging, augment="shift:1")
    whole = defense.fit(model, data, held)
    original, seen = loop_module._Run._step, 0

    def dies_in_the_third_epoch(self: Any, *arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if len(self.epochs) == 2 and seen % 2 == 0:
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module._Run, "_step", dies_in_the_third_epoch)
        with pytest.raises(Killed):
            defense.fit(model, data, held, out=tmp_path)
    assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 2
    again = defense.fit(model, data, held, out=tmp_path)
    assert identify(again.model) == identify(whole.model)
    untimed = [
        [{**vars(epoch), "seconds": 0, "processor": 0} for epoch in run.history.epochs] for run in (again, whole)
    ]
    assert untimed[0] == untimed[1]


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path)
    with pytest.raises(InputError, match="another settings"):
        _fit(tmp_path, weight_decay=0.1)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"checkpoint\.pt"):
        _fit(tmp_path)


class NaNLater(nn.Module):
    """Turns to NaN after some training steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.inner, self.left = TinyNet(), steps

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        self.left -= self.training
        return logits * (float("nan") if self.training and self.left < 0 else 1.0)


def test_divergence_stops_and_keeps_the_best() -> None:
    found = _small("pgd", epochs=4).fit(NaNLater(6), quarters(), quarters(48, seed=1))
    assert "diverged" in found.history.stopped
    assert found.history.best == 1 == len(found.history.epochs)
    assert "epoch 1 are kept" in found.history.remarks[-1]
    assert all(bool(value.isfinite().all()) for value in found.model.state_dict().values())


def test_divergence_before_anything_was_learnt_is_an_error() -> None:
    with pytest.raises(RobustError, match="lower learning_rate"):
        _small("pgd").fit(NaNLater(1), quarters(), quarters(48, seed=1))


def test_early_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    robust = iter([0.5, 0.6, 0.59, 0.4, 0.9])
    monkeypatch.setattr("robust.defenses.training.validation.Held.under_pgd", lambda *_: next(robust))
    found = _small("pgd", epochs=9, patience=2, guard=False).fit(TinyNet(), quarters(), quarters(48, seed=1))
    assert (found.history.best, len(found.history.epochs)) == (2, 4)
    assert "early stop" in found.history.stopped


# The guard


def test_the_guard_knows_collapse_from_a_bad_day() -> None:
    guard = Guard()
    assert not guard.collapsed(Gap(0.50, 0.45))
    assert not guard.collapsed(Gap(0.60, 0.48)), "a wider gap alone, as accuracy rises, is no collapse"
    assert not guard.collapsed(Gap(0.40, 0.35)), "a fall of both is none either"
    assert guard.collapsed(Gap(0.80, 0.10))
    assert guard.collapsed(Gap(0.50, 0.30))


def test_after_a_collapse_the_model_is_back_and_the_step_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_EVERY", 2)  # of the four batches of an epoch
    good, bad = Gap(0.5, 0.45), Gap(0.9, 0.0)
    gaps = iter([good, good, bad, *[good] * 9])
    monkeypatch.setattr("robust.defenses.training.validation.Held.gap", lambda *_: next(gaps))
    put: list[bool] = []
    original = loop_module._Run._put

    def watched(self: Any, weights: Any) -> None:
        before = copy.deepcopy(self.model.state_dict())
        original(self, weights)
        put.append(any(not torch.equal(before[name], value) for name, value in self.model.state_dict().items()))

    monkeypatch.setattr(loop_module._Run, "_put", watched)
    found = _small("nfgsm", epochs=3).fit(TinyNet(), quarters(), quarters(48, seed=1))
    assert put == [True]
    scales = [(epoch.step_scale, epoch.noise_scale, epoch.rollbacks) for epoch in found.history.epochs]
    assert scales == [(1.0, 1.0, 0), (0.75, 1.25, 1), (0.75, 1.25, 1)]
    assert "catastrophic overfitting" in found.history.remarks[0]


# Parts


def test_awp_moves_each_matrix_by_its_share_and_puts_it_back() -> None:
    model, gamma = Linear(), 0.01
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.rand(6, 3, 6, 6), torch.arange(6) % 2

    def loss() -> Tensor:
        return F.cross_entropy(model(images), labels)

    at_rest = float(loss().detach())
    with perturbed(model, loss, gamma):
        moved = model.layer.weight - before["layer.weight"]
        assert float(moved.norm()) == pytest.approx(gamma * float(before["layer.weight"].norm()), rel=1e-4)
        assert torch.equal(model.layer.bias, before["layer.bias"])
        assert float(loss().detach()) > at_rest
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_averages_by_hand() -> None:
    model = Linear()
    values = [float(number) for number in range(1, 9)]

    def averaged(kind: str) -> float:
        with torch.no_grad():
            model.layer.bias.fill_(0.0)
        average = Average(kind, model, 0.9)
        for step, value in enumerate(values, 1):
            with torch.no_grad():
                model.layer.bias.fill_(value)
            average.update(model, step / len(values))
        return float(average.state["layer.bias"][0])

    by_hand = 0.0
    for step, value in enumerate(values, 1):
        keep = min(0.9, (1 + step) / (10 + step))
        by_hand = keep * by_hand + (1 - keep) * value
    assert averaged("ema") == pytest.approx(by_hand)
    assert averaged("swa") == pytest.approx((7 + 8) / 2), "the plain mean of the last quarter"


def test_schedules() -> None:
    rates = [rate("one-cycle", step, 100, 1.0) for step in range(100)]
    assert rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.02)
    assert 15 <= rates.index(max(rates)) <= 25
    assert rates[-1] < 0.01
    assert rate("constant", 7, 100, 0.3) == 0.3
    assert rate("cosine", 49, 100, 1.0) == pytest.approx((1 + math.cos(math.pi * 0.495)) / 2)


def test_augmentations_keep_shape_range_and_content() -> None:
    images = torch.rand(16, 3, 8, 8)
    for name in ("shift:2", "flip", "light", "turn:20", "erase:3"):
        changed = augmentation(name)(images)
        assert changed.shape == images.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert not torch.equal(changed, images)
    flipped = Flip()(images)
    assert all(torch.equal(new, old) or torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True))
    inner = Shift(1)(images)[:, :, 1:-1, 1:-1]
    spots = [images[:, :, 1 + dy : 7 + dy, 1 + dx : 7 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert all(any(torch.equal(inner[at], spot[at]) for spot in spots) for at in range(16))


def test_images_are_kept_as_they_are_read() -> None:
    data = quarters(20)
    kept = Images(data, torch.device("cpu"))
    index = torch.tensor([3, 19, 0])
    images, labels = kept.batch(index)
    assert kept._kept is not None
    assert torch.equal(images, data.batch([3, 19, 0]))
    assert torch.equal(labels, data.labels[index])
    odd = load_data((torch.rand(20, 3, 6, 6), torch.arange(20) % 4))
    assert Images(odd, torch.device("cpu"))._kept is None
    assert torch.equal(Images(odd, torch.device("cpu")).batch(index)[0], odd.batch([3, 19, 0]))


def test_hold_out_takes_its_share_of_every_class() -> None:
    rest, held = hold_out(quarters(80), 0.1, seed=3)
    assert len(rest) == 72
    assert torch.bincount(held.labels).tolist() == [2, 2, 2, 2]
    assert not {image.numpy().tobytes() for image in rest.batch(range(72))} & {
        image.numpy().tobytes() for image in held.batch(range(8))
    }


# Bad input


def _raises(match: str, call: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"epochs": 0}, "epochs 0"), ({"batch_size": 1}, "batch_size 1"), ({"learning_rate": 0.0}, "learning_rate"),
        ({"optimizer": "sdg"}, "sgd"), ({"schedule": "cosin"}, "cosine"), ({"averaging": "emma"}, "ema"),
        ({"precision": "float16"}, "float32"), ({"augment": "filp"}, "flip"), ({"augment": "shift:x"}, "shift:NUMBER"),
        ({"clip": 0}, "clip"), ({"awp": -1}, "awp"), ({"decay": 1.0}, "decay"), ({"patience": 0}, "patience"),
    ],
)  # fmt: skip
def test_bad_settings(settings: dict[str, Any], match: str) -> None:
    _raises(match, lambda: _small("pgd", **settings))


def test_bad_threats_and_names() -> None:
    _raises("did you mean trades", lambda: method("trade"))
    _raises("sigma 0", lambda: method("gaussian")("l2:0.5", sigma=0))
    _raises("temperature 0.5", lambda: method("distillation")("linf:0.1", temperature=0.5))
    _raises("has no l0 form", lambda: method("pgd")("l0:20"))
    _raises("eps is 0", lambda: method("pgd")("linf:0"))
    _raises("did you mean linf:8/255", lambda: method("pgd")("linf:8"))


def test_bad_data() -> None:
    defense, held = _small("pgd"), quarters(48, seed=1)
    three = quarters(60, classes=3)
    _raises(r"no training image of class 3", lambda: defense.fit(TinyNet(), three, held))
    few = quarters(48).take([at for at in range(48) if at % 4 != 2] + [2, 6])
    _raises(r"2 training images of class 2", lambda: defense.fit(TinyNet(), few, held))
    six = load_data((torch.rand(48, 3, 6, 6), torch.arange(48) % 6))
    _raises(r"outside the model's 4 logits", lambda: defense.fit(TinyNet(), six, held))
    _raises(r"outside the model's 4 logits", lambda: defense.fit(TinyNet(), quarters(), six))
    wide = load_data((torch.rand(48, 3, 8, 8), torch.arange(48) % 4))
    _raises("validation: images of shape", lambda: defense.fit(TinyNet(), quarters(), wide))


def test_bad_augmentations() -> None:
    fit = lambda augment: _small("pgd", augment=augment).fit(TinyNet(), quarters(), quarters(48, seed=1))  # noqa: E731
    _raises("must keep the shape", lambda: fit(lambda images: images[:, :1]))
    _raises(r"outside \[0, 1\]", lambda: fit(lambda images: images - 0.5))


def test_a_model_without_weights() -> None:
    _raises("no weights to train", lambda: _small("pgd").fit(nn.Flatten(), quarters(), quarters(48, seed=1)))
