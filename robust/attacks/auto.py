"""The cascade: the verdict of a long ensemble of attacks at a small part of its cost."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from robust.attacks import auto_dense, auto_l0, auto_l1, auto_patch
from robust.attacks.base import Attack, Goal, Knowledge, Model, check_classes, exact
from robust.errors import unknown

EFFORTS = tuple(auto_dense.EFFORT)


@dataclass(frozen=True)
class Auto(Attack):
    """The cascade, from cheap to costly; what a phase learns, the next one uses.

    1. A short run on the probability margin max_{i != y} p_i - p_y from a random start.
    2. Runs towards the classes whose logit came nearest to the label's at any point visited so far, on z_t - z_y; in
       linf and l2 the nearest nine go by their linear distance from the image.
    3. Longer runs towards more classes, only for images near to breaking: those whose linear distance to the boundary,
       margin over dual norm of its gradient at the best point, is a small share of eps. That share does not depend on
       the other images, so results do not depend on batching. In linf and l2 some of these runs start where random
       weights of the logits, biased against the label, have driven the image, and images whose gradients differ from
       one point to the next get runs of their own, on gradients averaged over random points nearby.

    Success is read off the gradient's own forward pass, and a solved image leaves at once. With ``targets`` in the call
    only runs towards them are made, as many per phase as the phase has targets. How a run climbs, and the phases in
    their order, stand in :mod:`robust.attacks.auto_dense` (linf and l2), :mod:`robust.attacks.auto_l1`,
    :mod:`robust.attacks.auto_l0` and :mod:`robust.attacks.auto_patch`.

    Settings:
        effort: ``quick``, ``standard`` or ``exhaustive``; the phases of each stand in ``EFFORT`` of those modules.

    Sources: probability margin and cosine steps from PMA (Xie et al., CVPR 2025); targets in order from MM (Gao et al.,
    ICML 2022) and MALT (Melamed et al., NeurIPS 2024); effort where the boundary is near, and
    biased starts, from A3 (Liu et al., CVPR 2022); averaged gradients after Wu et al. (2018).
    """

    _: KW_ONLY
    effort: str = "standard"

    name: ClassVar[str] = "auto"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1", "l0", "patch")
    knowledge: ClassVar[Knowledge] = "white-box"
    source: ClassVar[str] = "this project, after PMA, MM, MALT and A3"
    uses_lane: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.effort not in EFFORTS:
            raise unknown("effort", self.effort, EFFORTS)

    def run(self, model: Model, images: Tensor, goal: Goal, eps: Tensor, seeds: Tensor) -> Tensor:
        logits = exact(model)(images)
        check_classes(logits, goal)
        if self.norm == "l1":
            return auto_l1.search(model, images, goal, eps, logits, self.effort)
        if self.norm == "l0":
            return auto_l0.search(model, images, goal, eps, logits, self.effort)
        if self.norm == "patch":
            return auto_patch.search(model, images, goal, eps, logits, self.effort)
        return auto_dense.search(model, self.geometry, images, goal, eps, seeds, logits, self.effort)
