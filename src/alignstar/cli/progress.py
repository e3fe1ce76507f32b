"""A progress bar on standard error, on a terminal only: a pipe sees nothing of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

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
