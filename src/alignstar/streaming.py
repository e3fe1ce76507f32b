"""What a reader sees of a running request: text as it becomes certain, and the steps one by one.

Knows the codec and stop strings; knows no model and no method.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeAlias

from alignstar.background import BACKGROUND
from alignstar.text import Codec, Growing, Stops
from alignstar.types import Ids, Response, Step

Emit: TypeAlias = Callable[[Step], Awaitable[None]]

BUFFERED_STEPS = 8
"""How many steps a request may run ahead of its reader."""


class Reader:
    """Follows a response step by step: its ids, its text, and the part of the text that has been shown."""

    def __init__(self, codec: Codec, stops: Stops) -> None:
        self.ids: Ids = ()
        self.text = ""
        self._codec = codec
        self._growing = Growing(codec)
        self._stops = stops
        self._shown = 0

    def read(self, step: Step) -> Step:
        """The step with its `text`; where it completes a stop string, `emitted` ends there and it is the last one.

        The texts of all steps (of the last one that `replaces` and those after it) make the whole text.
        """
        if step.replaces:
            self.ids, self._growing = (), Growing(self._codec)
        before, emitted, finish = self.ids, step.emitted, step.finish
        told = self._growing.text(before + emitted) if finish is None else self._codec.decode(before + emitted)
        text, stopped = self._stops.cut(told)
        if stopped:
            lengths = range(1, len(emitted) + 1)
            emitted = emitted[: next(n for n in lengths if self._stops_at(before + emitted[:n]))]
            finish = "stop"
        self.ids, self.text = before + emitted, text
        certain = text if finish is not None else self._stops.safe(text)
        shown = 0 if step.replaces else self._shown
        self._shown = max(shown, len(certain))
        return replace(step, emitted=emitted, finish=finish, text=certain[shown:])

    def _stops_at(self, ids: Ids) -> bool:
        return self._stops.cut(self._codec.decode(ids))[1]


class AsyncStream:
    """The Steps of one running request, in order; `response` is there when they are exhausted.

    The request runs in a task of its own, at most a few steps ahead. `aclose` (or leaving an `aclosing` block, or
    dropping the stream) cancels it.
    """

    def __init__(self, run: Callable[[Emit], Coroutine[Any, Any, Response]]) -> None:
        self._run = run
        self._steps = self._read()
        self._response: Response | None = None

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Step:
        return await self._steps.__anext__()

    async def aclose(self) -> None:
        """Cancel the request if it still runs, and wait until it has let go of everything."""
        await self._steps.aclose()

    @property
    def response(self) -> Response | None:
        """The finished response; None until the steps are exhausted."""
        return self._response

    async def _read(self) -> AsyncGenerator[Step, None]:
        ready: asyncio.Queue[Step | None] = asyncio.Queue()
        room = asyncio.Semaphore(BUFFERED_STEPS)

        async def emit(step: Step) -> None:
            await room.acquire()
            ready.put_nowait(step)

        task = asyncio.create_task(self._run(emit))
        task.add_done_callback(lambda _: ready.put_nowait(None))
        try:
            while (step := await ready.get()) is not None:
                room.release()
                yield step
            self._response = await task
        finally:
            task.cancel()
            await asyncio.wait([task])


class Stream:
    """The same for plain code: `for step in stream`, then `stream.response`; `close` cancels."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream
        self._steps = BACKGROUND.iterate(stream)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Step:
        return next(self._steps)

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._steps.close()

    @property
    def response(self) -> Response | None:
        """The finished response; None until the steps are exhausted."""
        return self._stream.response
