"""The attacks of Foolbox: what each can do, and how it has to be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robust.attacks.adapters.catalog import Catalog, Entry, Setting
from robust.attacks.base import Knowledge

_ANY = ("linf", "l2", "l1", "l0")
_MADRY = "Madry et al., ICLR 2018"
_KURAKIN = "Kurakin et al., ICLR workshop 2017"
_KINGMA = "Kingma and Ba, ICLR 2015 (Adam)"
_BASELINE = "baseline"


def _per_norm(
    pattern: str,
    norms: str,
    source: str,
    summary: str,
    targetable: bool = True,
    needs: str | None = None,
    alone: bool = False,
) -> dict[str, Entry]:
    """One entry per norm; ``norms`` as they stand in the names, such as ``Linf L2``."""  # fmt: skip
    known = {"Linf": "linf", "LInf": "linf", "Linfinity": "linf", "L2": "l2", "L1": "l1", "L0": "l0"}
    return {
        pattern.format(norm): Entry(
            (known[norm],), "white-box", source, summary, targetable=targetable, needs=needs, alone=alone
        )
        for norm in norms.split()
    }  # fmt: skip


def _noise(norm: str, summary: str) -> Entry:
    return Entry((norm,), "none", _BASELINE, summary)


def _search(summary: str, norms: tuple[str, ...] = _ANY, knowledge: Knowledge = "decision") -> Entry:
    return Entry(norms, knowledge, _BASELINE, summary)


def _constraint(setting: Setting) -> dict[str, Any]:
    return {"constraint": setting.norm}


def _pointwise(setting: Setting) -> dict[str, Any]:
    # The second search only brings values nearer to the image, which an l0 norm does not see.
    return {"l2_binary_search": setting.norm != "l0"}


_TEN_STEPS: Callable[[Setting], dict[str, Any]] = lambda _: {"steps": 10}  # noqa: E731

_ENTRIES = {
    **_per_norm(
        "{}FastGradientAttack", "Linf L2 L1", "Goodfellow et al., ICLR 2015", "one step along the gradient", False
    ),
    **_per_norm("{}ProjectedGradientDescentAttack", "Linf L2 L1", _MADRY, "projected gradient steps, random start"),
    **_per_norm("{}AdamProjectedGradientDescentAttack", "Linf L2 L1", _KINGMA, "projected Adam steps, random start"),
    **_per_norm("{}BasicIterativeAttack", "Linf L2 L1", _KURAKIN, "projected gradient steps"),
    **_per_norm("{}AdamBasicIterativeAttack", "Linf L2 L1", _KINGMA, "projected Adam steps"),
    **_per_norm(
        "{}MomentumIterativeFastGradientMethod", "Linf L2 L1", "Dong et al., CVPR 2018", "gradient steps with momentum"
    ),
    **_per_norm(
        "{}DeepFoolAttack", "Linf L2", "Moosavi-Dezfooli et al., CVPR 2016",
        "minimum norm: steps to the nearest boundary", False,
    ),
    **_per_norm(
        "{}FMNAttack", "LInf L2 L1 L0", "Pintor et al., NeurIPS 2021", "minimum norm: gradient steps in a moving ball"
    ),
    **_per_norm(
        "{}BrendelBethgeAttack", "Linfinity L2 L1 L0", "Brendel et al., NeurIPS 2019",
        "minimum norm: follows the boundary", needs="numba", alone=True,
    ),
    "SparseL1DescentAttack": Entry(
        ("l1",), "white-box", "Tramer and Boneh, NeurIPS 2019", "gradient steps on the largest gradients only"
    ),
    "L2CarliniWagnerAttack": Entry(
        ("l2",), "white-box", "Carlini and Wagner, S&P 2017", "minimum norm: distance plus weighted margin"
    ),
    "EADAttack": Entry(
        ("l1",), "white-box", "Chen et al., AAAI 2018", "minimum norm: l1 and l2 distance plus weighted margin"
    ),
    "DDNAttack": Entry(("l2",), "white-box", "Rony et al., CVPR 2019", "minimum norm: direction and norm decoupled"),
    "NewtonFoolAttack": Entry(
        ("l2",), "white-box", "Jang et al., ACSAC 2017", "steps that lower the class's probability", targetable=False
    ),
    "VirtualAdversarialAttack": Entry(
        ("l2",), "white-box", "Miyato et al., ICLR 2016", "steepest change of the output", targetable=False,
        options=_TEN_STEPS,
    ),
    "GenAttack": Entry(
        ("linf",), "score", "Alzantot et al., GECCO 2019", "evolves perturbations", aims=True, alone=True
    ),
    "BoundaryAttack": Entry(
        ("l2",), "decision", "Brendel et al., ICLR 2018", "minimum norm: random walk along the boundary", alone=True
    ),
    "HopSkipJumpAttack": Entry(
        ("l2", "linf"), "decision", "Chen et al., S&P 2020", "minimum norm: estimated gradient at the boundary",
        alone=True, options=_constraint,
    ),
    "PointwiseAttack": Entry(
        ("l0", "l2"), "decision", "Schott et al., ICLR 2019", "minimum norm: resets values one by one", alone=True,
        options=_pointwise,
    ),
    "SaltAndPepperNoiseAttack": _search("more and more salt and pepper", ("l0", "l2")),
    "LinearSearchBlendedUniformNoiseAttack": _search("blends in a random image"),
    "BinarySearchContrastReductionAttack": _search("lowers the contrast, by bisection"),
    "LinearSearchContrastReductionAttack": _search("lowers the contrast step by step"),
    "GaussianBlurAttack": _search("blurs more and more"),
    "InversionAttack": Entry(_ANY, "none", "Hosseini et al., ICMLA 2017", "the negative image"),
    "L2ContrastReductionAttack": _noise("l2", "lowers the contrast"),
    "L2AdditiveGaussianNoiseAttack": _noise("l2", "one draw of Gaussian noise"),
    "L2AdditiveUniformNoiseAttack": _noise("l2", "one draw of uniform noise"),
    "L2ClippingAwareAdditiveGaussianNoiseAttack": _noise("l2", "one draw of Gaussian noise, rescaled in the box"),
    "L2ClippingAwareAdditiveUniformNoiseAttack": _noise("l2", "one draw of uniform noise, rescaled in the box"),
    "LinfAdditiveUniformNoiseAttack": _noise("linf", "one draw of uniform noise"),
    "L2RepeatedAdditiveGaussianNoiseAttack": _noise("l2", "draws of Gaussian noise"),
    "L2RepeatedAdditiveUniformNoiseAttack": _noise("l2", "draws of uniform noise"),
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": _noise("l2", "draws of Gaussian noise, rescaled in the box"),
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": _noise("l2", "draws of uniform noise, rescaled in the box"),
    "LinfRepeatedAdditiveUniformNoiseAttack": _noise("linf", "draws of uniform noise"),
}  # fmt: skip

# Foolbox's own short names, and a few in common use.
_ALIASES = {
    "FGSM": "LinfFastGradientAttack",
    "FGM": "L2FastGradientAttack",
    "PGD": "LinfProjectedGradientDescentAttack",
    "LinfPGD": "LinfProjectedGradientDescentAttack",
    "L2PGD": "L2ProjectedGradientDescentAttack",
    "L1PGD": "L1ProjectedGradientDescentAttack",
    "AdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "LinfAdamPGD": "LinfAdamProjectedGradientDescentAttack",
    "L2AdamPGD": "L2AdamProjectedGradientDescentAttack",
    "L1AdamPGD": "L1AdamProjectedGradientDescentAttack",
    "MIFGSM": "LinfMomentumIterativeFastGradientMethod",
    "BIM": "LinfBasicIterativeAttack",
    "CarliniWagner": "L2CarliniWagnerAttack",
    "DDN": "DDNAttack",
    "EAD": "EADAttack",
    "HopSkipJump": "HopSkipJumpAttack",
    "Boundary": "BoundaryAttack",
}

_EXCLUDED = {
    "BinarizationRefinementAttack": "it refines what another attack found",
    "DatasetAttack": "it needs other images to choose from",
    "SpatialAttack": "its changes are not bounded by a norm",
}

CATALOG = Catalog("foolbox", _ENTRIES, _ALIASES, _EXCLUDED)
