"""A transformers causal language model behind the TokenModel protocol.

`HFModel` is what methods hold: its coroutines submit requests to the engine's thread and charge the current meter. The
requests below it say what becomes of a row's logits; batching and memory are `rows.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from alignstar.engine import Engine
from alignstar.errors import EngineError, PromptError
from alignstar.meter import current_meter
from alignstar.models import Continuation, Top, Within
from alignstar.models.hf.network import Network
from alignstar.models.hf.rows import Row, RowRequest, RowWorker, Served
from alignstar.models.hf.tops import States, narrow, read_states, whole
from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling, tempered
from alignstar.types import Ids

T = TypeVar("T")

KEEP = 16
"""Best tokens remembered for every position computed; more when a request asks for more."""

MOST_KEPT = 256


@dataclass(slots=True)
class Vocabulary:
    """What requests need to know of the model."""

    size: int
    eos_ids: frozenset[int]
    tolerance: float
    keep: int = KEEP


class Reader:
    """Turns a forward's logits [B, want, V], and what a value head put behind them, into States of B*want rows."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __call__(self, logits: torch.Tensor) -> Read:
        """Normalised distributions, row-major."""
        want, size = logits.shape[1], self.vocabulary.size
        rows = logits.reshape(-1, logits.shape[-1])
        states = read_states(rows[:, :size], self.vocabulary.keep)
        if rows.shape[1] > size:
            features = rows[:, size:].to(torch.float32).cpu().numpy().astype(np.float64)
            states.best = [replace(top, features=told) for top, told in zip(states.best, features, strict=True)]
        return Read(states, want)


@dataclass(slots=True)
class Read:
    """States of a batch whose rows have `want` positions each."""

    states: States
    want: int

    def at(self, row: int, back: int = 1) -> int:
        """Index of a row's position counted from its end (1: the last)."""
        index = row * self.want + self.want - back
        if np.isnan(self.states.log_z[index]):
            raise EngineError("The model's logits are NaN; try --dtype float32.")
        return index


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


