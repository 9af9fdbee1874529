"""Defenses that change inference, by name: what a model is put behind, as in ``--behind masking``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robust.defenses.training.spelling import build_defense
from robust.errors import InputError
from robust.threats import ThreatModel


def put_behind(text: str, model: nn.Module, threats: Sequence[ThreatModel], shape: tuple[int, int]) -> nn.Module:
    """``model`` behind the defense that ``text`` names, made for the largest patch among ``threats``.

    ``masking`` (PatchCleanser) or ``bands`` (de-randomized smoothing), with settings as for the training method of that
    name, such as ``masking(count=8)``. ``shape``: height and width of the images. Raises InputError.
    """
    patches = [threat for threat in threats if threat.norm == "patch" and threat.eps > 0]
    if not patches:
        raise InputError(f"--behind {text}: is made for a patch; give its size with --threat patch:5%")
    defense = build_defense(text, max(patches, key=lambda threat: threat.eps), {}, "--behind")
    found = defense.deployed(model, shape)
    if found is model:
        raise InputError(f"--behind {text}: changes nothing when the model is used; give masking or bands")
    return found.eval()
