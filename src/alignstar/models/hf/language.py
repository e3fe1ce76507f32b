"""A transformers causal language model behind the TokenModel protocol.

`HFModel` is what methods hold: its coroutines submit requests to the engine's thread and charge the current meter. The
requests below it say what becomes of a row's logits; batching and memory are `rows.py`'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

import numpy as np
import torch

from alignstar.engine import Engine
from alignstar.errors import EngineError, PromptError
from alignstar.meter import current_meter
from alignstar.models import Continuation, Top, Within
from alignstar.models.hf.continuing import ContinueRequest, Drawing, StreamRequest
from alignstar.models.hf.guesses import Guesses
from alignstar.models.hf.network import Network
from alignstar.models.hf.rows import Row, RowRequest, RowWorker, Served
from alignstar.models.hf.tops import Read, Reader, Vocabulary, narrow, whole
from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling
from alignstar.types import Ids

T = TypeVar("T")

MOST_KEPT = 256
"""Tokens remembered for a position at most, whatever is asked for."""


class NextRequest(RowRequest[Any]):
    """What follows a prefix: `extract` reads the answer off a Top (None if it holds too little) or all log-probs."""

    def __init__(self, prefix: Ids, *, from_top: Callable[[Top], T | None], from_all: Callable[[Array], T]) -> None:
        super().__init__()
        self.prefix = prefix
        self.from_top = from_top
        self.from_all = from_all
        self.worst = len(prefix) + 1

    def begin(self, worker: RowWorker) -> None:
        """Answer from what is remembered, or compute the prefix."""
        if worker.cache is not None:
            seen: list[Any] = []

            def look(note: object) -> None:
                assert isinstance(note, Top)
                seen.append(self.from_top(note))

            worker.cache.follow(self.prefix, look)
            if seen and seen[0] is not None:
                self.answer(seen[0])
                return
        worker.add(self, self.prefix)

    def advance(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """Read the answer off the last position."""
        at = outputs.at(index)
        top = outputs.states.best[at]
        row.notes[len(row.ids) - 1] = top
        value = self.from_top(top)
        if value is None:
            value = self.from_all(outputs.states.full(at))
        worker.finish(row)
        self.answer(value)


class LogprobsRequest(RowRequest[Array]):
    """Log-probabilities of given tokens after a prefix."""

    def __init__(self, prefix: Ids, continuation: Ids) -> None:
        super().__init__()
        self.prefix = prefix
        self.continuation = continuation
        self.worst = len(prefix) + len(continuation)

    def begin(self, worker: RowWorker) -> None:
        """One row, read at every position from the prefix's end on."""
        worker.add(self, (*self.prefix, *self.continuation[:-1]), want=len(self.continuation))

    def advance(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """Read the tokens' log-probabilities."""
        count = len(self.continuation)
        first = outputs.at(index, count)
        states = outputs.states
        tokens = torch.tensor(self.continuation, device=states.logits.device)
        logits = states.logits[first : first + count].gather(1, tokens[:, None])[:, 0]
        for i in range(count):
            row.notes[len(self.prefix) - 1 + i] = states.best[first + i]
        worker.finish(row)
        self.answer(logits.to(torch.float64).cpu().numpy() - states.log_z[first : first + count])


class HFModel:
    """A language model of the transformers library; see models.TokenModel for every method's contract."""

    def __init__(
        self,
        network: Network,
        engine: Engine,
        *,
        vocab_size: int,
        eos_ids: frozenset[int],
        max_context: int | None,
        kv_tokens: int,
        default_sampling: Sampling = GREEDY,
        max_tokens: int = 2048,
        guesses: bool = True,
    ) -> None:
        self.network = network
        self.engine = engine
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.default_sampling = default_sampling
        self.vocabulary = Vocabulary(size=vocab_size, eos_ids=eos_ids, tolerance=network.tolerance)
        self.guesses = Guesses()
        read = Reader(self.vocabulary, native=network.native)
        self.worker = RowWorker(network, kv_capacity=kv_tokens, max_tokens=max_tokens, read=read, guesses=guesses)

    @property
    def name(self) -> str:
        """Path or id."""
        return self.network.name

    @property
    def tie_tolerance(self) -> float:
        """By dtype: 1e-4 in float32, 5e-2 in 16 bits [nats]."""
        return self.network.tolerance

    @property
    def reuse(self) -> bool:
        """Whether prefixes are reused (the load-time self-check passed)."""
        return self.network.reuse

    @property
    def kv_positions(self) -> int | None:
        """See models.Pooled."""
        return self.worker.capacity if self.reuse else None

    async def continue_(
        self,
        prefix: Ids,
        *,
        max_new_tokens: int,
        n: int = 1,
        sampling: Sampling = GREEDY,
        noise: Noise | None = None,
        stop_at_eos: bool = True,
        top: Within | None = None,
    ) -> list[Continuation]:
        """See Sampler.continue_."""
        _check(prefix, sampling, noise)
        if max_new_tokens < 1:
            return [Continuation(ids=(), logps=np.zeros(0), ended=False) for _ in range(n)]
        if isinstance(top, int):
            self._keep(top)
        how = Drawing(
            max_new_tokens=max_new_tokens, n=n, sampling=sampling, noise=noise, stop_at_eos=stop_at_eos, top=top
        )
        served = await self.engine.ask(self.worker, ContinueRequest(prefix, how, self.vocabulary, self.guesses))
        different = served.value[:1] if sampling.greedy else served.value
        self._charge(prefix, served, rows=[c.ids[:-1] for c in different], generated=True)
        return served.value

    async def stream(
        self, prefix: Ids, *, max_new_tokens: int, sampling: Sampling = GREEDY, noise: Noise | None = None
    ) -> AsyncGenerator[Continuation, None]:
        """See Streaming.stream."""
        _check(prefix, sampling, noise)
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[list[Served[Continuation]]]()
        how = Drawing(max_new_tokens=max_new_tokens, n=1, sampling=sampling, noise=noise, stop_at_eos=True, top=None)

        def deliver(told: list[Served[Continuation]]) -> None:
            self.engine.outbox.put(loop, lambda: arrived.put_nowait(told))

        def failed(ended: asyncio.Future[Any]) -> None:
            if not ended.cancelled() and ended.exception() is not None:
                arrived.put_nowait([])

        request = StreamRequest(prefix, how, self.vocabulary, self.guesses, deliver)
        ended = asyncio.wrap_future(self.engine.submit(self.worker, request))
        ended.add_done_callback(failed)
        try:
            while told := await arrived.get():
                for served in told:
                    self._charge(prefix, served, rows=[()])
                    yield served.value
                    prefix += served.value.ids
            await ended
        finally:
            ended.cancel()

    async def top_next(self, prefix: Ids, k: int | None = None) -> Top:
        """See TokenModel.top_next."""
        count = self.vocab_size if k is None else k
        self._keep(count)

        def from_top(top: Top) -> Top | None:
            return narrow(top, count, tolerance=self.tie_tolerance, vocab_size=self.vocab_size)

        def from_all(logps: Array) -> Top:
            told = from_top(whole(logps))
            assert told is not None
            return told

        return await self._next(prefix, from_top, from_all)

    async def next_logprobs(self, prefix: Ids, ids: IntArray) -> Array:
        """See TokenModel.next_logprobs."""

        def from_top(top: Top) -> Array | None:
            if len(ids) > len(top.ids):
                return None
            known = dict(zip(top.ids.tolist(), top.logps.tolist(), strict=True))
            told = [known.get(i) if i < self.vocab_size else -np.inf for i in ids.tolist()]
            return None if any(t is None for t in told) else np.array(told, dtype=np.float64)

        def from_all(logps: Array) -> Array:
            padded = np.append(logps, -np.inf)
            return padded[np.where(ids < len(logps), ids, len(logps))]

        return await self._next(prefix, from_top, from_all)

    async def logprobs(self, prefix: Ids, continuation: Ids) -> Array:
        """See TokenModel.logprobs."""
        _not_empty(prefix)
        if not continuation:
            return np.zeros(0)
        served = await self.engine.ask(self.worker, LogprobsRequest(prefix, continuation))
        self._charge(prefix, served, rows=[continuation[:-1]])
        return served.value

    async def features(self, prefix: Ids) -> Array:
        """What a value head on this model's own forward makes of a state. Raises EngineError where there is none."""

        def from_all(logps: Array) -> Array:
            raise EngineError(f"{self.name} was loaded without a value head on it.")

        return await self._next(prefix, lambda top: top.features, from_all)

    async def _next(self, prefix: Ids, from_top: Callable[[Top], T | None], from_all: Callable[[Array], T]) -> T:
        _not_empty(prefix)
        request = NextRequest(prefix, from_top=from_top, from_all=from_all)
        served: Served[T] = await self.engine.ask(self.worker, request)
        self._charge(prefix, served, rows=[()])
        return served.value

    def _keep(self, count: int) -> None:
        """Remember one more than asked from now on, so that the question is free next time and its near tie known."""
        if self.vocabulary.keep <= count < MOST_KEPT:
            self.vocabulary.keep = count + 1

    def _charge(self, prefix: Ids, served: Served[Any], *, rows: list[Ids], generated: bool = False) -> None:
        current_meter().forward(
            self,
            prefix,
            rows,
            generated=generated,
            computed=served.computed,
            calls=served.calls,
            held=served.held,
            discarded=served.discarded,
        )


def _check(prefix: Ids, sampling: Sampling, noise: Noise | None) -> None:
    _not_empty(prefix)
    if noise is None and not sampling.greedy:
        raise ValueError("Drawing needs noise: give noise=Noise(seed=..., purpose=...).")


def _not_empty(prefix: Ids) -> None:
    if not prefix:
        raise PromptError("The prompt holds no token, and a next-token distribution needs one; give the model's BOS.")
