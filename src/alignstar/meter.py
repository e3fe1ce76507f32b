"""Accounting of one request, and the two things that run in its task: the current meter and the depth of forwards.

What a request costs is defined without regard to company or cache: a position counts when this request needs it for the
first time. Backends call `current_meter().forward(...)` in the awaiting task, never in the engine's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Coroutine, Generator, Hashable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from alignstar.radix import RadixTree
from alignstar.types import Ids, Usage

T = TypeVar("T")


class Meter:
    """Adds up one request's Usage. Used from one event loop; not thread-safe.

    `watched` says whether somebody looks at the request's steps while they are made, or only at its end.
    """

    def __init__(self, *, watched: bool = True) -> None:
        self.watched = watched
        self.counts: dict[str, int] = {}
        self._pushed: dict[Hashable, RadixTree] = {}
        self.deepest = 0
        self.peak_kv_tokens = 0

    def add(self, field: str, amount: int = 1) -> None:
        """Add to a counter named as in Usage."""
        self.counts[field] = self.counts.get(field, 0) + amount

    def forward(
        self,
        model: Hashable,
        prefix: Ids,
        rows: Sequence[Ids] = ((),),
        *,
        generated: bool = False,
        reward: bool = False,
        computed: int | None = None,
        calls: int = 0,
        held: int = 0,
        discarded: int = 0,
    ) -> None:
        """Charge the positions of `prefix` and, after it, of each row.

        Rows are what was *pushed* (the last generated token was not). `generated` rows cost one dependent forward per
        new position, others one in all. Rows of one call do not share positions with each other beyond the prefix.
        `computed` is what the backend really pushed (None: the same), `calls` its forwards, `held` the KV positions
        that it held, `discarded` what it pushed in vain, on a guess that was wrong.
        """
        tree = self._pushed.setdefault(model, RadixTree())
        texts = [prefix + row for row in rows]
        if len(texts) == 1:
            known = [tree.insert(texts[0])[1]]
        else:  # they must not find each other
            known = [tree.known(text) for text in texts]
            for text in texts:
                tree.insert(text)
        new_prefix = len(prefix) - min(max(known), len(prefix))
        news = [len(text) - max(length, len(prefix)) for text, length in zip(texts, known, strict=True)]
        charged = new_prefix + sum(news)
        if charged and not reward:
            # A new prefix costs one forward, which also gives the first generated token.
            chain = (1 if new_prefix else 0) + max(news) if generated else 1
            depth.set(depth.get() + chain)
            self.deepest = max(self.deepest, depth.get())
        self.add("rm_tokens" if reward else "lm_tokens", charged)
        self.peak_kv_tokens = max(self.peak_kv_tokens, held)
        if not reward:
            self.add("lm_calls", calls)
        self.add("discarded_tokens", discarded)
        if computed is not None:
            self.add("cached_tokens", max(0, charged - computed))
            self.add("recomputed_tokens", max(0, computed - charged))

    def read(
        self,
        model: Hashable,
        texts: Sequence[Ids],
        *,
        share: float,
        computed: int | None = None,
        calls: int = 0,
        held: int = 0,
        along: bool = False,
    ) -> None:
        """Charge the positions of texts read together by a model that is `share` of a language model.

        What texts begin with in common counts once. The charge is rounded up over all that was ever read, so that it
        does not depend on how the reading was divided. `computed`, `calls` and `held` as in `forward`; `along`: read in
        forwards that are charged already, so that nobody waits for it.
        """
        tree = self._pushed.setdefault(model, RadixTree())
        before = tree.size
        for text in texts:
            tree.insert(text)
        new = tree.size - before
        if new and not along:
            depth.set(depth.get() + 1)
            self.deepest = max(self.deepest, depth.get())
        self.add("lm_tokens", _rounded_up(share * tree.size) - _rounded_up(share * before))
        self.add("lm_calls", calls)
        self.peak_kv_tokens = max(self.peak_kv_tokens, held)
        if computed is not None:
            self.add("cached_tokens", round(share * max(0, new - computed)))
            self.add("recomputed_tokens", round(share * max(0, computed - new)))

    def usage(self, wall_s: float = 0.0) -> Usage:
        """The counts so far."""
        return Usage(sequential_steps=self.deepest, peak_kv_tokens=self.peak_kv_tokens, wall_s=wall_s, **self.counts)


def _rounded_up(positions: float) -> int:
    return math.ceil(round(positions, 9))


_current: ContextVar[Meter | None] = ContextVar("alignstar_meter", default=None)
depth: ContextVar[int] = ContextVar("alignstar_depth", default=0)


def current_meter() -> Meter:
    """The meter of the request that this task works for; a throw-away one outside any request."""
    return _current.get() or Meter()


@contextlib.contextmanager
def metering(meter: Meter) -> Generator[Meter]:
    """Charge everything that this task does inside the block, and the tasks it starts there, to `meter`."""
    token, depth_token = _current.set(meter), depth.set(0)
    try:
        yield meter
    finally:
        _current.reset(token)
        depth.reset(depth_token)


async def together(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines concurrently; results in order. If one fails the others are cancelled and its error is raised.

    The caller's depth of dependent forwards becomes the deepest of theirs.
    """

    async def tracked(coroutine: Coroutine[Any, Any, T]) -> tuple[T, int]:
        return await coroutine, depth.get()

    tasks: list[asyncio.Task[tuple[T, int]]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(tracked(c)) for c in coroutines]
    except BaseExceptionGroup as group_error:
        # One request has one error: the first; its siblings were cancelled because of it.
        raise group_error.exceptions[0] from group_error.exceptions[0].__cause__
    results = [task.result() for task in tasks]
    depth.set(max((d for _, d in results), default=depth.get()))
    return [value for value, _ in results]
