"""Constructed models: what hides its weakness is suspect, or broken by the adaptive path; no honest one is suspect."""

from __future__ import annotations

from pathlib import Path

import fronts
import pytest
import torch
from subjects import LinearModel, Masked, distances, images_of
from torch import Tensor, nn

import robust
from robust.auditing import verify_audit
from robust.checks import CATALOG, CHECK_NAMES, sample_size
from robust.checks.catalog import table
from robust.draws import Averaged, Voting
from robust.errors import InputError
from robust.models import bpda, hidden_fronts, with_bpda
from robust.summary import CheckRecord, ThreatResult

EPS = 0.004


def audited(model: nn.Module, **settings: object) -> ThreatResult:
    images, labels = images_of(LinearModel())
    return robust.audit(model, (images, labels), [f"linf:{EPS}"], **settings).threats[0]  # type: ignore[arg-type]


def check(result: ThreatResult, name: str) -> CheckRecord:
    return next(check for check in result.checks if check.name == name)


def standing() -> int:
    images, labels = images_of(LinearModel())
    return int((distances(LinearModel(), images, labels, "linf") > EPS).sum())


def failing(result: ThreatResult) -> set[str]:
    return {check.name for check in result.checks if check.passed is False and check.weight == "evidence"}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (fronts.Front(fronts.BatchMean()), "batch"),
        (fronts.Front(fronts.MomentumNorm()), "state"),
        (fronts.Front(fronts.Counter()), "state"),
        (fronts.Front(fronts.Spotter()), "state"),
        (fronts.Purifier(), "dynamic"),
    ],
    ids=["batch-mean", "momentum", "counter", "spotter", "purifier"],
)
def test_a_masked_model_is_suspect(model: nn.Module, expected: str) -> None:
    result = audited(model)
    assert expected in failing(result), [f"{c.name}: {c.detail}" for c in result.checks]
    assert result.certified_accuracy is None, "a proof of one answer says nothing about a model that gives others"
    assert result.verdict == "suspect"


