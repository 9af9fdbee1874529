"""The score's properties, and the report's content against counts made here from the audit's plain data."""

from __future__ import annotations

import base64
import io
import math
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from robust.errors import InputError
from robust.ledger import Finding, ImageRow, Ledger, Run
from robust.reports import audit_score, summary_text, threat_score, write_report
from robust.reports.figures import curve_figure, curve_points
from robust.reports.formats import percent, printable, shorten, step_text
from robust.reports.gallery import front, magnification
from robust.reports.words import next_steps
from robust.stats import clopper_pearson, rate
from robust.summary import (
    AttackRecord,
    AuditSummary,
    CheckRecord,
    Cost,
    CurvePoint,
    DataRecord,
    ModelRecord,
    ScoreRecord,
    Settings,
    ThreatRecord,
    ThreatResult,
)

LINF = ("linf", 8 / 255, "linf:8/255")
L2 = ("l2", 0.5, "l2:0.5")
PATCH = ("patch", 0.25, "patch:25%")
HOSTILE = [
    "<script>window.__pwned = 1; alert(1)</script>",
    '"><img src=x onerror="window.__pwned = 2">',
    "' onmouseover='window.__pwned = 3",
    "</title></style></svg></text><script>window.__pwned = 4</script>",
    "&lt;b&gt; & {{ 7 * 7 }} @@0@@ #010206 $\\frac{1}{2}$",
    "علامة قف",
    "速度限制一百二十公里每小时的很长很长的名字",
    "naïve café",
    "\u202ereversed\x1b[31m",
    "a_name_without_any_space_that_goes_on_for_much_longer_than_any_column_of_a_table_is_wide",
]


# An audit from plain data


@dataclass(frozen=True)
class Case:
    """What the tests vary; :func:`audit_of` makes a ledger and a summary of it."""

    names: list[str] = field(default_factory=lambda: ["stop", "yield", "no entry", "priority road"])
    n: int = 60
    shape: tuple[int, int, int] = (3, 8, 8)
    threats: tuple[tuple[str, float, str], ...] = (LINF,)
    fallen: str = "some"  # some, none, all
    beyond: bool = True
    verdict: str = "sound"
    attacks: tuple[tuple[str, str], ...] = (("noise", "none"), ("fgsm", "white-box"), ("pgd(steps=20)", "white-box"))
    curve: bool = True
    certified: bool = False
    classes: int | None = None
    model: str = "net.py:load"

    def label(self, image: int) -> int:
        return image % len(self.names)

    def correct(self, image: int) -> bool:
        return image % 10 != 9

    def broken(self, image: int) -> bool:
        by = {"none": False, "all": True, "some": image % 3 == 0}[self.fallen]
        return self.correct(image) and by

    def target(self, image: int) -> int:
        step = 1 + image // len(self.names) % (len(self.names) - 1)
        return (self.label(image) + step) % len(self.names)

    def distance(self, image: int, norm: str, eps: float) -> float:
        """Distinct for each image; inside eps where it is broken, beyond where it is not."""
        share = (1 + (image * 37) % self.n) / (self.n + 1)
        size = eps * (share if self.broken(image) else 1 + share)
        if norm == "patch":  # of whole pixels
            area = self.shape[1] * self.shape[2]
            side = math.sqrt(size * area)
            return max(1, math.floor(side) if self.broken(image) else math.ceil(side)) ** 2 / area
        return math.ceil(size) if norm == "l0" else size


def _original(case: Case, image: int) -> np.ndarray:
    values = np.random.default_rng(image).integers(60, 196, case.shape)
    return values.astype(np.float32) / np.float32(255)


def _adversarial(case: Case, image: int, norm: str, distance: float) -> np.ndarray:
    signs = np.random.default_rng(1000 + image).choice([-1.0, 1.0], case.shape)
    change = np.zeros(case.shape)
    if norm == "l0":
        change.flat[: int(distance)] = 0.2 * signs.flat[: int(distance)]
    elif norm == "patch":
        side = round(math.sqrt(distance * case.shape[1] * case.shape[2]))
        change[:, 1 : 1 + side, 1 : 1 + side] = 0.2 * signs[:, 1 : 1 + side, 1 : 1 + side]
    else:
        change = signs * {"linf": distance, "l2": distance / math.sqrt(signs.size), "l1": distance / signs.size}[norm]
    return np.clip(_original(case, image) + change, 0, 1).astype(np.float32)


def _findings(case: Case, norm: str, eps: float, attack: str, images: list[int]) -> list[Finding]:
    found = []
    for image in images:
        distance = case.distance(image, norm, eps)
        found.append(
            Finding(
                image, attack if case.broken(image) else None, distance, case.target(image), 0.75, image % 7 > 0,
                _adversarial(case, image, norm, distance),
            )
        )  # fmt: skip
    return found


