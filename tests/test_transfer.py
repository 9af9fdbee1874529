"""Transfer: gradients from surrogates alone, in closed form on linear models, and as a sentinel of the audit."""

from __future__ import annotations

from pathlib import Path

import contract
import pytest
import torch
from oracles import EPS, Linear, Recording, linear_gain, same, state_of
from subjects import LinearModel, Unproven, images_of, write_factory, write_npz
from torch import Tensor, nn
from typer.testing import CliRunner

import robust
from robust.attacks import Transfer
from robust.attacks.registry import build
from robust.attacks.transfer import _shrunk, _smoothed
from robust.cli import app
from robust.errors import InputError, NoGradientError

PLAIN = {"diversity": 0.0, "kernel": 1, "loss": "margin"}


def two_classes(slope: Tensor, lead: float = 50.0) -> Linear:
    """Class 0 leads by so much that no image of the box is of class 1."""
    return Linear(torch.stack([0 * slope, slope]), torch.tensor([lead, 0.0]).to(slope))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_climbs_the_surrogate_to_the_best_point_of_the_ball(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    slope, images = (torch.randn(n, 48, generator=generator, dtype=torch.float64) for n in (1, 5))
    images = (0.5 + 0.1 * images).clamp(0.3, 0.7).view(5, 3, 4, 4)
    model = two_classes(slope[0])
    found = Transfer(0.05, norm=norm, surrogates=(model,), **PLAIN)(model, images, torch.zeros(5, dtype=torch.long))
    for image, point in zip(images, found, strict=True):
        best = linear_gain(norm, slope[0].numpy(), image.flatten().numpy(), 0.05)
        assert float(slope[0] @ (point - image).flatten()) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("ensemble", ["logits", "loss"])
def test_follows_the_mean_of_its_surrogates(ensemble: str) -> None:
    first, second = torch.tensor([3.0, -1.0, 1.0, -2.0]), torch.tensor([-1.0, -1.0, 2.0, 5.0])
    surrogates = (two_classes(first), two_classes(second))
    image = torch.full((1, 1, 2, 2), 0.5)
    attack = Transfer(0.1, surrogates=surrogates, steps=5, ensemble=ensemble, **PLAIN)
    found = attack(two_classes(0 * first), image, torch.tensor([0]))
    torch.testing.assert_close(found.flatten(), 0.5 + 0.1 * (first + second).sign())


def test_ensembles_differ_where_one_surrogate_is_sure() -> None:
    """Cross-entropy at mean logits weighs all slopes alike; the mean loss forgets a surrogate that is sure."""
    unsure, sure = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([-2.0, -2.0, -2.0, -2.0])
    surrogates = (two_classes(unsure, 2.0), two_classes(-sure, 30.0), two_classes(2 * sure, 30.0))
    image = torch.full((1, 1, 2, 2), 0.5)
    for ensemble, sign in (("logits", -1), ("loss", 1)):
        attack = Transfer(0.1, surrogates=surrogates, steps=5, ensemble=ensemble, diversity=0.0, kernel=1)
        found = attack(two_classes(0 * unsure), image, torch.tensor([0]))
        torch.testing.assert_close(found.flatten(), torch.full((4,), 0.5 + 0.1 * sign))


def test_the_model_gives_answers_only_and_solved_images_leave() -> None:
    model, images = contract.net(), contract.batch(20)
    labels = contract.predictions(model, images)
    watched, surrogate = Recording(model), Recording(contract.net())
    surrogate.train()
    before = state_of(surrogate)
    found = Transfer(EPS["linf"], surrogates=(surrogate,), steps=8)(watched, images, labels)
    assert same(state_of(surrogate), before)
    sizes = [len(seen) for seen in watched.seen]
    left = int((contract.predictions(model, found) == labels).sum())
    assert watched.backward_images == 0
    assert sizes[:2] == [20, 20]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < left <= sizes[-1] < 20
    assert surrogate.backward_images == sum(sizes[1:])


def test_a_model_without_gradients_falls_to_its_twin() -> None:
    model, images = contract.net(), contract.batch(40)
    labels = contract.predictions(model, images)
    blind = contract.Detached(model)
    found = Transfer(EPS["linf"], surrogates=(contract.net(),), steps=10, **PLAIN)(blind, images, labels)
    assert (contract.predictions(model, found) != labels).float().mean() > 0.5


class TestInputs:
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def test_shrunk_copies_lie_inside_the_frame(self) -> None:
        white = torch.ones_like(self.images)
        for corner in (0.0, 0.5, 0.999):
            draws = torch.tensor([[0.999, corner, corner, 0.0]] * 3)
            seen = _shrunk(white, draws, 0.5)
            assert seen.shape == white.shape
            # Nothing of the copy is cut off: its area is 0.8 squared of the frame's.
            torch.testing.assert_close(seen.mean(), torch.tensor(0.64), atol=0.03, rtol=0)

    def test_those_not_drawn_are_left_alone(self) -> None:
        draws = torch.tensor([[0.9, 0.1, 0.9, 0.7], [0.9, 0.1, 0.9, 0.2], [0.9, 0.1, 0.9, 0.6]])
        seen = _shrunk(self.images, draws, 0.5)
        torch.testing.assert_close(seen[[0, 2]], self.images[[0, 2]], atol=1e-5, rtol=0)
        assert (seen[1] - self.images[1]).abs().max() > 0.1

    def test_smoothing_keeps_what_is_flat_and_spreads_what_is_not(self) -> None:
        flat = _smoothed(torch.full((1, 2, 9, 9), 3.0), 5)
        torch.testing.assert_close(flat[..., 2:-2, 2:-2], torch.full((1, 2, 5, 5), 3.0))
        point = torch.zeros(1, 2, 9, 9)
        point[0, 1, 4, 4] = 1
        spread = _smoothed(point, 5)
        assert float(spread[0, 0].abs().max()) == 0
        assert float(spread.sum()) == pytest.approx(1)
        assert int(spread.argmax()) == 81 + 4 * 9 + 4
        torch.testing.assert_close(spread, spread.transpose(2, 3))


class TestBadInput:
    images, labels = contract.batch(2), torch.tensor([0, 1])

    def said(self, attack: Transfer) -> str:
        model = contract.net()
        with pytest.raises(InputError) as caught:
            attack(model, self.images, contract.predictions(model, self.images))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_no_surrogate(self) -> None:
        assert "--surrogate" in self.said(build("transfer", norm="linf", eps=0.1, seed=0))  # type: ignore[arg-type]

    def test_other_classes(self) -> None:
        other = Linear(torch.randn(3, 108), torch.zeros(3))
        assert "gives 3 logits, the model under audit 4" in self.said(Transfer(0.1, surrogates=(other,)))

    def test_other_shape(self) -> None:
        assert "surrogate 2 fails on images of shape (3, 6, 6)" in self.said(
            Transfer(0.1, surrogates=(contract.net(), contract.net(channels=1)))
        )

    def test_a_surrogate_without_gradient(self) -> None:
        model = contract.net()
        with pytest.raises(NoGradientError, match="surrogate"):
            Transfer(0.1, surrogates=(contract.Detached(model),))(
                model, self.images, contract.predictions(model, self.images)
            )

    @pytest.mark.parametrize("bad", [{"steps": 0}, {"kernel": 4}, {"momentum": -1.0}, {"diversity": 2.0}])
    def test_settings(self, bad: dict[str, float]) -> None:
        with pytest.raises(InputError, match="transfer needs"):
            Transfer(0.1, **bad)
        for name in ("loss", "ensemble"):
            with pytest.raises(InputError, match=f"unknown {name}"):
                Transfer(0.1, **{name: "mean"})

    def test_surrogates_are_no_option_of_the_text(self) -> None:
        with pytest.raises(InputError, match="unknown option of transfer 'surrogates'"):
            build("transfer(surrogates='x.py')", norm="linf", eps=0.1, seed=0)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):  # type: ignore[no-untyped-def]
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return -gradient


