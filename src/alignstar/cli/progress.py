"""A progress bar on standard error, on a terminal only: a pipe sees nothing of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True, slots=True)
class Bar:
    """A running progress bar."""

    progress: Progress
    task: TaskID

    def now(self, doing: str) -> None:
        """Say what is being done."""
        self.progress.update(self.task, description=doing)

    def advance(self) -> None:
        """One more is done."""
        self.progress.advance(self.task)

    def at(self, done: int) -> None:
        """So many are done."""
        self.progress.update(self.task, completed=done)


@contextmanager
def progress_bar(*, total: int, doing: str = "", done: int = 0, remaining: bool = False) -> Generator[Bar]:
    """A bar that counts from `done` to `total` and leaves no trace; with `remaining` it guesses the time left."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *([TextColumn("left"), TimeRemainingColumn()] if remaining else []),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with progress:
        yield Bar(progress, progress.add_task(doing, total=total, completed=done))


class Stages:
    """A bar for every stage of a work, one after another. Use as a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def to(self, stage: str, done: int, total: int, said: str = "") -> None:
        """So many of the `total` of this stage are `done`; `said` stands before its bar (nothing: the stage itself)."""
        if self._bar is None or stage != self._stage:
            self._stack.close()
            self._bar = self._stack.enter_context(progress_bar(total=total, done=done, remaining=True, doing=stage))
            self._stage = stage
        self._bar.now(said or stage)
        self._bar.at(done)
