"""From finished rows to shares, intervals and costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any, Literal, cast

from robust.defenses.smoothing.record import AttackPoint, AttackResult, MethodResult, Point, Row
from robust.stats import rate


def method_result(
    method: str, found: dict[int, dict[str, Any]], labels: Sequence[int], radii: Sequence[float]
) -> MethodResult:
    """One method's result from its finished rows, one for each of ``labels``."""
    rows = [
        Row(
            image=image, label=label, prediction=found[image]["prediction"], radius=found[image]["radius"],
            draws=found[image]["draws"], hits=found[image]["hits"], estimated=found[image]["estimated"],
        )
        for image, label in enumerate(labels)
    ]  # fmt: skip
    draws = [row.draws for row in rows]
    return MethodResult(
        method=cast(Literal["anytime", "cohen"], method),
        points=[
            Point(radius=radius, certified=rate(sum(row.certified >= radius for row in rows), len(rows)))
            for radius in radii
        ],
        abstained=rate(sum(row.radius == 0 for row in rows), len(rows)),
        draws_mean=mean(draws), draws_median=median(draws), draws_most=max(draws),
        seconds=sum(row["seconds"] for row in found.values()), rows=rows,
    )  # fmt: skip


def attack_result(found: dict[float, dict[int, dict[str, Any]]], images: int, steps: int) -> AttackResult:
    """What stands after the attacks of each radius, from their rows; an image broken once counts as broken beyond."""
    broken: set[int] = set()
    points = []
    for radius in sorted(found):
        broken |= {image for image, row in found[radius].items() if row["broken"]}
        points.append(AttackPoint(radius=radius, standing=rate(images - len(broken), images)))
    seconds = sum(row["seconds"] for rows in found.values() for row in rows.values())
    return AttackResult(steps=steps, points=points, seconds=seconds)
