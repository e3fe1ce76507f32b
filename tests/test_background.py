"""Plain calls on the background loop: an interrupt, wherever it comes, ends the call and closes the generator."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import CancelledError

import pytest

from alignstar.background import Background
from alignstar.errors import FailedError


class InterruptedLoop:
    """A loop in whose caller Ctrl-C arrives before or after one chosen call was scheduled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, at: int, after: bool) -> None:
        self.loop, self.calls, self.at, self.after = loop, 0, at, after

    def call_soon_threadsafe(self, callback: Callable[..., object]) -> None:
        self.calls += 1
        if self.calls == self.at and not self.after:
            raise KeyboardInterrupt
        self.loop.call_soon_threadsafe(callback)
        if self.calls == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.filterwarnings("error")
def test_an_interrupt_around_the_scheduling_closes_the_generator(after: bool, monkeypatch: pytest.MonkeyPatch):
    closed = threading.Event()

    async def numbers() -> AsyncGenerator[int]:
        try:
            for i in range(100):
                await asyncio.sleep(0.01)
                yield i
        finally:
            closed.set()

    background = Background()
    loop = InterruptedLoop(background._started(), at=3, after=after)
    monkeypatch.setattr(background, "_started", lambda: loop)
    taken: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        deque(map(taken.append, background.iterate(numbers())))
    assert taken == [0, 1]
    assert closed.is_set()
    assert loop.calls == 5  # two items, the interrupted one, its cancellation, the generator's end


def test_a_call_returns_and_raises_what_its_coroutine_does():
    async def double(x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return 2 * x

    async def cancelled() -> None:
        raise asyncio.CancelledError

    background = Background()
    assert background.run(double(4)) == 8
    with pytest.raises(ValueError, match="-1"):
        background.run(double(-1))
    with pytest.raises(CancelledError):
        background.run(cancelled())


def test_a_plain_call_on_the_loop_itself_is_refused():
    background = Background()

    async def inner() -> None: ...

    async def outer() -> None:
        background.run(inner())

    with pytest.raises(FailedError, match="async form"):
        background.run(outer())
