"""The arguments of `robust certify`, checked before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from robust.defenses.smoothing.anytime import RadiusTest, ToleranceTest, VoteTest
from robust.defenses.smoothing.bounds import radius_at
from robust.defenses.smoothing.cohen import ESTIMATION, SELECTION, CohenTest
from robust.defenses.smoothing.smoothed import check_sigma
from robust.errors import InputError, unknown

JOURNAL, SUMMARY, REPORT = "certify.jsonl", "certify.json", "certify.html"
METHODS = ("anytime", "cohen")
PRECISIONS = ("float32", "bfloat16")
# Fewer draws choose as well: a class that can be certified at all leads clearly after 64.
_ANYTIME_SELECTION = 64
# By default, where the certified accuracy of a classifier trained with this noise is usually told.
_DEFAULT_RADII = (1.0, 2.0, 3.0)


@dataclass(frozen=True)
class CertifyRequest:
    """The checked arguments that cost nothing to check."""

    sigma: float
    radii: tuple[float, ...]
    tolerance: float | None
    alpha: float
    methods: tuple[str, ...]
    horizon: int
    precision: Literal["float32", "bfloat16"]

    def test(self, method: str) -> VoteTest:
        if method == "cohen":
            return CohenTest(self.sigma, self.alpha, self.horizon)
        if self.tolerance is not None:
            return ToleranceTest(self.tolerance, self.sigma, self.alpha, self.horizon)
        return RadiusTest(self.radii, self.sigma, self.alpha, self.horizon)

    def selection(self, method: str) -> int:
        return SELECTION if method == "cohen" else _ANYTIME_SELECTION

    def warnings(self) -> list[str]:
        """What these arguments cannot give."""
        alpha = self.alpha if self.methods == ("cohen",) else self.alpha / 2
        most = float(radius_at(alpha ** (1 / self.horizon), self.sigma))
        beyond = [f"{radius:g}" for radius in self.radii if radius > most]
        if not beyond:
            return []
        return [
            f"no image can be certified at radius {', '.join(beyond)}: {self.horizon:,} draws with sigma "
            f"{self.sigma:g} reach {most:.3g} at most; give a larger sigma (and a model trained for it) or more draws"
        ]


def check_request(
    sigma: float, radii: Sequence[float] | None, tolerance: float | None, alpha: float, method: str,
    beside: str | None, horizon: int | None, precision: str,
) -> CertifyRequest:  # fmt: skip
    """The checked arguments of :func:`robust.certify`. Raises InputError."""
    check_sigma(sigma)
    if not (isinstance(alpha, (int, float)) and 0 < alpha < 1):
        raise InputError(f"alpha {alpha}: give the chance of a false certificate, between 0 and 1, such as 0.001")
    for name in (method, beside):
        if name is not None and name not in METHODS:
            raise unknown("method", name, METHODS)
    if beside == method:
        raise InputError(f"beside {beside}: is the method itself; name another one to compare it with")
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise InputError(f"tolerance {tolerance:g}: give a radius above 0, in [0, 1] pixel units, such as 0.05")
    if horizon is not None and horizon < SELECTION:
        raise InputError(f"draws {horizon}: give at least {SELECTION}")
    return CertifyRequest(
        float(sigma), _radii(radii, sigma), tolerance, alpha, (method, beside) if beside else (method,),
        horizon or ESTIMATION, cast(Literal["float32", "bfloat16"], precision),
    )  # fmt: skip


def _radii(given: Sequence[float] | None, sigma: float) -> tuple[float, ...]:
    if given is None:
        return tuple(factor * sigma for factor in _DEFAULT_RADII)
    if not len(given):
        raise InputError("radii: give at least one, such as 0.25")
    for radius in given:
        if not (isinstance(radius, (int, float)) and math.isfinite(radius) and radius > 0):
            raise InputError(f"radius {radius}: give radii above 0, in [0, 1] pixel units, such as 0.25,0.5")
    return tuple(sorted({float(radius) for radius in given}))
