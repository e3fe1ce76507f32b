"""One event loop in one thread: lets plain calls run coroutines from any thread, under a notebook's loop too.

Knows nothing of models or requests. Never a loop per call: what a coroutine leaves behind (connections, queues) stays
usable by the next one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from typing import Any, Protocol, TypeVar

from alignstar.errors import FailedError

T = TypeVar("T")
Item = TypeVar("Item", covariant=True)


class Closable(Protocol[Item]):
    """An async iterator that can be closed before its end."""

    def __anext__(self) -> Coroutine[Any, Any, Item]:
        """The next item. Raises StopAsyncIteration at the end."""
        ...

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Stop whatever makes the items."""
        ...


SETTLING_S = 10.0
"""Longest wait for something cancelled to end."""


class Background:
    """The loop and its thread, started by the first use. The thread ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; an interrupt (Ctrl-C) cancels it.

        Raises FailedError when called from inside the loop itself, where waiting would never end.
        """
        loop = self._started()
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise FailedError("A plain call inside a running request would wait for ever; await the call's async form.")
        ended = threading.Event()

        async def watched() -> T:
            task = asyncio.ensure_future(coroutine)
            task.add_done_callback(lambda _: ended.set())
            return await task

        future = asyncio.run_coroutine_threadsafe(watched(), loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            ended.wait(SETTLING_S)  # what was cancelled lets go of its resources before its caller goes on
            raise

    def iterate(self, items: Closable[T]) -> Generator[T, None, None]:
        """The generator's items, each asked for when it is wanted; closing this one closes that one."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.run(items.aclose())

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="alignstar-loop", daemon=True)
                self._thread.start()
            return self._loop


async def _next(items: Closable[T]) -> T:
    return await items.__anext__()


BACKGROUND = Background()
"""The process's loop."""
