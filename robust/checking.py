"""Runs the checks of an audit into its ledger, those of the model first, those of what attacks found last."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from robust import checks
from robust.attacks.losses import margin
from robust.attacks.registry import find
from robust.checks import sentinels
from robust.checks.sample import gradient_of, logits_of
from robust.draws import Voting
from robust.errors import NoGradientError
from robust.evidence import replay
from robust.ledger import Run
from robust.plan import Access, Step
from robust.randomness import own_random
from robust.summary import CheckRecord
from robust.threats import ThreatModel

if TYPE_CHECKING:
    from robust.running import Job

CHECKS = "checks"
ACCESS = "access"


def access_of(job: Job) -> Access:
    """What the model gives an attacker, as :func:`look` found it."""
    found: Access = job.ledger.meta(ACCESS) or "gradients"
    return found


def blind(job: Job) -> bool:
    """Whether the model gives no gradients, so that it can only be asked."""
    return access_of(job) in ("scores", "labels")


def has_weights(job: Job) -> bool:
    return any(True for _ in job.model.parameters())


def look(job: Job, threat: ThreatModel, hidden: bool = False) -> None:
    """Find out, once, whether the model is a function without gradients, and what else it gives.

    A module that hides its gradients is looked at only when told so (``hidden``): BPDA may see past what hides them.
    """
    sample = sample_of(job, threat)
    if (job.ledger.meta(ACCESS) is not None and not hidden) or sample is None:
        return
    given: Access = "gradients"
    if hidden or not has_weights(job):
        few = slice(0, min(8, job.batch_size))
        sample = replace(sample, model=job.model)
        try:
            gradient_of(replace(sample, images=sample.images[few], labels=sample.labels[few]), margin)
        except NoGradientError:
            parts = torch.split(sample.images, job.batch_size)
            logits = torch.cat([logits_of(job.model, part) for part in parts])
            given = "labels" if len(torch.unique(logits)) <= 2 else "scores"
    job.ledger.set_meta(ACCESS, given)


def sample_of(job: Job, threat: ThreatModel, *, exact: bool = True) -> checks.Sample | None:
    """The images that checks look at, drawn from those classified right; None where there is none.

    ``exact``: looked at through the model itself, not a fast copy of it.
    """
    correct = job.correct()
    if not correct:
        return None
    size = checks.sample_size(len(job.data))
    chosen = sorted(random.Random(job.seed).sample(correct, min(size, len(correct))))
    images, labels = job.load(chosen)
    model = job.counted.evidence if exact else job.counted
    return checks.Sample(model, images, labels, threat, job.seed, job.batch_size, job.random)


def run_checks(job: Job, key: str, threat: ThreatModel, chosen: Sequence[checks.Check]) -> None:
    """Run the checks not yet in the ledger under ``key``; their cost is charged to the threat."""
    sample = sample_of(job, threat, exact=chosen is not checks.ATTACK_CHECKS)
    job.progress.stage(f"{threat.text}  checks", len(chosen))
    for check in chosen:
        if sample is not None and not job.out_of_time:
            label = f"{key} {check.__name__}"
            if job.ledger.meta(label) is None:
                with own_random(job.device, job.seed), Charged(job, threat) as charged:
                    record = check(sample)
                charged.to(record.name, len(sample))
                keep(job, key, record)
                job.ledger.set_meta(label, True)
        job.progress.advance(1)


def passed(job: Job, key: str, name: str) -> bool | None:
    """The outcome of a check in the ledger; None where it has none."""
    record = found(job, key, name)
    return None if record is None else record.passed


def found(job: Job, key: str, name: str) -> CheckRecord | None:
    text = job.ledger.checks(key).get(name)
    return None if text is None else CheckRecord.model_validate_json(text)


def keep(job: Job, key: str, record: CheckRecord) -> None:
    job.ledger.set_check(key, record.name, record.model_dump_json())


def finding_checks(job: Job, threat: ThreatModel, plan: list[Step]) -> None:
    """The checks of what the attacks of ``plan`` found."""
    if not blind(job):
        run_checks(job, threat.text, threat, checks.ATTACK_CHECKS)
    rows = [row for row in job.ledger.rows(threat.text) if row.broken_by]
    survive = sum(bool(row.eight_bit) for row in rows)
    keep(job, threat.text, sentinels.eight_bit_survival(survive, len(rows)))
    keep(
        job,
        threat.text,
        sentinels.steps_find_no_more(*_sentinel(job, threat, plan, "converged"), len(job.data), job.random),
    )
    if blind(job):  # who may ask more often breaks more, and nothing is wrong with that
        as_advice(job, threat.text, "converged")
    for_all = [step.attack for step in plan if step.check is None]
    asked = [attack for attack in for_all if find(attack).knowledge in ("score", "decision")]
    result = _sentinel(job, threat, plan, "black-box")
    keep(job, threat.text, sentinels.queries_find_no_more(*result, job.random, asked))
    result = _sentinel(job, threat, plan, "surrogate")
    keep(job, threat.text, sentinels.transfer_finds_no_more(*result, len(job.surrogates)))
    if not job.out_of_time:
        judge = job.model.again() if isinstance(job.model, Voting) else job.model
        again = replay(judge, job.ledger, threat, job.device, max(1, job.batch_size // 2))
        keep(job, threat.text, sentinels.evidence_replays(again.replayed, len(again.failed), job.random))


def _sentinel(job: Job, threat: ThreatModel, plan: list[Step], check: str) -> tuple[int | None, int]:
    """What a sentinel tried and broke; None where it did not run to its end."""
    for step in plan:
        if step.check == check and job.ledger.meta(f"finished {threat.text} {step.label}"):
            runs = [run for run in job.ledger.runs(threat.text) if run.attack == step.label]
            if all(run.status == "done" for run in runs):
                return sum(run.tried for run in runs), sum(run.broken for run in runs)
    return None, 0


class Charged:
    """Measures passes and seconds of its body, and enters them into the ledger under the threat's checks."""

    def __init__(self, job: Job, threat: ThreatModel) -> None:
        self.job, self.threat = job, threat

    def __enter__(self) -> Charged:
        self.before, self.start = self.job.counted.passes, time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cost, self.seconds = self.job.counted.passes - self.before, time.perf_counter() - self.start

    def to(self, name: str, tried: int, part: int = 0) -> None:
        """Charge it to the check of this name; ``part`` tells several batches of one check apart."""
        run = Run(
            threat=self.threat.text, attack=CHECKS, batch=checks.CHECK_NAMES.index(name) + 100 * part, tried=tried,
            broken=0, rejected=0, forward=self.cost.forward, backward=self.cost.backward, seconds=self.seconds,
            status="done", detail=name,
        )  # fmt: skip
        self.job.ledger.record(run, [])


def as_advice(job: Job, key: str, name: str) -> None:
    """A failed check that the audit found a way round informs, and condemns no more."""
    record = found(job, key, name)
    if record is not None and record.passed is False:
        keep(job, key, record.model_copy(update={"weight": "advice"}))


def with_model(sample: checks.Sample, job: Job) -> checks.Sample:
    """The same sample as seen through the job's model."""
    return replace(sample, model=job.counted, random=job.random, results={})
