"""The engine: one thread that runs every forward of a process's models, whoever asked for it.

It belongs to no event loop: `submit` gives a concurrent future, `ask` awaits it from any loop. It never waits for
quiescence: when a forward ends it takes in what has arrived and starts the next one. What a forward is, is the workers'
business (`models/hf`); which worker goes next is decided here: the one whose work has waited longest.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Generic, Protocol, TypeVar

from alignstar.errors import EngineError

T = TypeVar("T")
R = TypeVar("R", bound="Request[Any]")


class Request(Generic[T]):
    """Something a worker can answer. The asker may cancel `future` at any time; an answer is then dropped."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()

    @property
    def cancelled(self) -> bool:
        """Whether the asker has gone."""
        return self.future.cancelled()

    def resolve(self, value: T) -> None:
        """Answer."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Outbox:
    """What the engine's thread says to event loops: each is woken once for all that it is told at a time."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[Callable[[], object]]] = {}

    def put(self, loop: asyncio.AbstractEventLoop, tell: Callable[[], object]) -> None:
        """Have `tell` called in the loop's thread after the next `flush`."""
        self._waiting.setdefault(loop, []).append(tell)

    def flush(self) -> None:
        """Say it all. A loop that was closed has nobody left to listen."""
        waiting, self._waiting = self._waiting, {}
        for loop, tells in waiting.items():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda loop=loop, tells=tells: [loop.call_soon(tell) for tell in tells])


class Worker(Protocol):
    """One model's share of the thread. Every method is called in the engine's thread only."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...

    def accept(self, request: Any, tick: int) -> None:
        """Take in a request that arrived at `tick`. An error raised here is the request's answer."""
        ...

    def waiting_since(self) -> int | None:
        """The tick at which its longest-waiting work arrived or was last served; None when there is nothing to do."""
        ...

    def step(self, tick: int) -> None:
        """Drop what was cancelled, run one forward, answer what is finished.

        An error inside a forward must be given to the requests in it; an error that escapes fails all of this worker's.
        """
        ...

    def abandon(self, error: BaseException) -> None:
        """Fail everything that is queued or running and release what it holds."""
        ...


class Engine:
    """The thread and its queue. Starts with the first request; `close` (or the end of the process) ends it."""

    def __init__(self) -> None:
        self._arrivals: queue.SimpleQueue[tuple[Worker, Request[Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dead: BaseException | None = None
        self._workers: list[Worker] = []
        self.outbox = Outbox()
        self.tick = 0

    def submit(self, worker: Worker, request: Request[T]) -> Future[T]:
        """Queue a request. Raises EngineError when the engine was closed or has died."""
        with self._lock:
            if self._dead is not None:
                raise EngineError(f"The engine has stopped ({self._dead}); load the models again.") from self._dead
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="alignstar-engine", daemon=True)
                self._thread.start()
            self._arrivals.put((worker, request))
        return request.future

    async def ask(self, worker: Worker, request: Request[T]) -> T:
        """Submit and wait, from whatever event loop is running. Cancelling the wait cancels the request.

        A loop is woken once for all answers of a forward: woken for each, it would hold up the forward's other rows.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def ended(future: Future[T]) -> None:
            if not future.cancelled():
                self.outbox.put(loop, lambda: _pass_on(future, answer))

        request.future.add_done_callback(ended)
        try:
            self.submit(worker, request)
            return await answer
        finally:
            request.future.cancel()

    def close(self) -> None:
        """End the thread; whoever still waits gets an EngineError."""
        with self._lock:
            self._dead = self._dead or EngineError("it was closed")
            thread, self._thread = self._thread, None
        if thread is not None:
            self._arrivals.put(None)
            if thread is not threading.current_thread():
                thread.join()

    def _run(self) -> None:
        try:
            while self._take_arrivals(block=not self._active()):
                active = self._active()
                if active:
                    self._step(min(active, key=lambda pair: pair[0])[1])
                self.outbox.flush()
            self._abandon(EngineError("The engine was closed while the request was running."))
        except BaseException as error:  # noqa: BLE001 - whatever ends the thread, those who wait for it must be told
            with self._lock:
                self._dead = error
            self._abandon(EngineError(f"The engine's thread died: {error!r}."))
        self.outbox.flush()

    def _active(self) -> Sequence[tuple[int, Worker]]:
        return [(since, worker) for worker in self._workers if (since := worker.waiting_since()) is not None]

    def _take_arrivals(self, *, block: bool) -> bool:
        """Hand what has arrived to its workers; false when the engine is to end."""
        while True:
            try:
                arrival = self._arrivals.get(block=block)
            except queue.Empty:
                return True
            if arrival is None:
                return False
            block = False
            worker, request = arrival
            if not any(worker is known for known in self._workers):
                self._workers.append(worker)
            self.tick += 1
            try:
                worker.accept(request, self.tick)
            except Exception as error:  # noqa: BLE001 - the error is this request's answer; others go on
                request.fail(error)

    def _step(self, worker: Worker) -> None:
        self.tick += 1
        try:
            worker.step(self.tick)
        except Exception as error:  # noqa: BLE001 - a worker's own fault fails its requests, not the engine
            failure = EngineError(f"{worker.name}: {error!r}.")
            failure.__cause__ = error
            worker.abandon(failure)

    def _abandon(self, error: BaseException) -> None:
        for worker in self._workers:
            worker.abandon(error)
        while True:
            try:
                arrival = self._arrivals.get_nowait()
            except queue.Empty:
                return
            if arrival is not None:
                arrival[1].fail(error)


def _pass_on(ended: Future[T], answer: asyncio.Future[T]) -> None:
    if answer.cancelled():
        return
    error = ended.exception()
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(ended.result())
