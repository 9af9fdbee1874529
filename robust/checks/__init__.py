"""Checks that say whether an audit's numbers can be trusted.

Each is a function from a :class:`Sample`, or from the audit's own counts, to a
:class:`~robust.summary.CheckRecord`. A failed check of evidence makes the verdict suspect. What each measures, and when
it fails, stands in :mod:`robust.checks.catalog`. Sources: Carlini et al. 2019 (arXiv 1902.06705), sections 4 and 5;
Pintor et al. 2022 (arXiv 2106.09947); the flags of AutoAttack (Croce and Hein, ICML 2020).
"""

from __future__ import annotations

from robust.checks.catalog import CATALOG, CHECK_NAMES
from robust.checks.gradients import gradients_are_useful, gradients_hold_nearby
from robust.checks.outputs import (
    answers_leave_no_trace,
    batch_does_not_matter,
    losses_fit_the_classes,
    no_optimization_inside,
    output_is_deterministic,
    outputs_are_logits,
)
from robust.checks.sample import Check, Sample, sample_size
from robust.checks.success import (
    losses_agree,
    stronger_attacks_break_more,
    success_grows_with_eps,
    successes_are_kept,
    transfer_finds_no_more,
    unbounded_attack_breaks_all,
)

__all__ = [
    "ANSWER_CHECKS", "ATTACK_CHECKS", "CATALOG", "CHECK_NAMES", "GRADIENT_CHECKS", "RANDOM_CHECKS", "Check", "Sample",
    "sample_size",
]  # fmt: skip

# Whether the model draws random numbers, which all that follows must know.
RANDOM_CHECKS: tuple[Check, ...] = (outputs_are_logits, losses_fit_the_classes, output_is_deterministic)
ANSWER_CHECKS: tuple[Check, ...] = (answers_leave_no_trace, batch_does_not_matter, no_optimization_inside)
GRADIENT_CHECKS: tuple[Check, ...] = (gradients_are_useful, gradients_hold_nearby)
ATTACK_CHECKS: tuple[Check, ...] = (
    unbounded_attack_breaks_all,
    stronger_attacks_break_more,
    success_grows_with_eps,
    losses_agree,
    successes_are_kept,
    transfer_finds_no_more,
)
