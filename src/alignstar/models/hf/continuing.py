"""Requests for continuations: greedy or drawn, several tokens in one forward where guesses turn out right.

Knows rows, what a forward said of their ends, and how a token is drawn from it; neither scheduling nor memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alignstar.models import Continuation, Top, Within
from alignstar.models.hf.guesses import ENDINGS, Guesses
from alignstar.models.hf.rows import Row, RowRequest, RowWorker, Served
from alignstar.models.hf.tops import Read, Vocabulary, narrow, whole
from alignstar.sampling import Array, Noise, Sampling, drawn_scores
from alignstar.types import Ids

MOST_GUESSED = 16
"""Tokens that a row guesses at a time at most."""

REST = 2
"""Tokens that a row decides without guessing after a guess of which nothing was right."""


@dataclass(slots=True)
class Draw:
    """One continuation in the making; `near` says of each token whether it was nearly tied.

    `text` ends with it and is what guesses are looked up by; `trust` tokens are guessed next, after `rest` without.
    """

    rollout: int
    ids: list[int] = field(default_factory=list[int])
    logps: list[float] = field(default_factory=list[float])
    tops: list[Top] = field(default_factory=list[Top])
    near: list[bool] = field(default_factory=list[bool])
    ended: bool = False
    text: list[int] = field(default_factory=list[int])
    trust: int = MOST_GUESSED
    rest: int = 0


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

    def __init__(self, prefix: Ids, drawing: Drawing, vocabulary: Vocabulary, guesses: Guesses) -> None:
        super().__init__()
        self.prefix = prefix
        self.how = drawing
        self.vocabulary = vocabulary
        self.guesses = guesses
        # Greedy continuations are all the same one: it is computed once.
        self.draws = [
            Draw(i, text=list(prefix[-ENDINGS[0] :])) for i in range(1 if drawing.sampling.greedy else drawing.n)
        ]
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
        if self._finished(draw):
            return None
        told = self._told(note)
        if told is None and self.how.top is not None:
            return None
        self._take(draw, note, told, None)
        return draw.ids[-1]

    def advance(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """Draw the next token of the row, or, at the end of the prefix, the first token of every continuation."""
        if row.state is not None:
            self._grow(worker, row, outputs, index)
            return
        row.notes[len(row.ids) - 1] = outputs.states.best[outputs.at(index)]
        worker.publish(row)
        row.state = self.draws[0]
        rows = [row, *(worker.fork(row, draw) for draw in self.draws[1:])]
        for each in rows:
            self._grow(worker, each, outputs, index)

    def guess(self, row: Row, count: int) -> Sequence[int]:
        """As many as lately were right, and one more; none for a while where none were. Draws are not guessed."""
        draw: Draw | None = row.state
        if draw is None or not self.how.sampling.greedy:
            return ()
        if draw.rest:
            draw.rest -= 1
            return ()
        return self.guesses.after(draw.text, min(count, draw.trust, self.how.max_new_tokens - len(draw.ids) - 1))

    def _grow(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """Take the next token, and further ones for as long as they are the row's guesses."""
        draw: Draw = row.state
        guessed, before, first = row.guessed, len(draw.text), not draw.ids
        left = guessed
        while True:
            at = outputs.at(index, left + 1)
            top = outputs.states.best[at]
            row.notes[len(row.ids) - 1 - left] = top
            told = self._told(top)
            enough = self.how.sampling.greedy and (told is not None or self.how.top is None)
            self._take(draw, top, told, None if enough else outputs.states.full(at))
            if self._finished(draw) or not left or draw.ids[-1] != row.ids[len(row.ids) - left]:
                break
            left -= 1
        worker.retract(row, left)
        if first and row.lease is not None and row.lease.own > 1:
            worker.publish(row)
        self.guesses.learn(draw.text, before)
        if guessed:
            draw.trust = MOST_GUESSED if not left else guessed - left + 1
            draw.rest = REST if left == guessed else 0
        if not self._finished(draw):
            row.ids.append(draw.ids[-1])
            return
        worker.finish(row)
        self.open -= 1
        if self.open == 0:
            self.answer(self._result())

    def _told(self, top: Top) -> Top | None:
        """What is to be told of a token's alternatives; None if nothing is, or if `top` holds too little."""
        if self.how.top is None:
            return None
        return narrow(top, self.how.top, tolerance=self.vocabulary.tolerance, vocab_size=self.vocabulary.size)

    def _take(self, draw: Draw, top: Top, told: Top | None, every: Array | None) -> None:
        """Add the next token: greedy from the best ones, drawn from all log-probabilities.

        `every` is there where it is drawn, or where `told` should tell of alternatives and `top` holds too little.
        """
        tolerance = self.vocabulary.tolerance
        if self.how.sampling.greedy:
            token, logp = int(top.ids[0]), float(top.logps[0])
            near = len(top.ids) > 1 and bool(top.logps[0] - top.logps[1] <= tolerance)
        else:
            assert every is not None
            assert self.how.noise is not None
            noise = replace(self.how.noise, rollout=self.how.noise.rollout + draw.rollout)
            scores = drawn_scores(every, self.how.sampling, noise, len(self.prefix) + len(draw.ids))
            token = int(np.argmax(scores))
            logp = float(every[token])
            second = np.partition(scores, -2)[-2] if len(scores) > 1 else -np.inf
            near = bool(scores[token] - second <= tolerance / self.how.sampling.temperature)
        if self.how.top is not None:
            if told is None:
                assert every is not None
                told = narrow(whole(every), self.how.top, tolerance=tolerance, vocab_size=self.vocabulary.size)
                assert told is not None
            draw.tops.append(told)
        draw.ids.append(token)
        draw.text.append(token)
        draw.logps.append(logp)
        draw.near.append(near)
        draw.ended = token in self.vocabulary.eos_ids

    def _finished(self, draw: Draw) -> bool:
        return (draw.ended and self.how.stop_at_eos) or len(draw.ids) >= self.how.max_new_tokens

    def _result(self) -> list[Continuation]:
        made = [
            Continuation(
                ids=tuple(d.ids),
                logps=np.array(d.logps),
                ended=d.ended,
                near_ties=sum(d.near),
                near=tuple(i for i, near in enumerate(d.near) if near),
                tops=tuple(d.tops),
            )
            for d in self.draws
        ]
        return made * self.how.n if self.how.sampling.greedy else made


