"""Runs the attacks, the search for the curve and the checks of one threat model, batch by batch, into the ledger.

Everything here can be killed at any moment and started again: a batch that is in the ledger is not run twice, and the
images a step starts from are rebuilt from the ledger.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robust import checks
from robust.attacks.registry import build
from robust.batching import batches
from robust.counting import CountedModel
from robust.curve import Bracket, smallest
from robust.data import ImageSet
from robust.errors import InputError, NoGradientError
from robust.evidence import Confirmed, confirm, findings, replay
from robust.ledger import Ledger, Row, Run
from robust.plan import Step, steps
from robust.progress import Progress
from robust.proving import prove_images, proven, stop_if_contradicted
from robust.summary import CheckRecord
from robust.threats import ThreatModel

CURVE = "curve"
CHECKS = "checks"
_SAMPLE = 128


@dataclass(frozen=True)
class Job:
    """One audit under way: the untouched model (evidence), the counted one (attacks), images, settings, ledger."""

    model: nn.Module
    counted: CountedModel
    data: ImageSet
    ledger: Ledger
    device: torch.device
    attacks: tuple[str, ...] | None
    seed: int
    batch_size: int
    deadline: float
    progress: Progress

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def load(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) and labels (N,) on the device."""
        return self.data.batch(ids).to(self.device), self.data.labels[list(ids)].to(self.device)

    def correct(self) -> list[int]:
        return [row.id for row in self.ledger.images() if row.correct]


def run_threat(job: Job, threat: ThreatModel) -> None:
    """Everything the audit does under one threat model. On return, the ledger holds all there was time for."""
    gradients = _model_checks(job, threat)
    prove_images(job, threat)
    plan = steps(threat, job.attacks, gradients)
    position = 0
    while position < len(plan):
        step = plan[position]
        job.ledger.set_meta(f"plan {threat.text}", [planned.label for planned in plan])
        broken = _run_step(job, threat, [planned.label for planned in plan], step)
        stop_if_contradicted(job.ledger, threat)
        if broken and step.escalates and step.attack not in {planned.label for planned in plan}:
            plan.insert(position + 1, Step(step.attack))
        position += 1
    _run_curve(job, threat)
    stop_if_contradicted(job.ledger, threat)
    _attack_checks(job, threat, plan)


# Attacks


def _run_step(job: Job, threat: ThreatModel, order: list[str], step: Step) -> int:
    """One attack over the images standing at its start; returns how many it broke."""
    standing = _standing_before(job, threat, order, step.label)
    if step.limit is not None and step.limit < len(standing):
        standing = sorted(random.Random(job.seed).sample(standing, step.limit))
    job.progress.stage(f"{threat.text}  {step.label}", len(standing))

    def attack(images: Tensor, labels: Tensor, ids: list[int]) -> tuple[Confirmed, list[str | None]]:
        claims = build(step.attack, norm=threat.norm, eps=threat.eps, seed=job.seed)(job.counted, images, labels)
        return confirm(job.model, images, claims, labels, threat), [step.label] * len(ids)

    runs = _run_batches(job, threat, step.label, standing, attack)
    broken, seconds = sum(run.broken for run in runs), sum(run.seconds for run in runs)
    tried = sum(run.tried for run in runs)
    problem = next((f"  {run.status}: {run.detail}" for run in runs if run.status != "done"), "")
    job.progress.line(
        f"{threat.text:<12} {step.label:<34} broke {broken:>5} of {tried:>5} standing  {seconds:7.1f} s{problem}"
    )
    return broken


def _standing_before(job: Job, threat: ThreatModel, order: list[str], label: str) -> list[int]:
    """The correct images that no earlier step broke, whatever this and later steps have done since.

    Proven ones are left out, but for the first step: what it broke of them would show that the proof is wrong.
    """
    earlier = set(order[: order.index(label)])
    done = {row.image for row in job.ledger.rows(threat.text) if row.broken_by in earlier}
    if earlier:
        done.update(proven(job.ledger, threat) or ())
    return [image for image in job.correct() if image not in done]


Attempt = Callable[[Tensor, Tensor, list[int]], "tuple[Confirmed, list[str | None]]"]


def _run_batches(job: Job, threat: ThreatModel, name: str, ids: list[int], attempt: Attempt) -> list[Run]:
    """Run what is not yet in the ledger; a step is marked finished once every batch has been tried."""
    done = {run.batch: run for run in job.ledger.runs(threat.text) if run.attack == name and run.status == "done"}
    runs: list[Run] = []
    for number, batch in enumerate(batches(ids, job.batch_size)):
        if number not in done:
            if job.out_of_time:
                return runs
            done[number] = _run_batch(job, threat, name, number, batch, attempt)
        runs.append(done[number])
        job.progress.advance(len(batch))
    job.ledger.set_meta(f"finished {threat.text} {name}", True)
    return runs


def _run_batch(job: Job, threat: ThreatModel, name: str, number: int, ids: list[int], attempt: Attempt) -> Run:
    images, labels = job.load(ids)
    before, start = job.counted.passes, time.perf_counter()
    status, detail, found, rejected = "done", "", [], 0
    try:
        confirmed, names = attempt(images, labels, ids)
        found = findings(confirmed, ids, names)
        rejected = int((confirmed.claimed & ~confirmed.broken).sum()) if name != CURVE else 0
    except InputError:
        raise
    except NoGradientError as error:
        status, detail = "skipped", str(error)
    except Exception as error:
        status, detail = "failed", f"{type(error).__name__}: {error}".splitlines()[0][:300]
    known = {row.image for row in job.ledger.rows(threat.text) if row.broken_by}
    broken = sum(finding.attack is not None and finding.image not in known for finding in found)
    cost = job.counted.passes - before
    run = Run(
        threat=threat.text, attack=name, batch=number, tried=len(ids), broken=broken, rejected=rejected,
        forward=cost.forward, backward=cost.backward, seconds=time.perf_counter() - start, status=status, detail=detail,
    )  # fmt: skip
    job.ledger.record(run, found)
    return run


