"""The report's figures as SVG for an HTML page, from plain data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from robust.reports.formats import (
    STEPS,
    attack_name,
    axis_scale,
    class_name,
    one_line,
    percent,
    shorten,
    size_text,
    width,
)
from robust.reports.svg import BROKEN, CLEAN, GRID, INK, MUTED, PROVEN, ROBUST, Sheet, sheet
from robust.reports.tally import ClassTally
from robust.stats import clopper_pearson
from robust.summary import AttackRecord, CurvePoint, Norm, Rate, ThreatResult

HEAT_MAP_CLASSES = 20
_WIDTH = 420.0
_LETTER = 7.2  # a letter's width at 12 px, on the wide side
_AXES: dict[Norm, str] = {
    "linf": "linf",
    "l2": "l2",
    "l1": "l1",
    "l0": "l0, color values changed",
    "patch": "patch, % of the image's area",
}


def curve_points(result: ThreatResult, clean: Rate) -> list[CurvePoint]:
    """The measured curve by size, with the clean accuracy at 0 and the robust accuracy at eps where it lacks them."""
    points = {point.eps: point for point in result.curve}
    robust, eps = result.robust_accuracy, result.threat.eps
    points.setdefault(0.0, CurvePoint(eps=0, robust_accuracy=clean.value, low=clean.low, high=clean.high))
    at_eps = CurvePoint(eps=eps, robust_accuracy=robust.value, low=robust.low, high=robust.high)
    if not any(np.isclose(size, eps, rtol=1e-6, atol=0) for size in points):
        points[eps] = at_eps
    return [points[size] for size in sorted(points)]


def curve_figure(key: str, result: ThreatResult, clean: Rate) -> str:
    """Robust accuracy against perturbation size, with its interval; clean accuracy and eps marked."""
    threat, robust, points = result.threat, result.robust_accuracy, curve_points(result, clean)
    scale = axis_scale(threat)
    eps = threat.eps * scale
    reach = max(point.eps for point in points)
    reach = (min(reach, 2.5 * threat.eps) if threat.eps > 0 else reach) or 1.0
    last = reach * scale
    points = [point for point in points if point.eps <= reach]
    sizes = np.array([point.eps for point in points]) * scale
    with sheet(key, _WIDTH, 310, (46, 106, 46, 46)) as page:
        axes = page.axes
        axes.set_xlim(0, last)
        axes.set_ylim(0, 1)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(sizes, low, high, color=ROBUST, alpha=0.18, linewidth=0)
        shape = "o" if len(points) <= 24 else None
        values = [point.robust_accuracy for point in points]
        axes.plot(sizes, values, color=ROBUST, linewidth=2.2, marker=shape, markersize=4, clip_on=False)
        axes.axvline(eps, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        marks = [(clean.value, f"clean {percent(clean.value)}", CLEAN, 0.0)]
        marks.append((robust.value, f"at eps {percent(robust.value)}", ROBUST, eps))
        if result.certified_accuracy is not None:
            proven = result.certified_accuracy.value
            marks.append((proven, f"proven {percent(proven)}", PROVEN, eps))
            axes.plot([eps], [proven], color=PROVEN, marker="D", markersize=6, clip_on=False)
        axes.plot([eps], [robust.value], color=ROBUST, marker="o", markersize=8, clip_on=False)
        _label_right(page, marks, last)
        ha = "right" if eps > 0.75 * last else ("left" if eps < 0.25 * last else "center")
        page.text(eps, 1.06, f"eps = {size_text(threat, threat.eps)}", ha=ha, bold=True)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=(scale == 255 or threat.norm == "l0") and last >= 4))
        axes.set_xlabel(f"perturbation size, {_AXES[threat.norm]}{', in 1/255' if scale == 255 else ''}")
        page.text(-0.14, 1.15, "robust accuracy", color=MUTED, frame=True)
        return page.svg(
            f"Robust accuracy under {result.threat.text} against perturbation size: {percent(clean.value)} unattacked, "
            f"{percent(robust.value)} at eps."
        )


def _label_right(page: Sheet, marks: Sequence[tuple[float, str, str, float]], last: float) -> None:
    """Name heights right of the axes, each with a line from where it is reached; labels kept apart."""
    heights = _spread([value for value, *_ in marks], 0.075, 1.0)
    for (value, text, color, start), height in zip(marks, heights, strict=True):
        line = page.axes.plot([start, last], [value, value], color=color, linewidth=1, linestyle=(0, (1, 2)))
        line[0].set_zorder(1)
        page.text(1.02, height, text, color=color, bold=True, frame=True)


def _spread(values: Sequence[float], gap: float, top: float) -> list[float]:
    """Heights near ``values``, at least ``gap`` apart, from 0 to ``top``."""
    order = sorted(range(len(values)), key=lambda index: (values[index], -index))
    placed = [0.0] * len(values)
    floor = 0.0
    for index in order:
        placed[index] = max(values[index], floor)
        floor = placed[index] + gap
    ceiling = top
    for index in reversed(order):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def query_figure(key: str, attacks: Sequence[AttackRecord]) -> str:
    """Share of the images tried that each query attack had broken, against queries per image on a log scale."""
    asked = [(attack, attack.queries) for attack in attacks if attack.queries is not None]
    last = max(10, *(queries.most for _, queries in asked))
    styles = [(color, dash) for dash in ("-", (0, (4, 2))) for color in (BROKEN, ROBUST, CLEAN, PROVEN)]
    highest = max(0.05, *(attack.broken / attack.tried for attack, _ in asked))
    with sheet(key, _WIDTH, 250 + 18 * len(asked), (46, 12, 26 + 18 * len(asked), 46)) as page:
        axes = page.axes
        axes.set_xscale("log")
        axes.set_xlim(1, last)
        axes.set_ylim(0, min(1.0, 1.08 * highest))
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for index, (attack, queries) in enumerate(asked):
            color, dash = styles[index % len(styles)]
            steps = np.array([1, *queries.broken_at, queries.most])
            shares = np.array([0, *range(1, len(queries.broken_at) + 1), len(queries.broken_at)]) / attack.tried
            axes.plot(steps, shares, color=color, linestyle=dash, linewidth=2, drawstyle="steps-post", clip_on=False)
            # A key above the frame, one line for each attack.
            height = 1 + (18 * (len(asked) - index) - 6) / 178
            axes.plot([0, 0.06], [height] * 2, color=color, linestyle=dash, linewidth=2, transform=axes.transAxes,
                      clip_on=False)  # fmt: skip
            name = attack_name(attack.name)
            text = f"{shorten(name, 32)}  {len(queries.broken_at):,} of {attack.tried:,}"
            page.text(0.08, height, text, full=name, frame=True)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_xlabel("queries per image")
        best = max(asked, key=lambda pair: pair[0].broken)[0]
        return page.svg(
            f"Success of {len(asked)} query attacks against queries per image; the most, {best.broken:,} of "
            f"{best.tried:,} images, by {one_line(best.name)}."
        )


def waterfall_figure(key: str, result: ThreatResult, clean: Rate) -> str:
    """What is left standing after each attack, from the clean to the robust accuracy."""
    steps: list[tuple[str, int, int]] = []
    standing = clean.numerator
    for attack in result.attacks:
        if attack.name in STEPS and not attack.broken:
            continue
        lost = min(standing, attack.broken)
        standing -= lost
        how = "" if attack.status == "done" else f" ({attack.status})"
        steps.append((f"after {attack_name(attack.name)}{how}", standing, lost))
    robust = result.robust_accuracy.numerator
    if standing > robust:
        steps.append(("after everything else", robust, standing - robust))
    row = 40.0
    rows = [("clean, unattacked", clean.numerator, 0), *steps]
    with sheet(key, _WIDTH, row * len(rows) + 8, (2, 2, 4, 4)) as page:
        page.as_pixels(_WIDTH - 4, row * len(rows))
        unit = (_WIDTH - 4) / clean.n
        for index, (label, left, lost) in enumerate(rows):
            y = row * index
            page.text(0, y + 10, shorten(label, 38), full=label)
            change = f"  (−{lost:,})" if lost else ""
            page.text(_WIDTH - 4, y + 10, f"{percent(left / clean.n)}{change}", ha="right", bold=True)
            page.bar(0, y + 20, _WIDTH - 4, 12, GRID, 0.55)
            page.bar(0, y + 20, left * unit, 12, CLEAN if index == 0 else ROBUST)
            page.bar(left * unit, y + 20, lost * unit, 12, BROKEN)
        last = rows[-1]
        return page.svg(
            f"Accuracy after each attack under {result.threat.text}: {percent(clean.value)} unattacked, "
            f"{percent(last[1] / clean.n)} after {len(result.attacks)} attacks."
        )


def heat_map(key: str, pushes: Sequence[tuple[int, int, int]], names: Sequence[str], classes: int) -> str:
    """Which class (rows) is read as which (columns) after the attack, in images; for few classes."""
    labels = [class_name(names, index) for index in range(classes)]
    rows, columns = [shorten(label, 22) for label in labels], [shorten(label, 16) for label in labels]
    cell = float(np.clip(330 / classes, 20, 44))
    left = max(map(width, rows)) * _LETTER + 12
    top = max(map(width, columns)) * _LETTER + 34
    most = max((count for _, _, count in pushes), default=1)
    side = cell * classes
    with sheet(key, max(left + side + 4, 220), top + side + 4, (0, 0, 0, 0)) as page:
        page.as_pixels(page.width, page.height)
        page.text(left + side, 9, "read after the attack as", ha="right", size=11, color=MUTED)
        page.text(left - 8, top - 10, "true class", ha="right", size=11, color=MUTED)
        for index in range(classes):
            at = index * cell
            page.text(left - 8, top + at + cell / 2, rows[index], full=labels[index], ha="right")
            page.text(left + at + cell / 2, top - 8, columns[index], full=labels[index], rotation=90)
            page.bar(left, top + at, side, 0.7, GRID)
            page.bar(left + at, top, 0.7, side, GRID)
            page.bar(left + at, top + at, cell, cell, GRID, 0.8)
        page.bar(left, top + side, side, 0.7, GRID)
        page.bar(left + side, top, 0.7, side, GRID)
        for true, read, count in pushes:
            x, y = left + read * cell, top + true * cell
            page.bar(x + 1, y + 1, cell - 2, cell - 2, BROKEN, 0.10 + 0.50 * count / most)
            page.text(x + cell / 2, y + cell / 2, f"{count}", ha="center", size=12 if cell > 24 else 10)
        return page.svg(f"Heat map of {sum(count for *_, count in pushes)} broken images: true class by class read.")


def pairs_figure(key: str, pushes: Sequence[tuple[int, int, int]], names: Sequence[str]) -> str:
    """The most frequent pushes from one class to another as bars, in images; for many classes."""
    row = 40.0
    most = max((count for _, _, count in pushes), default=1)
    with sheet(key, _WIDTH, row * len(pushes) + 8, (2, 2, 4, 4)) as page:
        page.as_pixels(_WIDTH - 4, row * len(pushes))
        for index, (true, read, count) in enumerate(pushes):
            y = row * index
            before, after = class_name(names, true), class_name(names, read)
            page.text(0, y + 10, f"{shorten(before, 25)} → {shorten(after, 25)}", full=f"{before} → {after}")
            page.text(_WIDTH - 4, y + 10, f"{count:,}", ha="right", bold=True)
            page.bar(0, y + 20, _WIDTH - 4, 12, GRID, 0.55)
            page.bar(0, y + 20, (_WIDTH - 4) * count / most, 12, BROKEN)
        return page.svg(f"The {len(pushes)} most frequent pushes from one class to another, in images.")


def class_figure(key: str, tallies: Sequence[ClassTally], names: Sequence[str]) -> str:
    """Robust accuracy of each class over its clean accuracy, with the 95 % interval of the robust one."""
    row, right = 24.0, 104.0
    labels = [class_name(names, tally.index) for tally in tallies]
    short = [shorten(label, 20) for label in labels]
    left = max(map(width, short)) * _LETTER + 12
    span = _WIDTH - left - right
    with sheet(key, _WIDTH, row * len(tallies) + 26, (0, 0, 0, 0)) as page:
        page.as_pixels(_WIDTH, page.height)
        page.text(_WIDTH, 9, "robust   images", ha="right", size=11, color=MUTED)
        for share in (0, 0.5, 1):
            ha = {0: "left", 0.5: "center", 1: "right"}[share]
            page.text(left + share * span, 9, f"{share:.0%}", ha=ha, size=11, color=MUTED)
        for index, tally in enumerate(tallies):
            y = 22 + row * index
            low, high = clopper_pearson(tally.robust, tally.n)
            page.text(left - 8, y + row / 2, short[index], full=labels[index], ha="right")
            page.bar(left, y + 5, span, row - 10, GRID, 0.55)
            page.bar(left, y + 5, span * tally.correct / tally.n, row - 10, CLEAN, 0.45)
            page.bar(left, y + 5, span * tally.robust / tally.n, row - 10, ROBUST)
            page.bar(left + span * low, y + row / 2 - 0.75, span * (high - low), 1.5, INK)
            page.text(_WIDTH - 52, y + row / 2, percent(tally.robust / tally.n), ha="right", bold=True)
            page.text(_WIDTH, y + row / 2, f"{tally.n:,}", ha="right", color=MUTED)
        return page.svg(f"Robust accuracy of {len(tallies)} classes, the least robust first.")
