"""Runs the attacks, the search for the curve and the checks of one threat model, batch by batch, into the ledger.

Everything here can be killed at any moment and started again: a batch that is in the ledger is not run twice, and the
images a step starts from are rebuilt from the ledger.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from robust.adapting import prepare, tell_difference
from robust.attacks import Transfer
from robust.attacks.base import exact
from robust.attacks.queries import only_asks
from robust.attacks.registry import build
from robust.batching import batches
from robust.checking import CHECKS, access_of, blind, finding_checks
from robust.counting import CountedModel
from robust.curve import Bracket, smallest, smallest_by_queries
from robust.data import ImageSet
from robust.errors import InputError, NoGradientError
from robust.evidence import Confirmed, confirm, findings, query_rows
from robust.ledger import Ledger, Queries, Row, Run
from robust.memory import Fitting
from robust.models import Backward
from robust.plan import Step, steps
from robust.progress import Progress
from robust.proving import answers_like_a_function, prove_images, proven, stop_if_contradicted
from robust.rates import measure_rates
from robust.threats import ThreatModel

__all__ = ["CHECKS", "CURVE", "Job", "distances", "run_threat"]

CURVE = "curve"


@dataclass(frozen=True)
class Job:
    """One audit under way: the untouched model (evidence), the counted one (attacks), images, settings, ledger.

    ``bpda``: sub-modules by name whose backward function attacks replace. ``random``: the model draws random numbers,
    and both of the above are over draws.
    """

    model: nn.Module
    counted: CountedModel
    data: ImageSet
    ledger: Ledger
    device: torch.device
    attacks: tuple[str, ...] | None
    surrogates: tuple[nn.Module, ...]
    seed: int
    batch_size: int
    deadline: float
    progress: Progress
    bpda: Mapping[str, Backward] = field(default_factory=dict)
    random: bool = False
    effort: str = "standard"

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
    view = prepare(job, threat)
    if access_of(job) == "gradients" and answers_like_a_function(job.ledger):
        prove_images(job, threat)
    plan = steps(
        threat,
        job.attacks,
        view.gradients,
        view.via,
        view.job.random,
        bool(job.surrogates),
        access_of(job),
        job.effort,
    )
    position = 0
    while position < len(plan):
        step = plan[position]
        job.ledger.set_meta(f"plan {threat.text}", [planned.label for planned in plan])
        seen = view.last if step.via else view.job
        broken = _run_step(seen, threat, [planned.label for planned in plan], step)
        stop_if_contradicted(job.ledger, threat)
        whole = replace(step, limit=None, check=None)
        if broken and step.escalates and whole.label not in {planned.label for planned in plan}:
            plan.insert(position + 1, whole)
        position += 1
    tell_difference(view, threat, plan)
    _run_curve(view.last, threat)
    stop_if_contradicted(job.ledger, threat)
    finding_checks(view.last, threat, plan)
    measure_rates(view.last, threat)


# Attacks


def _run_step(job: Job, threat: ThreatModel, order: list[str], step: Step) -> int:
    """One attack over the images standing at its start; returns how many it broke."""
    standing = _standing_before(job, threat, order, step.label)
    if step.limit is not None and step.limit < len(standing):
        standing = sorted(random.Random(job.seed).sample(standing, step.limit))
    job.progress.stage(f"{threat.text}  {step.label}", len(standing))

    def attempt(images: Tensor, labels: Tensor, ids: list[int]) -> Attempted:
        attack = build(step.attack, norm=threat.norm, eps=threat.eps, seed=job.seed)
        if isinstance(attack, Transfer):
            attack = replace(attack, surrogates=job.surrogates)
        names: list[str | None] = [step.label] * len(ids)
        model = exact(job.counted) if step.exact else job.counted
        if not only_asks(attack):
            return Attempted(confirm(job.model, images, attack(model, images, labels), labels, threat), names)
        asked = attack.queried(model, images, labels)
        confirmed = confirm(job.model, images, asked.points, labels, threat)
        return Attempted(confirmed, names, query_rows(asked, confirmed, ids))

    runs = _run_batches(job, threat, step.label, standing, attempt)
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


@dataclass(frozen=True)
class Attempted:
    """What came of one batch: the re-verified claims, who is named for each inside eps, and what each image cost."""

    confirmed: Confirmed
    names: list[str | None]
    queries: list[Queries] = field(default_factory=list)

    @staticmethod
    def joined(parts: Sequence[Attempted]) -> Attempted:
        """What came of the batch that these are the parts of."""
        return Attempted(
            Confirmed.joined([part.confirmed for part in parts]),
            [name for part in parts for name in part.names],
            [row for part in parts for row in part.queries],
        )


Attempt = Callable[[Tensor, Tensor, list[int]], Attempted]


def _run_batches(job: Job, threat: ThreatModel, name: str, ids: list[int], attempt: Attempt) -> list[Run]:
    """Run what is not yet in the ledger; a step is marked finished once every batch has been tried."""
    done = {run.batch: run for run in job.ledger.runs(threat.text) if run.attack == name and run.status == "done"}
    runs: list[Run] = []
    fitting = Fitting()
    for number, batch in enumerate(batches(ids, job.batch_size)):
        if number not in done:
            if job.out_of_time:
                return runs
            done[number] = _run_batch(job, threat, name, number, batch, attempt, fitting)
        runs.append(done[number])
        job.progress.advance(len(batch))
    job.ledger.set_meta(f"finished {threat.text} {name}", True)
    return runs


def _run_batch(
    job: Job, threat: ThreatModel, name: str, number: int, ids: list[int], attempt: Attempt, fitting: Fitting
) -> Run:  # fmt: skip
    images, labels = job.load(ids)
    before, start = job.counted.passes, time.perf_counter()
    status, detail, found, rejected = "done", "", [], 0
    queries: list[Queries] = []
    try:
        parts = fitting.run(lambda part: attempt(images[part], labels[part], ids[part]), len(ids))
        attempted = Attempted.joined(parts)
        if len(parts) > 1:
            detail = f"in {len(parts)} parts: the device's memory did not suffice for {len(ids)} images at a time"
        confirmed, queries = attempted.confirmed, attempted.queries
        found = findings(confirmed, ids, attempted.names)
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
    job.ledger.record(run, found, queries)
    return run


# Curve


def _run_curve(job: Job, threat: ThreatModel) -> None:
    """The smallest perturbation of every correct image. What it breaks inside eps counts like any attack's."""
    if threat.eps == 0:
        job.ledger.set_meta(f"finished {threat.text} {CURVE}", True)
        return
    ids = job.correct()
    job.progress.stage(f"{threat.text}  smallest perturbations", len(ids))

    def search(images: Tensor, labels: Tensor, ids: list[int]) -> Attempted:
        rows = {row.image: row for row in job.ledger.rows(threat.text)}
        bracket = _known(job, threat, images, [rows.get(image) for image in ids])
        find = smallest_by_queries if blind(job) else smallest
        found = find(job.counted, images, labels, threat, bracket, job.seed).adversarial
        # Rounding to 8-bit color must not make the smallest perturbation larger, so each gets its own ball.
        anywhere = confirm(job.model, images, found, labels, threat, eps=threat.geometry.length(found - images))
        inside = threat.geometry.contains(anywhere.stored, images, threat.eps)
        return Attempted(anywhere, [CURVE if held else None for held in inside.tolist()])

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


def distances(rows: Sequence[Row], n: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The smallest perturbation found per image, (n,), inf where none."""
    found = np.full(n, np.inf)
    for row in rows:
        if row.distance is not None:
            found[row.image] = row.distance
    return found
