"""The before/after report of a hardening as one HTML file, from its card, its history and the two audits' summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robust.reports import formats, words
from robust.reports.figures import curve_points
from robust.reports.page import page, write_page
from robust.reports.svg import BROKEN, CLEAN, GRID, INK, MUTED, PROVEN, ROBUST, Sheet, sheet
from robust.summary import AuditSummary

_WIDTH = 460.0


def write_hardening_report(
    card: dict[str, Any], history: dict[str, Any], before: AuditSummary, after: AuditSummary, path: Path
) -> None:
    """Write the report to ``path`` in one step. Raises InputError where it cannot be written."""
    write_page(render(card, history, before, after), path)


def render(card: dict[str, Any], history: dict[str, Any], before: AuditSummary, after: AuditSummary) -> str:
    """The report as HTML text."""
    return page(
        "hardening.html",
        {"points": _points, "p": _p},
        {
            "card": card, "history": history, "before": before, "after": after, "headline": _headline(card),
            "curve": Markup(curves("curves", before, after)),
            "training": Markup(training_figure("training", history)),
            "masking": Markup(masking_figure("masking", card["masking"])) if card.get("masking") else None,
            "meaning": words.VERDICTS[after.verdict],
            "attacker": words.attacker(after.threats[0].threat, after.data.shape),
        },
    )  # fmt: skip


def _headline(card: dict[str, Any]) -> str:
    clean, robust = card["figures"]["clean"], card["figures"]["robust"]
    if card["method"]["name"] == "distillation":
        return "Distillation masks the gradient; it does not make the model robust."
    lost = f"from {formats.percent(clean['before']['value'])} to {formats.percent(clean['after']['value'])}"
    change = f"from {formats.percent(robust['before']['value'])} to {formats.percent(robust['after']['value'])}"
    if robust["p"] >= 0.05:
        return f"No change in robust accuracy was shown ({change})."
    return f"Robust accuracy {'rose' if robust['difference'] > 0 else 'fell'} {change}; clean accuracy went {lost}."


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def curves(key: str, before: AuditSummary, after: AuditSummary) -> str:
    """Robust accuracy against perturbation size of both models, with their intervals."""
    first, second = before.threats[0], after.threats[0]
    threat = second.threat
    scale = formats.axis_scale(threat)
    reach = 2.5 * threat.eps
    with sheet(key, _WIDTH, 320, (46, 84, 46, 46)) as page:
        axes = page.axes
        _frame(page, reach * scale)
        for result, clean, color, dashes in (
            (first, before.clean_accuracy, CLEAN, (0, (5, 2))),
            (second, after.clean_accuracy, ROBUST, (0, ())),
        ):
            points = [point for point in curve_points(result, clean) if point.eps <= reach]
            sizes = [point.eps * scale for point in points]
            axes.fill_between(
                sizes, [p.low for p in points], [p.high for p in points], color=color, alpha=0.18, linewidth=0
            )  # fmt: skip
            values = [point.robust_accuracy for point in points]
            axes.plot(sizes, values, color=color, linewidth=2.2, linestyle=dashes)
            at_eps = result.robust_accuracy.value
            axes.plot([threat.eps * scale], [at_eps], color=color, marker="o", markersize=7, clip_on=False)
        values = [first.robust_accuracy.value, second.robust_accuracy.value]
        apart = max(0.0, 0.08 - abs(values[1] - values[0])) / 2 * (1 if values[1] >= values[0] else -1)
        for height, name, value, color in (
            (values[0] - apart, "before", values[0], CLEAN), (values[1] + apart, "after", values[1], ROBUST),
        ):  # fmt: skip
            page.text(1.02, height, f"{name} {formats.percent(value)}", color=color, bold=True, frame=True)
        axes.axvline(threat.eps * scale, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        page.text(threat.eps * scale, 1.06, f"eps = {formats.size_text(threat, threat.eps)}", ha="center", bold=True)
        unit = {255.0: ", in 1/255", 100.0: ", % of the image's area"}.get(scale, "")
        axes.set_xlabel(f"perturbation size, {threat.norm}{unit}")
        page.text(-0.12, 1.15, "robust accuracy", color=MUTED, frame=True)
        return page.svg(
            f"Robust accuracy under {threat.text} against perturbation size: {formats.percent(values[0])} before and "
            f"{formats.percent(values[1])} after hardening, at eps."
        )


def training_figure(key: str, history: dict[str, Any]) -> str:
    """Clean and robust validation accuracy by epoch; the epoch that was kept and the guard's rollbacks are marked."""
    epochs = history["epochs"]
    numbers = [epoch["epoch"] for epoch in epochs]
    with sheet(key, _WIDTH, 290, (46, 84, 34, 46)) as page:
        axes = page.axes
        _frame(page, max(numbers[-1], 2))
        axes.set_xlim(min(1, numbers[0]), max(numbers[-1], 2))
        for name, color in (("clean", CLEAN), ("robust", ROBUST)):
            values = [epoch[name] for epoch in epochs]
            axes.plot(numbers, values, color=color, linewidth=2.2, marker="o", markersize=4, clip_on=False)
            page.text(1.02, values[-1], f"{name} {formats.percent(values[-1])}", color=color, bold=True, frame=True)
        best = next(epoch for epoch in epochs if epoch["epoch"] == history["best"])
        axes.plot(
            [best["epoch"]], [best["robust"]], color=PROVEN, marker="o", markersize=10, fillstyle="none", clip_on=False
        )
        seen = 0
        for epoch in epochs:
            if epoch["rollbacks"] > seen:
                axes.axvline(epoch["epoch"], color=BROKEN, linewidth=1.2, linestyle=(0, (3, 2)))
            seen = epoch["rollbacks"]
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("epoch")
        page.text(-0.12, 1.1, "accuracy on the validation images", color=MUTED, frame=True)
        return page.svg(
            f"Validation accuracy over {len(epochs)} epochs: clean {formats.percent(best['clean'])} and robust "
            f"{formats.percent(best['robust'])} at epoch {best['epoch']}, which was kept."
        )