# Curve


def _run_curve(job: Job, threat: ThreatModel) -> None:
    """The smallest perturbation of every correct image. What it breaks inside eps counts like any attack's."""
    if threat.eps == 0:
        job.ledger.set_meta(f"finished {threat.text} {CURVE}", True)
        return
    ids = job.correct()
    job.progress.stage(f"{threat.text}  smallest perturbations", len(ids))

    def search(images: Tensor, labels: Tensor, ids: list[int]) -> tuple[Confirmed, list[str | None]]:
        rows = {row.image: row for row in job.ledger.rows(threat.text)}
        bracket = _known(job, threat, images, [rows.get(image) for image in ids])
        found = smallest(job.counted, images, labels, threat, bracket, job.seed).adversarial
        # Rounding to 8-bit color must not make the smallest perturbation larger, so each gets its own ball.
        anywhere = confirm(job.model, images, found, labels, threat, eps=threat.geometry.length(found - images))
        inside = threat.geometry.contains(anywhere.stored, images, threat.eps)
        return anywhere, [CURVE if held else None for held in inside.tolist()]

    runs = _run_batches(job, threat, CURVE, ids, search)
    job.progress.line(
        f"{threat.text:<12} {'smallest perturbations':<34} of    {sum(run.tried for run in runs):>5} images   "
        f"  {sum(run.seconds for run in runs):7.1f} s"
    )


def _known(job: Job, threat: ThreatModel, images: Tensor, rows: list[Row | None]) -> Bracket:
    high = torch.full((len(images),), torch.inf, device=job.device)
    low = torch.full_like(high, threat.eps)
    adversarial = images.clone()
    for i, row in enumerate(rows):
        stored = None if row is None else job.ledger.adversarial(row.image, threat.text)
        if row is None or row.distance is None or stored is None:
            continue
        high[i], low[i] = row.distance, 0.0
        adversarial[i] = torch.from_numpy(stored).to(job.device)
    return Bracket(low, high, adversarial)


# Checks


def _sample(job: Job, threat: ThreatModel) -> checks.Sample | None:
    correct = job.correct()
    if not correct:
        return None
    chosen = sorted(random.Random(job.seed).sample(correct, min(_SAMPLE, len(correct))))
    images, labels = job.load(chosen)
    return checks.Sample(job.counted, images, labels, threat, job.seed, job.batch_size)


def _model_checks(job: Job, threat: ThreatModel) -> bool:
    """Checks of the model itself, the same under every threat; returns whether gradients are of use."""
    _run_checks(job, "", threat, checks.MODEL_CHECKS)
    records = job.ledger.checks("")
    found = records.get("gradients")
    return found is None or CheckRecord.model_validate_json(found).passed is not False


def _attack_checks(job: Job, threat: ThreatModel, plan: list[Step]) -> None:
    _run_checks(job, threat.text, threat, checks.ATTACK_CHECKS)
    rows = [row for row in job.ledger.rows(threat.text) if row.broken_by]
    survive = sum(bool(row.eight_bit) for row in rows)
    records = [checks.eight_bit_survival(survive, len(rows))]
    tried, broken = _sentinel_result(job, threat, plan, "converged")
    records.append(checks.steps_find_no_more(tried, broken, len(job.data)))
    tried, broken = _sentinel_result(job, threat, plan, "black-box")
    records.append(checks.queries_find_no_more(tried, broken))
    if not job.out_of_time:
        again = replay(job.model, job.ledger, threat, job.device, max(1, job.batch_size // 2))
        records.append(checks.evidence_replays(again.replayed, len(again.failed)))
    for record in records:
        job.ledger.set_check(threat.text, record.name, record.model_dump_json())


def _sentinel_result(job: Job, threat: ThreatModel, plan: list[Step], check: str) -> tuple[int | None, int]:
    """What a sentinel tried and broke; None where it did not run to its end."""
    for step in plan:
        if step.check == check and job.ledger.meta(f"finished {threat.text} {step.label}"):
            runs = [run for run in job.ledger.runs(threat.text) if run.attack == step.label]
            if all(run.status == "done" for run in runs):
                return sum(run.tried for run in runs), sum(run.broken for run in runs)
    return None, 0


def _run_checks(job: Job, key: str, threat: ThreatModel, chosen: Sequence[checks.Check]) -> None:
    """Run the checks not yet in the ledger under ``key``; their cost is charged to the threat."""
    sample = _sample(job, threat)
    job.progress.stage(f"{threat.text}  checks", len(chosen))
    for check in chosen:
        if sample is not None and not job.out_of_time:
            label = f"{key} {check.__name__}"
            if job.ledger.meta(label) is None:
                before, start = job.counted.passes, time.perf_counter()
                record = check(sample)
                cost = job.counted.passes - before
                job.ledger.set_check(key, record.name, record.model_dump_json())
                job.ledger.set_meta(label, True)
                job.ledger.record(
                    Run(
                        threat=threat.text, attack=CHECKS, batch=checks.CHECK_NAMES.index(record.name),
                        tried=len(sample), broken=0, rejected=0, forward=cost.forward, backward=cost.backward,
                        seconds=time.perf_counter() - start, status="done", detail=record.name,
                    ),
                    [],
                )  # fmt: skip
        job.progress.advance(1)


def distances(rows: Sequence[Row], n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The smallest perturbation found per image, (n,), inf where none."""
    found = np.full(n, np.inf)
    for row in rows:
        if row.distance is not None:
            found[row.image] = row.distance
    return found
