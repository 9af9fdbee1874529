"""One HTML file that tells what was certified, made from the record alone; in the look of the audit's report."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robust.defenses.smoothing.record import AttackPoint, CertifySummary, Point
from robust.reports import formats
from robust.reports.page import page, write_page
from robust.reports.svg import CLEAN, GRID, MUTED, PROVEN, ROBUST, Sheet, sheet
from robust.summary import Rate

_TITLES = {"anytime": "Anytime test", "cohen": "Cohen's procedure"}


def write_certificate_report(summary: CertifySummary, path: Path) -> None:
    """Write the report of one run to ``path``, in one step. Raises InputError where it cannot be written."""
    write_page(render_certificate(summary), path)


def render_certificate(summary: CertifySummary) -> str:
    """The report as HTML text, complete in itself; the same record gives the same bytes."""
    names = summary.data.class_names
    return page(
        "certify.html",
        {"class_name": lambda index: formats.class_name(names, index)},
        {"summary": summary, "titles": _TITLES, "figure": Markup(certificate_figure(summary)),
         "headline": headline(summary)},
    )  # fmt: skip


def headline(summary: CertifySummary) -> str:
    """The run in one sentence: the first radius at which anything is certified, else the smallest."""
    points = summary.methods[0].points
    point = points[0]
    share = point.certified
    if not share.numerator:
        return f"No image is certified, even against changes of length {point.radius:g}."
    return (
        f"{share.numerator:,} of {share.n:,} images provably keep their true class under every change of l2 length "
        f"up to {point.radius:g}."
    )


def certificate_text(summary: CertifySummary) -> str:
    """The run in a few lines of plain text for a terminal."""
    lines = [
        f"{formats.shorten(formats.one_line(summary.model.name), 40)}, smoothed with sigma {summary.settings.sigma:g}, "
        f"alpha {summary.settings.alpha:g}: {summary.data.n:,} images"
    ]
    for method in summary.methods:
        lines.append(
            f"{_TITLES[method.method]}: {formats.number(round(method.draws_mean))} draws an image, "
            f"{formats.duration(method.seconds)}, abstained on {method.abstained.numerator:,}"
        )
        lines += [f"  radius {p.radius:<8g} certified {formats.rate_text(p.certified)}" for p in method.points]
    if summary.attack is not None:
        lines.append(f"Attacks on the same classifier: {formats.duration(summary.attack.seconds)}")
        lines += [f"  radius {p.radius:<8g} standing  {formats.rate_text(p.standing)}" for p in summary.attack.points]
    return "\n".join(lines)


def certificate_figure(summary: CertifySummary) -> str:
    """Certified accuracy against radius with its intervals; what attacks left standing and a second method beside."""
    last = 1.08 * summary.settings.radii[-1]
    with sheet("certified", 480, 310, (46, 120, 46, 46)) as page:
        axes = page.axes
        axes.set_xlim(0, last)
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        labels: list[tuple[float, str, str]] = []
        if summary.attack is not None:
            _draw(page, summary.attack.points, ROBUST, "s", 0.0)
            labels.append((summary.attack.points[-1].standing.value, "attacked", ROBUST))
        for number, (method, color, mark) in enumerate(zip(summary.methods, (PROVEN, CLEAN), ("o", "D"), strict=False)):
            _draw(page, method.points, color, mark, 0.012 * last * number)
            name = "certified" if number == 0 else _TITLES[method.method]
            labels.append((method.points[-1].certified.value, name, color))
        _label(page, labels)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("l2 radius, pixels in [0, 1]")
        page.text(-0.12, 1.1, "share of all images", color=MUTED, frame=True)
        first = summary.methods[0].points
        told = ", ".join(f"{formats.percent(point.certified.value)} at {point.radius:g}" for point in first)
        return page.svg(f"Certified accuracy against l2 radius: {told}.")


def _draw(page: Sheet, points: list[Point] | list[AttackPoint], color: str, mark: str, aside: float) -> None:
    radii = [point.radius + aside for point in points]
    rates: list[Rate] = [point.certified if isinstance(point, Point) else point.standing for point in points]
    values = [rate.value for rate in rates]
    below, above = [r.value - r.low for r in rates], [r.high - r.value for r in rates]
    page.axes.errorbar(
        radii, values, yerr=[below, above], color=color, marker=mark, markersize=6, linewidth=2, elinewidth=1.2,
        capsize=3, clip_on=False,
    )  # fmt: skip


def _label(page: Sheet, labels: list[tuple[float, str, str]]) -> None:
    """Names right of the axes at the curves' ends, kept apart."""
    floor = 0.0
    for value, text, color in sorted(labels):
        height = max(value, floor)
        page.text(1.03, height, text, color=color, bold=True, frame=True)
        floor = height + 0.075
