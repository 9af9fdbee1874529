"""Attacks by name: what is listed, how a name with options becomes an attack, and what bad names are told."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from robust import attacks
from robust.attacks import APGD, FAB, FGSM, PGD, Attack, AutoAttack, Square, UniformNoise
from robust.attacks.adapters import ArtAttack, FoolboxAttack
from robust.attacks.registry import AttackInfo, adapted, build, find, native
from robust.errors import InputError


def test_native_attacks_and_what_they_state():
    listed = {info.name: info for info in native()}
    assert list(listed) == [
        "noise", "fgsm", "pgd", "pgd-eot", "apgd-ce", "apgd-dlr", "apgd-t", "acg", "auto", "square",
        "patch-search", "simba", "sparse-rs",
        "hopskipjump", "rays", "transfer", "fab", "fab-t", "fmn",
        "ddn", "sigma-zero", "autoattack", "autoattack-plus", "autoattack-rand",
    ]  # fmt: skip
    for name, info in listed.items():
        attack = type(build(name, norm=info.norms[0], eps=0.1, seed=0))
        assert (info.norms, info.knowledge) == (attack.norms, attack.knowledge)
        assert (info.source, info.targetable) == (attack.source, attack.targetable)
        assert find(name) == info
    built = {type(build(name, norm=info.norms[0], eps=0.1, seed=0)) for name, info in listed.items()}
    assert built == {getattr(attacks, name) for name in attacks.__all__} - {Attack}


def test_adapted_attacks_are_complete_and_can_be_built():
    listed = adapted()
    names = [info.name for info in listed]
    assert len(set(names)) == len(names)
    assert {"art:HopSkipJump", "art:DeepFool", "foolbox:L2CarliniWagnerAttack", "foolbox:L0FMNAttack"} <= set(names)
    assert len([name for name in names if name.startswith("art:")]) >= 20
    assert len([name for name in names if name.startswith("foolbox:")]) >= 40
    for info in listed:
        assert info.norms
        assert set(info.norms) <= {"linf", "l2", "l1", "l0", "patch"}
        assert info.knowledge in ("none", "white-box", "score", "decision")
        assert info.source
        assert info.summary
        assert len(info.summary) < 60
        assert find(info.name) == info
        for norm in info.norms:
            attack = build(info.name, norm=norm, eps=1.0, seed=3)
            assert (attack.name, attack.norm, attack.eps, attack.seed) == (info.name, norm, 1.0, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("noise", UniformNoise(0.1, seed=5)),
        ("noise(draws=3)", UniformNoise(0.1, seed=5, draws=3)),
        ("fgsm", FGSM(0.1, seed=5)),
        ("fgsm()", FGSM(0.1, seed=5)),
        ("PGD", PGD(0.1, seed=5)),
        ("pgd(steps=100, restarts=5)", PGD(0.1, seed=5, steps=100, restarts=5)),
        (" pgd ( step_size = 2/255, random_start=False ) ", PGD(0.1, seed=5, step_size=2 / 255, random_start=False)),
        ("pgd(step_size=None, loss='margin')", PGD(0.1, seed=5, loss="margin")),
        ("pgd(step_size=1)", PGD(0.1, seed=5, step_size=1)),
        ("apgd-ce", APGD(0.1, seed=5, loss="ce")),
        ("apgd-dlr(steps=7)", APGD(0.1, seed=5, loss="dlr", steps=7)),
        ("apgd-t(steps=7)", APGD(0.1, seed=5, loss="dlr", n_targets=9, steps=7)),
        ("square(queries=50)", Square(0.1, seed=5, queries=50)),
        ("fab(steps=7, minimize=False)", FAB(0.1, seed=5, steps=7, minimize=False)),
        ("fab-t", FAB(0.1, seed=5, n_targets=9)),
        ("autoattack", AutoAttack(0.1, seed=5)),
        ("AutoAttack-Plus", AutoAttack(0.1, seed=5, version="plus")),
        ("autoattack-rand", AutoAttack(0.1, seed=5, version="rand")),
        ("art:PGD", ArtAttack(0.1, seed=5, attack="ProjectedGradientDescent")),
        ("ART:hopskipjump(max_iter=10)", ArtAttack(0.1, seed=5, attack="HopSkipJump", options=(("max_iter", 10),))),
        ("foolbox:LinfPGD", FoolboxAttack(0.1, seed=5, attack="LinfProjectedGradientDescentAttack")),
        (
            "foolbox:linfpgd(steps=3, abs_stepsize=1/255)",
            FoolboxAttack(0.1, seed=5, attack="LinfPGD", options=(("steps", 3), ("abs_stepsize", 1 / 255))),
        ),
    ],
)
def test_text_becomes_an_attack(text, expected):
    assert build(text, norm="linf", eps=0.1, seed=5) == expected


def test_radius_per_image():
    eps = torch.tensor([0.1, 0.2])
    assert build("pgd", norm="l2", eps=eps, seed=0).eps is eps
    assert build("foolbox:DDN", norm="l2", eps=eps, seed=0).eps is eps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg", "unknown attack 'pdg': did you mean pgd"),
        ("hopskipjmp", "did you mean hopskipjump"),
        ("art:hopskipjum", "unknown attack 'art:hopskipjum': did you mean art:HopSkipJump"),
        ("artt:HopSkipJump", "did you mean art:HopSkipJump"),
        ("foolbox:L2CarliniWagnerAtack", "did you mean foolbox:L2CarliniWagnerAttack"),
        ("art:UniversalPerturbation", "art:UniversalPerturbation cannot be used here: it makes one perturbation"),
        ("foolbox:SpatialAttack", "foolbox:SpatialAttack cannot be used here: its changes are not bounded by a norm"),
        ("", "write NAME or NAME(option=value, ...)"),
        ("pgd(steps=3", "write NAME or NAME(option=value, ...)"),
        ("pgd(3)", "write options as option=value"),
        ("pgd(steps)", "write options as option=value"),
        ("pgd(steps=)", "write options as option=value"),
        ("pgd(steps=many)", "write options as option=value"),
        ("pgd(steps=1/0)", "write options as option=value"),
        ("pgd(steps='a'/2)", "write options as option=value"),
        ("pgd(**{'steps': 3})", "write options as option=value"),
        ("pgd(steps=__import__('os').getcwd())", "write options as option=value"),
        ("pgd(steps=3)(eps=2)", "write options as option=value"),
        ("pgd(stepz=3)", "unknown option of pgd 'stepz': did you mean steps"),
        ("pgd(eps=3)", "unknown option of pgd 'eps'"),
        ("apgd-ce(loss='dlr')", "unknown option of apgd-ce 'loss'"),
        ("fgsm(steps=3)", "fgsm has no options"),
        ("autoattack(steps=3)", "autoattack has no options"),
        ("autoattack(version='plus')", "autoattack has no options"),
        ("pgd(steps='many')", "pgd: steps must be int, not 'many'"),
        ("pgd(steps=2.5)", "pgd: steps must be int, not 2.5"),
        ("pgd(steps=True)", "pgd: steps must be int, not True"),
        ("pgd(step_size='big')", "pgd: step_size must be float | None, not 'big'"),
        ("pgd(random_start=1)", "pgd: random_start must be bool, not 1"),
        ("art:HopSkipJump(max_itr=3)", "unknown option of art:HopSkipJump 'max_itr': did you mean max_iter"),
        ("art:HopSkipJump(targeted=True)", "unknown option of art:HopSkipJump 'targeted'"),
    ],
)
def test_bad_text_gets_one_line(text, message):
    with pytest.raises(InputError) as error:
        build(text, norm="linf", eps=0.1, seed=0)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "norm", "message"),
    [
        ("square", "l0", "square has no l0 form; it supports linf, l2, l1"),
        ("autoattack", "l0", "autoattack has no l0 form; it supports linf, l2, l1"),
        ("autoattack-plus", "l1", "not published for l1"),
        ("art:DeepFool", "linf", "art:DeepFool has no linf form; it supports l2"),
        ("foolbox:L1PGD", "l2", "foolbox:L1ProjectedGradientDescentAttack has no l2 form; it supports l1"),
    ],
)
def test_norms_without_a_form(text, norm, message):
    with pytest.raises(InputError, match=message):
        build(text, norm=norm, eps=0.1, seed=0)


def test_find_reads_past_options():
    info = find("art:hopskipjump(max_iter=10)")
    assert info == AttackInfo(
        "art:HopSkipJump", ("l2", "linf"), "decision", "Chen et al., S&P 2020", True,
        "minimum norm: estimated gradient at the boundary",
    )  # fmt: skip


def test_neither_library_is_imported_to_find_an_attack():
    code = (
        "import sys; from robust.attacks.registry import find, native;"
        "native(); find('art:GeoDA'); find('foolbox:DDN');"
        "print(sorted({'art', 'foolbox', 'eagerpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
