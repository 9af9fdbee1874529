"""The audit: from a model and labeled images to a verdict, a ledger and a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.assembling import Subject, assemble
from robust.batching import batches, comfortable_batch
from robust.checking import access_of
from robust.corrupting import Grid, check_baseline, load_baseline, run_corruptions
from robust.corruptions import check_size
from robust.counting import CountedModel
from robust.data import ImageSet, load_data
from robust.defenses.patch.behind import put_behind
from robust.describing import describe_data, describe_model, name_of
from robust.draws import Voting, drawn
from robust.errors import InputError, OtherAuditError
from robust.evidence import Replay, replay
from robust.float32 import exact_float32
from robust.lane import Lane, make_lane
from robust.ledger import ImageRow, Ledger
from robust.models import Backward, check_fronts, check_model, evaluating, identify, load_model
from robust.places import check_folder
from robust.plan import Access, standard_attacks
from robust.progress import Progress, Silent
from robust.randomness import own_random
from robust.reports import write_report
from robust.request import (
    LEDGER,
    REPORT,
    SUMMARY,
    Request,
    check_attacks,
    check_budget,
    check_effort,
    check_precision,
    choose_device,
    default_threats,
    split_threats,
)
from robust.running import Job, run_threat
from robust.summary import AuditSummary, CheckRecord, DataRecord, ModelRecord, Settings
from robust.surrogates import ModelSource, load_surrogates
from robust.threats import ThreatModel

_CALIBRATION = 64


@exact_float32()
def audit(
    model: str | Path | nn.Module | Callable[[Tensor], Tensor] = "demo",
    data: str | Path | ImageSet | torch.utils.data.Dataset[Any] | tuple[Tensor, Tensor] = "demo",
    threats: Sequence[str | ThreatModel] | None = None,
    *,
    attacks: Sequence[str] | None = None,
    surrogates: Sequence[ModelSource] = (),
    limit: int | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    budget: float | None = None,
    effort: str = "standard",
    precision: str = "auto",
    out: str | Path | None = None,
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: tuple[int, int] | None = None,
    class_names: Sequence[str] | None = None,
    trust: bool = False,
    bpda: Sequence[str] | Mapping[str, Backward] = (),
    baseline: ModelSource | None = None,
    behind: str | None = None,
    name: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> AuditSummary:
    """Audit a classifier: attack it, re-verify what the attacks claim, check the evidence, give a verdict.

    Args:
        model: a module or callable from images (N, C, H, W) in [0, 1] to logits (N, K), or a text that
            :func:`robust.load_model` takes.
        data: a data set of (image, label), a pair of tensors, or a text that :func:`robust.load_data` takes.
        threats: threat models, as objects or text such as ``"linf:8/255"``, which is the default; of the demo, that
            and a patch, unless ``attacks`` are named. ``"corruptions"`` measures accuracy on corrupted images
            (``"corruptions:3"``: at severities 1 to 3), alone or beside others.
        attacks: names of attacks instead of the standard ones, cheapest first; an audit without all of the standard
            ones cannot be sound.
        surrogates: models, each as ``model``: an attack with their gradients is tried on all that still stands,
            and must find nothing that the model's own gradients missed.
        limit: audit a random sample of so many images.
        seed: of the sample and of every attack. With ``precision="plain"`` the same seed gives the same verdicts on one
            machine; otherwise an image at the very boundary may depend on which copy of the model was measured to pay.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1`` ...
        batch_size: images at a time; by default from the model's largest activation.
        budget: seconds after which no new batch is started; what was left undone makes the verdict inconclusive.
        effort: of the standard list: ``quick``, ``standard`` or ``exhaustive``.
        precision: how attacks may search: ``auto`` (the fastest copy of the model that agrees with it, down to the
            model itself), ``float32`` (never in bfloat16) or ``plain`` (the model itself). What they find is always
            decided by the model itself, in float32.
        out: folder for `audit.json`, `report.html` and `ledger.sqlite`; None keeps nothing on disk. An audit of the
            same things there is resumed.
        weights, mean, std, trust: see :func:`robust.load_model`; resize, class_names: see :func:`robust.load_data`.
        bpda: names of sub-modules, such as ``"preprocess"``, whose gradient attacks replace by the identity, or of each
            the differentiable function whose gradient to use instead (see :func:`robust.models.bpda`). Successes count
            only on the untouched model.
        baseline: what corruption errors are relative to: a model, or the path of an `audit.json` or its folder, of
            another model audited for corruptions on the same images with the same seed.
        behind: audit the model behind a defense that changes inference, made for the largest patch among the threats:
            ``masking`` or ``bands`` (see :func:`robust.defenses.patch.behind.put_behind`). Its certificates are the
            lower bound.
        name: what to call the model in the report.

    Returns:
        The summary, the same record as in `audit.json`.

    Raises:
        InputError: for anything wrong with the arguments, the model or the data; one line with the remedy.
    """
    progress = progress or Silent()
    asked, severities = split_threats(default_threats(model, data, attacks) if threats is None else threats)
    request = Request(
        threats=asked, corruptions=severities, attacks=None if attacks is None else tuple(attacks), seed=seed,
        device=choose_device(device), out=check_folder(out, LEDGER, "audit"), precision=check_precision(precision),
        effort=check_effort(effort, attacks), behind=behind,
    )  # fmt: skip
    check_attacks(request, bool(surrogates))
    check_budget(budget)
    check_baseline(baseline, severities)
    images = load_data(data, resize=resize, class_names=class_names)
    available = len(images)
    images = images.limited(limit, seed)
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(request.device)
    request = replace(request, threats=tuple(threat.fitted(images.shape) for threat in request.threats))
    if severities:
        check_size(*images.shape[1:])
    if behind is not None:
        network = put_behind(behind, network, request.threats, images.shape[1:])
    called = name or name_of(model)
    fronts = check_fronts(network, bpda)
    first = images.batch(range(min(8, len(images)))).to(request.device)
    with own_random(request.device, seed):  # a random model must answer alike from run to run
        classes = check_model(network, first, images.labels, len(images.class_names))
        others = load_surrogates(surrogates, first, classes, request.device, trust)
        size = batch_size or comfortable_batch(network, first[:1])
        predictions = _clean_pass(network, images, request.device, size, progress)
    shown = called if behind is None else f"{called}, behind {behind}"
    record, described = describe_model(model, network, classes, shown), describe_data(images, available)
    grid = Grid(severities, load_baseline(baseline, first, classes, described, request, trust))
    ledger = _open_ledger(request, record, described, images, predictions, size, tuple(fronts), others, grid)
    with ledger:
        lane = _lane(ledger, network, images, request)
        job = Job(
            model=network, counted=CountedModel(network, None if lane.report.kind == "plain" else lane),
            data=images, ledger=ledger, device=request.device,
            attacks=request.attacks, surrogates=others, seed=seed, batch_size=ledger.meta("batch_size"),
            deadline=float("inf") if budget is None else time.monotonic() + budget, progress=progress,
            bpda=fronts, effort=effort,
        )  # fmt: skip
        for threat in request.threats:
            run_threat(job, threat)
        run_corruptions(job, grid)
        settings = Settings(
            seed=seed, limit=limit, device=str(request.device), batch_size=job.batch_size, budget_seconds=budget,
            attacks=_names(request, access_of(job)), standard_attacks=request.attacks is None,
            lane=lane.report.kind, lane_detail=lane.report.detail, behind=behind,
            command=command or _call(called, described.name, request, limit, grid),
        )  # fmt: skip
        subject = Subject(record, described, settings, _warnings(predictions, classes, ledger))
        summary = assemble(ledger, subject, request.threats, request.attacks, grid)
        if request.out is not None:
            summary.write(request.out / SUMMARY)
            write_report(summary, ledger, request.out / REPORT)
    return summary


def _clean_pass(
    model: nn.Module, data: ImageSet, device: torch.device, batch_size: int, progress: Progress
) -> list[ImageRow]:
    """What the model says of every image unattacked. Reads each image once, so a bad one stops the audit here."""
    rows: list[ImageRow] = []
    progress.stage("clean accuracy", len(data))
    for ids in batches(list(range(len(data))), batch_size):
        with evaluating(model), torch.no_grad():
            logits = model(data.batch(ids).to(device)).float()
        if not bool(logits.isfinite().all()):
            place = ids[int((~logits.isfinite().all(1)).nonzero()[0])]
            raise InputError(
                f"the model's logits for image {place} hold NaN or infinity; mend the model or its weights"
            )
        confidence, prediction = (part.cpu().tolist() for part in logits.softmax(1).max(1))
        labels = data.labels[ids].tolist()
        rows += [ImageRow(*row) for row in zip(ids, labels, prediction, confidence, strict=True)]
        progress.advance(len(ids))
    right = sum(row.correct for row in rows)
    progress.line(f"{'clean':<12} {right} of {len(rows)} images classified right ({right / len(rows):.1%})")
    return rows


def _lane(ledger: Ledger, model: nn.Module, data: ImageSet, request: Request) -> Lane:
    """The fast copy that attacks search with. Its kind rests on a timing and so is kept for a resumed audit."""
    ids = [row.id for row in ledger.images() if row.correct][: min(_CALIBRATION, ledger.meta("batch_size"))]
    images, labels = data.batch(ids).to(request.device), data.labels[ids].to(request.device)
    precision = request.precision if request.threats else "plain"
    lane = make_lane(model, images, labels, precision=precision, kind=ledger.meta("lane"))
    if ledger.meta("lane") is None:
        ledger.set_meta("lane", lane.report.kind)
        ledger.set_meta("lane detail", lane.report.detail)
    return Lane(model, lane.network, replace(lane.report, detail=ledger.meta("lane detail")))


def _warnings(rows: list[ImageRow], classes: int, ledger: Ledger) -> list[str]:
    """What the owner of the model should hear at once, beside the verdict."""
    warnings = []
    right = sum(row.correct for row in rows) / len(rows)
    if right < max(1.5 / classes, 0.2):
        warnings.append(
            f"Clean accuracy is {right:.1%}, near chance: are the labels in the order of the model's outputs, and is "
            "its normalization part of it (--mean, --std)?"
        )
    logits = ledger.checks("").get("logits")
    if logits is not None and CheckRecord.model_validate_json(logits).passed is False:
        warnings.append("The model's outputs are probabilities, not logits; attacks look weaker than they are on them.")
    return warnings


def _open_ledger(
    request: Request, model: ModelRecord, data: DataRecord, images: ImageSet, rows: list[ImageRow], batch_size: int,
    fronts: tuple[str, ...], surrogates: Sequence[nn.Module], grid: Grid,
) -> Ledger:  # fmt: skip
    """The ledger to go on with, or a new one. The folder is made here, once all of the input is known good."""
    identity = {
        "model": model.sha256, "data": data.sha256, "threats": [threat.text for threat in request.threats],
        # The standard list by its names, so that an audit is not gone on with by another version's list.
        "attacks": _names(request, "gradients"), "seed": request.seed, "precision": request.precision,
        "bpda": list(fronts) or None, "behind": request.behind,
        "surrogates": [identify(surrogate) for surrogate in surrogates] or None, "choice of corruptions": grid.identity,
    }  # fmt: skip
    path = None if request.out is None else request.out / LEDGER
    if path is not None and path.exists():
        ledger = Ledger.open(path)
        if ledger.meta("complete_images"):
            difference = _difference(ledger, identity, rows)
            if difference is None:
                return ledger
            ledger.close()
            raise OtherAuditError(f"--out {request.out}: holds an audit {difference}; give another folder")
        ledger.close()
        path.unlink()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {request.out}: cannot be made ({error.strerror}); give another folder") from None
    ledger = Ledger.create(path, identity)
    ledger.set_meta("shape", data.shape)
    ledger.set_meta("batch_size", batch_size)
    for ids in batches(list(range(len(images))), batch_size):
        ledger.add_images([rows[i] for i in ids], images.batch(ids).numpy())
    ledger.set_meta("complete_images", True)
    return ledger


def _names(request: Request, access: Access) -> list[str]:
    lists = [request.attacks or standard_attacks(threat, access, request.effort) for threat in request.threats]
    return list(dict.fromkeys(name for names in lists for name in names))


def _call(model: str, data: str, request: Request, limit: int | None, grid: Grid) -> str:
    """The call that reproduces an audit made from Python, as far as its arguments have names."""
    given = {
        "attacks": request.attacks and list(request.attacks), "limit": limit, "seed": request.seed or None,
        "precision": None if request.precision == "auto" else request.precision,
        "effort": None if request.effort == "standard" else request.effort,
        "baseline": grid.baseline and grid.baseline.name, "behind": request.behind,
    }  # fmt: skip
    more = "".join(f", {name}={value!r}" for name, value in given.items() if value is not None)
    threats = [threat.text for threat in request.threats] + ([grid.text] if grid.severities else [])
    return f"robust.audit({model}, {data}, {threats}{more})"


def _difference(ledger: Ledger, identity: dict[str, Any], rows: list[ImageRow]) -> str | None:
    """What sets this audit apart from the ledger's; None where it can go on with it."""
    found = ledger.meta("identity")
    differing = [key for key in identity if found.get(key) != identity[key]]
    if differing:
        return f"with another {' and '.join(differing)}"
    # Equal weights may run in a changed forward pass, so the model's answers are compared too.
    then = ledger.images()
    same = sum(new.prediction == old.prediction for new, old in zip(rows, then, strict=True))
    apart = sorted(abs(new.confidence - old.confidence) for new, old in zip(rows, then, strict=True))
    if same < 0.99 * len(rows) or apart[len(apart) // 2] > 0.01:
        return "of a model with the same weights that answers otherwise"
    return None


@exact_float32()
def verify_audit(
    folder: str | Path,
    model: str | Path | nn.Module | Callable[[Tensor], Tensor],
    *,
    device: str = "auto",
    weights: str | Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    trust: bool = False,
    behind: str | None = None,
) -> dict[str, Replay]:
    """Run every stored adversarial image of the audit in ``folder`` again; the outcome per threat model.

    Raises InputError where the folder holds no audit, or the model is not the one that was audited.
    """
    summary = AuditSummary.read(Path(folder) / SUMMARY)
    network = load_model(model, weights=weights, mean=mean, std=std, trust=trust).to(place := choose_device(device))
    made = summary.settings.behind
    if made is not None and made != behind:
        raise InputError(f"{folder}: audited the model behind {made}; give --behind {made!r}")
    if behind is not None:
        found = [ThreatModel(result.threat.norm, result.threat.eps) for result in summary.threats]
        network = put_behind(behind, network, found, summary.data.shape[1:])
    if identify(network) != summary.model.sha256:
        raise InputError(f"{folder}: audited another model ({summary.model.name}); its weights differ from these")
    with Ledger.open(Path(folder) / LEDGER) as ledger:
        judge = Voting(network, summary.settings.seed).again() if drawn(ledger) else network
        return {
            result.threat.text: replay(
                judge, ledger, ThreatModel(result.threat.norm, result.threat.eps, result.threat.text), place, 64
            )
            for result in summary.threats
        }
