"""Proofs that no image inside a threat model is read otherwise: intervals first, linear bounds where those fall short.

proofs = prove(model, images, labels, ThreatModel.parse("linf:2/255"))
proofs.proven          # (N,) bool
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust.defenses.bounds.intervals import Interval, intervals
from robust.defenses.bounds.linear import Relaxation, Relaxed, least, relax
from robust.defenses.bounds.operations import MaxPool, Network, Relu
from robust.defenses.bounds.regions import NORMS, Region, region_of
from robust.defenses.bounds.tracing import trace
from robust.defenses.bounds.unsupported import Unsupported
from robust.errors import RobustError
from robust.threats import ThreatModel

__all__ = ["EFFORTS", "Proofs", "TooManyFunctions", "Unsupported", "prove", "prove_network"]

EFFORTS = ("interval", "mixed", "linear")
# A proof must clear zero by this much: for the rounding of a few last sums and of numbers too small for float32.
SLACK = 1e-6
# Values of the widest activation held at a time: what a processor's cache bears, and what a GPU's memory does.
_CPU_VALUES, _OTHER_VALUES = 1_000_000, 100_000_000


class TooManyFunctions(RobustError):
    """Proving would cost more than it was allowed to."""


@dataclass(frozen=True)
class Proofs:
    """Per image (N,): a lower bound of the label's logit less the largest other one, over the whole threat model;
    which method gave it (by its place in :data:`EFFORTS`); and how many linear functions were walked backward."""

    margin: Tensor
    effort: Tensor
    functions: Tensor

    @property
    def proven(self) -> Tensor:
        return self.margin > SLACK


def prove(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, effort: str = "linear") -> Proofs:
    """Bounds for images (N, C, H, W) in [0, 1] and their labels (N,), on the model's device.

    ``effort`` is the last method tried: ``interval`` (interval arithmetic), ``mixed`` (the logits' linear bounds over
    intervals: CROWN-IBP), ``linear`` (linear bounds of every activation: CROWN). Each runs on what the one before did
    not prove. A proof holds for the model as it computes in float32 (:mod:`robust.defenses.bounds.rounding`).

    Raises :class:`Unsupported`, naming it, for a layer, operation or norm that has no bounds here.
    """
    if threat.norm not in NORMS:
        raise Unsupported(f"the norm {threat.norm}: bounds are for {' and '.join(NORMS)}")
    return prove_network(trace(model, images), images, labels, threat, effort)


@torch.no_grad()
def prove_network(
    network: Network, images: Tensor, labels: Tensor, threat: ThreatModel, effort: str = "linear",
    limit: int | None = None,
) -> Proofs:  # fmt: skip
    """As :func:`prove`, for a network that was traced before.

    Raises :class:`TooManyFunctions` where more than ``limit`` linear functions, all images together, would be walked.
    """
    n = len(images)
    margin = torch.full((n,), -torch.inf, dtype=torch.float64, device=images.device)
    proofs = Proofs(margin, torch.zeros(n, dtype=torch.long, device=images.device), torch.zeros_like(labels))
    for place, method in enumerate(EFFORTS[: EFFORTS.index(effort) + 1]):
        index = (~proofs.proven).nonzero().squeeze(1)
        # On a CPU one image at a time: none waits for another's open ReLUs, and the cache holds what is walked.
        alone = method == "linear" and images.device.type == "cpu"
        for part in torch.split(index, 1 if alone else max(1, len(index))):
            if len(part):
                left = None if limit is None else limit - int(proofs.functions.sum())
                found, functions = _METHODS[method](network, region_of(images[part], threat), labels[part], left)
                better = found > margin[part]
                margin[part] = torch.where(better, found, margin[part])
                proofs.effort[part[better]] = place
                proofs.functions[part] += functions
    return proofs


def _interval(network: Network, region: Region, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    logits = intervals(network, region)[-1]
    others = logits.upper.scatter(1, labels[:, None], -torch.inf).amax(1)
    own = logits.lower.gather(1, labels[:, None]).squeeze(1)
    return own.double() - others.double(), torch.zeros_like(labels)


def _mixed(network: Network, region: Region, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    bounds = intervals(network, region)
    relaxations = {}
    for index in range(len(network.nodes)):
        relaxation = relax(network, index, bounds)
        if relaxation is not None:
            relaxations[index] = relaxation
    return margins(Relaxed(network, region, bounds, relaxations), labels), _others(bounds[-1])


def _linear(network: Network, region: Region, labels: Tensor, limit: int | None) -> tuple[Tensor, Tensor]:
    relaxed, functions = tightened(network, region, limit)
    return margins(relaxed, labels), functions + _others(relaxed.bounds[-1])


_METHODS = {"interval": _interval, "mixed": _mixed, "linear": _linear}


def _others(logits: Interval) -> Tensor:
    return torch.full((len(logits.lower),), logits.lower.shape[1] - 1, device=logits.lower.device)


def margins(relaxed: Relaxed, labels: Tensor) -> Tensor:
    """The least margin of each image (N,): the label's logit less every other, each bounded by itself."""
    last = len(relaxed.network.nodes) - 1
    logits = relaxed.bounds[last].lower
    n, classes = logits.shape
    functions = -torch.eye(classes, dtype=logits.dtype, device=logits.device).expand(n, -1, -1).clone()
    functions += torch.nn.functional.one_hot(labels, classes).to(logits.dtype)[:, None]
    found = torch.cat(
        [
            least(relaxed, last, part)
            for part in torch.split(functions, _together(relaxed.network, n, logits.device), 1)
        ],
        1,
    )
    return found.scatter(1, labels[:, None], torch.inf).amin(1)


