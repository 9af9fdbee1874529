"""One HTML file that tells an audit's story, works offline and asks nobody for anything.

Made from the summary and the ledger alone. Class, model and file names come from outside and may hold markup: jinja2
escapes everything but our own SVG, which escapes its texts itself, and the file's policy forbids scripts and requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from robust.errors import InputError
from robust.ledger import Ledger
from robust.reports import figures, formats, words
from robust.reports.gallery import Exhibit, exhibits, front
from robust.reports.page import page, write_page
from robust.reports.tally import ClassTally, class_tallies, pushes
from robust.summary import AttackRecord, AuditSummary, CurvePoint, ThreatResult

PICTURE_BYTES = 1_600_000  # all galleries together
_TOP_PUSHES, _MAGNETS = 15, 10
_ALL_BARS, _WEAKEST, _STRONGEST = 48, 24, 8


@dataclass(frozen=True)
class ThreatView:
    """One threat model as the template shows it; ``key`` starts every id of its figures."""

    key: str
    result: ThreatResult
    headline: str
    curve: Markup
    points: list[CurvePoint]
    waterfall: Markup
    asking: list[AttackRecord]
    queries: Markup | None
    totals: AttackRecord
    other_cost: bool
    push_figure: Markup | None
    push_is_map: bool
    pushes: list[tuple[int, int, int]]
    magnets: list[tuple[int, int]]
    broken: int
    classes: Markup
    bars: int
    tallies: list[ClassTally]
    gallery: list[Exhibit]


def write_report(summary: AuditSummary, ledger: Ledger, path: Path) -> None:
    """Write the report of one audit to ``path``, in one step: a reader never sees half a file.

    The same summary and ledger give the same bytes. Raises InputError where the two do not belong together or ``path``
    cannot be written.
    """
    write_page(render(summary, ledger), path)


def render(summary: AuditSummary, ledger: Ledger) -> str:
    """The report as HTML text; see :func:`write_report`."""
    images = ledger.images()
    right = sum(image.correct for image in images)
    if (len(images), right) != (summary.data.n, summary.clean_accuracy.numerator):
        raise InputError(
            f"the ledger ({right} of {len(images)} images right) and the summary ({summary.clean_accuracy.numerator} "
            f"of {summary.data.n}) are not of the same audit; run the audit again"
        )
    views = [_view(f"t{index}", summary, result, ledger) for index, result in enumerate(summary.threats)]
    deciding, clean = words.deciding(summary), summary.clean_accuracy
    names = summary.data.class_names
    # Of all changes a patch is the one that people see, so one leads the report.
    patched = next((view.result.threat for view in views if view.result.threat.norm == "patch"), None)
    return page(
        "report.html",
        {"class_name": lambda index: formats.class_name(names, index)},
        {
            "summary": summary, "views": views, "deciding": deciding,
            "headline": words.headline(clean, deciding, summary.data.shape), "footing": words.footing(clean, deciding),
            "meaning": words.VERDICTS[summary.verdict], "next_steps": words.next_steps(summary),
            "size": formats.size_text, "attacker": words.attacker, "black_box_only": words.black_box_only,
            "over_draws": words.over_draws, "patched": patched,
            "front": None if patched is None else front(ledger, patched.text, names),
            "picture_note": _picture_note(summary.data.shape[0]),
        },
    )  # fmt: skip


def _view(key: str, summary: AuditSummary, result: ThreatResult, ledger: Ledger) -> ThreatView:
    clean, names, threat = summary.clean_accuracy, summary.data.class_names, result.threat.text
    found = pushes(ledger, threat)
    classes = max(summary.model.classes, len(names), 1)
    few = classes <= figures.HEAT_MAP_CLASSES
    tallies = sorted(class_tallies(ledger, threat), key=lambda tally: (tally.robust / tally.n, -tally.n, tally.index))
    bars, totals = _bars(tallies), _totals(result.attacks)
    asking = [attack for attack in result.attacks if attack.queries is not None]
    if not any(attack.queries and attack.queries.broken_at for attack in asking):
        asking = []  # a flat line at zero says no more than the table of attacks
    return ThreatView(
        key=key,
        result=result,
        headline=words.headline(clean, result, summary.data.shape),
        curve=Markup(figures.curve_figure(f"{key}-curve", result, clean)),
        points=_thinned(figures.curve_points(result, clean), result.threat.eps),
        waterfall=Markup(figures.waterfall_figure(f"{key}-fall", result, clean)),
        asking=asking,
        queries=Markup(figures.query_figure(f"{key}-ask", asking)) if asking else None,
        totals=totals,
        other_cost=abs(totals.forward / summary.data.n - result.cost.forward_per_image) > 0.01,
        push_figure=_push_figure(f"{key}-push", found, names, classes, few),
        push_is_map=few,
        pushes=found[:_TOP_PUSHES],
        magnets=_magnets(found),
        broken=sum(count for *_, count in found),
        classes=Markup(figures.class_figure(f"{key}-class", bars, names)),
        bars=len(bars),
        tallies=tallies,
        gallery=exhibits(ledger, threat, PICTURE_BYTES // len(summary.threats)),
    )


def _thinned(points: list[CurvePoint], eps: float) -> list[CurvePoint]:
    """About a dozen points of the curve for its table, eps and both ends among them."""
    step = -(-len(points) // 12)
    last = len(points) - 1
    return [point for index, point in enumerate(points) if index % step == 0 or index == last or point.eps == eps]


def _push_figure(
    key: str, found: Sequence[tuple[int, int, int]], names: Sequence[str], classes: int, few: bool
) -> Markup | None:
    if not found:
        return None
    if few:
        return Markup(figures.heat_map(key, found, names, classes))
    return Markup(figures.pairs_figure(key, found[:_TOP_PUSHES], names))


def _magnets(found: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The classes that broken images are most often read as, with how many."""
    read: Counter[int] = Counter()
    for _, after, count in found:
        read[after] += count
    return sorted(read.items(), key=lambda item: (-item[1], item[0]))[:_MAGNETS]


def _bars(tallies: list[ClassTally]) -> list[ClassTally]:
    """Which classes get a bar: all, or of very many the weakest and the strongest."""
    return tallies if len(tallies) <= _ALL_BARS else tallies[:_WEAKEST] + tallies[-_STRONGEST:]


def _totals(attacks: Sequence[AttackRecord]) -> AttackRecord:
    return AttackRecord(
        name="all attacks",
        knowledge="none",
        tried=max((attack.tried for attack in attacks), default=0),
        broken=sum(attack.broken for attack in attacks),
        rejected=sum(attack.rejected for attack in attacks),
        forward=sum(attack.forward for attack in attacks),
        backward=sum(attack.backward for attack in attacks),
        seconds=sum(attack.seconds for attack in attacks),
        status="done" if all(attack.status == "done" for attack in attacks) else "unfinished",
    )


def _picture_note(channels: int) -> str:
    if channels in (1, 3):
        return ""
    shown = "the mean of both" if channels == 2 else "the first three as red, green and blue"
    return f"The images have {channels} channels; the pictures show {shown}."