class StreamRequest(ContinueRequest):
    """One continuation, told token by token: `deliver` is called in the engine's thread with those of each forward."""

    def __init__(
        self,
        prefix: Ids,
        drawing: Drawing,
        vocabulary: Vocabulary,
        guesses: Guesses,
        deliver: Callable[[list[Served[Continuation]]], object],
    ) -> None:
        super().__init__(prefix, drawing, vocabulary, guesses)
        self.deliver = deliver
        self.told = 0

    def begin(self, worker: RowWorker) -> None:
        """See ContinueRequest; what is known already is told at once."""
        super().begin(worker)
        self._tell()

    def advance(self, worker: RowWorker, row: Row, outputs: Read, index: int) -> None:
        """See ContinueRequest."""
        super().advance(worker, row, outputs, index)
        self._tell()

    def answer(self, value: list[Continuation]) -> None:
        """Tell the last tokens, and with no token that they were the last."""
        self._tell()
        self.deliver([])
        super().answer(value)

    def _tell(self) -> None:
        """The tokens since the last time; the first of them carries what they took to compute."""
        draw, fresh = self.draws[0], list[Served[Continuation]]()
        for i in range(self.told, len(draw.ids)):
            token = Continuation(
                ids=(draw.ids[i],),
                logps=np.array(draw.logps[i : i + 1]),
                ended=draw.ended and i + 1 == len(draw.ids),
                near_ties=int(draw.near[i]),
            )
            fresh.append(self.served(token))
            self.computed = self.calls = self.discarded = 0
        if fresh:
            self.told = len(draw.ids)
            self.deliver(fresh)
