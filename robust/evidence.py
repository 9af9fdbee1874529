"""The evidence lane: what counts as broken is decided here, and nowhere else.

An attack only claims. A claim becomes a finding if the image to be stored, given to the untouched model in float32,
lies inside the threat model and is misclassified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from robust.attacks.queries import Queried
from robust.ledger import Finding, Ledger, Queries
from robust.models import evaluating
from robust.threats import ThreatModel


@dataclass(frozen=True)
class Confirmed:
    """The outcome of re-verification, one entry per claim (N,).

    ``claimed`` says whether the claim was misclassified at all, ``broken`` whether a form of it inside the threat model
    was. ``stored`` is that form: rounded to 8-bit color where it survives that, as found otherwise.
    """

    claimed: Tensor
    broken: Tensor
    stored: Tensor
    distance: Tensor
    prediction: Tensor
    confidence: Tensor
    eight_bit: Tensor

    @staticmethod
    def joined(parts: Sequence[Confirmed]) -> Confirmed:
        """One outcome for the claims of all parts, in their order."""
        if len(parts) == 1:
            return parts[0]
        return Confirmed(*(torch.cat([getattr(part, entry.name) for part in parts]) for entry in fields(Confirmed)))


def confirm(
    model: nn.Module, images: Tensor, claims: Tensor, labels: Tensor, threat: ThreatModel, eps: Tensor | None = None
) -> Confirmed:
    """Re-verify claims (N, C, H, W) against their images, inside the threat model, or inside balls of ``eps`` (N,).

    Three forms of each claim are tried in turn and the first that holds is kept: rounded to the nearest 8-bit image,
    rounded towards the original (which never grows the perturbation of an 8-bit image), and as found.
    """
    radius = torch.full((len(labels),), threat.eps, device=images.device) if eps is None else eps
    claims = claims.float().clamp(0, 1)
    steps = (claims - images) * 255
    levels = (claims * 255).round(), ((images * 255).round() + steps.trunc()).round().clamp(0, 255)
    # CUDA divides by a number through its reciprocal, which moves values that did not change by a last bit; by a tensor
    # it divides exactly, as the images were made.
    top = images.new_tensor(255.0)
    forms = (*((level / top, True) for level in levels), (claims, False))
    n, device = len(labels), images.device
    result = Confirmed(
        claimed=torch.zeros(n, dtype=torch.bool, device=device), broken=torch.zeros(n, dtype=torch.bool, device=device),
        stored=images.clone(), distance=torch.zeros(n, device=device), prediction=labels.clone(),
        confidence=torch.zeros(n, device=device), eight_bit=torch.zeros(n, dtype=torch.bool, device=device),
    )  # fmt: skip
    with evaluating(model), torch.no_grad():
        for form, eight_bit in forms:
            index = (~result.broken).nonzero().squeeze(1)
            if len(index):
                _try_form(model, images, form, labels, threat, radius, eight_bit, index, result)
    result.distance[:] = threat.geometry.length(result.stored - images)
    return result


def _try_form(
    model: nn.Module, images: Tensor, form: Tensor, labels: Tensor, threat: ThreatModel, radius: Tensor,
    eight_bit: bool, index: Tensor, result: Confirmed,
) -> None:  # fmt: skip
    """Run one form of the claims at ``index`` and enter into ``result`` those that hold."""
    points = form[index]
    logits = model(points)
    confidence, prediction = logits.float().softmax(1).max(1)
    wrong = (prediction != labels[index]) & ~logits.isnan().any(1)
    result.claimed[index] |= wrong
    held = wrong & threat.geometry.contains(points, images[index], radius[index])
    taken = index[held]
    result.broken[taken] = True
    result.stored[taken] = points[held]
    result.prediction[taken] = prediction[held]
    result.confidence[taken] = confidence[held]
    result.eight_bit[taken] = eight_bit


def findings(confirmed: Confirmed, ids: Sequence[int], attacks: Sequence[str | None]) -> list[Finding]:
    """The confirmed claims as rows for the ledger; ``attacks`` names who broke each inside eps, None beyond."""
    return [
        Finding(
            image=ids[i], attack=attacks[i], distance=float(confirmed.distance[i]),
            prediction=int(confirmed.prediction[i]), confidence=float(confirmed.confidence[i]),
            eight_bit=bool(confirmed.eight_bit[i]), adversarial=confirmed.stored[i].cpu().numpy(),
        )
        for i in confirmed.broken.nonzero().squeeze(1).tolist()
    ]  # fmt: skip


def query_rows(asked: Queried, confirmed: Confirmed, ids: Sequence[int]) -> list[Queries]:
    """What a query attack asked, as rows for the ledger; only what was confirmed counts as broken."""
    broken_at = torch.where(confirmed.broken, asked.broken_at, 0).tolist()
    return [
        Queries(image, spent, at or None) for image, spent, at in zip(ids, asked.spent.tolist(), broken_at, strict=True)
    ]


@dataclass(frozen=True)
class Replay:
    """Stored adversarial images run again: how many, and the numbers of those that no longer hold."""

    replayed: int
    failed: list[int]


def replay(model: nn.Module, ledger: Ledger, threat: ThreatModel, device: torch.device, batch_size: int) -> Replay:
    """Read every stored adversarial image back and check that it is misclassified at the distance the ledger says."""
    labels = {row.id: row.label for row in ledger.images()}
    rows = [row for row in ledger.rows(threat.text) if row.distance is not None]
    failed = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        stored = [ledger.adversarial(row.image, threat.text) for row in batch]
        found = torch.from_numpy(np.stack([image for image in stored if image is not None])).to(device)
        images = torch.from_numpy(np.stack([ledger.original(row.image) for row in batch])).to(device)
        truth = torch.tensor([labels[row.image] for row in batch], device=device)
        radius = torch.tensor([threat.eps if row.broken_by else row.distance for row in batch], device=device)
        with evaluating(model), torch.no_grad():
            logits = model(found)
        holds = (logits.argmax(1) != truth) & ~logits.isnan().any(1)
        holds &= threat.geometry.contains(found, images, radius)
        failed += [row.image for row, kept in zip(batch, holds.tolist(), strict=True) if not kept]
    return Replay(len(rows), failed)
