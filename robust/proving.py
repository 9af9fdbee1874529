"""Proofs inside an audit: which images need no attack, because bounds show that none can succeed.

Proofs go first, the most confident images in front. They are counted by linear functions walked backward through the
network, each about as dear as one backward pass of one image, so what is tried does not depend on the machine. A few
images show whether it is worth while: a network whose layers have no bounds, or that proves none of them within a small
share of what the attacks will cost, is only attacked.

The audit's first attack and its search for small perturbations run on proven images too. One that breaks a proven image
stops the audit: either the proof or the model's arithmetic is wrong, and no figure could be trusted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from robust.batching import batches
from robust.defenses.bounds import Unsupported, proving, trace
from robust.defenses.bounds.regions import NORMS
from robust.defenses.patch.certificates import CertifiesPatches, patch_size, window
from robust.errors import RobustError
from robust.ledger import Ledger, Run
from robust.summary import CheckRecord
from robust.threats import ThreatModel

if TYPE_CHECKING:
    from robust.defenses.bounds.operations import Network
    from robust.running import Job

BOUNDS = "bounds"

# What an audit costs about, in passes: for each image, and for checks and sentinels, whose samples are fixed.
_EACH, _CHECKS = 200, 60_000
# The pilot may cost this share of it; all proofs together, once the pilot has proven something, that multiple.
_SHARE, _MULTIPLE = 0.03, 8
_PILOT, _BATCH = 4, 16


class ContradictionError(RobustError):
    """An attack broke an image that was proven robust."""


def proven(ledger: Ledger, threat: ThreatModel) -> list[int] | None:
    """The images proven robust under this threat; None where not all were tried and none was proven."""
    found: list[int] | None = ledger.meta(f"proven {threat.text}")
    return found


def answers_like_a_function(ledger: Ledger) -> bool:
    """Whether no check found the model to draw, remember or look at the batch: of such a model a proof says nothing."""
    found = (ledger.checks("").get(name) for name in ("deterministic", "state", "batch", "dynamic"))
    return not any(text and CheckRecord.model_validate_json(text).passed is False for text in found)


def prove_images(job: Job, threat: ThreatModel) -> None:
    """Prove what can be proven at a bearable cost, into the ledger; says why where nothing is."""
    if job.ledger.meta(f"finished {threat.text} {BOUNDS}") or job.out_of_time or threat.eps == 0:
        return
    rows = sorted((row for row in job.ledger.images() if row.correct), key=lambda row: (-row.confidence, row.id))
    if not rows:
        return
    start = time.perf_counter()
    found, tried, note = _prove(job, threat, [row.id for row in rows])
    seconds = time.perf_counter() - start
    job.ledger.record(Run(threat.text, BOUNDS, 0, tried, 0, 0, 0, 0, seconds, "done", note), [])
    if found or tried == len(rows):  # none of all is a figure, none of a few says nothing
        job.ledger.set_meta(f"proven {threat.text}", sorted(found))
    job.ledger.set_meta(f"finished {threat.text} {BOUNDS}", True)
    job.progress.line(
        f"{threat.text:<12} {'bounds':<34} prove {len(found):>4} of {tried:>5} tried     {seconds:7.1f} s  {note}"
    )


def stop_if_contradicted(ledger: Ledger, threat: ThreatModel) -> None:
    """Raises :class:`ContradictionError` where an image is both proven and broken."""
    known = set(proven(ledger, threat) or ())
    for row in ledger.rows(threat.text):
        if row.broken_by and row.image in known:
            raise ContradictionError(
                f"image {row.image} is proven robust under {threat.text}, yet {row.broken_by} breaks it: the bounds or "
                "the model's arithmetic are wrong; the audit stops here. Please report it with the ledger"
            )


def _prove(job: Job, threat: ThreatModel, ids: list[int]) -> tuple[list[int], int, str]:
    """The proven images, how many were tried, and a remark."""
    if threat.norm == "patch":
        return _certify_patches(job, threat, ids)
    if threat.norm not in NORMS:
        return [], 0, f"no bounds for {threat.norm}"
    job.progress.stage(f"{threat.text}  bounds", len(ids))
    try:
        network = trace(job.model, job.load(ids[:_PILOT])[0])
    except Unsupported as error:
        return [], 0, f"no bounds: {error}"
    expected = _EACH * len(ids) + _CHECKS
    pilot, tried, _ = _batches(job, threat, network, batches(ids[:_PILOT], 1), int(_SHARE * expected), patient=True)
    if not pilot:
        return [], tried, f"none of the {_PILOT} most confident images could be proven cheaply"
    rest = batches(ids[tried:], _BATCH)
    more, also, note = _batches(job, threat, network, rest, _MULTIPLE * expected, patient=False)
    return pilot + more, tried + also, note


def _certify_patches(job: Job, threat: ThreatModel, ids: list[int]) -> tuple[list[int], int, str]:
    """The same by the model's own certificates: those of a defense that it stands behind. A bare model has none."""
    model, shape = job.model, (job.data.shape[1], job.data.shape[2])
    if not isinstance(model, CertifiesPatches):
        return [], 0, "no proofs: the model is not behind masks or bands"
    (height, width), asked = patch_size(model.patch, shape), window(threat.eps, shape)
    if asked[0] > height or asked[1] > width:
        return [], 0, f"no proofs: its defense is made for patches of {height}x{width}, not {asked[0]}x{asked[1]}"
    found: list[int] = []
    job.progress.stage(f"{threat.text}  certificates", len(ids))
    for tried, part in enumerate(batches(ids, _BATCH)):
        if job.out_of_time:
            return found, tried * _BATCH, "stopped: the budget ran out"
        images, labels = job.load(part)
        certified = model.certify(images).correct(labels.cpu())
        found += [image for image, holds in zip(part, certified.tolist(), strict=True) if holds]
        job.progress.advance(len(part))
    return found, len(ids), f"certificates of {type(model).__name__} for patches of {height}x{width}"


def _batches(
    job: Job, threat: ThreatModel, network: Network, parts: list[list[int]], limit: int, patient: bool
) -> tuple[list[int], int, str]:
    """Prove batch after batch until so many functions are spent, or, if not ``patient``, a batch proves nothing."""
    found: list[int] = []
    tried = 0
    for part in parts:
        if job.out_of_time:
            return found, tried, "stopped: the budget ran out"
        images, labels = job.load(part)
        try:
            proofs = proving.prove_network(network, images, labels, threat, limit=limit)
        except proving.TooManyFunctions:
            return found, tried, f"stopped after {tried} images: the rest would cost more than it is worth"
        found += [image for image, holds in zip(part, proofs.proven.tolist(), strict=True) if holds]
        tried += len(part)
        limit -= int(proofs.functions.sum())
        job.progress.advance(len(part))
        if not patient and not bool(torch.any(proofs.proven)):
            return found, tried, f"stopped after {tried} images: the last {len(part)} gave no proof"
    return found, tried, ""
