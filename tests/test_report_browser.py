"""The report in a real headless Chromium: as a person sees it, on a desk, on a phone, at night and on paper.

Chromium is the program that ROBUST_CHROMIUM names, or one on the path. Screenshots are kept in ``artifacts/``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_reports import HOSTILE, L2, LINF, Case, report_of

playwright = pytest.importorskip("playwright.sync_api", reason="BROWSER TESTS NOT RUN: playwright is not installed")

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip
CASES = {
    "plain": Case(n=120, threats=(LINF, L2), certified=True),
    "hostile": Case(names=HOSTILE, n=100, verdict="suspect", model=HOSTILE[0] + HOSTILE[3] + "/long" * 30),
    "many": Case(names=[f"a class with a rather long name, number {i}" for i in range(60)], n=240, shape=(1, 12, 12)),
    "unbroken": Case(fallen="none", verdict="inconclusive", threats=(LINF, ("l0", 12.0, "l0:12"))),
}

# Pairs of texts of one figure that cover each other, and texts that leave their figure.
_CROWDED = """() => {
  const bad = [];
  for (const svg of document.querySelectorAll('figure > svg[role=img]')) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    texts.forEach(([a, p], i) => {
      if (p.width === 0 || p.height === 0) bad.push(['invisible', a]);
      if (p.left < frame.left - 2 || p.right > frame.right + 2 || p.top < frame.top - 2 || p.bottom > frame.bottom + 2)
        bad.push(['outside', a]);
      for (const [b, q] of texts.slice(i + 1)) {
        const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        // A box has room above and below its letters.
        if (across > 1 && down > 0.15 * Math.max(p.height, q.height)) bad.push(['overlap', a, b]);
      }
    });
  }
  return bad;
}"""

# Visible texts whose contrast with what lies behind them is below WCAG AA.
_FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = c => [0, 1, 2].map(i => c[i] / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll('body *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest('.hidden')) continue;
    const style = getComputedStyle(node), svg = node.namespaceURI.endsWith('svg');
    const a = light(rgb(svg ? style.fill : style.color)), b = light(behind(node));
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < (large ? 3 : 4.5)) bad.push([node.textContent.trim().slice(0, 40), contrast]);
  }
  return bad;
}"""


def _chromium() -> str:
    named = os.environ.get("ROBUST_CHROMIUM")
    if named:
        if shutil.which(named) is None:
            pytest.fail(f"ROBUST_CHROMIUM={named} is no program")
        return named
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.skip(f"BROWSER TESTS NOT RUN: none of {', '.join(_NAMES)} is installed and ROBUST_CHROMIUM is not set")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=_chromium(), args=_FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    ARTIFACTS.mkdir(exist_ok=True)
    paths = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        report_of(case, folder)
        paths[name] = folder / "report.html"
    return paths


class Visit:
    """An open report, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


@pytest.mark.parametrize("name", CASES)
def test_loads_alone_and_in_silence(name: str, browser: Any, reports: dict[str, Path]) -> None:
    with Visit(browser, reports[name]) as visit:
        assert visit.said == []
        assert [url for url in visit.asked if not url.startswith("data:image/png")] == [reports[name].as_uri()]
        assert visit.page.evaluate("typeof window.__pwned") == "undefined"
        sizes = visit.page.evaluate(
            "[...document.querySelectorAll('figure > svg, figure > img')].map(f => f.getBoundingClientRect())"
            ".map(b => Math.min(b.width, b.height))"
        )
        assert len(sizes) >= 4
        assert min(sizes) > 20
        loaded = visit.page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert loaded
        visit.page.screenshot(path=ARTIFACTS / f"report-{name}-light.png", full_page=True)


@pytest.mark.parametrize("name", CASES)
def test_fits_a_phone(name: str, browser: Any, reports: dict[str, Path]) -> None:
    with Visit(browser, reports[name], width=360, device_scale_factor=2) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
        visit.page.screenshot(path=ARTIFACTS / f"report-{name}-phone.png", full_page=True)
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("name", CASES)
def test_figures_are_not_crowded(name: str, browser: Any, reports: dict[str, Path]) -> None:
    with Visit(browser, reports[name]) as visit:
        assert visit.page.evaluate(_CROWDED) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", CASES)
def test_texts_stand_out(name: str, scheme: str, browser: Any, reports: dict[str, Path]) -> None:
    with Visit(browser, reports[name], color_scheme=scheme) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        assert visit.page.evaluate(_FAINT) == []


def _background(visit: Visit) -> int:
    color = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color[4:-1].split(",")[:3])


def test_light_dark_and_paper(browser: Any, reports: dict[str, Path]) -> None:
    with Visit(browser, reports["plain"], color_scheme="dark") as visit:
        assert _background(visit) < 150
        visit.page.screenshot(path=ARTIFACTS / "report-plain-dark.png", full_page=True)
        # Paper is white whatever the screen, and shows what is folded away.
        visit.page.emulate_media(media="print")
        assert _background(visit) == 3 * 255
        assert visit.page.evaluate(_FAINT) == []
        tables = visit.page.evaluate(
            "[...document.querySelectorAll('details table')].map(t => t.getBoundingClientRect().height)"
        )
        assert tables
        assert min(tables) > 20
        assert not visit.page.locator("nav").is_visible()
        visit.page.pdf(path=ARTIFACTS / "report-plain.pdf", format="A4", print_background=True)
        assert (ARTIFACTS / "report-plain.pdf").read_bytes().startswith(b"%PDF")
    with Visit(browser, reports["plain"], color_scheme="light") as visit:
        assert _background(visit) > 600


def test_the_eye_of_these_tests(browser: Any, tmp_path: Path) -> None:
    """Faint text, crowded figures, scripts and requests are seen where they are."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<body><p style='color: #aaa'>faint</p><figure><svg role=img width=100 height=50><text y=20>one</text>"
        "<text y=24>two</text><text x=90 y=40>outside</text></svg></figure><script>window.__pwned = 1; "
        "console.log('said')</script><img src='other.png'><div style='width: 2000px'>wide</div>",
        encoding="utf-8",
    )
    with Visit(browser, path, width=360) as visit:
        assert [text for text, _ in visit.page.evaluate(_FAINT)] == ["faint"]
        assert {kind for kind, *_ in visit.page.evaluate(_CROWDED)} == {"overlap", "outside"}
        assert "said" in visit.said
        assert len(visit.asked) == 2
        assert visit.page.evaluate("window.__pwned") == 1
        assert visit.page.evaluate("document.documentElement.scrollWidth") > 360
