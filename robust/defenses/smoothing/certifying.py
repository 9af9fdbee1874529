"""`robust.certify`: from a model and labeled images to certificates, a record and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust.batching import batches
from robust.copying import Recipe, fast_copy, unfit
from robust.data import ImageSet, load_data
from robust.defenses.smoothing.arguments import (
    JOURNAL,
    REPORT,
    SUMMARY,
    CertifyRequest,
    check_request,
)
from robust.defenses.smoothing.attacking import STEPS, CertificateBroken, lost_majority, smooth_attack
from robust.defenses.smoothing.certificates import certify_images
from robust.defenses.smoothing.journal import Journal
from robust.defenses.smoothing.record import CertifySettings, CertifySummary
from robust.defenses.smoothing.sampling import Sampler, Stream, copies_at_a_time
from robust.defenses.smoothing.smoothed import SmoothedClassifier
from robust.defenses.smoothing.summing import attack_result, method_result
from robust.describing import circumstances, describe_data, describe_model, name_of
from robust.errors import InputError
from robust.float32 import exact_float32
from robust.models import check_model, evaluating, load_model
from robust.places import check_folder
from robust.progress import Progress, Silent
from robust.request import choose_device
from robust.summary import DataRecord, ModelRecord

# Images that are certified together: as many as it takes to fill batches while each is looked at often, and no more,
# since a kill loses what they have drawn. Cohen's procedure fills them with one.
_GROUP = {"anytime": 16, "cohen": 1}
# Methods on the same images draw for themselves, or their agreement would say little.
_STREAMS = {
    "anytime": (Stream.SELECTION, Stream.ESTIMATION),
    "cohen": (Stream.COHEN_SELECTION, Stream.COHEN_ESTIMATION),
}


@exact_float32()
def certify(
    model: str | Path | nn.Module | Callable[[Tensor], Tensor] = "demo",
    data: str | Path | ImageSet | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] = "demo",
    *,
    sigma: float,
    radii: Sequence[float] | None = None,
    tolerance: float | None = None,
    alpha: float = 0.001,
    method: str = "anytime",
    beside: str | None = None,
    draws: int | None = None,
    precision: str = "float32",
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
) -> CertifySummary:
    """Certify the smoothed form of a classifier in l2: g(x) = the most likely class of model(x + noise).

    Args:
        model, data, limit, seed, device, weights, mean, std, resize, class_names, trust, name: as in
            :func:`robust.audit`. The model should have been trained with the noise.
        sigma: standard deviation of the Gaussian noise, in [0, 1] pixel units.
        radii: l2 radii to certify at, pixel units; by default sigma times 1, 2 and 3. One run serves all.
        tolerance: instead, each image's radius to within this, where the draws allow; ``radii`` are then those at
            which shares are told.
        alpha: chance of a false certificate, for each image.
        method: ``anytime``, which stops drawing once the radii are decided, or ``cohen``, the fixed procedure.
        beside: another method to run on the same images, with draws of its own, for comparison.
        draws: most draws of an image that estimate its class's chance; by default 100,000.
        precision: ``float32`` certifies the model itself; ``bfloat16`` a faster copy of it, which the record names.
        attack: also attack the smoothed classifier at every radius, for an upper bound.
        out: folder for certify.json, certify.html and certify.jsonl; the same run there is resumed.

    Returns:
        The record, the same as in certify.json.

    Raises:
        InputError: for anything wrong with the arguments, the model or the data.
        CertificateBroken: where an attack breaks an image inside its certified radius.
    """
    progress = progress or Silent()
    request = check_request(sigma, radii, tolerance, alpha, method, beside, draws, precision)
    folder, place = check_folder(out, JOURNAL, "certificates"), choose_device(device)
    images = load_data(data, resize=resize, class_names=class_names)
    available = len(images)
    images = images.limited(limit, seed)
    if not len(images):
        raise InputError(f"{images.name}: holds no images; give data with at least one")
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(place)
    first = images.batch(range(min(8, len(images)))).to(place)
    classes = check_model(network, first, images.labels, len(images.class_names))
    shown = (name or name_of(model)) + (" (bfloat16 copy)" if precision == "bfloat16" else "")
    about_model, about_data = describe_model(model, network, classes, shown), describe_data(images, available)
    with evaluating(network):
        certified = _certified_network(network, first, precision)
        journal = Journal(folder and folder / JOURNAL, _identity(request, about_model, about_data, seed, place))
        batch = copies_at_a_time(network, first[:1])
        job = _Job(request, Sampler(certified, sigma, seed, batch), images, classes, place, journal, progress)
        for method_ in request.methods:
            _run_method(job, method_)
        if attack:
            _run_attack(job, SmoothedClassifier(certified, sigma, seed=seed))
    labels = images.labels.tolist()
    settings = CertifySettings(
        sigma=sigma, alpha=alpha, radii=list(request.radii), tolerance=tolerance, horizon=request.horizon,
        precision=request.precision, seed=seed, limit=limit, device=str(place),
        command=command or f"robust.certify({about_model.name}, {about_data.name}, sigma={sigma:g})",
    )  # fmt: skip
    summary = CertifySummary(
        **circumstances(), model=about_model, data=about_data, settings=settings, warnings=request.warnings(),
        methods=[method_result(one, journal.rows(one), labels, request.radii) for one in request.methods],
        attack=attack_result(_attack_rows(job), len(labels), STEPS) if attack else None,
    )  # fmt: skip
    if folder is not None:
        from robust.reports.certificate import write_certificate_report

        summary.write(folder / SUMMARY)
        write_certificate_report(summary, folder / REPORT)
    return summary


@dataclass(frozen=True)
class _Job:
    """One run under way."""

    request: CertifyRequest
    sampler: Sampler
    data: ImageSet
    classes: int
    device: torch.device
    journal: Journal
    progress: Progress

    def load(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        return self.data.batch(ids).to(self.device), self.data.labels[ids].to(self.device)


def _run_method(job: _Job, method: str) -> None:
    """Certify every image that the journal does not hold yet."""
    request, count = job.request, len(job.data)
    job.progress.stage(f"{method}  sigma {request.sigma:g}", count)
    open_ = [image for image in range(count) if image not in job.journal.rows(method)]
    job.progress.advance(count - len(open_))
    for ids in batches(open_, _GROUP[method]):
        images, _ = job.load(ids)
        start = time.perf_counter()
        for row, found in certify_images(
            job.sampler, images, job.classes, request.test(method), request.selection(method), _STREAMS[method]
        ):
            now = time.perf_counter()
            job.journal.add(method, ids[row], **asdict(found), seconds=now - start)
            start = now
            job.progress.advance(1)
    rows = job.journal.rows(method).values()
    right = [row["radius"] for row in rows if row["prediction"] == int(job.data.labels[row["image"]])]
    shares = ", ".join(f"{sum(radius >= r for radius in right) / count:.1%} at {r:g}" for r in request.radii)
    job.progress.line(f"{method:<8} certified {shares}; {np.mean([row['draws'] for row in rows]):,.0f} draws an image")


def _run_attack(job: _Job, smoothed: SmoothedClassifier) -> None:
    """Attack at 0, the image itself, and at every radius, smallest first; what is broken stays broken."""
    size = max(1, job.sampler.batch // smoothed.draws)
    fallen: set[int] = set()
    for radius in (0.0, *job.request.radii):
        kind = attack_kind(radius)
        standing = [image for image in range(len(job.data)) if image not in fallen]
        open_ = [image for image in standing if image not in job.journal.rows(kind)]
        job.progress.stage(f"attack  radius {radius:g}", len(standing))
        job.progress.advance(len(standing) - len(open_))
        _refuse_contradictions(job, radius)  # those of an earlier run that stopped here
        for ids in batches(open_, size):
            images, labels = job.load(ids)
            start = time.perf_counter()
            with torch.no_grad():
                found = smooth_attack(smoothed, images, labels, radius) if radius else images
            broken = lost_majority(job.sampler, found, labels, job.request.alpha)
            seconds = (time.perf_counter() - start) / len(ids)
            for image, lost in zip(ids, broken, strict=True):
                job.journal.add(kind, image, broken=lost, seconds=seconds)
            _refuse_contradictions(job, radius)
            job.progress.advance(len(ids))
        fallen = _broken(job, radius)
        left = len(job.data) - len(fallen)
        job.progress.line(f"attack   {left} of {len(job.data)} images stand at radius {radius:g}")


def attack_kind(radius: float) -> str:
    """The name under which the journal keeps attacks of this size."""
    return f"attack {radius:.9g}"


def _attack_rows(job: _Job) -> dict[float, dict[int, dict[str, Any]]]:
    return {radius: job.journal.rows(attack_kind(radius)) for radius in (0.0, *job.request.radii)}


def _broken(job: _Job, radius: float) -> set[int]:
    """Images that an attack of at most this size broke."""
    sizes = [rows for size, rows in _attack_rows(job).items() if size <= radius]
    return {image for rows in sizes for image, row in rows.items() if row["broken"]}


def _refuse_contradictions(job: _Job, radius: float) -> None:
    """Raises CertificateBroken if an attack of this size broke an image that is certified there or beyond."""
    broken = [image for image, row in job.journal.rows(attack_kind(radius)).items() if row["broken"]]
    for method in job.request.methods:
        for image in broken:
            row = job.journal.rows(method)[image]
            if 0 < row["radius"] >= radius and row["prediction"] == int(job.data.labels[image]):
                raise CertificateBroken(
                    f"image {image} is certified up to {row['radius']:g} ({method}) but an attack of size {radius:g} "
                    "broke it: the model is not deterministic, or this is a bug; no figure of this run can be trusted"
                )


def _certified_network(model: nn.Module, images: Tensor, precision: str) -> nn.Module:
    """The network whose votes count: the model itself, or a copy that the record names."""
    if precision == "float32":
        return model
    reason = unfit(model)
    if reason:
        raise InputError(f"precision bfloat16: the model cannot be copied ({reason}); leave it at float32")
    try:
        with torch.no_grad():
            copy, _ = fast_copy(model, Recipe(torch.bfloat16, torch.channels_last), images, model(images).float())
            copy(images)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"precision bfloat16: the copy does not run ({reason}); leave it at float32") from error
    return copy


def _identity(
    request: CertifyRequest, model: ModelRecord, data: DataRecord, seed: int, device: torch.device
) -> dict[str, Any]:
    """What has to be the same for a run to be resumed. Another kind of device draws other noise."""
    return {
        "model": model.sha256, "data": data.sha256, "sigma": request.sigma, "radii": list(request.radii),
        "tolerance": request.tolerance, "alpha": request.alpha, "draws": request.horizon,
        "precision": request.precision, "seed": seed, "kind of device": device.type,
    }  # fmt: skip