def tightened(network: Network, region: Region, limit: int | None = None) -> tuple[Relaxed, Tensor]:
    """The network with linear bounds of every activation that a ReLU or maximum reads and that intervals leave open.

    Also returns how many linear functions that took, by image (N,). Raises :class:`TooManyFunctions` beyond ``limit``.
    """
    relaxations: dict[int, Relaxation] = {}
    spent = torch.zeros(len(region.lower), dtype=torch.long, device=region.lower.device)
    read = _read_by_nonlinear(network)

    def refine(index: int, bounds: list[Interval]) -> tuple[Tensor, Tensor] | None:
        relaxation = relax(network, index, bounds)
        if relaxation is not None:
            relaxations[index] = relaxation
        if index not in read or not _mixes_twice(network, index):
            return None
        relaxed = Relaxed(network, region, bounds, relaxations)
        left = None if limit is None else limit - int(spent.sum())
        lower, upper, functions = _refined(relaxed, index, read[index], left)
        spent.add_(functions)
        return lower, upper

    bounds = intervals(network, region, refine)
    return Relaxed(network, region, bounds, relaxations), spent


def _read_by_nonlinear(network: Network) -> dict[int, bool]:
    """The nodes that a nonlinear operation reads; True where only ReLUs do, to which stable values are indifferent."""
    read: dict[int, bool] = {}
    for node in network.nodes:
        if isinstance(node.operation, (Relu, MaxPool)):
            source = node.inputs[0]
            read[source] = read.get(source, True) and isinstance(node.operation, Relu)
    return read


def _mixes_twice(network: Network, index: int) -> bool:
    """Whether a value meets itself again on the way to this node; where it does not, intervals are exact."""
    depth: list[int] = []
    for node in network.nodes[: index + 1]:
        terms = getattr(node.operation, "terms", (2, 2)) if node.inputs else (0, 0)
        mixes = int(min(terms) > 1 or len(node.inputs) > 1)
        depth.append(max((depth[source] for source in node.inputs), default=0) + mixes)
    return depth[index] > 1


def _refined(relaxed: Relaxed, index: int, open_only: bool, limit: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds of a node's values, those of open ReLUs (or all) by linear functions; and how many there were, (N,)."""
    bounds = relaxed.bounds[index]
    lower, upper = bounds.lower.flatten(1).clone(), bounds.upper.flatten(1).clone()
    chosen = (lower < 0) & (upper > 0) if open_only else torch.ones_like(lower, dtype=torch.bool)
    counts = chosen.sum(1)
    if limit is not None and 2 * int(counts.sum()) > limit:
        raise TooManyFunctions
    # Each image's open values first; images with fewer than the most get others of theirs besides.
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    for part in torch.split(order, _together(relaxed.network, len(lower), lower.device), 1):
        functions = torch.zeros(*part.shape, lower.shape[1], dtype=lower.dtype, device=lower.device)
        functions.scatter_(2, part[:, :, None], 1.0)
        functions = functions.view(*part.shape, *bounds.lower.shape[1:])
        below, above = least(relaxed, index, functions), -least(relaxed, index, -functions)
        lower.scatter_(1, part, torch.maximum(lower.gather(1, part), _round(below, lower.dtype, -1)))
        upper.scatter_(1, part, torch.minimum(upper.gather(1, part), _round(above, upper.dtype, 1)))
    shape = bounds.lower.shape
    return lower.view(shape), torch.maximum(lower, upper).view(shape), 2 * counts


def _round(values: Tensor, dtype: torch.dtype, direction: int) -> Tensor:
    """To a coarser type, away from the exact value on the safe side."""
    return (values + direction * (2.0**-22 * values.abs() + 1e-30)).to(dtype)


def _together(network: Network, images: int, device: torch.device) -> int:
    """How many functions of each image to walk backward at a time, by the memory of the widest activation."""
    widest = max(torch.Size(node.shape).numel() for node in network.nodes)
    allowed = _CPU_VALUES if device.type == "cpu" else _OTHER_VALUES
    return max(1, allowed // (widest * images))
