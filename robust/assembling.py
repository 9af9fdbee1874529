"""From the ledger to the summary: counts, intervals, curves, checks, verdicts and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robust.attacks.base import Knowledge
from robust.attacks.registry import find
from robust.checking import ACCESS
from robust.checks import CATALOG, coverage
from robust.corrupting import Grid
from robust.corruption_result import corruption_result, corruption_score
from robust.curve import curve
from robust.describing import circumstances
from robust.ledger import Ledger, Queries, Run
from robust.plan import Access, Step, left_out
from robust.proving import BOUNDS, proven
from robust.rates import randomized_record
from robust.reports.score import audit_score, threat_score
from robust.running import CHECKS, CURVE, distances
from robust.stats import rate
from robust.summary import (
    AttackRecord,
    AuditSummary,
    CheckRecord,
    Cost,
    DataRecord,
    ModelRecord,
    QueryRecord,
    Settings,
    Status,
    ThreatRecord,
    ThreatResult,
)
from robust.threats import ThreatModel
from robust.verdict import verdict, worst


@dataclass(frozen=True)
class Subject:
    """What was audited and how, as the summary states it."""

    model: ModelRecord
    data: DataRecord
    settings: Settings
    warnings: list[str]


def assemble(
    ledger: Ledger, subject: Subject, threats: Sequence[ThreatModel], attacks: tuple[str, ...] | None, grid: Grid
) -> AuditSummary:
    """The summary of all that the ledger holds."""
    images = ledger.images()
    results = [threat_result(ledger, threat, attacks, subject.model.classes) for threat in threats]
    corrupted = corruption_result(ledger, grid)
    clean = rate(sum(row.correct for row in images), len(images))
    scores = {result.threat.text: result.score for result in results}
    if corrupted is not None and not results:
        scores = {grid.text: corruption_score(corrupted, clean)}
    return AuditSummary(
        **circumstances(),
        model=subject.model,
        data=subject.data,
        settings=subject.settings,
        clean_accuracy=clean,
        verdict=worst([result.verdict for result in [*results, corrupted] if result is not None]),
        threats=results,
        corruptions=corrupted,
        score=audit_score(scores),
        warnings=subject.warnings,
        seconds=sum(result.cost.seconds for result in results) + (corrupted.seconds if corrupted else 0),
    )


def threat_result(ledger: Ledger, threat: ThreatModel, attacks: tuple[str, ...] | None, classes: int) -> ThreatResult:
    """What the ledger says of one threat model, for a model that tells ``classes`` apart."""
    images, rows = ledger.images(), ledger.rows(threat.text)
    n = len(images)
    correct = np.array([row.correct for row in images])
    distance = distances(rows, n)
    broken = [row for row in rows if row.broken_by]
    records = _attack_records(ledger, threat)
    standing = int(correct.sum()) - len(broken)
    checks = _checks(ledger, threat, records, standing, classes)
    access: Access = ledger.meta(ACCESS) or "gradients"
    missing = [] if attacks is None else left_out(threat, attacks, access)
    judgement, reasons = verdict(checks, records, missing, access)
    over_draws = randomized_record(ledger, threat.text)
    # Of a random model the mean over draws counts, rounded down to whole images, where it is lower.
    counted = standing if over_draws is None else min(standing, int(n * over_draws.robust_accuracy.value))
    robust = rate(counted, n)
    certain = proven(ledger, threat)
    found = distance[correct]
    median = float(np.median(found)) if len(found) else float("inf")
    return ThreatResult(
        threat=ThreatRecord(norm=threat.norm, eps=threat.eps, text=threat.text),  # type: ignore[arg-type]
        robust_accuracy=robust,
        certified_accuracy=None if certain is None else rate(len(certain), n),
        randomized=over_draws,
        verdict=judgement,
        reasons=reasons,
        checks=checks,
        cost=Cost(
            forward_per_image=sum(record.forward for record in records) / n,
            backward_per_image=sum(record.backward for record in records) / n,
            seconds=sum(record.seconds for record in records),
        ),
        attacks=records,
        curve=curve(correct, distance, threat.eps, threat.norm),
        median_distance=median if np.isfinite(median) else None,
        eight_bit=rate(sum(bool(row.eight_bit) for row in broken), len(broken)) if broken else None,
        score=threat_score(correct, distance, threat.eps, threat=threat.text, trusted=judgement == "sound"),
    )


def _attack_records(ledger: Ledger, threat: ThreatModel) -> list[AttackRecord]:
    runs: dict[str, list[Run]] = {}
    for run in ledger.runs(threat.text):
        runs.setdefault(run.attack, []).append(run)
    planned: list[str] = ledger.meta(f"plan {threat.text}") or []
    names = [*planned, CURVE, *(name for name in (BOUNDS, CHECKS) if name in runs)]
    return [_attack_record(ledger, threat, name, runs.get(name, [])) for name in names]


def _attack_record(ledger: Ledger, threat: ThreatModel, name: str, runs: list[Run]) -> AttackRecord:
    status, detail = _status(ledger, threat, name, runs)
    ours: Knowledge = "score" if ledger.meta(ACCESS) in ("scores", "labels") else "white-box"
    return AttackRecord(
        name=name,
        knowledge=ours if name in (BOUNDS, CURVE, CHECKS) else find(Step.attack_of(name)).knowledge,
        tried=max((run.tried for run in runs), default=0) if name == CHECKS else sum(run.tried for run in runs),
        broken=sum(run.broken for run in runs),
        rejected=sum(run.rejected for run in runs),
        forward=sum(run.forward for run in runs),
        backward=sum(run.backward for run in runs),
        seconds=sum(run.seconds for run in runs),
        status=status,
        detail=detail,
        queries=_query_record(ledger.queries(threat.text, name)),
    )


def _query_record(asked: list[Queries]) -> QueryRecord | None:
    if not asked:
        return None
    spent = [entry.spent for entry in asked]
    return QueryRecord(
        median=float(np.median(spent)), most=max(spent), broken_at=sorted(e.broken_at for e in asked if e.broken_at)
    )


def _status(ledger: Ledger, threat: ThreatModel, name: str, runs: list[Run]) -> tuple[Status, str]:
    for status in ("failed", "skipped"):
        for run in runs:
            if run.status == status:
                return status, run.detail
    if name == BOUNDS:
        return "done", runs[0].detail
    if name == CHECKS:
        return "done", ""
    if ledger.meta(f"finished {threat.text} {name}"):
        return "done", next((run.detail for run in runs if run.detail), "")
    return ("unfinished", "the budget ran out") if runs else ("skipped", "the budget ran out")


def _checks(
    ledger: Ledger, threat: ThreatModel, attacks: list[AttackRecord], standing: int, classes: int
) -> list[CheckRecord]:
    """All checks in a fixed order; one that never ran is stated as such."""
    images = ledger.images()
    right = sum(image.correct for image in images)
    books = (
        coverage.clean_accuracy_is_plausible(right, len(images), classes),
        coverage.every_success_counts(attacks, standing, right),
        coverage.kinds_of_attack(attacks),
        coverage.every_attack_ended(attacks),
    )
    found = {
        name: CheckRecord.model_validate_json(text)
        for name, text in {**ledger.checks(""), **ledger.checks(threat.text)}.items()
    }
    found.update({record.name: record for record in books})
    return [
        found.get(entry.name)
        or CheckRecord(
            name=entry.name, title=f"Check {entry.name!r}", passed=None, detail="not run: the budget ran out, or no "
            "image is classified right", meaning="The verdict is incomplete without it.", weight="evidence",
        )
        for entry in CATALOG
    ]  # fmt: skip
