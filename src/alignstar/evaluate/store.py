"""The database of a run: every finished unit is on the disk before the next one is looked at.

SQLite in WAL mode, one transaction per unit, one unit per key: what is committed survives any end of the process, and
nothing can be there twice. One process at a time works on a folder. Knows units and no models.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from alignstar.errors import OptionError
from alignstar.evaluate.units import DATABASE, DESCRIPTION, EXPORT, Run, Unit, unit_from_json, unit_to_json
from alignstar.files import replace_text, replacing

LOCK = "run.lock"

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS units
        (key TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, failed INTEGER NOT NULL, unit TEXT NOT NULL);
"""


class Store:
    """A run's folder, opened for writing; made where there is none. Use as a context manager.

    Raises OptionError where another process works on it, or where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # A transaction that never ends: released by the system however this process ends.
            self._lock = sqlite3.connect(folder / LOCK, timeout=0, isolation_level=None)
            self._lock.execute("BEGIN EXCLUSIVE")
            self._database = sqlite3.connect(folder / DATABASE, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise OptionError(
                    f"{str(folder)!r} is being written by another run; wait for it, or end it."
                ) from error
            raise OptionError(f"--out {str(folder)!r} cannot be written ({error}); choose another folder.") from error
        except OSError as error:
            reason = error.strerror
            raise OptionError(f"--out {str(folder)!r} cannot be written ({reason}); choose another folder.") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Without a journal beside it the database can be read where nothing can be written; a reader may hold it open.
        with contextlib.suppress(sqlite3.OperationalError):
            self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.close()
        self._lock.close()

    def about(self) -> dict[str, Any]:
        """What was described; empty for a new run."""
        rows: list[tuple[str, str]] = self._database.execute("SELECT name, value FROM about").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def describe(self, **about: Any) -> None:
        """Store what the run is, all of it or nothing; what was stored under the same names is replaced."""
        with self._database as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            for name, value in about.items():
                transaction.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def keys(self) -> dict[str, bool]:
        """The keys of the stored units, and whether they failed."""
        rows: list[tuple[str, int]] = self._database.execute("SELECT key, failed FROM units").fetchall()
        return {key: bool(failed) for key, failed in rows}

    def add(self, unit: Unit, place: int) -> None:
        """Store a unit, durably. One that had failed is replaced; raises sqlite3.IntegrityError for any other twice."""
        row = (unit.key, place, unit.error is not None, unit_to_json(unit))
        with self._database as transaction:
            transaction.execute("BEGIN IMMEDIATE")
            transaction.execute("DELETE FROM units WHERE key = ? AND failed", (unit.key,))
            transaction.execute("INSERT INTO units VALUES (?, ?, ?, ?)", row)

    def export(self) -> None:
        """Write the run as JSON beside the database; a reader sees the old files or the new ones."""
        run = read_run(self.folder / DATABASE)
        described = {"recipe": run.recipe, "environment": run.environment}
        replace_text(self.folder / DESCRIPTION, json.dumps(described, ensure_ascii=False, indent=1) + "\n")
        with replacing(self.folder / EXPORT) as working, working.open("w", encoding="utf-8") as file:
            file.writelines(unit_to_json(unit) + "\n" for unit in run.units)


@dataclass(frozen=True, slots=True)
class _Stored:
    """The units of a database, in order, one in memory at a time."""

    path: Path

    def __iter__(self) -> Iterator[Unit]:
        with closing(_reading(self.path)) as database:
            for (line,) in database.execute("SELECT unit FROM units ORDER BY place"):
                yield unit_from_json(line)


def read_run(path: Path) -> Run:
    """A run's database, for reading. Raises OptionError where it holds none."""
    with closing(_reading(path)) as database:
        try:
            rows: list[tuple[str, str]] = database.execute("SELECT name, value FROM about").fetchall()
        except sqlite3.DatabaseError as error:
            raise OptionError(f"{str(path)!r} is no run's database ({error}); choose the run's folder.") from error
    about: Mapping[str, Any] = {name: json.loads(value) for name, value in rows}
    if "recipe" not in about:
        raise OptionError(f"{str(path)!r} holds no run yet; begin it with alignstar eval RECIPE --out.")
    return Run(recipe=about["recipe"], environment=about["environment"], units=_Stored(path))


def _reading(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
