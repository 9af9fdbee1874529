"""Linear bounds walked backward through a network (CROWN).

Source: Zhang et al. 2018 (arXiv 1811.00866); backward through any graph: Xu et al. 2020 (arXiv 2002.12920). A function
c . v of one activation v is bounded from below by replacing v, operation by operation from its own back to the image,
by what it is made of: affine operations exactly, a ReLU by a line below or above it, whichever the coefficient's sign
asks for. At the image the linear function's minimum over the region is known. Rounding enters as a perturbation of
every activation passed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from robust.defenses.bounds.intervals import Interval
from robust.defenses.bounds.operations import Affine, Input, MaxPool, Network, Relu
from robust.defenses.bounds.regions import Region
from robust.defenses.bounds.rounding import gamma, product_error


@dataclass(frozen=True)
class Lines:
    """For one ReLU: ``below`` * v <= max(v, 0) <= ``above`` * v + ``constant``, each (N, *shape).

    ``below`` may also be (N, S, *shape), another slope for each function.
    """

    below: Tensor
    above: Tensor
    constant: Tensor


@dataclass(frozen=True)
class Choices:
    """For one maximum pooling: ``place`` (N, C, H', W') is the value, by its position in H * W, that bounds each window
    from below; where ``single`` it also bounds it from above, else ``greatest`` does."""

    place: Tensor
    single: Tensor
    greatest: Tensor


Relaxation = Lines | Choices


def lines(bounds: Interval) -> Lines:
    """The lines for max(v, 0) with lower <= v <= upper; where v may have both signs, below it the better of 0 and v."""
    low, high = bounds.lower.clamp(max=0), bounds.upper.clamp(min=0)
    above = torch.where(high > low, high / (high - low).clamp_min(1e-30), torch.zeros_like(high))
    above = torch.where(bounds.lower >= 0, torch.ones_like(above), above)
    # The line must clear both ends whatever the slope was rounded to.
    constant = torch.maximum(-above * low, high * (1 - above)) + gamma(8) * (high - low)
    stable = (bounds.lower >= 0) | (bounds.upper <= 0)
    constant = torch.where(stable, torch.zeros_like(constant), constant)
    above = torch.where(bounds.upper <= 0, torch.zeros_like(above), above)
    return Lines((bounds.upper > -bounds.lower).to(low.dtype), above, constant)


def choices(operation: MaxPool, bounds: Interval) -> Choices:
    """What bounds each window of a maximum pooling with lower <= v <= upper."""
    settings = (operation.kernel, operation.stride, operation.padding)
    _, place = F.max_pool2d(bounds.lower, *settings, return_indices=True)
    greatest = F.max_pool2d(bounds.upper, *settings)
    least = bounds.lower.flatten(2).gather(2, place.flatten(2)).view_as(greatest)
    # The windows again, without the chosen value, to see whether it is at least every other.
    (height, width), (top, left) = bounds.upper.shape[-2:], operation.padding
    positions = torch.arange(height * width, device=place.device, dtype=torch.float64).view(1, 1, height, width)
    positions = F.unfold(
        F.pad(positions, (left, left, top, top), value=-1), operation.kernel, stride=operation.stride
    ).long()
    padded = F.pad(bounds.upper, (left, left, top, top), value=-torch.inf)
    n, channels = padded.shape[:2]
    windows = F.unfold(padded.reshape(n * channels, 1, *padded.shape[2:]), operation.kernel, stride=operation.stride)
    others = windows.masked_fill(positions == place.reshape(n * channels, 1, -1), -torch.inf).amax(1)
    return Choices(place, least >= others.view_as(least), greatest)


def relax(network: Network, index: int, bounds: list[Interval]) -> Relaxation | None:
    """The relaxation of one node from the bounds of its input; None where it needs none."""
    node = network.nodes[index]
    if isinstance(node.operation, Relu):
        return lines(bounds[node.inputs[0]])
    if isinstance(node.operation, MaxPool):
        return choices(node.operation, bounds[node.inputs[0]])
    return None


@dataclass(frozen=True)
class Relaxed:
    """A network over a region: bounds and relaxations of its nodes, as far as they are known."""

    network: Network
    region: Region
    bounds: list[Interval]
    relaxations: dict[int, Relaxation]


def least(relaxed: Relaxed, start: int, functions: Tensor) -> Tensor:
    """Lower bounds (N, S), float64, of the functions (N, S, *shape) of node ``start``'s activation."""
    waiting = {start: functions}
    total = torch.zeros(functions.shape[:2], dtype=torch.float64, device=functions.device)
    for index in range(start, -1, -1):
        a = waiting.pop(index, None)
        if a is None:
            continue
        node, operation = relaxed.network.nodes[index], relaxed.network.nodes[index].operation
        total = total - _dot(a.abs(), relaxed.bounds[index].error) * 1.02
        if isinstance(operation, Input):
            return total + relaxed.region.minimum(a)
        if isinstance(operation, Affine):
            if operation.offset is not None:
                total = total + _sum(a * operation.offset)
            shapes = relaxed.network.shapes(index)
            parts = operation.adjoint(a.flatten(0, 1), shapes)
            passed = [part.view(*a.shape[:2], *shape) for part, shape in zip(parts, shapes, strict=True)]
        else:
            part, constant = _through(relaxed.relaxations[index], a, relaxed.network.shapes(index)[0])
            passed, total = [part], total + constant
        for source, part in zip(node.inputs, passed, strict=True):
            waiting[source] = waiting[source] + part if source in waiting else part
    raise AssertionError("the walk ends at the image")


def _through(relaxation: Relaxation, a: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Coefficients (N, S, *shape) before a nonlinear operation, and the constant (N, S) that comes with them."""
    positive, negative = a.clamp_min(0), a.clamp_max(0)
    if isinstance(relaxation, Lines):
        below = relaxation.below if relaxation.below.dim() == a.dim() else relaxation.below[:, None]
        part = positive * below + negative * relaxation.above[:, None]
        slack = 2 * gamma(relaxation.constant[0].numel()) + 2 * product_error(a.device)
        return part, _dot(negative, relaxation.constant) * (1 + slack)
    single, place = relaxation.single[:, None], relaxation.place[:, None].expand(a.shape)
    chosen = positive + negative * single
    flat = chosen.new_zeros(*a.shape[:3], shape[-2] * shape[-1])
    part = flat.scatter_add(3, place.flatten(3), chosen.flatten(3)).view(*a.shape[:2], *shape)
    return part, _sum(negative * (~single * relaxation.greatest[:, None]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a (N, S, *shape) by b (N, *shape), to (N, S). In the precision of a: what it is for must bear that."""
    return torch.einsum("nsd,nd->ns", a.flatten(2), b.flatten(1)).double()


def _sum(a: Tensor) -> Tensor:
    return a.flatten(2).sum(2, dtype=torch.float64)