@dataclass(slots=True)
class Draw:
    """One continuation in the making."""

    rollout: int
    ids: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])
    tops: list[Top] = field(default_factory=list[Top])
    near_ties: int = 0
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How a ContinueRequest continues; see Sampler.continue_."""

    max_new_tokens: int
    n: int
    sampling: Sampling
    noise: Noise | None
    stop_at_eos: bool
    top: Within | None


class ContinueRequest(RowRequest[list[Continuation]]):
    """n continuations of one prefix, whose positions are computed once."""

    def __init__(self, prefix: Ids, drawing: Drawing, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.prefix = prefix
        self.how = drawing
        self.vocabulary = vocabulary
        # Greedy continuations are all the same one: it is computed once.
        self.draws = [Draw(i) for i in range(1 if drawing.sampling.greedy else drawing.n)]
        self.open = len(self.draws)
        self.worst = len(prefix) + 1 + len(self.draws) * drawing.max_new_tokens

    def begin(self, worker: RowWorker) -> None:
        """Greedy: walk through what is known already. Then compute from there."""
        if worker.cache is not None and self.how.sampling.greedy:
            draw = self.draws[0]
            worker.cache.follow(self.prefix, lambda note: self._walk(draw, note))
            if self._finished(draw):
                self.answer(self._result())
                return
            worker.add(self, (*self.prefix, *draw.ids), state=draw)
        else:
            worker.add(self, self.prefix, state=None)

    def _walk(self, draw: Draw, note: object) -> int | None:
        assert isinstance(note, Top)
        if self._finished(draw) or (self.how.top is not None and self._told(note) is None):
            return None
        self._take(draw, note, None)
        return draw.ids[-1]

    def advance(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """Draw the next token of the row, or, at the end of the prefix, the first token of every continuation."""
        at = outputs.at(index)
        top = outputs.states.best[at]
        row.notes[len(row.ids) - 1] = top
        if row.state is not None:
            if row.lease is not None and row.lease.own > 1 and not row.state.ids:
                worker.publish(row)
            self._grow(worker, row, outputs, at)
            return
        worker.publish(row)
        row.state = self.draws[0]
        rows = [row, *(worker.fork(row, draw) for draw in self.draws[1:])]
        for each in rows:
            self._grow(worker, each, outputs, at)

    def _grow(self, worker: RowWorker, row: Row, outputs: Read, at: int) -> None:
        draw: Draw = row.state
        greedy = self.how.sampling.greedy and (self.how.top is None or self._told(outputs.states.best[at]) is not None)
        self._take(draw, outputs.states.best[at], None if greedy else outputs.states.full(at))
        if not self._finished(draw):
            row.ids.append(draw.ids[-1])
            return
        worker.finish(row)
        self.open -= 1
        if self.open == 0:
            self.answer(self._result())

    def _told(self, top: Top) -> Top | None:
        assert self.how.top is not None
        return narrow(top, self.how.top, tolerance=self.vocabulary.tolerance, vocab_size=self.vocabulary.size)

    def _take(self, draw: Draw, top: Top, every: Array | None) -> None:
        """Add the next token: greedy from the best ones, drawn from all log-probabilities."""
        tolerance = self.vocabulary.tolerance
        if self.how.sampling.greedy:
            token, logp = int(top.ids[0]), float(top.logps[0])
            near = len(top.ids) > 1 and bool(top.logps[0] - top.logps[1] <= tolerance)
        else:
            assert every is not None
            assert self.how.noise is not None
            noise = replace(self.how.noise, rollout=self.how.noise.rollout + draw.rollout)
            scores = tempered(every, self.how.sampling) + noise.gumbel(len(self.prefix) + len(draw.ids), len(every))
            token = int(np.argmax(scores))
            logp = float(every[token])
            second = np.partition(scores, -2)[-2] if len(scores) > 1 else -np.inf
            near = bool(scores[token] - second <= tolerance / self.how.sampling.temperature)
        if self.how.top is not None:
            told = self._told(top)
            if told is None:
                assert every is not None
                told = narrow(whole(every), self.how.top, tolerance=tolerance, vocab_size=self.vocabulary.size)
                assert told is not None
            draw.tops.append(told)
        draw.ids.append(token)
        draw.logps.append(logp)
        draw.near_ties += near
        draw.ended = token in self.vocabulary.eos_ids

    def _finished(self, draw: Draw) -> bool:
        return (draw.ended and self.how.stop_at_eos) or len(draw.ids) >= self.how.max_new_tokens

    def _result(self) -> list[Continuation]:
        made = [
            Continuation(
                ids=tuple(d.ids), logps=np.array(d.logps), ended=d.ended, near_ties=d.near_ties, tops=tuple(d.tops)
            )
            for d in self.draws
        ]
        return made * self.how.n if self.how.sampling.greedy else made


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
    ) -> None:
        self.network = network
        self.engine = engine
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size
        self.max_context = max_context
        self.default_sampling = default_sampling
        self.vocabulary = Vocabulary(size=vocab_size, eos_ids=eos_ids, tolerance=network.tolerance)
        self.worker = RowWorker(network, kv_capacity=kv_tokens, max_tokens=max_tokens, read=Reader(self.vocabulary))

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
        _not_empty(prefix)
        if max_new_tokens < 1:
            return [Continuation(ids=(), logps=np.zeros(0), ended=False) for _ in range(n)]
        if noise is None and not sampling.greedy:
            raise ValueError("Drawing needs noise: give noise=Noise(seed=..., purpose=...).")
        if isinstance(top, int):
            self._keep(top)
        how = Drawing(
            max_new_tokens=max_new_tokens, n=n, sampling=sampling, noise=noise, stop_at_eos=stop_at_eos, top=top
        )
        served = await self.engine.ask(self.worker, ContinueRequest(prefix, how, self.vocabulary))
        different = served.value[:1] if sampling.greedy else served.value
        self._charge(prefix, served, rows=[c.ids[:-1] for c in different], generated=True)
        return served.value

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
        )


def _not_empty(prefix: Ids) -> None:
    if not prefix:
        raise PromptError("The prompt holds no token, and a next-token distribution needs one; give the model's BOS.")