class Misleading(LinearModel):
    """The linear model, with a gradient that points the wrong way."""

    def forward(self, images: Tensor) -> Tensor:
        turned: Tensor = _Reversed.apply(images)
        return super().forward(turned)


def audited(model: nn.Module, threat: str, *surrogates: nn.Module) -> robust.AuditSummary:
    images, labels = images_of(model)
    return robust.audit(model, (images, labels), [threat], attacks=["pgd(steps=5)"], surrogates=surrogates)


class TestAudit:
    @pytest.mark.parametrize("threat", ["linf:0.004", "l2:0.03"])
    def test_what_transfers_makes_misleading_gradients_suspect(self, threat: str) -> None:
        result = audited(Misleading(), threat, LinearModel()).threats[0]
        attack = next(attack for attack in result.attacks if attack.name == "transfer")
        check = next(check for check in result.checks if check.name == "surrogate")
        assert attack.broken > 3
        assert attack.backward == 0
        assert check.passed is False
        assert result.verdict == "suspect"

    def test_nothing_transfers_to_an_honest_model(self) -> None:
        result = audited(Unproven(), "linf:0.004", LinearModel(seed=5)).threats[0]
        check = next(check for check in result.checks if check.name == "surrogate")
        assert check.passed is True
        assert "breaks 0 of" in check.detail

    @pytest.mark.parametrize(("threat", "surrogates"), [("linf:0.004", 0), ("l1:0.12", 1)])
    def test_not_run_is_stated_and_spoils_nothing(self, threat: str, surrogates: int) -> None:
        model = LinearModel()
        images, labels = images_of(model)
        others = [LinearModel(seed=5)] * surrogates
        result = robust.audit(model, (images, labels), [threat], surrogates=others).threats[0]
        check = next(check for check in result.checks if check.name == "surrogate")
        assert check.passed is None
        assert ("--surrogate" in check.detail) == (not surrogates)
        assert result.verdict == "sound"

    def test_the_command_takes_surrogates_and_says_what_is_wrong_with_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_factory("model.py")
        write_factory("gray.py", body="images = images.view(len(images), 1, 6, 6)")
        Path("three.py").write_text("from model import *\n\ndef load():\n    return LinearModel(classes=3)\n")
        write_npz("data.npz")
        command = ["audit", "model.py:load", "data.npz", "--threat", "linf:0.004", "--attacks", "fgsm", "--out", "out"]

        def error(*more: str) -> str:
            found = CliRunner().invoke(app, [*command, *more])
            assert isinstance(found.exception, InputError)
            assert not Path("out").exists()
            return str(found.exception)

        assert error("--surrogate", "none.py:load").startswith("--surrogate none.py:load: none.py: no such file")
        assert "--surrogate gray.py:load: the model failed on images" in error("--surrogate", "gray.py:load")
        assert "gives 3 logits, the model under audit 4" in error("--surrogate", "three.py:load")
        run = CliRunner().invoke(app, [*command, "--surrogate", "model.py:load", "--surrogate", "model.py:load"])
        assert run.exception is None or isinstance(run.exception, SystemExit)
        assert "transfer" in robust.AuditSummary.read(Path("out/audit.json")).model_dump_json()

    def test_an_audit_is_not_resumed_with_other_surrogates(self, tmp_path: Path) -> None:
        model = LinearModel()
        images, labels = images_of(model)
        settings = {"attacks": ["fgsm"], "out": tmp_path / "out"}
        robust.audit(model, (images, labels), ["linf:0.004"], **settings)
        with pytest.raises(InputError, match="another surrogates"):
            robust.audit(model, (images, labels), ["linf:0.004"], surrogates=[LinearModel(seed=1)], **settings)

    def test_a_transfer_attack_asked_for_is_the_sentinel(self) -> None:
        model = LinearModel()
        settings = {"attacks": ["transfer", "fgsm"], "surrogates": [LinearModel()]}
        result = robust.audit(model, images_of(model), ["linf:0.004"], **settings).threats[0]  # type: ignore[arg-type]
        assert [attack.name for attack in result.attacks].count("transfer") == 1
        assert next(check for check in result.checks if check.name == "surrogate").passed is not None
        with pytest.raises(InputError, match="--attacks transfer: needs a model to take gradients from"):
            robust.audit(model, images_of(model), ["linf:0.004"], attacks=["transfer"])

    def test_one_model_is_no_list(self) -> None:
        model = LinearModel()
        with pytest.raises(InputError, match="give a list"):
            robust.audit(model, images_of(model), ["linf:0.004"], surrogates=LinearModel())  # type: ignore[arg-type]
