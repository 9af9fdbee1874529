"""Interval bounds: the least and greatest value of every activation over a region, one operation at a time.

Source: Gowal et al. 2018 (arXiv 1810.12715), section 3, with every float32 rounding of the model and of the bounds
themselves counted as one more perturbation (:mod:`robust.defenses.bounds.rounding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robust.defenses.bounds.operations import Affine, Input, Network, Scale
from robust.defenses.bounds.regions import Region
from robust.defenses.bounds.rounding import gamma, product_error


@dataclass(frozen=True)
class Interval:
    """Bounds of one activation, each (N, *shape); ``error`` (N, *shape) is what rounding may add in linear bounds."""

    lower: Tensor
    upper: Tensor
    error: Tensor

    @property
    def size(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())


Refine = Callable[[int, list[Interval]], "tuple[Tensor, Tensor] | None"]


def intervals(network: Network, region: Region, refine: Refine | None = None) -> list[Interval]:
    """Bounds of every node's activation, in the order of ``network.nodes``.

    ``refine``, given a node's number and all bounds up to it, may return tighter (lower, upper) for that node.
    """
    found: list[Interval] = []
    rows = _row_norms(network, region)
    for index, node in enumerate(network.nodes):
        operation, inputs = node.operation, [found[source] for source in node.inputs]
        if isinstance(operation, Input):
            found.append(_with_error(region.lower, region.upper, []))
        elif isinstance(operation, Affine):
            bounds = _affine(operation, inputs, region.lower.device)
            if index in rows:
                center, reach = rows[index]
                center = operation.forward(center)
                bounds = Interval(
                    torch.maximum(bounds.lower, center - reach - 2 * bounds.error),
                    torch.minimum(bounds.upper, center + reach + 2 * bounds.error), bounds.error,
                )  # fmt: skip
            found.append(bounds)
        else:
            # Maxima are exact in floating point, and rise with their input.
            ends = (operation.forward(inputs[0].lower), operation.forward(inputs[0].upper))
            found.append(_with_error(*ends, inputs if ends[0].shape == inputs[0].lower.shape else []))
        tighter = None if refine is None else refine(index, found)
        if tighter is not None:
            found[index] = Interval(*tighter, found[index].error)
    return found


def _affine(operation: Affine, inputs: list[Interval], device: torch.device) -> Interval:
    centers = [(bounds.upper + bounds.lower) / 2 for bounds in inputs]
    reaches = [(bounds.upper - bounds.lower) / 2 for bounds in inputs]
    size = operation.magnitude(*(bounds.size for bounds in inputs))
    forward, backward = operation.terms
    product = product_error(device)
    own = gamma(forward + 4) + product
    # The model's own sums, those of the interval's center and reach, and those of a linear bound passing through.
    error = size * (1.01 * (own + gamma(backward + 4) + product))
    center, reach = operation.forward(*centers), operation.absolute(*reaches) + size * (3.03 * own)
    return Interval(center - reach, center + reach, error)


def _with_error(lower: Tensor, upper: Tensor, inputs: list[Interval]) -> Interval:
    """Where nothing is summed, a linear bound still rounds a few products on its way."""
    size = torch.maximum(lower.abs(), upper.abs())
    for bounds in inputs:
        size = torch.maximum(size, bounds.size)
    return Interval(lower, upper, size * gamma(8))


def _row_norms(network: Network, region: Region) -> dict[int, tuple[Tensor, Tensor]]:
    """For an l2 ball, by node: the input's center and the reach of each output, of the first layers that mix values.

    Up to there the set is an ellipsoid, center + scale * d with |d| <= radius, and the reach of a row w is
    radius * |w * scale|.
    """
    if region.radius is None:
        return {}
    found: dict[int, tuple[Tensor, Tensor]] = {}
    balls = {0: (region.center, torch.ones_like(region.center[:1]))}
    for index, node in enumerate(network.nodes):
        operation = node.operation
        if not isinstance(operation, Affine) or len(node.inputs) != 1 or node.inputs[0] not in balls:
            continue
        center, scale = balls[node.inputs[0]]
        spread = operation.squared(scale.square())
        if isinstance(operation, Scale) and spread is not None:
            balls[index] = (operation.forward(center), operation.absolute(scale))
        if spread is not None:
            found[index] = (center, spread.sqrt() * (region.radius * (1 + gamma(operation.terms[0] + 8))))
    return found
