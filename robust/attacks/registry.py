"""Every attack by name: our own, and those of ART (``art:NAME``) and Foolbox (``foolbox:NAME``)."""

from __future__ import annotations

import ast
import importlib
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from torch import Tensor

from robust.attacks.adapters.art import ArtAttack
from robust.attacks.adapters.base import AdaptedAttack
from robust.attacks.adapters.foolbox import FoolboxAttack
from robust.attacks.base import Attack, Knowledge
from robust.errors import InputError, unknown

_COMMON = {"eps", "norm", "seed", "surrogates"}
_LIBRARIES: dict[str, type[AdaptedAttack]] = {"art": ArtAttack, "foolbox": FoolboxAttack}
_SPELLING = re.compile(r"\s*([A-Za-z][\w:-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class AttackInfo:
    """What an attack can do.

    ``name``: as the command line takes it, such as ``pgd`` or ``art:HopSkipJump``. ``norms``: linf, l2, l1, l0 or
    patch. ``knowledge``: of the model: none, white-box (gradients), score (logits) or decision (the class). ``source``:
    the paper. ``targetable``: whether it can aim at a class. ``summary``: one short line.
    """

    name: str
    norms: tuple[str, ...]
    knowledge: Knowledge
    source: str
    targetable: bool
    summary: str


@dataclass(frozen=True)
class _Native:
    """Where one of our own attacks is, and the settings that its name stands for."""

    module: str
    attack: str
    summary: str
    preset: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> type[Attack]:
        found: type[Attack] = getattr(importlib.import_module(f"robust.attacks.{self.module}"), self.attack)
        return found

    def info(self, name: str) -> AttackInfo:
        attack = self.load()
        return AttackInfo(name, attack.norms, attack.knowledge, attack.source, attack.targetable, self.summary)


_NATIVE = {
    "noise": _Native("noise", "UniformNoise", "random points of the ball"),
    "fgsm": _Native("fgsm", "FGSM", "one step along the gradient"),
    "pgd": _Native("pgd", "PGD", "projected gradient steps from a random start"),
    "pgd-eot": _Native("pgd_eot", "PGDEOT", "the same on a loss averaged over draws, for random models"),
    "apgd-ce": _Native("apgd", "APGD", "gradient steps that set their own size, cross-entropy", {"loss": "ce"}),
    "apgd-dlr": _Native("apgd", "APGD", "gradient steps that set their own size, ratio of logits", {"loss": "dlr"}),
    "apgd-t": _Native(
        "apgd", "APGD", "the same, towards each of the nine likeliest classes", {"loss": "dlr", "n_targets": 9}
    ),
    "acg": _Native("acg", "ACG", "the same along conjugate directions, margin"),
    "auto": _Native("auto", "Auto", "the cascade: cheap steps on all, more targets and steps near the boundary"),
    "square": _Native("square", "Square", "random search over squares"),
    "patch-search": _Native("patch_search", "PatchSearch", "random search for a patch: where to put it, what to paint"),
    "simba": _Native("simba", "SimBA", "one wave or value after another, kept where the loss rises"),
    "sparse-rs": _Native("sparse_rs", "SparseRS", "random search over few values and the ends of their range"),
    "hopskipjump": _Native("hopskipjump", "HopSkipJump", "minimum norm: estimated gradients at the boundary"),
    "rays": _Native("rays", "RayS", "minimum norm: turns the signs of blocks of the shortest ray to another class"),
    "transfer": _Native("transfer", "Transfer", "gradient steps on surrogate models, tried on the model itself"),
    "fab": _Native("fab", "FAB", "minimum norm: over the nearest class's boundary, then along it"),
    "fab-t": _Native("fab", "FAB", "the same, towards each of the nine likeliest classes", {"n_targets": 9}),
    "fmn": _Native("fmn", "FMN", "minimum norm: steps in a ball whose radius follows the boundary"),
    "ddn": _Native("ddn", "DDN", "minimum norm: direction and length of the perturbation apart"),
    "sigma-zero": _Native("sigma_zero", "SigmaZero", "minimum norm: few changed values, by a smooth count of them"),
    "autoattack": _Native("autoattack", "AutoAttack", "APGD-CE, APGD-T, FAB-T, Square", {"version": "standard"}),
    "autoattack-plus": _Native("autoattack", "AutoAttack", "the same with restarts and more", {"version": "plus"}),
    "autoattack-rand": _Native("autoattack", "AutoAttack", "for random models: 20 draws", {"version": "rand"}),
}


def native() -> list[AttackInfo]:
    """Our own attacks, in the order of their strength."""
    return [entry.info(name) for name, entry in _NATIVE.items()]


def adapted() -> list[AttackInfo]:
    """Every attack of the installed ART and Foolbox that fits an image classifier in torch. Imports both.

    Raises RobustError where one of them cannot be imported.
    """
    return [
        _adapted_info(library, attack)
        for library in _LIBRARIES.values()
        for attack in library.catalog.entries
        if library.available(attack)
    ]


def find(text: str) -> AttackInfo:
    """The attack that ``text`` names, with or without options, in any case.

    Raises InputError for an unknown name (with the nearest), an attack that does not fit, and for malformed options.
    """
    name, _ = _parse(text)
    entry = _NATIVE.get(name.lower())
    if entry is not None:
        return entry.info(name.lower())
    library, attack = _library(name)
    return _adapted_info(library, library.catalog.resolve(attack))


def build(text: str, *, norm: str, eps: float | Tensor, seed: int) -> Attack:
    """The attack that ``text`` names, set up for a norm, a radius (one or one per image, (N,)) and a seed.

    ``text`` may carry options: ``pgd(steps=100, step_size=2/255)``, ``art:HopSkipJump(max_iter=10)``. Raises InputError
    as :func:`find` does, and for an unknown option (with the nearest), a value of the wrong kind, and a norm that the
    attack has no form for.
    """
    info, (name, options) = find(text), _parse(text)
    if norm not in info.norms:
        raise InputError(f"{info.name} has no {norm} form; it supports {', '.join(info.norms)}")
    entry = _NATIVE.get(name.lower())
    if entry is not None:
        attack = entry.load()
        _check_options(info.name, attack, entry.preset, options)
        return attack(eps, norm=norm, seed=seed, **entry.preset, **options)
    library, attack_name = _library(name)
    return library(eps, norm=norm, seed=seed, attack=attack_name, options=tuple(options.items()))


def _adapted_info(library: type[AdaptedAttack], attack: str) -> AttackInfo:
    entry = library.catalog.entries[attack]
    name = f"{library.catalog.library}:{attack}"
    return AttackInfo(name, entry.norms, entry.knowledge, entry.source, entry.targetable, entry.summary)


def _library(name: str) -> tuple[type[AdaptedAttack], str]:
    """The adapter of ``art:NAME`` or ``foolbox:NAME``, and NAME."""
    prefix, colon, attack = name.partition(":")
    if colon and prefix.lower() in _LIBRARIES:
        return _LIBRARIES[prefix.lower()], attack
    others = [f"{key}:{entry}" for key, library in _LIBRARIES.items() for entry in library.catalog.entries]
    raise unknown("attack", name, [*_NATIVE, *others])


def _check_options(name: str, attack: type[Attack], preset: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    declared = {f.name: f.type for f in fields(attack) if f.name not in _COMMON | set(preset)}
    # Not of the attack itself: Python 3.10 stumbles over the KW_ONLY mark among a class's annotations.
    kinds = get_type_hints(type("Options", (), {"__annotations__": declared}), vars(typing))
    for option, value in options.items():
        if option not in kinds:
            raise unknown(f"option of {name}", option, kinds) if kinds else InputError(f"{name} has no options")
        if not _fits(value, kinds[option]):
            wanted = getattr(kinds[option], "__name__", str(kinds[option]))
            raise InputError(f"{name}: {option} must be {wanted}, not {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an option's declared kind, such as ``float | None``. A whole number is a float too."""
    kinds = get_args(kind) or (kind,)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME(option=value, ...)`` as the name and its options."""
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise InputError(f"attack {text!r}: write NAME or NAME(option=value, ...), such as pgd(steps=100)")
    name, inside = match.groups()
    try:
        call = ast.parse(f"f({inside or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        options = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, ZeroDivisionError):
        raise InputError(f"attack {text!r}: write options as option=value, separated by commas") from None
    return name, options


def _value(node: ast.expr) -> Any:
    """A literal, or a fraction of two numbers such as 2/255."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        top, bottom = ast.literal_eval(node.left), ast.literal_eval(node.right)
        if not all(isinstance(number, int | float) for number in (top, bottom)):
            raise ValueError
        return top / bottom
    return ast.literal_eval(node)
