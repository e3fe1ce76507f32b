"""The engine's thread: whoever asks gets an answer or an error, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any

import pytest

from alignstar.engine import Engine, Request
from alignstar.errors import EngineError


class Echo:
    """A worker that answers one request per step, and does what the request says."""

    name = "echo"

    def __init__(self, hold: threading.Event | None = None) -> None:
        self.queue: deque[tuple[int, Ask]] = deque()
        self.hold = hold
        self.order: list[Any] = []

    def accept(self, request: Ask, tick: int) -> None:
        if request.what == "refuse":
            raise ValueError("refused")
        self.queue.append((tick, request))

    def waiting_since(self) -> int | None:
        return self.queue[0][0] if self.queue else None

    def step(self, tick: int) -> None:
        if self.hold is not None:
            self.hold.wait(5)
        _, request = self.queue.popleft()
        if request.cancelled:
            return
        self.order.append(request.what)
        if request.what == "break":
            self.queue.appendleft((tick, request))
            raise RuntimeError("broken step")
        if request.what == "die":
            self.queue.appendleft((tick, request))
            raise SystemExit
        request.resolve(request.what)

    def abandon(self, error: BaseException) -> None:
        for _, request in self.queue:
            request.fail(error)
        self.queue.clear()


class Ask(Request[Any]):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what


def test_answers_from_threads_and_from_event_loops() -> None:
    engine, worker = Engine(), Echo()
    assert engine.submit(worker, Ask(1)).result(5) == 1
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(asyncio.run(engine.ask(worker, Ask(i))))) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))
    engine.close()


def test_a_refused_request_and_a_broken_step_fail_only_their_own() -> None:
    engine, worker, other = Engine(), Echo(), Echo()
    with pytest.raises(ValueError, match="refused"):
        engine.submit(worker, Ask("refuse")).result(5)
    with pytest.raises(EngineError, match="broken step"):
        engine.submit(worker, Ask("break")).result(5)
    assert engine.submit(other, Ask("fine")).result(5) == "fine"
    assert engine.submit(worker, Ask("fine again")).result(5) == "fine again"
    engine.close()


def test_a_dead_thread_gives_every_waiter_the_error() -> None:
    hold = threading.Event()
    engine, worker = Engine(), Echo(hold)
    futures = [engine.submit(worker, Ask(what)) for what in ("die", "never", "never")]
    hold.set()
    for future in futures:
        with pytest.raises(EngineError, match="died"):
            future.result(5)
    with pytest.raises(EngineError, match="stopped"):
        engine.submit(worker, Ask("late"))


def test_closing_fails_who_still_waits() -> None:
    hold = threading.Event()
    engine, worker = Engine(), Echo(hold)
    first, second = engine.submit(worker, Ask(1)), engine.submit(worker, Ask(2))
    closer = threading.Thread(target=engine.close)
    closer.start()
    time.sleep(0.05)
    hold.set()
    closer.join()
    outcomes = [future.exception(5) for future in (first, second)]
    assert isinstance(outcomes[1], EngineError)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(worker, Ask(3))


async def test_a_cancelled_wait_cancels_the_request_and_not_its_neighbour() -> None:
    hold = threading.Event()
    engine, worker = Engine(), Echo(hold)
    blocker = asyncio.ensure_future(engine.ask(worker, Ask("first")))
    doomed = asyncio.ensure_future(engine.ask(worker, Ask("doomed")))
    kept = asyncio.ensure_future(engine.ask(worker, Ask("kept")))
    await asyncio.sleep(0.05)
    doomed.cancel()
    await asyncio.sleep(0)
    hold.set()
    assert await blocker == "first"
    assert await kept == "kept"
    assert "doomed" not in worker.order
    engine.close()


async def test_the_worker_that_waited_longest_goes_next() -> None:
    hold = threading.Event()
    engine = Engine()
    order: list[Any] = []
    workers = [Echo(hold), Echo(hold)]
    for worker in workers:
        worker.order = order
    futures = [engine.submit(workers[i % 2], Ask(i)) for i in range(6)]
    hold.set()
    for future in futures:
        await asyncio.wrap_future(future)
    assert order == list(range(6))
    engine.close()


class All(Echo):
    """Answers whatever waits in one step."""

    def step(self, tick: int) -> None:
        assert self.hold is not None
        self.hold.wait(5)
        while self.queue:
            super().step(tick)


async def test_a_loop_is_woken_once_for_the_answers_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    hold, loop, woken = threading.Event(), asyncio.get_running_loop(), list[Any]()
    wake = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args, **how: woken.append(args) or wake(*args, **how))
    engine, worker = Engine(), All(hold)
    asked = [asyncio.ensure_future(engine.ask(worker, Ask(i))) for i in range(1, 6)]
    await asyncio.sleep(0.05)
    hold.set()
    assert await asyncio.gather(*asked) == [1, 2, 3, 4, 5]
    assert len(woken) <= 2  # the first may have been alone in its step
    engine.close()


async def test_a_request_that_is_refused_is_told_though_nothing_else_goes_on() -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="refused"):
        await asyncio.wait_for(engine.ask(Echo(), Ask("refuse")), 5)
    engine.close()


async def test_closing_tells_those_who_wait_in_a_loop() -> None:
    hold = threading.Event()
    engine, worker = Engine(), Echo(hold)
    asked = [asyncio.ensure_future(engine.ask(worker, Ask(i))) for i in range(3)]
    await asyncio.sleep(0.05)
    threading.Timer(0.1, hold.set).start()
    await asyncio.to_thread(engine.close)
    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert isinstance(outcomes[-1], EngineError)
