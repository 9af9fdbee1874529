"""The terminal's summary of an audit: plain text, a screenful at most."""

from __future__ import annotations

import textwrap

from robust.reports.corruptions import ratio, spoken
from robust.reports.formats import duration, interval, one_line, percent, rate_text, shorten
from robust.reports.words import black_box_only, cost_text, over_draws
from robust.summary import AuditSummary, CorruptionResult, ThreatResult

LINES = 25
WIDTH = 100


def summary_text(summary: AuditSummary) -> str:
    """The audit in at most 25 lines of at most 100 characters: verdict, score, and each threat model's figures.

    What does not fit is counted, not dropped in silence. Names are stripped of control characters.
    """
    score = summary.score
    bound = "" if score.trusted else ", an upper bound only"
    model, data = (shorten(one_line(name), 34) for name in (summary.model.name, summary.data.name))
    head = [
        _cut(f"{model} on {data}: {summary.data.n:,} images, {duration(summary.seconds)}"),
        f"Verdict: {summary.verdict.upper()}",
        f"Score:   {score.value:.1f} of 100 (95% interval {score.low:.1f} to {score.high:.1f}{bound})",
        f"Clean:   {rate_text(summary.clean_accuracy)}",
    ]
    room = LINES - len(head)
    blocks = [_threat(result) for result in summary.threats]
    if summary.corruptions is not None:
        blocks.append(_corruptions(summary.corruptions))
    if sum(map(len, blocks)) > room:
        blocks = [_short(block, max(1, (room - 1) // len(blocks))) for block in blocks]
    shown = [line for block in blocks for line in block]
    if len(shown) > room:
        left = len(blocks) - (room - 1)
        shown = [*shown[: room - 1], f"... and {left} more threat models, see the report"]
    return "\n".join(head + shown)


def _threat(result: ThreatResult) -> list[str]:
    lines = [
        _cut(f"{result.threat.text}: {result.verdict}, robust {rate_text(result.robust_accuracy)}"),
    ]
    if result.randomized is not None:
        lines.append(_cut(f"  {over_draws(result.randomized)}"))
    if result.certified_accuracy is not None:
        lines.append(f"  proven: {rate_text(result.certified_accuracy)}")
    for reason in result.reasons:
        lines += textwrap.wrap(one_line(reason), WIDTH, initial_indent="  - ", subsequent_indent="    ")
    if black_box_only(result):
        lines.append("  - no attack used gradients")
    lines.append(f"  cost: {cost_text(result)}")
    return lines


def _corruptions(result: CorruptionResult) -> list[str]:
    mean = result.mean_accuracy
    figure = (
        "not finished"
        if mean is None
        else f"mean accuracy {percent(mean.value)} (95% interval {interval(mean.low, mean.high)})"
    )
    lines = [f"corruptions: {result.verdict}, {figure}"]
    if result.retention is not None:
        lines.append(f"  retention: {ratio(result.retention)} of clean accuracy")
    if result.worst is not None:
        worst = result.worst
        lines.append(f"  worst: {spoken(worst.corruption)}, severity {worst.severity}: {rate_text(worst.accuracy)}")
    if result.baseline is not None:
        name = shorten(one_line(result.baseline.name), 34)
        figures = (("mCE", result.mean_error), ("relative mCE", result.relative_error))
        known = [f"{title} {ratio(value)}" for title, value in figures if value is not None]
        lines.append(_cut(f"  against {name}: {', '.join(known) or 'no mCE, since it makes no errors somewhere'}"))
    lines += [f"  - {one_line(reason)}" for reason in result.reasons]
    return [*lines, f"  cost: {len(result.cells)} forward passes per image, {duration(result.seconds)}"]


def _short(block: list[str], lines: int) -> list[str]:
    """A block cut to ``lines``, saying so where there is room."""
    if len(block) <= lines or lines < 2:
        return block[:lines]
    return [*block[: lines - 1], f"  ... {len(block) - lines + 1} more lines in the report"]


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
