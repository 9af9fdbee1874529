"""A sheet for matplotlib whose SVG belongs into an HTML page.

The page's theme colors it: everything is drawn in marker colors, which become CSS variables. Texts are put in after
drawing, so that class names in any script, with dollar signs or markup in them, reach neither matplotlib's fonts nor
its math parser, and are escaped in one place. Every id carries the figure's key, so that figures do not clash.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from robust.reports.formats import printable

INK, MUTED, GRID = "#010203", "#010204", "#010205"
ROBUST, BROKEN, CLEAN, PROVEN = "#010206", "#010207", "#010208", "#010209"
_THEME = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ROBUST: "var(--robust)",
    BROKEN: "var(--broken)",
    CLEAN: "var(--clean)",
    PROVEN: "var(--proven)",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "robust",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "text.color": INK,
    "text.parse_math": False,
}
_DROPPED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL)
_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'url\(#([^)]+)\)|(?:xlink:)?href="#([^"]+)"')
_ROOT = re.compile(r"<svg\b[^>]*>", re.DOTALL)
_FONT = re.compile(r" font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"")  # the page sets the font
_TOKEN = re.compile(r"@@(\d+)@@")


class Sheet:
    """A drawing surface of ``width`` x ``height`` CSS pixels with one axes; margins are (left, right, top, bottom)."""

    def __init__(self, key: str, width: float, height: float, margins: tuple[float, float, float, float]) -> None:
        left, right, top, bottom = margins
        self.key, self.width, self.height = key, width, height
        self._texts: list[tuple[str, str]] = []
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        self.axes = self.figure.add_axes(box)

    def as_pixels(self, span: float, rows: float) -> None:
        """Hide the axes and measure downwards: x from 0 to ``span``, y from 0 to ``rows``, any units."""
        self.axes.set_axis_off()
        self.axes.set_xlim(0, span)
        self.axes.set_ylim(rows, 0)

    def bar(self, x: float, y: float, width: float, height: float, color: str, alpha: float = 1.0) -> None:
        """A filled rectangle in data coordinates; one without width is not drawn."""
        if width > 0:
            patch = Rectangle((x, y), width, height, facecolor=color, alpha=alpha, linewidth=0, clip_on=False)
            self.axes.add_patch(patch)

    def text(
        self, x: float, y: float, text: str, *, full: str = "", ha: str = "left", va: str = "center", size: float = 12,
        color: str = INK, bold: bool = False, rotation: float = 0, frame: bool = False,
    ) -> None:  # fmt: skip
        """Write ``text`` at data coordinates, or with ``frame`` at axes coordinates; ``full`` is its tooltip."""
        self.axes.text(
            x, y, f"@@{len(self._texts)}@@", ha=ha, va=va, size=size, color=color, rotation=rotation,
            weight="bold" if bold else "normal", rotation_mode="anchor", clip_on=False,
            transform=self.axes.transAxes if frame else self.axes.transData,
        )  # fmt: skip
        self._texts.append((text, full))

    def _written(self, match: re.Match[str]) -> str:
        text, full = self._texts[int(match.group(1))]
        title = f"<title>{escape(printable(full))}</title>" if full and full != text else ""
        return title + escape(printable(text))

    def svg(self, label: str) -> str:
        """The drawing as an ``<svg>`` element with ``label`` as its text alternative."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        body = _FONT.sub("", _DROPPED.sub("", buffer.getvalue()))
        body = _ID.sub(lambda match: f'id="{self.key}-{match.group(1)}"', body)
        body = _REFERENCE.sub(self._reference, body)
        for marker, variable in _THEME.items():
            body = body.replace(marker, variable)
        # What the user wrote goes in last: nothing after this looks for anything in it.
        body = _TOKEN.sub(self._written, "\n".join(line.strip() for line in body.splitlines() if line.strip()))
        opening = (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}" '
            f'role="img" aria-label="{escape(printable(label))}">'
        )
        return opening + _ROOT.sub("", body, count=1)

    def _reference(self, match: re.Match[str]) -> str:
        if match.group(1):
            return f"url(#{self.key}-{match.group(1)})"
        return f'href="#{self.key}-{match.group(2)}"'


@contextmanager
def sheet(key: str, width: float, height: float, margins: tuple[float, float, float, float]) -> Iterator[Sheet]:
    """A :class:`Sheet` under our own style, whatever the user's matplotlib settings; ``key`` is unique in the page."""
    with matplotlib.style.context(["default", _STYLE]):
        yield Sheet(key, width, height, margins)
