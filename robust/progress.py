"""What a long run shows meanwhile: a bar on a terminal, plain lines elsewhere, nothing from Python by default."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress(Protocol):
    """Told of stages, of images done within a stage, and of results worth a line."""

    def stage(self, title: str, total: int) -> None: ...

    def advance(self, count: int) -> None: ...

    def line(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def line(self, text: str) -> None:
        pass


class Plain:
    """A line per result on standard error, for logs and pipes."""

    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def line(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def stage(self, title: str, total: int) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=max(total, 1))

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, count)

    def line(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """A progress bar with elapsed and remaining time on a terminal, plain lines otherwise; on standard error."""
    if not sys.stderr.isatty():
        yield Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left", style="dim"), TimeRemainingColumn(),
    )  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar)
