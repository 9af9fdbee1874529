"""`robust certify --patch`: which images no patch can turn, for a model behind masks or bands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from robust.batching import batches, comfortable_batch
from robust.data import ImageSet, load_data
from robust.defenses.patch.attacking import cleansing_attack
from robust.defenses.patch.behind import put_behind
from robust.defenses.patch.certificates import CertifiesPatches, patch_size
from robust.defenses.patch.cleansing import MaskedClassifier
from robust.defenses.patch.record import PatchRow, PatchSettings, PatchSummary
from robust.defenses.smoothing.attacking import CertificateBroken
from robust.defenses.smoothing.journal import Journal
from robust.describing import circumstances, describe_data, describe_model, name_of
from robust.errors import InputError
from robust.float32 import exact_float32
from robust.models import check_model, evaluating, load_model
from robust.places import check_folder
from robust.progress import Progress, Silent
from robust.request import choose_device
from robust.stats import rate
from robust.threats import ThreatModel

JOURNAL, SUMMARY = "certify.jsonl", "certify.json"
_KIND = "patch"


@exact_float32()
def certify_patches(
    model: str | Path | nn.Module | Callable[[Tensor], Tensor] = "demo",
    data: str | Path | ImageSet | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] = "demo",
    *,
    patch: str,
    behind: str = "masking",
    attack: bool = False,
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | Path | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    trust: bool = False,
    name: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> PatchSummary:
    """Prove for which images no square patch, wherever it is, changes the class that the defended model gives.

    Args:
        model, data, limit, seed, device, weights, mean, std, resize, class_names, trust, name: as in
            :func:`robust.audit`. The model should have been trained for the defense (`robust harden --method masking`).
        patch: its area, ``5%`` of the image's, or ``7x7`` pixels.
        behind: the defense: ``masking`` or ``bands``, with settings as in ``masking(count=8)``. What is certified is
            the model behind it, not the bare one.
        attack: also attack with knowledge of the masks, for an upper bound.
        out: folder for certify.json and certify.jsonl; the same run there is resumed.

    Raises:
        InputError: for anything wrong with the arguments, the model or the data.
        CertificateBroken: where an attack turns a certified image.
    """
    progress = progress or Silent()
    asked = _asked(patch)
    folder, place = check_folder(out, JOURNAL, "certificates"), choose_device(device)
    images = load_data(data, resize=resize, class_names=class_names)
    available = len(images)
    images = images.limited(limit, seed)
    if not len(images):
        raise InputError(f"{images.name}: holds no images; give data with at least one")
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(place)
    first = images.batch(range(min(8, len(images)))).to(place)
    classes = check_model(network, first, images.labels, len(images.class_names))
    shape = (images.shape[1], images.shape[2])
    placed = put_behind(behind, network, [asked.fitted(images.shape)], shape)
    masked = placed if isinstance(placed, MaskedClassifier) else None
    if attack and masked is None:
        raise InputError("--attack: is for a model behind masking; audit one behind bands with `robust audit --behind`")
    defended = cast(CertifiesPatches, placed)
    height, width = patch_size(defended.patch, shape)
    settings = PatchSettings(
        patch=patch, height=height, width=width, behind=behind, seed=seed, limit=limit, device=str(place),
        command=command or f"certify_patches({name_of(model)}, {images.name}, patch={patch!r}, behind={behind!r})",
    )  # fmt: skip
    about_model, about_data = describe_model(model, network, classes, name), describe_data(images, available)
    journal = Journal(folder and folder / JOURNAL, {
        "model": about_model.sha256, "data": about_data.sha256, "patch": [height, width], "defense": behind,
        "attack": attack, "seed": seed,
    })  # fmt: skip
    job = _Job(network, defended, images, place, journal, progress, masked if attack else None, seed)
    _run(job, comfortable_batch(network, first[:1]))
    summary = _summed(job, settings, about_model, about_data)
    if folder is not None:
        summary.write(folder / SUMMARY)
    return summary


def _asked(patch: str) -> ThreatModel:
    try:
        asked = ThreatModel.parse(f"patch:{patch}")
    except InputError as error:
        raise InputError(f"--patch {patch}: write 5% of the image's area, or 5x5 pixels ({error})") from None
    if asked.eps == 0:
        raise InputError(f"--patch {patch}: holds no pixel; give an area such as 5%")
    return asked


@dataclass(frozen=True)
class _Job:
    """One run under way. ``attacked``: the defended model where it is to be attacked as well."""

    network: nn.Module
    defended: CertifiesPatches
    data: ImageSet
    device: torch.device
    journal: Journal
    progress: Progress
    attacked: MaskedClassifier | None
    seed: int


def _run(job: _Job, batch: int) -> None:
    """Certify, and attack, every image that the journal does not hold yet."""
    count = len(job.data)
    open_ = [image for image in range(count) if image not in job.journal.rows(_KIND)]
    job.progress.stage(f"{_KIND} certificates", count)
    job.progress.advance(count - len(open_))
    _refuse_contradictions(job.journal.rows(_KIND))
    for ids in batches(open_, min(batch, 32)):
        start = time.perf_counter()
        found = _rows(job, ids)
        seconds = (time.perf_counter() - start) / len(ids)
        for image, row in found.items():
            job.journal.add(_KIND, image, **row, seconds=seconds)
        _refuse_contradictions(found)
        job.progress.advance(len(ids))


def _rows(job: _Job, ids: list[int]) -> dict[int, dict[str, Any]]:
    """What the journal is to hold of each image."""
    images, labels = job.data.batch(ids).to(job.device), job.data.labels[ids].to(job.device)
    with evaluating(job.network), torch.no_grad():
        plain = job.network(images).argmax(1).tolist()
    found = job.defended.certify(images)
    fell: list[bool | None] = [None] * len(ids)
    if job.attacked is not None:
        points = cleansing_attack(job.attacked, images, labels, seed=job.seed)
        fell = (job.attacked.predict(points).predicted != labels.cpu()).tolist()
    told = (part.tolist() for part in (found.predicted, found.certified, found.passes))
    names = ("label", "plain", "defended", "certified", "passes", "fell")
    columns = zip(labels.tolist(), plain, *told, fell, strict=True)
    return {image: dict(zip(names, row, strict=True)) for image, row in zip(ids, columns, strict=True)}


def _refuse_contradictions(rows: Mapping[int, Mapping[str, Any]]) -> None:
    for image, row in rows.items():
        if row["certified"] and row["defended"] == row["label"] and row["fell"]:
            raise CertificateBroken(
                f"image {image} is certified against every patch of this size but one turned it: the model is not "
                "deterministic, or this is a bug; no figure of this run can be trusted"
            )


def _summed(job: _Job, settings: PatchSettings, model: Any, data: Any) -> PatchSummary:
    held = [job.journal.rows(_KIND)[image] for image in range(len(job.data))]
    rows = [PatchRow(**{name: row[name] for name in PatchRow.model_fields}) for row in held]
    n = len(rows)
    standing = sum(row.defended == row.label and not row.fell for row in rows)
    return PatchSummary(
        **circumstances(), model=model, data=data, settings=settings,
        plain=rate(sum(row.plain == row.label for row in rows), n),
        defended=rate(sum(row.defended == row.label for row in rows), n),
        attacked=None if job.attacked is None else rate(standing, n),
        certified=rate(sum(row.counts for row in rows), n),
        passes_mean=sum(row.passes for row in rows) / n, seconds=sum(row["seconds"] for row in held), rows=rows,
    )  # fmt: skip
