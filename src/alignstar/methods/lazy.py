"""Algorithm 1 of Transfer Q* (Eq. 10-12), token for token as `transfer_q.py` states it, at a fraction of its cost.

What is saved, and why nothing changes:
1) The greedy continuation of the response so far, the *spine*, holds the rollout of the greedy candidate of every
   position on it: while that candidate wins, a position costs one new token and not a rollout.
2) A reward of at most r_max cannot lift a candidate above its score at r_max. One whose score at r_max is below one
   that was reached is certified away, without rollout or reward. A drawn selection is an arg-max with noise known
   beforehand, so the same holds for it. Without a known range nothing is skipped.
3) While the greedy candidate wins, the next state is the next position of the spine: a `window` of positions is decided
   together, up to the first one where another candidate wins. What was evaluated behind that one is discarded, and the
   next window is as long as this one held; one that holds to its end is followed by a longer one.
4) A response that was scored is not scored again.
Knows direct transfer with greedy rollouts of the model that is base policy and source of candidates; `applies` says so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from alignstar.meter import current_meter, together
from alignstar.methods.candidates import CandidateRule, Candidates
from alignstar.methods.decision import Decision, considered
from alignstar.methods.rollouts import RolloutRule
from alignstar.methods.transfer import TransferRule, Valued
from alignstar.methods.values import direct
from alignstar.models import Continuation, Top, Within
from alignstar.sampling import GREEDY, Array, near_tie
from alignstar.types import FinishReason, Ids, Prompt, Step


def applies(proposals: CandidateRule, rollouts: RolloutRule, transfer: TransferRule, decision: Decision) -> bool:
    """Whether `Lazy` is equal to the plain algorithm under these rules."""
    one_model = proposals.base is rollouts.model and all(source is rollouts.model for source in proposals.sources)
    return (
        one_model
        and proposals.rule != "sample_without_replacement"
        and proposals.prefilter is None
        and rollouts.sampling.greedy
        and transfer.indirect is None
        and not transfer.verbatim  # its text depends on the other candidates of the step
        and not decision.zscore
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One position of a window: the response before it, its candidates, and what is known of them by token."""

    response: Ids
    candidates: Candidates
    futures: dict[int, Continuation] = field(default_factory=dict[int, Continuation])
    valued: dict[int, Valued] = field(default_factory=dict[int, Valued])

    @property
    def greedy(self) -> int:
        """The most probable token, with which the spine goes on."""
        return self.candidates.ids[0]

    def text(self, z: int) -> Ids:
        """The response that a candidate and its rollout make."""
        return (*self.response, z, *self.futures[z].ids)

    def evaluated(self, but: Set[int] = frozenset()) -> Candidates:
        """The candidates that have a value, in their order; those of `but` left out."""
        kept = [i for i, z in enumerate(self.candidates.ids) if z in self.valued and z not in but]
        return Candidates(
            ids=tuple(self.candidates.ids[i] for i in kept),
            logps=self.candidates.logps[kept],
            near_ties=self.candidates.near_ties,
        )


Pair = tuple[Position, int]
"""A position and one of its candidates."""

FIRST_WAVE = 6
"""Candidates of a position that are evaluated before the others, where that lately spared the others."""