def _checks(verdict: str) -> list[CheckRecord]:
    state = {"sound": True, "suspect": False, "inconclusive": None}[verdict]
    return [
        CheckRecord(
            name="logits", title="Outputs are logits", passed=True, detail="rows do not sum to 1",
            meaning="Softmax starves gradients.", weight="advice",
        ),
        CheckRecord(
            name="gradients", title="Gradients are there", passed=state, detail="12 of 60 images have none",
            meaning="Without gradients the attacks are blind.", weight="evidence",
        ),
    ]  # fmt: skip


def _result(case: Case, ledger: Ledger, norm: str, eps: float, text: str) -> ThreatResult:
    """The attacks take turns at the broken images, in threes of image numbers; the last also finds those beyond eps."""
    n, right = case.n, [i for i in range(case.n) if case.correct(i)]
    fallen = [i for i in right if case.broken(i)]
    records = []
    for place, (name, knowledge) in enumerate(case.attacks):
        own = [i for i in fallen if i // 3 % len(case.attacks) == place]
        last = place == len(case.attacks) - 1
        extra = [i for i in right if not case.broken(i)] if last and case.beyond else []
        cut = last and case.verdict == "inconclusive"
        run = Run(
            text, name, 0, len(right), len(own), place, 30 * (place + 1), 12 * place, 1.5, "unfinished" if cut else
            "done", "the budget ran out" if cut else "",
        )  # fmt: skip
        ledger.record(run, _findings(case, norm, eps, name, own + extra))
        records.append(
            AttackRecord(
                name=name, knowledge=knowledge, tried=run.tried, broken=run.broken, rejected=run.rejected,
                forward=run.forward, backward=run.backward, seconds=run.seconds, status=run.status, detail=run.detail,
            )
        )  # fmt: skip
    correct = np.array([case.correct(i) for i in range(n)])
    distance = np.array([
        case.distance(i, norm, eps) if case.correct(i) and (case.broken(i) or case.beyond) else np.inf
        for i in range(n)
    ])  # fmt: skip
    robust = rate(len(right) - len(fallen), n)
    points = []
    for size in np.linspace(0, 1.5 * eps, 7):
        standing = rate(int((correct & (distance > size)).sum()), n)
        points.append(CurvePoint(eps=size, robust_accuracy=standing.value, low=standing.low, high=standing.high))
    median = float(np.median(distance[correct])) if correct.any() else math.inf
    return ThreatResult(
        threat=ThreatRecord(norm=norm, eps=eps, text=text),
        robust_accuracy=robust,
        certified_accuracy=rate(robust.numerator // 2, n) if case.certified else None,
        verdict=case.verdict,
        reasons=[f"the reason for {case.verdict}"],
        checks=_checks(case.verdict),
        cost=Cost(forward_per_image=sum(r.forward for r in records) / n + 2, backward_per_image=1.5, seconds=6.0),
        attacks=records,
        curve=points if case.curve else [],
        median_distance=median if math.isfinite(median) else None,
        eight_bit=rate(sum(i % 7 > 0 for i in fallen), len(fallen)) if fallen else None,
        score=threat_score(correct, distance, eps, threat=text, trusted=case.verdict == "sound"),
    )


def audit_of(case: Case) -> tuple[AuditSummary, Ledger]:
    ledger = Ledger.create(None, {})
    ledger.set_meta("shape", list(case.shape))
    rows = [
        ImageRow(i, case.label(i), case.label(i) if case.correct(i) else case.target(i), 0.9) for i in range(case.n)
    ]
    ledger.add_images(rows, [_original(case, i) for i in range(case.n)])
    results = [_result(case, ledger, *threat) for threat in case.threats]
    summary = AuditSummary(
        robust_version="1.2.3",
        created="2026-01-15T09:30:12+00:00",
        model=ModelRecord(
            name=case.model, sha256="ab" * 32, parameters=12345, classes=case.classes or len(case.names)
        ),
        data=DataRecord(
            name="signs.npz", n=case.n, available=500, sha256="cd" * 32, shape=case.shape, class_names=case.names
        ),
        settings=Settings(
            seed=17, limit=case.n, device="cpu", batch_size=32, budget_seconds=None,
            attacks=[name for name, _ in case.attacks], standard_attacks=True,
            command="robust audit net.py:load signs.npz --seed 17",
        ),
        clean_accuracy=rate(sum(case.correct(i) for i in range(case.n)), case.n),
        verdict=case.verdict,
        threats=results,
        score=audit_score({result.threat.text: result.score for result in results}),
        warnings=["mind the <gap>"] if case.verdict == "suspect" else [],
        seconds=7.0,
        machine="a machine",
        versions={"torch": "9.8.7"},
    )  # fmt: skip
    return summary, ledger


def report_of(case: Case, folder: Path) -> str:
    summary, ledger = audit_of(case)
    path = folder / "report.html"
    with ledger:
        write_report(summary, ledger, path)
    return path.read_text(encoding="utf-8")


# Reading the report


_VOID = frozenset({"meta", "img", "br", "link", "input", "path", "circle", "rect", "use"})


class Page(HTMLParser):
    """Tags with attributes and the visible text of a page, and of each element that has an id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[tuple[str, str | None]] = []
        self.by_id: dict[str, list[str]] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append((tag, found))
        if "id" in found:
            assert found["id"] not in self.by_id, f"id {found['id']} twice"
            self.by_id[found["id"]] = []
        if tag not in _VOID:
            self._open.append((tag, found.get("id")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] == "style":
            return
        self.words.append(data)
        for _, identifier in self._open:
            if identifier is not None:
                self.by_id[identifier].append(data)

    def text(self, identifier: str | None = None) -> str:
        return " ".join(" ".join(self.words if identifier is None else self.by_id[identifier]).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


SECTIONS = ["verdict", "accuracy", "curves", "attacks", "confusions", "classes", "gallery", "checks", "reproduce"]


def assert_complete(html: str, figures: int = 5) -> Page:
    """A report that says something in every section, in order, with its figures, and needs nothing from outside.

    The figures are the gauge and, for each threat, curve, waterfall, classes and, where something broke, pushes.
    """
    page = Page(html)
    sections = [attributes.get("id") for attributes in page.all("section")]
    assert [s for s in sections if s in SECTIONS] == SECTIONS
    for section in [*SECTIONS, "method"]:
        assert len(page.text(section)) > 40, f"section {section} is empty"
    drawn = [attributes for attributes in page.all("svg") if attributes.get("role") == "img"]
    assert len(drawn) == figures
    assert all(len(figure["aria-label"]) > 10 for figure in drawn)
    assert all(attributes["alt"].strip() for attributes in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) - html.count("<title>", 999) == 1
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attributes for attributes in page.all("th"))
    assert_contained(html, page)
    return page


def assert_contained(html: str, page: Page) -> None:
    """No scripts, no handlers, no address of anything outside."""
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "srcset"
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#")), (tag, name, value)
            if name not in ("aria-label", "alt", "content"):
                assert "http" not in value, (tag, name, value)
    assert re.findall(r"url\((?!#)|@import", html) == []
    ids = set(page.by_id)
    used = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")} | set(
        re.findall(r"url\(#([^)]+)\)", html)
    )
    assert used <= ids


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


# Score

unhurried = settings(deadline=None, max_examples=60)  # the first example also imports scipy

arrays = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 2) | st.just(math.inf))
bits = st.integers(0, 2**30 - 1)
radii = st.floats(1e-6, 1)


def _correct(mask: int, n: int) -> np.ndarray:
    return np.array([bool(mask >> i & 1) for i in range(n)])


def _score(correct: Any, distance: Any, eps: float, trusted: bool = True) -> ScoreRecord:
    return threat_score(correct, distance, eps, threat="linf:x", trusted=trusted)


def test_score_by_hand() -> None:
    # worth 1, 1/4, 1/8, 0 (wrong unattacked), 1/2 (just at eps)
    score = _score([True, True, True, False, True], [np.inf, 0.05, 0.025, np.inf, 0.1], 0.1)
    assert score.value == pytest.approx(100 * 1.875 / 5)
    assert (score.low, score.high) == pytest.approx([100 * x for x in clopper_pearson(1.875, 5)])
    assert "linf:x" in score.definition
    assert "5 images" in score.definition


@unhurried
@given(arrays, bits, radii)
def test_score_is_half_robust_accuracy_and_half_its_mean_up_to_eps(distance: np.ndarray, mask: int, eps: float) -> None:
    correct = _correct(mask, len(distance))
    sizes = (np.arange(4000) + 0.5) / 4000 * eps
    area = (correct & (distance > sizes[:, None])).mean()
    at_eps = (correct & (distance > eps * (1 + 1e-6) + 1e-6)).mean()
    assert _score(correct, distance, eps).value == pytest.approx(50 * (at_eps + area), abs=0.03)


@unhurried
@given(arrays, bits, radii, st.data())
def test_score_never_rises_with_a_stronger_attack(distance: np.ndarray, mask: int, eps: float, data: Any) -> None:
    correct = _correct(mask, len(distance))
    other = data.draw(hnp.arrays(np.float64, len(distance), elements=st.floats(0, 2) | st.just(math.inf)))
    weaker, stronger = _score(correct, distance, eps), _score(correct, np.minimum(distance, other), eps)
    assert stronger.value <= weaker.value
    assert stronger.low <= weaker.low + 1e-9
    assert stronger.high <= weaker.high + 1e-9
    fewer_right = _score(correct & (other > 1), distance, eps)
    assert fewer_right.value <= weaker.value


@unhurried
@given(arrays, bits, radii)
def test_score_bounds(distance: np.ndarray, mask: int, eps: float) -> None:
    score = _score(_correct(mask, len(distance)), distance, eps)
    assert 0 <= score.low <= score.value <= score.high <= 100
    assert score.high - score.low > 0.1


def test_score_at_eps_zero_is_the_clean_accuracy() -> None:
    score = _score([True, False, True, True], [np.inf, np.inf, 0.3, 1e-9], 0.0)
    assert score.value == 75


def test_score_extremes() -> None:
    assert _score([True] * 50, [np.inf] * 50, 0.1).value == 100
    assert _score([True] * 50, [0.0] * 50, 0.1).value == 0
    assert _score([True] * 50, [0.1] * 50, 0.1).value == 50
    assert _score([False] * 50, [np.inf] * 50, 0.1).value == 0


def test_score_interval_covers() -> None:
    """Of 400 samples of 40 images, the interval holds the true mean in at least 95 % (three sigma below: 91.7 %)."""
    draws = np.random.default_rng(3).beta(0.6, 0.9, (400, 40))
    held = 0
    for distance in draws:
        score = _score(np.ones(40), distance, 1.0)
        held += score.low <= 50 * 0.6 / 1.5 <= score.high
    assert held / 400 >= 0.917


@pytest.mark.parametrize(
    ("correct", "distance", "eps"),
    [
        ([True], [math.nan], 0.1),
        ([True], [-0.1], 0.1),
        ([True, False], [0.1], 0.1),
        ([], [], 0.1),
        ([True], [0.1], -1),
        ([True], [0.1], math.inf),
    ],
)
def test_score_rejects_nonsense(correct: list[bool], distance: list[float], eps: float) -> None:
    with pytest.raises(InputError, match="score"):
        _score(correct, distance, eps)


@unhurried
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=5))
def test_audit_score_only_falls_with_more_threats(entries: list[tuple[float, bool]]) -> None:
    scores = {
        f"l2:{i}": threat_score([True] * 20, [d] * 20, 1.0, threat=f"l2:{i}", trusted=trusted)
        for i, (d, trusted) in enumerate(entries)
    }
    texts = list(scores)
    previous = math.inf
    for count in range(1, len(texts) + 1):
        part = audit_score({text: scores[text] for text in texts[:count]})
        assert part.value <= previous
        assert part.trusted == all(trusted for _, trusted in entries[:count])
        previous = part.value
    assert previous == min(score.value for score in scores.values())
    assert all(text in part.definition for text in texts)


def test_audit_score_needs_a_threat() -> None:
    with pytest.raises(InputError, match="at least one threat"):
        audit_score({})


# The report's content


def test_report_states_the_counts(tmp_path: Path) -> None:
    case = Case()
    page = assert_complete(report_of(case, tmp_path))
    right = [i for i in range(60) if i % 10 != 9]
    broken = [i for i in right if i % 3 == 0]
    assert (len(right), len(broken)) == (54, 18)
    assert (
        "Of the 54 images the model reads right, an attacker who changes every pixel by at most 8/255 can make it"
        in (page.text("headline"))
    )
    assert page.text("headline").endswith("misread 18.")
    hero = page.text("verdict")
    assert "54 are read right unattacked (90.0%), 18 of these were made to be misread, 36 stand (60.0%)" in hero
    assert "Sound" in hero
    assert "The reason for sound." in hero
    accuracy = page.text("accuracy")
    low, high = clopper_pearson(36, 60)
    assert f"60.0% 36 of 60 {100 * low:.1f} to {100 * high:.1f}%" in accuracy
    low, high = clopper_pearson(54, 60)
    assert f"90.0% 54 of 60 {100 * low:.1f} to {100 * high:.1f}%" in accuracy
    kept = [i for i in broken if i % 7 > 0]
    assert f"{len(kept)} of 18" in accuracy


def test_report_states_the_score_it_was_given(tmp_path: Path) -> None:
    case = Case()
    sizes = [case.distance(i, "linf", 8 / 255) / (8 / 255) for i in range(case.n)]
    values = [0 if i % 10 == 9 else 1 if size > 1.0001 else size / 2 for i, size in enumerate(sizes)]
    expected = 100 * sum(values) / case.n
    page = Page(report_of(case, tmp_path))
    assert "Score, 0 to 100 Half of" in page.text("accuracy")
    assert f"linf:8/255 {expected:.1f} (" in page.text("accuracy")
    assert any(f"Robustness score {expected:.1f} of 100" in svg.get("aria-label", "") for svg in page.all("svg"))


def test_attack_table_and_totals(tmp_path: Path) -> None:
    text = Page(report_of(Case(), tmp_path)).text("attacks")
    # broken are 0, 3, 6 ... 57 without the wrong ones 9 and 39: six for each of the three attacks
    assert "noise nothing 54 6 0 0.5 0 1.5 s done" in text
    assert "fgsm gradients 54 6 1 1 0.2 1.5 s done" in text
    assert "pgd(steps=20) gradients 54 6 2 1.5 0.4 1.5 s done" in text
    assert "All together 54 18 3 3 0.6 4.5 s done" in text
    assert "With checks and re-verification 5 1.5 6.0 s" in text
    for left in ("90.0%", "80.0% (−6)", "70.0% (−6)", "60.0% (−6)"):
        assert left in text


def test_pushes_and_classes(tmp_path: Path) -> None:
    case = Case()
    page = Page(report_of(case, tmp_path))
    broken = [i for i in range(60) if case.broken(i)]
    stop_to_yield = sum(case.label(i) == 0 and case.target(i) == 1 for i in broken)
    assert stop_to_yield > 0
    assert f"stop yield {stop_to_yield} {100 * stop_to_yield / 18:.1f}%" in page.text("confusions")
    own = [i for i in range(60) if case.label(i) == 2]
    right = [i for i in own if case.correct(i)]
    robust = [i for i in right if not case.broken(i)]
    assert f"no entry {len(own)} {len(right)} {len(robust)} {100 * len(robust) / len(own):.1f}%" in page.text("classes")


def test_gallery_shows_the_stored_images(tmp_path: Path) -> None:
    case = Case()
    page = Page(report_of(case, tmp_path))
    images = page.all("img")
    assert len(images) == 3 * 12
    smallest = min((i for i in range(60) if case.broken(i)), key=lambda i: case.distance(i, "linf", 8 / 255))
    numbers = [int(re.search(r"image (\d+)", image["alt"])[1]) for image in images]
    assert numbers[0] == smallest
    assert len(set(numbers)) == 12
    assert {case.label(i) for i in numbers} == {0, 1, 2, 3}
    for original, change, adversarial in zip(*[iter(images)] * 3, strict=True):
        number = int(re.search(r"image (\d+)", original["alt"])[1])
        factor = float(re.search(r"magnified ([\d.]+) times", change["alt"])[1])
        true, attacked = _original(case, number), _adversarial(case, number, "linf", case.distance(number, *LINF[:2]))
        for shown, expected in ((original, true), (change, 0.5 + factor * (attacked - true)), (adversarial, attacked)):
            difference = picture(shown["src"]).transpose(2, 0, 1) / 255 - expected
            assert np.abs(difference).max() <= 0.5 / 255 + 1e-5
        assert f"read as {case.names[case.target(number)]}" in adversarial["alt"]
    text = page.text("gallery")
    assert f"{255 * case.distance(smallest, *LINF[:2]):.2f}".rstrip("0") + "/255 of 8/255 allowed" in text
    assert "90.0%" in text
    assert "75.0%" in text


@pytest.mark.parametrize("verdict", ["sound", "suspect", "inconclusive"])
def test_verdict_is_shown_with_reason_and_remedy(verdict: str, tmp_path: Path) -> None:
    page = assert_complete(report_of(Case(verdict=verdict), tmp_path))
    hero, checks = page.text("verdict"), page.text("checks")
    assert f"The reason for {verdict}." in hero
    assert verdict.capitalize() in hero
    if verdict == "sound":
        assert "Gradients are there passed" in checks
        assert "upper bound only" not in hero
        return
    assert "upper bound only" in hero
    assert "misread at least 18" in hero
    if verdict == "suspect":
        assert "Gradients are there failed" in checks
        assert "Gradients are there: failed. Without gradients the attacks are blind." in hero
        assert "Mind the <gap>." in hero
    else:
        assert "Gradients are there not run" in checks
        assert "pgd(steps=20) (unfinished)" in hero
        assert "The budget ran out." in page.text("attacks")


def test_how_to_reproduce(tmp_path: Path) -> None:
    text = Page(report_of(Case(), tmp_path)).text("reproduce")
    for fact in ("robust audit net.py:load signs.npz --seed 17", "ab" * 32, "cd" * 32, "a machine", "torch 9.8.7",
                 "12,345 parameters", "60 of 500 images", "Seed 17", "robust 1.2.3"):  # fmt: skip
        assert fact in text


def test_curve_starts_at_clean_and_holds_eps() -> None:
    summary, _ = audit_of(Case(curve=False))
    points = curve_points(summary.threats[0], summary.clean_accuracy)
    assert [(p.eps, p.robust_accuracy) for p in points] == [(0, 0.9), (8 / 255, 0.6)]


def test_curve_stays_in_its_frame() -> None:
    """The axis ends soon after eps, however far the search went, and so does the line."""
    summary, _ = audit_of(Case())
    far = [CurvePoint(eps=k * 8 / 255, robust_accuracy=0.9 / (1 + k), low=0, high=1) for k in range(12)]
    figure = curve_figure("k", summary.threats[0].model_copy(update={"curve": far}), summary.clean_accuracy)
    across = [float(x) for x in re.findall(r'<use href="[^"]*" x="([\d.]+)"', figure)]
    line = re.search(r'<g id="k-line2d_\d+">\s*<path d="(M[^"]*L[^"]*L[^"]*)"[^>]*stroke: var\(--robust\)', figure)
    assert line is not None
    across += [float(x) for x in re.findall(r"[ML] ([\d.]+) ", line[1])]
    assert len(across) > 6
    assert max(across) <= 420 - 106 + 0.1


# Cases that break careless reports


@pytest.mark.parametrize(
    ("case", "headline"),
    [
        (Case(fallen="none"), "could not make the model misread a single one of the 54 images"),
        (Case(fallen="none", beyond=False), "could not make the model misread a single one"),
        (Case(fallen="all"), "can make the model misread every one of the 54 images"),
        (Case(curve=False), "misread 18."),
        (Case(n=4), "Of the 4 images the model reads right"),
        (Case(names=["a", "b"], n=200), "Of 100 images the model reads right"),
        (Case(certified=True), "misread 18."),
        (Case(threats=(("linf", 0.3, "linf:0.3"),)), "changes every pixel by at most 0.3"),
        (Case(threats=(L2,)), "at most 0.5 in l2 distance (about 9.2/255 per color value)"),
        (Case(threats=(("l1", 6.0, "l1:6"),)), "add up to at most 6 (as much as 2 pixels from black to white)"),
        (Case(threats=(("l0", 12.0, "l0:12"),)), "at most 12 of the image's 192 color values"),
        (Case(threats=(PATCH,)), "covers 25% of the image with a patch (4 x 4 pixels, placed at will)"),
        (Case(threats=(("linf", 0.0, "linf:0"),), fallen="none", beyond=False), "at most 0/255 could not make"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_extremes(case: Case, headline: str, tmp_path: Path) -> None:
    page = assert_complete(report_of(case, tmp_path), 4 + (case.fallen != "none"))
    assert headline in page.text("headline")


def test_a_patched_stop_sign_leads_the_report(tmp_path: Path) -> None:
    case = Case(n=24, threats=(PATCH,))
    page = Page(report_of(case, tmp_path))
    hero = page.text("verdict")
    stops = [i for i in range(case.n) if case.broken(i) and case.label(i) == 0]
    sizes = {f"{100 * case.distance(i, *PATCH[:2]):.3g}%" for i in stops}
    assert "This stop is read right. With a patch over" in hero
    assert any(f"a patch over {size} of the image the model reads it as" in hero for size in sizes)
    assert "75.0% confidence" in hero
    without = Case(n=24, threats=(PATCH,), fallen="none")
    assert "With a patch over" not in Page(report_of(without, tmp_path)).text("verdict")


def test_where_no_stop_sign_was_broken_any_other_leads() -> None:
    _, ledger = audit_of(Case(threats=(PATCH,)))
    with ledger:
        for names, labels in ((["a", "stop", "stopping", "b"], {1}), (["a", "b"], {0, 1, 2, 3})):
            chosen = front(ledger, "patch:25%", names)
            assert chosen is not None
            assert chosen.found.inside
            assert chosen.found.image.label in labels


def test_nothing_found_is_said(tmp_path: Path) -> None:
    page = Page(report_of(Case(fallen="none", beyond=False), tmp_path))
    assert "No adversarial image was found" in page.text("gallery")
    assert "No image was broken" in page.text("confusions")
    assert "not reached: fewer than half were broken" in page.text("accuracy")
    beyond = Page(report_of(Case(fallen="none"), tmp_path))
    assert "Nothing was found inside the threat model" in beyond.text("gallery")
    assert "beyond the 8/255 allowed" in beyond.text("gallery")


@pytest.mark.parametrize(
    ("threats", "said"), [((LINF,), "(patches, rotations, weather)"), ((LINF, PATCH), "(rotations, weather)")]
)
def test_what_was_audited_is_not_called_uncovered(threats: tuple[tuple[str, float, str], ...], said: str) -> None:
    summary, ledger = audit_of(Case(fallen="none", threats=threats))
    ledger.close()
    assert any(f"Attacks of other kinds {said} are not covered" in step for step in next_steps(summary))


def test_a_model_that_is_always_wrong(tmp_path: Path) -> None:
    class Wrong(Case):
        def correct(self, image: int) -> bool:
            return False

    page = Page(report_of(Wrong(), tmp_path))
    assert "reads none of the 60 audited images right" in page.text("headline")
    assert "Repair the model first" in page.text("verdict")


def test_black_box_only(tmp_path: Path) -> None:
    case = Case(attacks=(("noise", "none"), ("art:HopSkipJump", "decision"), ("square(queries=500)", "score")))
    page = assert_complete(report_of(case, tmp_path))
    assert "No attack used gradients" in page.text("verdict")
    assert "decisions" in page.text("attacks")
    assert "no attack used gradients" in summary_text(audit_of(case)[0])
    assert "No attack used gradients" not in Page(report_of(Case(), tmp_path)).text("verdict")


def test_steps_that_are_no_attacks(tmp_path: Path) -> None:
    """The search for smaller perturbations uses gradients, and yet such an audit may be black-box only."""
    case = Case(attacks=(("noise", "none"), ("square", "score"), ("curve", "white-box")))
    page = assert_complete(report_of(case, tmp_path))
    assert "search for smaller perturbations" in page.text("attacks")
    assert "No attack used gradients" in page.text("verdict")


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels(channels: int, tmp_path: Path) -> None:
    case = Case(shape=(channels, 6, 9), n=20)
    page = assert_complete(report_of(case, tmp_path))
    first = page.all("img")[0]
    number = int(re.search(r"image (\d+)", first["alt"])[1])
    original = _original(case, number)
    expected = {1: original[0], 2: original.mean(0)}.get(channels, original[:3].transpose(1, 2, 0))
    assert picture(first["src"]) == pytest.approx(expected * 255, abs=0.51)
    assert (f"{channels} channels" in page.text("gallery")) == (channels not in (1, 3))


@pytest.mark.parametrize("classes", [2, 20, 21, 60])
def test_class_counts(classes: int, tmp_path: Path) -> None:
    case = Case(names=[f"class number {i}" for i in range(classes)], n=180)
    page = assert_complete(report_of(case, tmp_path))
    maps = [svg for svg in page.all("svg") if svg.get("aria-label", "").startswith("Heat map")]
    assert len(maps) == (classes <= 20)
    rows = page.text("classes").count("class number")
    assert rows >= classes


def test_a_class_without_name(tmp_path: Path) -> None:
    """A model with more outputs than the data has names."""

    class Stranger(Case):
        def target(self, image: int) -> int:
            return 812

    page = assert_complete(report_of(Stranger(classes=1000), tmp_path))
    assert "class 812" in page.text("confusions")


def test_several_threats(tmp_path: Path) -> None:
    case = Case(threats=(LINF, L2, ("l1", 6.0, "l1:6"), ("l0", 12.0, "l0:12")))
    page = assert_complete(report_of(case, tmp_path), 17)
    for section in ("accuracy", "curves", "attacks", "confusions", "classes", "gallery", "checks"):
        for _, _, text in case.threats:
            assert text in page.text(section), (section, text)


# What comes from outside


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    names = HOSTILE
    case = Case(
        names=names, n=100, threats=(LINF, ("l2", 0.5, 'l2:"><b>0.5')), model=HOSTILE[0] + HOSTILE[3],
        attacks=(("noise", "none"), ('art:"><script>alert(2)</script>', "white-box")),
    )  # fmt: skip
    return report_of(case, tmp_path_factory.mktemp("hostile"))


def test_markup_in_names_is_text(hostile: str) -> None:
    page = assert_complete(hostile, 9)
    assert "<script" not in hostile
    assert "<img src=x" not in hostile
    assert len(page.all("img")) == 3 * 12 * 2
    for name in HOSTILE[:8]:
        shown = " ".join(name.split())
        assert shown in page.text("classes"), name
        assert any(shown in image["alt"] for image in page.all("img")), name
    assert page.text().count("window.__pwned = 4") >= 3
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert "\ufffdreversed\ufffd[31m" in page.text("classes")
    assert page.all("b") == [a for t, a in page.tags if t == "b"]
    assert '"><b>0.5' in page.text("accuracy")


def test_placeholders_in_names_stay_names(hostile: str) -> None:
    """Names that look like our own marks in figures, or like template code, come out as written."""
    figure = re.search(r'<svg[^>]*aria-label="Robust accuracy of.*?</svg>', hostile, re.DOTALL)
    assert figure is not None
    assert "@@0@@ #010206" in figure[0]
    assert "@@" not in figure[0].replace("@@0@@", "")


def test_undecodable_names_are_written(tmp_path: Path) -> None:
    """A folder name that is not UTF-8 reaches Python as lone surrogates, which cannot be written as UTF-8."""
    page = assert_complete(report_of(Case(names=["caf\udce9", "\x00", "  ", "d"]), tmp_path))
    assert "caf\ufffd" in page.text("classes")
    assert "class 2" in page.text("classes")


def test_report_is_the_same_bytes_under_any_settings(tmp_path: Path) -> None:
    first = report_of(Case(threats=(LINF, L2)), tmp_path)
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert report_of(Case(threats=(LINF, L2)), tmp_path) == first
    other = report_of(Case(threats=(LINF, L2), fallen="all"), tmp_path)
    assert other != first


def test_an_empty_or_gutted_report_fails(tmp_path: Path) -> None:
    """The test's own eye: what would a blank report get away with?"""
    html = report_of(Case(), tmp_path)
    gutted = [
        "",
        "<!DOCTYPE html><html lang='en'><body></body></html>",
        re.sub(r"<svg\b.*?</svg>", "", html, flags=re.DOTALL),
        re.sub(r'(<section id="gallery"[^>]*>).*?(</section>)', r"\1\2", html, flags=re.DOTALL),
        re.sub(r' alt="[^"]*"', ' alt=""', html),
        html.replace("</main>", "<script>1</script></main>"),
        html.replace("</main>", "<img alt='x' src='https://example.com/x.png'></main>"),
        html.replace("</main>", "<p style='background: url(//example.com/x.png)'></p></main>"),
    ]
    for page in gutted:
        with pytest.raises((AssertionError, KeyError, IndexError, StopIteration)):
            assert_complete(page)


def test_foreign_ledger_is_refused(tmp_path: Path) -> None:
    summary, _ = audit_of(Case())
    _, ledger = audit_of(Case(n=50))
    with pytest.raises(InputError, match=r"45 of 50 images right.*54 of 60"):
        write_report(summary, ledger, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_path_is_one_line(tmp_path: Path) -> None:
    summary, ledger = audit_of(Case(n=10))
    with pytest.raises(InputError, match="cannot be written") as caught:
        write_report(summary, ledger, tmp_path / "missing" / "report.html")
    assert "\n" not in str(caught.value)


def test_thousand_images_of_a_thousand_classes_stay_small(tmp_path: Path) -> None:
    case = Case(names=[f"n{i:08d}, a class of ImageNet {i}" for i in range(1000)], n=1000, shape=(3, 64, 64))
    summary, ledger = audit_of(replace(case, threats=(LINF,)))
    write_report(summary, ledger, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_reports_import_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, robust.reports as r; r.threat_score; assert 'matplotlib' not in sys.modules\n"
        "r.write_report, r.summary_text, r.audit_score\n"
        "bad = {'torch', 'matplotlib.pyplot', 'robust.attacks'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_export() -> None:
    import robust.reports

    assert "write_report" in dir(robust.reports)
    with pytest.raises(AttributeError, match="nothing"):
        _ = robust.reports.nothing


# The terminal's summary


def test_summary_text_says_it_all() -> None:
    summary, _ = audit_of(Case(threats=(LINF, L2), certified=True, verdict="suspect"))
    lines = summary_text(summary).splitlines()
    assert len(lines) <= 25
    low, high = clopper_pearson(36, 60)
    assert f"linf:8/255: suspect, robust 60.0% (36/60, 95% interval {100 * low:.1f} to {100 * high:.1f}%)" in lines
    assert any(line.startswith("Clean:   90.0% (54/60") for line in lines)
    assert "Verdict: SUSPECT" in lines
    assert lines.count("  - the reason for suspect") == 2
    assert "  cost: 5 forward and 1.5 backward passes per image, 6.0 s" in lines
    assert sum("proven: 30.0% (18/60" in line for line in lines) == 2
    assert f"{summary.score.value:.1f} of 100" in lines[2]
    assert "an upper bound only" in lines[2]


@pytest.mark.parametrize("threats", [1, 4, 9, 40])
def test_summary_text_fits_a_screen(threats: int) -> None:
    summary, _ = audit_of(Case(n=10, verdict="inconclusive", model="m" * 200 + "\x1b[2J"))
    reasons = ["because " * 60] * 5
    results = [
        summary.threats[0].model_copy(
            update={"reasons": reasons, "threat": ThreatRecord(norm="l2", eps=i + 1, text=f"l2:{i + 1}")}
        )
        for i in range(threats)
    ]
    text = summary_text(summary.model_copy(update={"threats": results}))
    lines = text.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in text
    shown = sum(f"l2:{i + 1}: inconclusive, robust" in text for i in range(threats))
    hidden = re.search(r"and (\d+) more threat models", text)
    assert shown + (int(hidden[1]) if hidden else 0) == threats


# Formats


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0%"), (1, "100%"), (0.0001, "<0.1%"), (0.99999, ">99.9%"), (0.6314, "63.1%"), (0.9994, "99.9%")],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@given(st.floats(1e-7, 1))
def test_magnification_uses_the_range_and_does_not_leave_it(largest: float) -> None:
    factor = magnification(largest)
    assert factor >= 1
    if largest < 0.5:
        assert factor * largest <= 0.5 * (1 + 1e-5)
        assert factor * largest >= 0.5 * 0.6 or factor == 1


@given(st.text(), st.integers(2, 30))
@settings(max_examples=50)
def test_shorten_keeps_to_its_room(text: str, cells: int) -> None:
    from robust.reports.formats import width

    short = shorten(text, cells)
    assert width(short) <= cells
    if short != text:
        assert width(text) > cells
        cuts = [at for at, character in enumerate(short) if character == "…"]
        assert any(text.startswith(short[:at]) and text.endswith(short[at + 1 :]) for at in cuts)


def test_shorten_keeps_both_ends() -> None:
    assert shorten("speed limit of 120 kilometers", 16) == "speed limi…eters"
    assert shorten("速度限制一百二十公里每小时", 10) == "速度限…时"


@given(st.text(st.characters(), max_size=40))
def test_printable_text_can_be_written(text: str) -> None:
    printable(text + "\ud800").encode("utf-8")
    assert printable("plain ä 字 ש\n") == "plain ä 字 ש\n"


def test_steps() -> None:
    assert step_text(8 / 255) == "8/255"
    assert step_text(2.5 / 255) == "2.5/255"
