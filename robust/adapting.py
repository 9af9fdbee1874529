"""How an audit adapts to a model that ordinary attacks are blind on: over draws, and with BPDA.

Random models are attacked and judged over draws. Where the gradient at the input is missing, zero or shattered, the
attacks run again on a copy in which the step that hides it has another backward function; what they find is confirmed
on the untouched model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from robust import checks
from robust.checking import (
    Charged,
    as_advice,
    blind,
    found,
    has_weights,
    keep,
    look,
    passed,
    run_checks,
    sample_of,
    with_model,
)
from robust.checks.gradients import gradients_are_useful, gradients_hold_nearby
from robust.checks.sample import record
from robust.counting import CountedModel
from robust.draws import Averaged, Voting
from robust.models import Backward, hidden_fronts, identity, with_bpda
from robust.plan import Step
from robust.summary import CheckRecord
from robust.threats import ThreatModel

if TYPE_CHECKING:
    from robust.running import Job

_MORE = 0.02
_BPDA = "Attacks see past what hides the gradient"
_WHY = (
    "Where a step of the model has no useful gradient, attacks need a stand-in for it (BPDA). Successes count only if "
    "the untouched model is fooled. Name the step with --bpda, or give a better backward function from Python."
)


@dataclass(frozen=True)
class View:
    """The model as this audit's attacks see it.

    ``job``: with the model judged as it must be. ``through``: the same with attacks on the BPDA copy, None where there
    is none; ``fronts``: what in it has another backward function. ``gradients``: whether those of the model itself are
    of use.
    """

    job: Job
    gradients: bool
    through: Job | None
    fronts: tuple[str, ...]

    @property
    def last(self) -> Job:
        """The job whose attacks see the most."""
        return self.through or self.job

    @property
    def via(self) -> str | None:
        return f"bpda({', '.join(self.fronts)})" if self.fronts else None


def prepare(job: Job, threat: ThreatModel) -> View:
    """Run the checks of the model and choose how to attack it."""
    run_checks(job, "", threat, checks.RANDOM_CHECKS)
    if passed(job, "", "deterministic") is False:
        job = over_draws(job)
    run_checks(job, "", threat, checks.ANSWER_CHECKS)
    look(job, threat)
    if blind(job) and not has_weights(job):
        as_advice(job, "", "logits")  # probabilities starve gradients, and there are none
        return View(job, False, None, ())
    run_checks(job, threat.text, threat, checks.GRADIENT_CHECKS)
    gradients = all(passed(job, threat.text, name) is not False for name in ("gradients", "stable"))
    fronts, how = _fronts(job, threat, gradients)
    if not fronts:
        keep(job, threat.text, _without_fronts(gradients))
        if not gradients and not job.random:
            look(job, threat, hidden=True)
        return View(job, gradients, None, ())
    copy = with_bpda(_network(job), fronts)
    seen = Averaged(copy, job.seed) if job.random else CountedModel(copy)
    view = View(job, gradients, replace(job, counted=seen), tuple(fronts))
    _check_through(view, threat, how)
    return view


def over_draws(job: Job) -> Job:
    """The job of a random model: attacks see an average over draws, claims are put to a majority over fresh draws."""
    network = job.model
    return replace(job, model=Voting(network, job.seed), counted=Averaged(network, job.seed), random=True)


def _network(job: Job) -> nn.Module:
    return job.model.model if isinstance(job.model, Voting) else job.model


def _fronts(job: Job, threat: ThreatModel, gradients: bool) -> tuple[Mapping[str, Backward], str]:
    if job.bpda:
        return job.bpda, "as asked"
    if gradients:
        return {}, ""
    sample = sample_of(job, threat)
    if sample is None or job.out_of_time:
        return {}, ""
    names = hidden_fronts(_network(job), sample.images[:8])
    return dict.fromkeys(names, identity), "found by itself"


def _without_fronts(gradients: bool) -> CheckRecord:
    detail = "nothing hides the gradient" if gradients else "no module was found whose output a gradient cannot pass"
    return record("bpda", _BPDA, True if gradients else None, detail, _WHY, "evidence" if gradients else "advice")


def _check_through(view: View, threat: ThreatModel, how: str) -> None:
    """Whether the copy's gradients are of use; if so, the model's own are no longer held against the audit."""
    assert view.through is not None
    job = view.through
    if found(job, threat.text, "bpda") is not None:
        return
    sample = sample_of(job, threat)
    if sample is None or job.out_of_time:
        return
    sample = with_model(sample, job)
    with Charged(job, threat) as charged:
        results = [gradients_are_useful(sample), gradients_hold_nearby(sample)]
    charged.to("bpda", len(sample))
    good = all(result.passed is True for result in results)
    backward = "identity" if all(f is identity for f in (job.bpda or {"": identity}).values()) else "the given function"
    detail = f"backward through {', '.join(view.fronts)} ({how}): {backward}, and the gradient is of use"
    if not good:
        detail = (
            detail.replace("and the", "but the").replace("is of", "is of no")
            + ": "
            + "; ".join(result.detail for result in results)
        )
    keep(job, threat.text, record("bpda", _BPDA, good, detail, _WHY))
    if good:
        for name in ("gradients", "stable"):
            as_advice(job, threat.text, name)


def tell_difference(view: View, threat: ThreatModel, plan: Sequence[Step]) -> None:
    """Add to the check what stood after the attacks on the model itself, then with BPDA, and what came after."""
    result = found(view.job, threat.text, "bpda")
    if result is None or not view.fronts or " stood without it" in result.detail:
        return
    labels = [step.label for step in plan]
    through = [place for place, step in enumerate(plan) if step.via and step.check is None]
    if not through:
        return
    broken = [labels.index(row.broken_by) for row in view.job.ledger.rows(threat.text) if row.broken_by in labels]
    right = len(view.job.correct())
    without = right - sum(place < min(through) for place in broken)
    with_it = right - sum(place <= max(through) for place in broken)
    later = sum(place > max(through) for place in broken)
    detail = (
        f"{without} of {right} images stood without it, {with_it} with it, and later attacks broke {later} more; "
        f"{result.detail}"
    )
    # What sees no gradient must not do better than the stand-in, or that is no guide.
    good = result.passed is True and later <= max(1, _MORE * right)
    keep(view.job, threat.text, result.model_copy(update={"detail": detail, "passed": good}))
