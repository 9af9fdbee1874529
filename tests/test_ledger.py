"""The ledger: what it keeps, what it replaces, and that a kill leaves whole batches only."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from robust.errors import InputError
from robust.ledger import Finding, ImageRow, Ledger, Queries, Run

THREAT = "linf:8/255"


def run(batch: int = 0, attack: str = "pgd", threat: str = THREAT, broken: int = 0, status: str = "done") -> Run:
    return Run(threat, attack, batch, 8, broken, 1, 320, 300, 1.5, status, "")


def finding(
    image: int, distance: float, attack: str | None = "pgd", level: float = 0.5, eight_bit: bool = True
) -> Finding:
    return Finding(image, attack, distance, 3, 0.75, eight_bit, np.full((3, 4, 4), level, np.float32))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.sqlite", {"model": "abc", "seed": 0}) as opened:
        opened.set_meta("shape", [3, 4, 4])
        yield opened


def reopened(ledger: Ledger) -> Ledger:
    ledger.close()
    assert ledger.path is not None
    return Ledger.open(ledger.path)


class TestCreateAndOpen:
    def test_what_was_written_is_there_after_opening_again(self, ledger: Ledger) -> None:
        images = [np.random.default_rng(i).random((3, 4, 4), dtype=np.float32) for i in range(3)]
        images[1] = np.full((3, 4, 4), 51 / 255, np.float32)
        rows = [ImageRow(0, 1, 1, 0.9), ImageRow(1, 2, 0, 0.4), ImageRow(2, 0, 0, 0.5)]
        ledger.add_images(rows, images)
        ledger.record(run(broken=1), [finding(0, 0.03)])
        ledger.set_check(THREAT, "logits", '{"passed": true}')
        with reopened(ledger) as again:
            assert again.meta("identity") == {"model": "abc", "seed": 0}
            assert again.shape == (3, 4, 4)
            assert again.images() == rows
            assert [row.correct for row in again.images()] == [True, False, True]
            for number, image in enumerate(images):
                assert np.array_equal(again.original(number), image)
            assert again.runs(THREAT) == [run(broken=1)]
            assert again.checks(THREAT) == {"logits": '{"passed": true}'}
            assert [row.image for row in again.rows(THREAT)] == [0]
            assert (again.adversarial(0, THREAT) == 0.5).all()

    def test_what_is_not_there_is_none_or_empty(self, ledger: Ledger) -> None:
        assert ledger.meta("unknown") is None
        assert ledger.rows(THREAT) == []
        assert ledger.runs(THREAT) == []
        assert ledger.checks(THREAT) == {}
        assert ledger.images() == []
        assert ledger.adversarial(0, THREAT) is None

    def test_in_memory(self) -> None:
        with Ledger.create(None, {}) as ledger:
            ledger.set_meta("shape", [3, 4, 4])
            ledger.record(run(), [finding(0, 0.1)])
            assert len(ledger.rows(THREAT)) == 1
            assert ledger.path is None

    def test_threats_are_kept_apart(self, ledger: Ledger) -> None:
        ledger.record(run(), [finding(0, 0.1)])
        ledger.record(run(threat="l2:0.5"), [finding(0, 0.4), finding(1, 0.5)])
        assert [row.distance for row in ledger.rows(THREAT)] == [0.1]
        assert [row.distance for row in ledger.rows("l2:0.5")] == [0.4, 0.5]
        assert len(ledger.runs(THREAT)) == 1

    def test_what_query_attacks_asked_is_kept_by_attack_and_image(self, ledger: Ledger) -> None:
        asked = [Queries(1, 40, 40), Queries(0, 100, None)]
        ledger.record(run(attack="square"), [], asked)
        ledger.record(run(attack="rays"), [], [Queries(0, 7, 7)])
        with reopened(ledger) as again:
            assert again.queries(THREAT, "square") == asked[::-1]
            assert again.queries(THREAT, "rays") == [Queries(0, 7, 7)]
            assert again.queries("l2:0.5", "rays") == []

    def test_rows_come_in_the_order_of_images(self, ledger: Ledger) -> None:
        ledger.record(run(), [finding(image, 0.1) for image in (7, 2, 30, 0)])
        assert [row.image for row in ledger.rows(THREAT)] == [0, 2, 7, 30]

    def test_creating_over_an_existing_ledger_is_refused_and_spares_it(self, ledger: Ledger) -> None:
        ledger.record(run(), [finding(0, 0.1)])
        assert ledger.path is not None
        with pytest.raises(InputError, match=r"ledger\.sqlite"):
            Ledger.create(ledger.path, {"other": 1})
        assert ledger.meta("identity") == {"model": "abc", "seed": 0}
        assert len(ledger.rows(THREAT)) == 1

    def test_an_unwritable_place_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(InputError) as caught:
            Ledger.create(tmp_path / "missing" / "ledger.sqlite", {})
        assert "missing" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("same_data", [True, False])
    def test_add_images_needs_as_many_images_as_rows(self, ledger: Ledger, same_data: bool) -> None:
        image = np.zeros((3, 4, 4), np.float32)
        rows = [ImageRow(0, 0, 0, 1.0), ImageRow(1, 0, 0, 1.0)]
        if same_data:
            ledger.add_images(rows, [image, image])
            assert len(ledger.images()) == 2
        else:
            with pytest.raises(ValueError, match="zip"):
                ledger.add_images(rows, [image])
            assert ledger.images() == []


class TestFindings:
    def test_a_smaller_one_replaces_all_but_who_broke_it_and_8_bit_survival(self, ledger: Ledger) -> None:
        ledger.record(run(), [finding(0, 0.03, "pgd", 0.5, eight_bit=True)])
        smaller = Finding(0, "apgd", 0.02, 5, 0.25, False, np.full((3, 4, 4), 0.25, np.float32))
        ledger.record(run(attack="apgd"), [smaller])
        (row,) = ledger.rows(THREAT)
        assert (row.broken_by, row.distance, row.prediction, row.confidence, row.eight_bit) == (
            "pgd",
            0.02,
            5,
            0.25,
            True,
        )
        assert (ledger.adversarial(0, THREAT) == 0.25).all()

    @pytest.mark.parametrize("distance", [0.03, 0.031, 5.0])
    def test_one_that_is_not_smaller_changes_nothing(self, ledger: Ledger, distance: float) -> None:
        ledger.record(run(), [finding(0, 0.03, "pgd", 0.5)])
        before = ledger.rows(THREAT)
        ledger.record(run(attack="apgd"), [finding(0, distance, "apgd", 0.25)])
        assert ledger.rows(THREAT) == before
        assert (ledger.adversarial(0, THREAT) == 0.5).all()

    def test_one_beyond_eps_leaves_the_image_standing_until_an_attack_breaks_it(self, ledger: Ledger) -> None:
        ledger.record(run(attack="curve"), [finding(0, 0.2, None)])
        assert ledger.rows(THREAT)[0].broken_by is None
        ledger.record(run(attack="square"), [finding(0, 0.03, "square", 0.25)])
        assert ledger.rows(THREAT)[0].broken_by == "square"
        assert ledger.rows(THREAT)[0].distance == 0.03
        ledger.record(run(attack="curve", batch=1), [finding(0, 0.01, None)])
        assert ledger.rows(THREAT)[0].broken_by == "square"
        assert ledger.rows(THREAT)[0].distance == 0.01

    def test_two_findings_of_one_image_in_one_batch(self, ledger: Ledger) -> None:
        ledger.record(run(), [finding(0, 0.03, "first", 0.5), finding(0, 0.02, "second", 0.25)])
        (row,) = ledger.rows(THREAT)
        assert (row.broken_by, row.distance) == ("first", 0.02)

    def test_a_run_recorded_again_replaces_the_earlier_one(self, ledger: Ledger) -> None:
        ledger.record(run(status="failed"), [])
        ledger.record(run(status="done"), [])
        assert [found.status for found in ledger.runs(THREAT)] == ["done"]

    def test_adversarial_images_keep_every_bit(self, ledger: Ledger) -> None:
        image = np.random.default_rng(0).random((3, 4, 4), dtype=np.float32)
        ledger.record(run(), [Finding(0, "pgd", 0.03, 1, 0.5, False, image)])
        assert np.array_equal(ledger.adversarial(0, THREAT), image)


class TestAtomicity:
    def test_an_error_midway_leaves_nothing_of_the_batch(self, ledger: Ledger) -> None:
        ledger.record(run(0), [finding(0, 0.03)])

        def broken_off() -> Iterator[Finding]:
            yield finding(0, 0.01)
            yield finding(1, 0.01)
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError):
            ledger.record(run(1), broken_off())
        with reopened(ledger) as again:
            assert [found.batch for found in again.runs(THREAT)] == [0]
            assert [(row.image, row.distance) for row in again.rows(THREAT)] == [(0, 0.03)]


WRITER = """
import sys
import numpy as np
from pathlib import Path
from robust.ledger import Finding, Ledger, Run
path = Path(sys.argv[1])
ledger = Ledger.create(path, {})
ledger.set_meta("shape", [3, 16, 16])
rng = np.random.default_rng(0)
for batch in range(100000):
    found = [
        Finding(batch * 8 + i, "pgd", 0.03, 1, 0.5, False, rng.random((3, 16, 16), dtype=np.float32)) for i in range(8)
    ]
    ledger.record(Run("linf:8/255", "pgd", batch, 8, 8, 0, 8, 8, 0.1, "done", ""), found)
    if batch == 5:
        print("under way", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("delay", [0.0, 0.07, 0.19])
def test_kill_9_leaves_whole_batches(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "ledger.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"under way\n"
        time.sleep(delay)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    with Ledger.open(path) as ledger:
        batches = [found.batch for found in ledger.runs(THREAT)]
        assert len(batches) >= 6
        assert batches == list(range(len(batches)))
        assert [row.image for row in ledger.rows(THREAT)] == list(range(8 * len(batches)))
        for row in ledger.rows(THREAT):
            assert ledger.adversarial(row.image, THREAT).shape == (3, 16, 16)
        # And the audit goes on from there.
        ledger.record(run(len(batches)), [finding(0, 0.001)])
        assert len(ledger.runs(THREAT)) == len(batches) + 1


class TestBadFiles:
    def says(self, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            Ledger.open(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        return message

    def written(self, tmp_path: Path, images: int = 60) -> Path:
        path = tmp_path / "ledger.sqlite"
        with Ledger.create(path, {}) as ledger:
            ledger.set_meta("shape", [3, 16, 16])
            ledger.add_images(
                [ImageRow(i, 0, 0, 0.5) for i in range(images)],
                [np.random.default_rng(i).random((3, 16, 16), dtype=np.float32) for i in range(images)],
            )
        return path

    def test_missing(self, tmp_path: Path) -> None:
        assert "no ledger" in self.says(tmp_path / "ledger.sqlite")
        assert not (tmp_path / "ledger.sqlite").exists()

    def test_a_folder(self, tmp_path: Path) -> None:
        self.says(tmp_path)

    @pytest.mark.parametrize("content", [b"not a ledger at all, but long enough for a header" * 50, b"", b"x"])
    def test_not_sqlite(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "ledger.sqlite"
        path.write_bytes(content)
        assert "delete it, or give another --out folder" in self.says(path)
        assert path.read_bytes() == content

    def test_another_programs_database(self, tmp_path: Path) -> None:
        path = tmp_path / "ledger.sqlite"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE songs (name TEXT)")
        connection.commit()
        connection.close()
        self.says(path)

    def test_another_format(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        with Ledger.open(path) as ledger:
            ledger.set_meta("format", 99)
        assert "format 99" in self.says(path)

    def test_cut_off(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2 // 4096 * 4096])
        assert "corrupted" in self.says(path)

    def test_overwritten_pages(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        whole = path.read_bytes()
        messages = []
        for start in range(4096, len(whole), 4096):
            path.write_bytes(whole[:start] + b"\xa5" * 512 + whole[start + 512 :])
            try:
                Ledger.open(path).close()
            except InputError as error:
                messages.append(str(error))
        # Pages in the middle of a long image carry no structure; all others must be noticed.
        assert len(messages) >= 20
        assert all("corrupted" in message and "\n" not in message for message in messages)

    def test_damaged_pixels(self, tmp_path: Path) -> None:
        """No structure of the database is hurt, so that only reading the image can tell."""
        path = self.written(tmp_path, images=2)
        connection = sqlite3.connect(path)
        connection.execute("UPDATE image SET pixels = ? WHERE id = 0", (b"\x00\x01\x02",))
        connection.execute("UPDATE image SET pixels = ?, encoding = 'png' WHERE id = 1", (b"\x89PNG",))
        connection.commit()
        connection.close()
        with Ledger.open(path) as ledger:
            for image in (0, 1):
                with pytest.raises(InputError, match="corrupted") as caught:
                    ledger.original(image)
                assert "\n" not in str(caught.value)