@dataclass(slots=True, kw_only=True)
class Lazy:
    """One request's accelerated Algorithm 1.

    `bounds` hold for every normalised reward (None: nothing is skipped). Up to `window` positions are decided together,
    `reach` of them next; of the candidates of a position that may win, `wave` are evaluated before the others are
    looked at again. None: all, or the best six where lately most others could not win any more after those (`sparing`).
    """

    prompt: Prompt
    proposals: CandidateRule
    rollouts: RolloutRule
    transfer: TransferRule
    decision: Decision
    bounds: tuple[float, float] | None
    window: int
    wave: int | None
    max_new_tokens: int
    known: dict[Ids, Valued] = field(default_factory=dict[Ids, Valued])
    reach: int = field(init=False, default=1)
    sparing: bool = field(init=False, default=False)

    async def steps(self) -> AsyncGenerator[Step, None]:
        """One Step per token, equal to the plain algorithm's but for `considered`: the candidates with a reward."""
        response: Ids = ()
        finish: FinishReason | None = None
        self.reach = (self.window + 1) // 2
        while finish is None:
            self.known = {text: v for text, v in self.known.items() if text[: len(response)] == response}
            positions = await self._walk(response)
            ahead = await self._evaluate(positions)
            for i, position in enumerate(positions):
                step = self._decided(position)
                response, finish = position.response + step.emitted, step.finish
                other_won = step.emitted[0] != position.greedy
                if other_won:
                    behind = [p.futures[z] for p in positions[i + 1 :] for z in p.futures if z != p.greedy]
                    current_meter().add("discarded_tokens", ahead + sum(len(future.ids) for future in behind))
                yield step
                if other_won:
                    self.reach = i + 1
                    break
            else:
                self.reach = min(self.reach + 2, self.window)

    # The spine

    async def _walk(self, response: Ids) -> list[Position]:
        """The next positions of the spine and their candidates, no more than an earlier rollout holds."""
        (spine,) = await self.rollouts.model.continue_(
            self.prompt.ids + response,
            max_new_tokens=min(self._within(self.reach), self.max_new_tokens - len(response)),
            sampling=GREEDY,
            top=self._told(),
        )
        return [
            Position(response=response + spine.ids[:i], candidates=self._candidates(top))
            for i, top in enumerate(spine.tops)
        ]

    async def _spine(self, positions: Sequence[Position]) -> None:
        """The rollouts of the greedy candidates: all but that of one that ends the spine are parts of it."""
        model, start = self.rollouts.model, len(positions[0].response)
        ends = [self._end(start, i) for i in range(len(positions))]
        (spine,) = await model.continue_(
            self.prompt.ids + positions[0].response, max_new_tokens=max(ends), sampling=GREEDY, top=2
        )
        near = [near_tie(top.logps, model.tie_tolerance) for top in spine.tops]
        for i, (position, end) in enumerate(zip(positions, ends, strict=True)):
            ids = spine.ids[i + 1 : end]
            ended = i + 1 + len(ids) == len(spine.ids) and spine.ended
            if position.greedy not in model.eos_ids:
                position.futures[position.greedy] = Continuation(
                    ids=ids, logps=spine.logps[i + 1 : end], ended=ended, near_ties=sum(near[i + 1 : end])
                )
        await self._roll([(p, p.greedy) for p in positions if p.greedy not in p.futures])

    def _within(self, positions: int) -> int:
        """As many, but no more than a rollout is long."""
        return positions if self.rollouts.length is None else max(1, min(positions, self.rollouts.length))

    def _end(self, start: int, i: int) -> int:
        """Tokens behind the response's first `start` ones at which the rollout from the i-th of them ends."""
        return i + 1 + self.rollouts.reach(self.max_new_tokens - start - i - 1)

    def _told(self) -> Within:
        """How many best tokens of a state to look at, or within how many nats of the best one a token can win."""
        if self.proposals.rule != "full":
            return self.proposals.k
        if self.bounds is None or self.decision.temperature is not None:
            return self.rollouts.model.vocab_size
        low, high = self.bounds
        return self.decision.weight * (high - low) + self.decision.doubt(self.bounds)

    def _candidates(self, best: Top) -> Candidates:
        top = self.proposals.kept(best, self.rollouts.model.tie_tolerance)
        in_doubt = top.near_tie and self.proposals.rule != "full"  # of the whole vocabulary nothing is cut off
        return Candidates(ids=tuple(top.ids.tolist()), logps=top.logps, near_ties=int(in_doubt))

    # The candidates

    async def _evaluate(self, positions: Sequence[Position]) -> int:
        """Value every candidate that could win its position; returns the tokens spent on positions further ahead."""
        greedy = [(p, p.greedy) for p in positions]
        everyone = [(p, z) for p in positions for z in p.candidates.ids[1:]] if self.bounds is None else []
        await together([self._spine(positions), self._roll(everyone)])
        await self._value([*greedy, *everyone])
        ahead, wave, compared = 0, self.wave or (FIRST_WAVE if self.sparing else None), self.wave is not None
        while any(alive := [self._alive(p, self._waiting(p)) for p in positions]):
            survivors = [(p, z) for p, ids in zip(positions, alive, strict=True) for z in ids[:wave]]
            # The next windows will be needed if the greedy candidates win: they take no time beside the rollouts.
            looking = [self._look_ahead(positions[-1])] if self.reach > 1 and not ahead else []
            ahead += sum(tokens or 0 for tokens in await together([self._roll(survivors), *looking]))
            await self._value(survivors)
            if not compared:
                self._compare([(p, ids[FIRST_WAVE:]) for p, ids in zip(positions, alive, strict=True)])
                wave, compared = None, True
        return ahead

    def _waiting(self, position: Position) -> list[int]:
        return [z for z in position.candidates.ids if z not in position.valued]

    def _alive(self, position: Position, waiting: Sequence[int]) -> list[int]:
        """Those of `waiting` that could win, were none of them evaluated; the most promising first."""
        if self.bounds is None or not waiting:
            return []
        step, ids, among = len(position.response), position.candidates.ids, frozenset(waiting)
        done = position.evaluated(but=among)
        reached = self.decision.maximised(self._scores(position, done), done.ids, step)
        at_most = self.decision.scores(position.candidates, [_valued(self.bounds[1])] * len(ids), ())
        bound: Array = self.decision.maximised(at_most, ids, step)
        # Near ties survive too, so that none is overlooked.
        alive = np.max(reached) - bound <= self.decision.doubt(self.bounds)
        return [ids[i] for i in np.argsort(-bound, kind="stable") if alive[i] and ids[i] in among]

    def _compare(self, others: Sequence[tuple[Position, Sequence[int]]]) -> None:
        """Whether waiting for the first wave spares most of the others, or would have spared them."""
        if total := sum(len(ids) for _, ids in others):
            self.sparing = 2 * sum(len(self._alive(p, ids)) for p, ids in others) < total

    async def _look_ahead(self, last: Position) -> int:
        """Compute the spine for the next window, and for another one as far as the rollouts beside it last.

        It is forgotten here: the model remembers. Returns the new tokens.
        """
        response = (*last.response, last.greedy)
        left = self.max_new_tokens - len(response)
        if left == 0 or self._ends(last.greedy):
            return 0
        await self._walk(response)
        furthest = min(self._within(self.reach + self.window), left) - 1
        (spine,) = await self.rollouts.model.continue_(
            self.prompt.ids + response, max_new_tokens=self._end(len(response), furthest), sampling=GREEDY, top=2
        )
        return len(spine.ids) - len(last.futures[last.greedy].ids)

    def _ends(self, z: int) -> bool:
        return self.rollouts.stop_on_eos and z in self.rollouts.model.eos_ids

    async def _roll(self, pairs: Sequence[Pair]) -> None:
        rolled = await together(
            [
                self.rollouts.after(
                    self.prompt.ids + p.response, (z,), len(p.response), self.max_new_tokens - len(p.response) - 1
                )
                for p, z in pairs
            ]
        )
        for (position, z), ((future,),) in zip(pairs, rolled, strict=True):
            position.futures[z] = future

    async def _value(self, pairs: Sequence[Pair]) -> None:
        texts = [text for text in dict.fromkeys(p.text(z) for p, z in pairs) if text not in self.known]
        rewards = await self.transfer.scored(self.prompt, texts)
        self.known.update(zip(texts, map(_valued, rewards.tolist()), strict=True))
        for position, z in pairs:
            position.valued[z] = self.known[position.text(z)]

    # The decision

    def _scores(self, position: Position, candidates: Candidates) -> Array:
        return self.decision.scores(candidates, [position.valued[z] for z in candidates.ids], ())

    def _decided(self, position: Position) -> Step:
        """The step at a position all of whose possible winners have a value."""
        at, candidates = len(position.response), position.evaluated()
        scores = self._scores(position, candidates)
        choice = self.decision.choice(scores, candidates, at)
        futures = [[position.futures[z]] for z in candidates.ids]
        near_ties = candidates.near_ties + choice.near_tie + sum(future.near_ties for (future,) in futures)
        # Tokens too improbable to win, which were not even looked at, are candidates too.
        proposed = len(position.candidates.ids) if isinstance(self._told(), int) else self.rollouts.model.vocab_size
        meter = current_meter()
        meter.add("near_ties", near_ties)
        meter.add("candidates", proposed)
        meter.add("certified", proposed - len(candidates.ids))
        z = candidates.ids[choice.index]
        finish: FinishReason | None = "length" if at + 1 == self.max_new_tokens else None
        return Step(
            index=at,
            emitted=(z,),
            considered=considered(candidates, scores, [position.valued[z] for z in candidates.ids], futures),
            chosen=choice.index,
            near_ties=near_ties,
            finish="stop" if self._ends(z) else finish,
        )


def _valued(reward: float) -> Valued:
    rewards = np.array([reward])
    return Valued(value=direct(rewards), rewards=rewards)