class _Inline(LinearModel):
    """Ripples within its own forward pass, so that there is no module to name."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(fronts.Ripple().forward(images))


def test_a_shattered_gradient_without_a_module_to_name_is_suspect() -> None:
    result = audited(_Inline())
    assert "stable" in failing(result)
    assert result.verdict == "suspect"
    assert check(result, "bpda").passed is None


@pytest.mark.parametrize(
    "front", [fronts.Detach(), fronts.Ripple(), fronts.ThroughNumpy()], ids=["detach", "ripple", "numpy"]
)
def test_a_front_that_hides_the_gradient_is_broken_by_bpda_and_the_report_says_so(front: nn.Module) -> None:
    # Each front is the identity but for less than a twentieth of eps, so the closed form of the bare model holds.
    result = audited(fronts.Front(front))
    assert abs(result.robust_accuracy.numerator - standing()) <= 2
    through = [attack for attack in result.attacks if "on bpda(preprocess)" in attack.name]
    assert {attack.status for attack in through} == {"done"}
    found = check(result, "bpda")
    assert found.passed is True
    assert check(result, "complete").passed is True
    assert "preprocess (found by itself)" in found.detail
    assert "stood without it" in found.detail
    assert result.verdict == "sound", result.reasons
    assert any("preprocess" in reason for reason in result.reasons)


def test_bpda_breaks_a_quantizer_that_gradients_cannot() -> None:
    images, labels = images_of(LinearModel())
    model = fronts.Front(fronts.Quantize(64))
    result = robust.audit(model, (images, labels), ["linf:0.01"], bpda=["preprocess"]).threats[0]
    through = sum(attack.broken for attack in result.attacks if "bpda" in attack.name)
    # Random starts break a few without any gradient.
    alone = sum(attack.broken for attack in result.attacks if attack.name in ("fgsm", "auto"))
    assert through > 2 * alone
    assert "preprocess (as asked)" in check(result, "bpda").detail


def test_a_backward_function_that_leads_nowhere_is_suspect() -> None:
    result = audited(fronts.Front(fronts.Detach()), bpda={"preprocess": lambda images: images * 0})
    assert check(result, "bpda").passed is False
    assert result.verdict == "suspect"


@pytest.mark.parametrize(
    ("model", "eps"),
    [(LinearModel(), EPS), (LinearModel(), 1e-5), (fronts.Caching(), EPS), (fronts.Front(nn.Identity()), EPS)],
    ids=["undefended", "robust", "caching", "identity"],
)
def test_an_honest_model_is_sound(model: nn.Module, eps: float) -> None:
    images, labels = images_of(LinearModel())
    result = robust.audit(model, (images, labels), [f"linf:{eps}"]).threats[0]
    assert failing(result) == set(), [f"{c.name}: {c.detail}" for c in result.checks]
    assert result.verdict == "sound", result.reasons


def test_a_random_model_is_judged_by_rates_that_meet_the_closed_form() -> None:
    model = fronts.TwoClasses(sigma=0.02)
    images, _ = images_of(LinearModel())
    labels = ((images - 0.5).flatten(1) @ model.weight.detach() > 0).long()
    exact = model.chance(images, labels, EPS)
    clean = model.chance(images, labels, 0.0)
    assert 0.2 < float(exact.mean()) < float(clean.mean()) - 0.1, "the case must leave something between"
    result = robust.audit(model, (images, labels), [f"linf:{EPS}"]).threats[0]
    assert result.verdict == "sound", result.reasons
    found = result.randomized
    assert found is not None
    # Four standard errors of the mean over 40 images with 100 draws each.
    assert found.clean_accuracy.value == pytest.approx(float(clean.mean()), abs=0.03)
    assert found.robust_accuracy.value == pytest.approx(float(exact.mean()), abs=0.03)
    assert found.mostly_right + found.mostly_wrong + found.undecided == 40
    clearly = int((exact > 0.65).sum())
    assert found.mostly_right >= clearly - 1
    assert check(result, "deterministic").passed is False
    assert any("judged over many draws" in reason for reason in result.reasons)


def test_randomness_that_hides_the_gradient_is_suspect() -> None:
    images, labels = images_of(LinearModel(), n=12, wrong=1)
    model = fronts.Front(fronts.Noise(0.005), Masked(LinearModel(), "detach"))
    # Under l1 no query attack runs, which would be most of this test.
    result = robust.audit(model, (images, labels), ["l1:0.12"]).threats[0]
    assert "gradients" in failing(result)
    assert result.verdict == "suspect"
    assert result.randomized is not None


class TestDraws:
    def test_the_same_seed_draws_the_same_and_leaves_the_global_state_alone(self) -> None:
        images, _ = images_of(LinearModel())
        model = fronts.Front(fronts.Noise(0.05))
        state = torch.random.get_rng_state()
        for kind in (Averaged, Voting):
            first, second = kind(model, 3), kind(model, 3)
            once, other = first(images), first(images)
            assert not torch.equal(once, other), "every call must draw afresh"
            assert torch.equal(torch.nan_to_num(once), torch.nan_to_num(second(images)))
            assert torch.equal(torch.nan_to_num(other), torch.nan_to_num(second(images)))
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_the_average_approaches_the_expected_probabilities(self) -> None:
        torch.manual_seed(0)
        model, images = fronts.TwoClasses(sigma=0.05), images_of(LinearModel())[0][:4]
        exact = torch.stack([model(images).softmax(1) for _ in range(5000)]).mean(0)
        averaged = Averaged(model, 0, draws=2000)
        assert torch.allclose(averaged(images).exp(), exact, atol=0.04)
        assert averaged.passes.forward == 2000 * 4

    def test_a_vote_counts_only_if_it_is_clear(self) -> None:
        class Fair(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return torch.nn.functional.one_hot(torch.randint(2, (len(images),)), 2).float()

        images = torch.rand(2000, 1)
        unclear = Voting(Fair(), 0)(images).isnan().any(1)
        # Of fair coins, 30 or more of 40 on one side come in 0.22 %.
        assert 0.985 < float(unclear.double().mean()) < 1
        assert not bool(Voting(Fair(), 0, clear=False)(images).isnan().any())
        sure = Voting(LinearModel(), 0)(images_of(LinearModel())[0])
        assert torch.equal(sure.argmax(1), LinearModel()(images_of(LinearModel())[0]).argmax(1))


def test_an_audit_of_a_random_model_can_be_verified_and_gone_on_with(tmp_path: Path) -> None:
    images, labels = images_of(LinearModel(), n=12, wrong=1)
    model = fronts.Front(fronts.Noise(0.002))
    first = robust.audit(model, (images, labels), ["l1:0.12"], attacks=["fgsm"], out=tmp_path / "out")
    again = robust.audit(model, (images, labels), ["l1:0.12"], attacks=["fgsm"], out=tmp_path / "out")
    assert again.threats == first.threats
    assert len(first.threats[0].curve) > 1
    outcome = verify_audit(tmp_path / "out", model)["l1:0.12"]
    assert outcome.replayed >= 5
    assert len(outcome.failed) <= 1
    with pytest.raises(InputError, match="another bpda"):
        robust.audit(model, (images, labels), ["l1:0.12"], attacks=["fgsm"], out=tmp_path / "out", bpda=["preprocess"])


@pytest.mark.slow
def test_a_real_classifier_behind_a_quantizer_falls_to_bpda(robust_data: Path) -> None:
    model = robust.load_model(f"{robust_data / 'zoo.py'}:cifar_resnet20")
    data = str(robust_data / "cifar10_sdp200.npz")
    result = robust.audit(fronts.Front(fronts.Quantize(16), model), data, ["linf:8/255"], limit=12).threats[0]
    own = sum(attack.broken for attack in result.attacks if attack.name in ("fgsm", "pgd(steps=20)"))
    through = sum(attack.broken for attack in result.attacks if "on bpda(preprocess)" in attack.name)
    assert own <= 3
    assert through >= 6
    assert result.robust_accuracy.numerator <= 1
    assert result.verdict == "sound", result.reasons


class TestBPDA:
    def test_forward_is_exact_and_backward_is_the_function_given(self) -> None:
        front = bpda(fronts.Quantize(4), backward=lambda images: 3 * images)
        images = torch.rand(2, 3, 6, 6, requires_grad=True)
        output = front(images)
        assert torch.equal(output, fronts.Quantize(4)(images))
        direction = torch.rand_like(output)
        (gradient,) = torch.autograd.grad((output * direction).sum(), images)
        assert torch.allclose(gradient, 3 * direction)

    def test_a_copy_shares_weights_and_leaves_the_model_alone(self) -> None:
        model = fronts.Front(fronts.Quantize())
        copied = with_bpda(model, {"preprocess": lambda images: images})
        images = torch.rand(2, 3, 6, 6, requires_grad=True)
        assert torch.equal(copied(images), model(images))
        assert {id(p) for p in copied.parameters()} == {id(p) for p in model.parameters()}
        assert float(torch.autograd.grad(copied(images).sum(), images)[0].abs().sum()) > 0
        assert float(torch.autograd.grad(model(images).sum(), images)[0].abs().sum()) == 0

    def test_a_name_that_the_model_does_not_have_is_said(self) -> None:
        with pytest.raises(InputError, match=r"--bpda.*did you mean preprocess"):
            audited(fronts.Front(fronts.Quantize()), bpda=["preproces"])
        with pytest.raises(InputError, match="no sub-modules"):
            robust.audit(lambda images: images.flatten(1)[:, :4], images_of(LinearModel()), bpda=["front"])  # type: ignore[arg-type]

    def test_a_backward_function_of_another_shape_is_said(self) -> None:
        front = bpda(fronts.Quantize(), backward=lambda images: images.flatten(1))
        with pytest.raises(InputError, match="shape"):
            front(torch.rand(2, 3, 6, 6, requires_grad=True))

    def test_honest_layers_are_no_fronts(self) -> None:
        torch.manual_seed(0)
        body = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Tanh()
        ).eval()
        model = fronts.Front(nn.Sequential(body, fronts.Quantize()))
        assert hidden_fronts(model, torch.rand(4, 3, 6, 6)) == ["preprocess.1"]


class TestCatalog:
    def test_the_documentation_holds_the_list(self) -> None:
        text = (Path(__file__).parent.parent / "docs" / "checks.md").read_text(encoding="utf-8")
        assert table() in text

    def test_every_diagnostic_has_a_check(self) -> None:
        assert {int(entry.item) for entry in CATALOG} == set(range(11, 30))
        assert len(set(CHECK_NAMES)) == len(CHECK_NAMES)

    def test_an_audit_records_every_check_in_order(self) -> None:
        assert tuple(check.name for check in audited(LinearModel()).checks) == CHECK_NAMES

    @pytest.mark.parametrize(("images", "looked_at"), [(10, 10), (100, 32), (400, 50), (5000, 128)])
    def test_checks_look_at_few_images(self, images: int, looked_at: int) -> None:
        assert sample_size(images) == looked_at
