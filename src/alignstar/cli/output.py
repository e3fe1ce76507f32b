"""Files that a command writes line by line: checked before work starts, kept when it is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from alignstar.errors import OptionError
from alignstar.evaluate.jsonl import json_line
from alignstar.files import replacing


class Sink(Protocol):
    """Takes one JSON object per call."""

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Write `row` as one line, at once."""
        ...


def check_writable(path: str, *, option: str) -> None:
    """Raise OptionError unless the file `path` can be created or replaced."""
    target = Path(path)
    created = not target.exists()
    try:
        target.open("a").close()
    except OSError as error:
        raise OptionError(f"{option} {path!r} cannot be written ({error.strerror}); choose another file.") from error
    if created:
        target.unlink()


@contextmanager
def json_lines_file(path: str | None, *, option: str) -> Generator[Sink]:
    """A sink of JSON lines into `path` (None: into nothing).

    Lines go to `path`.partial, which takes `path`'s place at the end, and also after an error or Ctrl-C if a line was
    written: what is finished is kept, and a run that fails before its first line leaves an older file alone. A path
    that is no plain file (/dev/stdout) is written directly. Raises OptionError, on entry, where nothing can be written.
    """
    if path is None:
        yield _discard
        return
    check_writable(path, option=option)
    target = Path(path)
    direct = target.exists() and not target.is_file()
    ended: BaseException | None = None
    with nullcontext(target) if direct else replacing(target) as working, working.open("w", encoding="utf-8") as file:
        written = 0

        def write(row: Mapping[str, Any]) -> None:
            nonlocal written
            file.write(json_line(row) + "\n")
            file.flush()
            written += 1

        try:
            yield write
        except BaseException as error:
            if not written:
                raise
            ended = error
    if ended is not None:
        raise ended


@contextmanager
def interrupt_held() -> Generator[None]:
    """Ctrl-C inside the block takes effect at its end: what is written there is written whole and everywhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _discard(row: Mapping[str, Any]) -> None:
    """No file was asked for."""
