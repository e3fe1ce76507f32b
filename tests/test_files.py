"""Files that take their place when they are whole: what a reader sees, who may read them, what a failure leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

from alignstar.files import replace_text, replacing


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return S_IMODE(path.stat().st_mode)


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with replacing(target) as working:
        working.write_text("one")
        assert not target.exists()
    with replacing(target) as working:
        working.write_text("two")
        assert target.read_text() == "one"
    assert target.read_text() == "two"
    replace_text(target, "thrée\n")
    assert target.read_bytes() == "thrée\n".encode()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    def broken(target: Path) -> None:
        with replacing(target) as working:
            working.write_text("half")
            raise error

    with pytest.raises(error):
        broken(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    replace_text(tmp_path / "a", "old")
    with pytest.raises(error):
        broken(tmp_path / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_the_new_file_may_be_read_by_whom_the_old_one_was(tmp_path: Path) -> None:
    """Nobody else while it is written, either; and a first file is no private one, however it is written."""
    target = tmp_path / "a"

    def privately(text: str) -> int:
        with replacing(target) as working:
            before = mode(working)
            working.unlink()
            working.write_text(text)
            working.chmod(0o600)
        return before

    assert (privately("one"), mode(target)) == (0o644, 0o644)
    for kept in (0o640, 0o600, 0o664, 0o444):
        target.chmod(kept)
        assert (privately("two"), mode(target)) == (kept | 0o200, kept)


def test_what_an_ended_process_left_is_no_part_of_the_new_file(tmp_path: Path) -> None:
    left = tmp_path / "a.partial"
    left.write_text("a long text that was cut off")
    left.chmod(0o400)
    with replacing(tmp_path / "a") as working, working.open("a") as file:
        file.write("short")
    assert (tmp_path / "a").read_text() == "short"
    assert mode(tmp_path / "a") == 0o644
