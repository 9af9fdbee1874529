"""The contract of attacks, for every attack of the package that is listed here, in every norm it supports."""

from __future__ import annotations

import contract
import mutants
import pytest
import torch
from contract import CHECKS, Case, Check
from oracles import EPS
from shortened import SelfTransfer, ShortAutoAttack

from robust import attacks
from robust.attacks import (
    ACG,
    APGD,
    DDN,
    FAB,
    FGSM,
    FMN,
    PGD,
    PGDEOT,
    Attack,
    Auto,
    HopSkipJump,
    PatchSearch,
    RayS,
    SigmaZero,
    SimBA,
    SparseRS,
    Square,
    UniformNoise,
)

NATIVE = (
    Case("noise", UniformNoise, {"draws": 4}, budgets=("draws",), searches=False),
    Case("fgsm", FGSM, one_pass=True),
    Case("pgd", PGD, {"steps": 10}, budgets=("steps", "restarts")),
    Case("pgd-margin", PGD, {"steps": 10, "loss": "margin", "random_start": False}, budgets=("steps", "restarts")),
    Case("pgd-eot", PGDEOT, {"steps": 10, "eot": 2}, budgets=("steps",)),
    Case("apgd-ce", APGD, {"steps": 10}, budgets=("restarts",)),
    Case("apgd-dlr", APGD, {"steps": 10, "loss": "dlr"}, budgets=("restarts",)),
    Case("apgd-t", APGD, {"steps": 10, "loss": "dlr", "n_targets": 3}, budgets=("restarts", "n_targets")),
    Case("apgd-eot", APGD, {"steps": 5, "eot": 2}, {"steps": 10}, budgets=("restarts",)),
    Case("acg", ACG, {"steps": 10}, budgets=("restarts",)),
    Case("auto", Auto),
    Case("square", Square, {"queries": 80}, {"queries": 1000}, flat=False),
    Case("patch-search", PatchSearch, {"queries": 80}, {"queries": 2000}, flat=False),
    Case("simba", SimBA, {"queries": 150}, {"queries": 1000}, flat=False),
    Case("simba-pixel", SimBA, {"queries": 150, "basis": "pixel"}, {"queries": 1000}, flat=False),
    Case("sparse-rs", SparseRS, {"queries": 150}, {"queries": 1000}),
    Case("hopskipjump", HopSkipJump, {"queries": 200}, {"queries": 1000}),
    Case("rays", RayS, {"queries": 100}, {"queries": 2000}),
    Case("transfer", SelfTransfer, {"steps": 10, "kernel": 1}, flat=False),
    Case("fab", FAB, {"steps": 10}, budgets=("steps", "restarts")),
    Case("fab-t", FAB, {"steps": 10, "n_targets": 3, "minimize": False}, budgets=("steps", "restarts", "n_targets")),
    Case("fmn", FMN, {"steps": 20}),
    Case("ddn", DDN, {"steps": 20}),
    Case("sigma-zero", SigmaZero, {"steps": 20}, {"steps": 60}),
    Case("autoattack", ShortAutoAttack, flat=False, classes=4),
)
EACH = [pytest.param(case, norm, id=f"{case.name}-{norm}") for case in NATIVE for norm in case.kind.norms]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("case", "norm"), EACH)
def test_contract(case: Case, norm: str, check: Check) -> None:
    check(case, norm)


def test_every_attack_of_the_package_is_listed() -> None:
    found = {getattr(attacks, name) for name in attacks.__all__} - {Attack}
    assert found <= {kind for case in NATIVE for kind in case.kind.__mro__}


def test_an_attack_states_what_it_is() -> None:
    for case in NATIVE:
        assert case.kind.name
        assert case.kind.source
        assert set(case.kind.norms) <= set(EPS)
        assert case.kind.knowledge in ("none", "white-box", "score", "decision")


@pytest.mark.parametrize(("mutant", "caught_by"), mutants.MUTANTS, ids=lambda value: getattr(value, "name", ""))
def test_the_contract_catches(mutant: Case, caught_by: set[str]) -> None:
    """Attacks with one known fault each: the suite must name that fault, or it could not fail."""
    checks = [check for check in CHECKS if check.__name__ in caught_by]
    assert len(checks) == len(caught_by)
    assert contract.violations(mutant, "linf", checks) == caught_by


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0", "patch"])
@pytest.mark.parametrize("weak", [mutants.IDENTITY, mutants.NOISE], ids=lambda case: case.name)
def test_doing_nothing_and_guessing_fail_the_suite(weak: Case, norm: str) -> None:
    assert "breaks_a_vulnerable_model" in contract.violations(weak, norm)


def test_a_sound_attack_passes_where_the_mutants_fail() -> None:
    named = set().union(*(caught_by for _, caught_by in mutants.MUTANTS))
    checks = [check for check in CHECKS if check.__name__ in named]
    assert contract.violations(mutants.SOUND, "linf", checks) == set()


class TestPGD:
    def test_an_unbroken_image_comes_back_as_the_point_of_highest_loss(self) -> None:
        model, images = contract.net(), contract.batch(6)
        labels = contract.predictions(model, images)
        unbroken = 0
        for i in range(6):
            watched, label = contract.Recording(model), labels[i : i + 1]
            found = PGD(EPS["linf"] / 4, steps=8, restarts=2)(watched, images[i : i + 1], label)
            if contract.predictions(model, found) != label:
                continue
            unbroken += 1
            with torch.no_grad():
                # The first point is the image itself, which is no iterate.
                seen = torch.nn.functional.cross_entropy(
                    model(torch.cat(watched.seen[1:])), label.expand(18), reduction="none"
                )
                last = torch.nn.functional.cross_entropy(model(found), label)
            assert float(last) == pytest.approx(float(seen.max()), abs=1e-5)
        assert unbroken >= 3

    def test_no_steps_from_the_image_itself_change_nothing(self) -> None:
        model, images = contract.net(), contract.batch(3)
        labels = contract.predictions(model, images)
        assert torch.equal(PGD(0.1, steps=0, random_start=False)(model, images, labels), images)

    def test_an_image_leaves_the_batch_once_it_is_broken(self) -> None:
        model, images = contract.net(), contract.batch(20)
        labels = contract.predictions(model, images)
        watched = contract.Recording(model)
        found = PGD(EPS["linf"], steps=10)(watched, images, labels)
        sizes = [len(seen) for seen in watched.seen]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] == 20
        assert sizes[-1] == int((contract.predictions(model, found) == labels).sum())
        assert 0 < sizes[-1] < 20

    def test_an_unknown_loss_is_said(self) -> None:
        model, images = contract.net(), contract.batch(1)
        with pytest.raises(contract.InputError, match="ce"):
            PGD(0.1, loss="crossentropy")(model, images, contract.predictions(model, images))


def test_noise_returns_its_first_draw_where_no_draw_fools() -> None:
    model, images = contract.net(), contract.batch(4)
    labels = contract.predictions(model, images)
    one = UniformNoise(0.001, draws=1)(model, images, labels)
    assert torch.equal(UniformNoise(0.001, draws=5)(model, images, labels), one)
    assert (one != images).flatten(1).any(1).all()
