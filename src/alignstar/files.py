"""Files that are written beside their place and moved there when they are whole. Knows nothing of what they hold."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE, S_IWUSR


@contextmanager
def replacing(target: Path) -> Generator[Path]:
    """A path beside `target` to write to, which takes its place after the block; where the block fails it is gone.

    Whenever the process ends, a reader sees the old file or the new one, whole. Who may read and write the new one are
    those of the old one; a first one is an ordinary file, also where the writer makes private ones.
    """
    working = target.with_name(target.name + ".partial")
    working.unlink(missing_ok=True)  # an earlier process may have ended here
    working.touch()
    mode = S_IMODE((target if target.exists() else working).stat().st_mode)
    working.chmod(mode | S_IWUSR)
    try:
        yield working
        with working.open("rb+") as file:
            os.fsync(file.fileno())
        working.chmod(mode)
        os.replace(working, target)
    finally:
        working.unlink(missing_ok=True)


def replace_text(target: Path, text: str) -> None:
    """Write a file as `replacing` does."""
    with replacing(target) as working:
        working.write_text(text, encoding="utf-8")
