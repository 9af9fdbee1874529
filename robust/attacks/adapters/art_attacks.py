"""The attacks of the Adversarial Robustness Toolbox (ART): what each can do, and how it has to be called."""

from __future__ import annotations

import math
from typing import Any

from robust.attacks.adapters.catalog import Catalog, Entry, Setting

_LP = ("linf", "l2", "l1")


def _step(share: float) -> Any:
    """``eps_step`` as a share of eps: ART's default, 0.1, is larger than most radii."""
    return lambda setting: {"eps_step": share * setting.eps}


def _jsma(setting: Setting) -> dict[str, Any]:
    # Each step raises two values to the top, and gamma is checked before the step.
    return {"theta": 1.0, "gamma": min(1.0, max((setting.eps - 2) / math.prod(setting.shape), 1e-9))}


def _elastic(setting: Setting) -> dict[str, Any]:
    return {"decision_rule": setting.norm.upper()}


def _pixels(setting: Setting) -> dict[str, Any]:
    # A pixel holds one value per channel, and eps counts values.
    return {"th": max(1, int(setting.eps) // setting.shape[0]), "es": 1}


def _levels(setting: Setting) -> dict[str, Any]:
    # Differential evolution (es=1): the other strategy needs a package that ART does not install.
    return {"th": max(1, round(255 * setting.eps)), "es": 1}


def _zoo(setting: Setting) -> dict[str, Any]:
    # The paper resizes large images only; resizing a small one loses the image itself.
    return {"use_resize": min(setting.shape[1:]) > 32, "nb_parallel": min(128, math.prod(setting.shape))}


_ENTRIES = {
    "FastGradientMethod": Entry(
        _LP, "white-box", "Goodfellow et al., ICLR 2015", "one step along the gradient", options=_step(0.1)
    ),
    "BasicIterativeMethod": Entry(
        ("linf",), "white-box", "Kurakin et al., ICLR workshop 2017", "signed gradient steps", options=_step(0.25)
    ),
    "ProjectedGradientDescent": Entry(
        _LP, "white-box", "Madry et al., ICLR 2018", "projected gradient steps", options=_step(0.25)
    ),
    "MomentumIterativeMethod": Entry(
        _LP, "white-box", "Dong et al., CVPR 2018", "projected gradient steps with momentum", options=_step(0.1)
    ),
    "AutoProjectedGradientDescent": Entry(
        _LP, "white-box", "Croce and Hein, ICML 2020", "gradient steps that set their own size", options=_step(2)
    ),
    "AutoConjugateGradient": Entry(
        _LP, "white-box", "Yamamura et al., ICML 2022", "conjugate gradient steps", options=_step(2)
    ),
    "RescalingAutoConjugateGradient": Entry(
        _LP, "white-box", "Yamamura et al., arXiv 2408.03972", "rescaled conjugate gradient steps", options=_step(2)
    ),
    "CarliniL0Method": Entry(
        ("l0",), "white-box", "Carlini and Wagner, S&P 2017", "minimum norm: drops values one by one", alone=True
    ),
    "CarliniL2Method": Entry(
        ("l2",), "white-box", "Carlini and Wagner, S&P 2017", "minimum norm: distance plus weighted margin"
    ),
    # Targeted, this version keeps the images that miss the target instead of those that reach it.
    "CarliniLInfMethod": Entry(
        ("linf",), "white-box", "Carlini and Wagner, S&P 2017", "minimum norm: penalty above a shrinking limit",
        targetable=False, alone=True,
    ),
    "ElasticNet": Entry(
        ("l1", "l2"), "white-box", "Chen et al., AAAI 2018", "minimum norm: l1 and l2 distance plus weighted margin",
        options=_elastic,
    ),
    "DeepFool": Entry(
        ("l2",), "white-box", "Moosavi-Dezfooli et al., CVPR 2016", "minimum norm: steps to the nearest boundary",
        targetable=False,
    ),
    "NewtonFool": Entry(
        ("l2",), "white-box", "Jang et al., ACSAC 2017", "steps that lower the class's probability",
        targetable=False, probabilities=True,
    ),
    "SaliencyMapMethod": Entry(
        ("l0",), "white-box", "Papernot et al., EuroS&P 2016", "raises the most salient values, two by two",
        aims=True, options=_jsma,
    ),
    "BrendelBethgeAttack": Entry(
        _LP, "white-box", "Brendel et al., NeurIPS 2019", "minimum norm: follows the boundary",
        alone=True, needs="numba",
    ),
    "VirtualAdversarialMethod": Entry(
        ("l2",), "score", "Miyato et al., ICLR 2016", "steepest change of the output, by finite differences",
        targetable=False, probabilities=True,
    ),
    "SquareAttack": Entry(
        ("linf", "l2"), "score", "Andriushchenko et al., ECCV 2020", "random search over squares",
        targetable=False, square=True,
    ),
    "SimBA": Entry(
        ("l2",), "score", "Guo et al., ICML 2019", "random search along cosine directions",
        alone=True, square=True, probabilities=True,
    ),
    "ZooAttack": Entry(
        ("l2",), "score", "Chen et al., AISec 2017", "minimum norm: coordinate descent by finite differences",
        alone=True, options=_zoo,
    ),
    "PixelAttack": Entry(
        ("l0",), "score", "Su et al., IEEE TEVC 2019", "evolves a few pixels", alone=True, options=_pixels
    ),
    "ThresholdAttack": Entry(
        ("linf",), "score", "Kotyan and Vargas, PLOS ONE 2022", "evolves all values within eps",
        alone=True, options=_levels,
    ),
    "BoundaryAttack": Entry(
        ("l2",), "decision", "Brendel et al., ICLR 2018", "minimum norm: random walk along the boundary", alone=True
    ),
    "HopSkipJump": Entry(
        ("l2", "linf"), "decision", "Chen et al., S&P 2020", "minimum norm: estimated gradient at the boundary",
        alone=True,
    ),
    "GeoDA": Entry(
        ("l2", "linf", "l1"), "decision", "Rahmati et al., CVPR 2020", "minimum norm: estimated normal of the boundary",
        targetable=False, alone=True, square=True, patience=10_000,
    ),
    "SignOPTAttack": Entry(
        ("l2",), "decision", "Cheng et al., ICLR 2020", "minimum norm: sign of the directional derivative",
        targetable=False, alone=True,
    ),
}  # fmt: skip

_ALIASES = {
    "FGM": "FastGradientMethod",
    "FGSM": "FastGradientMethod",
    "BIM": "BasicIterativeMethod",
    "PGD": "ProjectedGradientDescent",
    "ProjectedGradientDescentPyTorch": "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy": "ProjectedGradientDescent",
    "MIM": "MomentumIterativeMethod",
    "APGD": "AutoProjectedGradientDescent",
    "AutoPGD": "AutoProjectedGradientDescent",
    "ACG": "AutoConjugateGradient",
    "ReACG": "RescalingAutoConjugateGradient",
    "JSMA": "SaliencyMapMethod",
    "Square": "SquareAttack",
    "ZOO": "ZooAttack",
    "SignOPT": "SignOPTAttack",
    "Boundary": "BoundaryAttack",
}

_DETECTOR = "it attacks object detectors or trackers"
_SPEECH = "it attacks speech recognizers"
_PATCH = "it makes a patch, not a perturbation of bounded norm"
_UNBOUNDED = "its changes are not bounded by a norm"
_TENSORFLOW = "it is for TensorFlow"
_UNIVERSAL = "it makes one perturbation for all images"
_FEATURES = "it needs guide images and a layer of the model"

_EXCLUDED = {
    "AdversarialPatch": _PATCH,
    "AdversarialPatchNumpy": _PATCH,
    "AdversarialPatchPyTorch": _PATCH,
    "AdversarialPatchTensorFlowV2": _PATCH,
    "AdversarialTexturePyTorch": _DETECTOR,
    "AutoAttack": "it is not the published four attacks; name its parts, such as art:AutoProjectedGradientDescent",
    "CarliniWagnerASR": _SPEECH,
    "CompositeAdversarialAttackPyTorch": _UNBOUNDED,
    "DecisionTreeAttack": "it attacks decision trees",
    "DPatch": _DETECTOR,
    "FeatureAdversariesNumpy": _FEATURES,
    "FeatureAdversariesPyTorch": _FEATURES,
    "FeatureAdversariesTensorFlowV2": _TENSORFLOW,
    "FrameSaliencyAttack": "it attacks video classifiers",
    "GRAPHITEBlackbox": _PATCH,
    "GRAPHITEWhiteboxPyTorch": _PATCH,
    "HighConfidenceLowUncertainty": "it attacks Gaussian processes",
    "ImperceptibleASR": _SPEECH,
    "ImperceptibleASRPyTorch": _SPEECH,
    "LaserAttack": _UNBOUNDED,
    "LowProFool": "it attacks classifiers of tables",
    "MalwareGDTensorFlow": "it attacks malware detectors",
    "OverTheAirFlickeringPyTorch": "it attacks video classifiers",
    "OverloadPyTorch": _DETECTOR,
    "ProjectedGradientDescentTensorFlowV2": _TENSORFLOW,
    "RobustDPatch": _DETECTOR,
    "SNAL": _DETECTOR,
    "ShadowAttack": _UNBOUNDED,
    "SpatialTransformation": _UNBOUNDED,
    "TargetedUniversalPerturbation": _UNIVERSAL,
    "UniversalPerturbation": _UNIVERSAL,
    "Wasserstein": "its ball is measured in the Wasserstein distance",
}

CATALOG = Catalog("art", _ENTRIES, _ALIASES, _EXCLUDED)
