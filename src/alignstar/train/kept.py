"""Responses that a value head learns from, in a file: each is on the disk as soon as it is decoded, one per line.

What a process that was killed had not written whole is dropped. A state is written as what it adds to the one before.
Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from alignstar.radix import common
from alignstar.train.rollouts import Seen
from alignstar.types import Ids


class Kept:
    """The file `path`, made where there is none, and what it holds: `responses` by their number.

    Use as a context manager. One process at a time may have it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.responses: dict[int, Sequence[Seen]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        self._file.seek(0)
        whole = 0
        for line in self._file:
            if line.endswith(b"\n"):
                row = json.loads(line)
                self.responses[row["response"]] = list(_seen(row))
                whole += len(line)
        self._file.truncate(whole)

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, response: int, seen: Sequence[Seen]) -> None:
        """Keep one more, durably."""
        row = {"response": response, "prompt": seen[0].prompt if seen else None, "tokens": list(_tokens(seen))}
        self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.responses[response] = seen


def _tokens(seen: Sequence[Seen]) -> Iterator[list[Any]]:
    before: Ids = ()
    for s in seen:
        shared = common(before, s.state)
        yield [shared, s.state[shared:], s.token, s.reward, s.ended, s.next_ids, s.next_p, s.weight]
        before = s.state


def _seen(row: Any) -> Iterator[Seen]:
    state: Ids = ()
    for shared, more, token, reward, ended, next_ids, next_p, weight in row["tokens"]:
        state = (*state[:shared], *more)
        yield Seen(
            state=state, token=token, reward=reward, ended=ended, prompt=row["prompt"], next_ids=tuple(next_ids),
            next_p=tuple(next_p), weight=weight,
        )  # fmt: skip
