"""One event loop in one thread: lets plain calls run coroutines from any thread, under a notebook's loop too.

Knows nothing of models or requests. Never a loop per call: what a coroutine leaves behind (connections, queues) stays
usable by the next one.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, Protocol, TypeVar

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
        call = _Call(coroutine)
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise FailedError("A plain call inside a running request would wait for ever; await the call's async form.")
        try:
            self._started().call_soon_threadsafe(call.start)
            return call.result.result()
        except BaseException:
            # An interrupt may have come at any line above: the loop, where none comes, knows how far the call got.
            self._started().call_soon_threadsafe(call.cancel)
            call.ended.wait(SETTLING_S)  # what was cancelled lets go of its resources before its caller goes on
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


class _Call(Generic[T]):
    """A coroutine that one thread waits for and the loop runs. `start` and `cancel` are for the loop's thread."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.result: Future[T] = Future()
        self.ended = threading.Event()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        """Run the coroutine, unless `cancel` came first."""
        if not self.ended.is_set():
            self._task = asyncio.ensure_future(self._coroutine)
            self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """Stop the coroutine wherever it is."""
        if self._task is not None:
            self._task.cancel()
            return
        self._coroutine.close()
        self.ended.set()

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.result.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())
        self.ended.set()


async def _next(items: Closable[T]) -> T:
    return await items.__anext__()


BACKGROUND = Background()
"""The process's loop."""