def masking_figure(key: str, rows: list[dict[str, Any]]) -> str:
    """Accuracy under each attack by temperature: what rises is masking, what stays is the truth."""
    temperatures = sorted({row["temperature"] for row in rows})
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    places = {temperature: at for at, temperature in enumerate(temperatures)}
    colors = [BROKEN, ROBUST, PROVEN, CLEAN, INK, MUTED]
    with sheet(key, 620, 330, (46, 210, 34, 46)) as page:
        axes = page.axes
        _frame(page, max(len(temperatures) - 1, 1))
        heights: list[float] = []
        for at, attack in enumerate(attacks):
            found = {row["temperature"]: row["accuracy"] for row in rows if row["attack"] == attack}
            xs = [places[temperature] for temperature in temperatures if temperature in found]
            ys = [found[temperature] for temperature in temperatures if temperature in found]
            dashes = (0, ()) if at == 0 else (0, (1 + at, 1.5))
            axes.plot(
                xs, ys, color=colors[at % 6], linewidth=2.2, marker="o", markersize=4, linestyle=dashes, clip_on=False
            )
            heights.append(ys[-1])
        order = sorted(range(len(attacks)), key=lambda at: heights[at])
        floor = -0.05
        for at in order:
            floor = max(heights[at], floor + 0.075)
            label = f"{attacks[at]} {formats.percent(heights[at])}"
            page.text(1.03, floor, label, color=colors[at % 6], bold=True, frame=True)
        axes.set_xticks(list(places.values()), [f"{temperature:g}" for temperature in temperatures])
        axes.set_xlabel("temperature")
        page.text(-0.12, 1.1, "accuracy under each attack", color=MUTED, frame=True)
        return page.svg(
            f"Accuracy under {len(attacks)} attacks for the temperatures {', '.join(map(str, temperatures))}."
        )


def _frame(page: Sheet, last: float) -> None:
    page.axes.set_xlim(0, last)
    page.axes.set_ylim(0, 1)
    page.axes.grid(axis="y", color=GRID, linewidth=0.7)
    page.axes.set_axisbelow(True)
    page.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    page.axes.xaxis.set_major_locator(MaxNLocator(6, integer=last >= 4))
