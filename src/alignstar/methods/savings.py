"""Approximations of Transfer Q*: less to compute, for responses that may differ from the paper's algorithm.

A step is that of `transfer_q.py` but for what an option leaves out:
1) block: a decision emits the beginning of the winner's rollout too.
2) halving: all candidates are rolled out a little, the better half further, and so on.
3) gate: where the base policy is sure of its token, it is emitted unsearched.
4) adaptive_rollouts: a candidate that can hardly win any more is rolled out no further.
Knows the rules of Algorithm 1, for any of them; where an exact saving applies as well it is `lazy.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from alignstar.errors import OptionError
from alignstar.meter import current_meter
from alignstar.methods.candidates import CandidateRule, Candidates
from alignstar.methods.decision import Decision, considered
from alignstar.methods.rollouts import RolloutRule
from alignstar.methods.transfer import TransferRule, Valued
from alignstar.methods.values import Value, direct, mean_bounds
from alignstar.models import Continuation
from alignstar.sampling import Array, near_tie
from alignstar.types import Candidate, FinishReason, Ids, Prompt, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """How much is left out, by the options of these names; the defaults leave out nothing."""

    block: int = 1
    halving: int = 1
    gate: float = 1.0
    adaptive_rollouts: float = 0.0

    @property
    def none(self) -> bool:
        """Whether nothing is left out."""
        return self == Savings()


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """The candidates that are left to choose from, each with its rollouts and value; near ties so far."""

    candidates: Candidates
    futures: Sequence[Sequence[Continuation]]
    valued: Sequence[Valued]
    near_ties: int


@dataclass(slots=True, kw_only=True)
class Draws:
    """A candidate's first rollouts, of `of` in all, and the reward of each."""

    of: int
    futures: list[Continuation] = field(default_factory=list[Continuation])
    rewards: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def more(self) -> bool:
        """Whether there are others to draw."""
        return len(self.futures) < self.of

    def add(self, futures: Sequence[Continuation], rewards: Array) -> None:
        """Take the next rollouts; one of no tokens, after which there is nothing to roll out, is all there are."""
        self.futures.extend(futures)
        self.rewards = np.concatenate([self.rewards, rewards])
        if not futures[0].ids:
            self.of = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Approximate:
    """One request's Algorithm 1 with something left out; `bounds` hold for every normalised reward."""

    prompt: Prompt
    proposals: CandidateRule
    rollouts: RolloutRule
    transfer: TransferRule
    decision: Decision
    bounds: tuple[float, float] | None
    savings: Savings
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Raises OptionError for what does not go together."""
        rollouts, block, delta = self.rollouts, self.savings.block, self.savings.adaptive_rollouts
        if block > 1 and (rollouts.n > 1 or (rollouts.length is not None and rollouts.length < block - 1)):
            raise OptionError(
                f"block={block} emits {block - 1} tokens of a candidate's one rollout; use num_rollouts=1 and a "
                f"rollout_len of {block - 1} or more."
            )
        if delta and self.savings.halving > 1:
            raise OptionError(
                f"adaptive_rollouts={delta:g} and halving={self.savings.halving} both say which candidates are rolled "
                "out further; use one of them."
            )
        means = self.transfer.indirect is None and not self.transfer.verbatim and not self.decision.zscore
        if delta and (rollouts.n == 1 or self.bounds is None or not means):
            raise OptionError(
                f"adaptive_rollouts={delta:g} compares mean rewards of known range; use direct transfer, "
                "rollout_strategy=sample, num_rollouts of 2 or more, and reward_norm=clip(low,high) for a reward that "
                "declares no range."
            )

    async def steps(self) -> AsyncGenerator[Step, None]:
        """One Step per decision; `considered` are the candidates that were left at its end."""
        gate = self.savings.gate if self.savings.gate < 1 else np.inf
        log_z = await self.transfer.log_z(self.prompt, self.max_new_tokens)
        response: Ids = ()
        finish: FinishReason | None = None
        index = 0
        while finish is None:
            candidates = await self.proposals.at(self.prompt.ids + response, len(response))
            sure = float(np.exp(np.max(candidates.logps)))
            if sure > gate:
                step = self._unsearched(candidates)
            else:
                current_meter().add("candidates", len(candidates.ids))
                step = await self._searched(response, candidates, log_z)
            near_ties = step.near_ties + (abs(sure - gate) <= self.decision.tolerance)
            current_meter().add("near_ties", near_ties)
            response += step.emitted
            if self.rollouts.stop_on_eos and response[-1] in self.rollouts.model.eos_ids:
                finish = "stop"
            elif len(response) >= self.max_new_tokens:
                finish = "length"
            yield replace(step, index=index, near_ties=near_ties, finish=finish)
            index += 1

    def _unsearched(self, candidates: Candidates) -> Step:
        """The most probable candidate, without rollout and reward."""
        best = int(np.argmax(candidates.logps))
        z, logp = candidates.ids[best], float(candidates.logps[best])
        return Step(
            index=0,
            emitted=(z,),
            considered=(Candidate(ids=(z,), logp=logp, score=logp),),
            near_ties=candidates.near_ties + near_tie(candidates.logps, self.decision.tolerance),
        )

    async def _searched(self, response: Ids, candidates: Candidates, log_z: float) -> Step:
        """The candidate of the best score and, with blocks, the beginning of its rollout."""
        search = self._raced if self.savings.adaptive_rollouts else self._halved
        left = await search(response, candidates, log_z)
        scores = self.decision.scores(left.candidates, left.valued, ())
        choice = self.decision.choice(scores, left.candidates, len(response))
        z, rollout = left.candidates.ids[choice.index], left.futures[choice.index][0]
        return Step(
            index=0,
            emitted=(z, *rollout.ids[: self.savings.block - 1])[: self.max_new_tokens - len(response)],
            considered=considered(left.candidates, scores, left.valued, left.futures),
            chosen=choice.index,
            near_ties=left.near_ties + _near_ties(left.futures) + choice.near_tie,
        )

    async def _halved(self, response: Ids, candidates: Candidates, log_z: float) -> Left:
        """Rounds of rollouts, each twice as long as the one before; the better half goes on to the next."""
        at, room = len(response), self.max_new_tokens - len(response) - 1
        whole, near_ties = self.rollouts.reach(room), candidates.near_ties
        lengths = sorted({-(-whole // 2**halved) for halved in range(self.savings.halving)})
        while True:
            rule = replace(self.rollouts, length=lengths.pop(0))
            futures = await rule.after(self.prompt.ids + response, candidates.ids, at, room)
            valued = await self.transfer.values(self.prompt, response, candidates.ids, futures, log_z)
            if not lengths:
                return Left(candidates=candidates, futures=futures, valued=valued, near_ties=near_ties)
            scores = self.decision.scores(candidates, valued, ())
            maximised = self.decision.maximised(scores, candidates.ids, at)
            order = _ranked(maximised, candidates)
            half = -(-len(order) // 2)
            near_ties += near_tie(maximised[order[half - 1 : half + 1]], self.decision.doubt())
            near_ties += _near_ties([futures[i] for i in order[half:]])
            candidates = _only(candidates, sorted(order[:half]))

    async def _raced(self, response: Ids, candidates: Candidates, log_z: float) -> Left:
        """1, 2, 4, ... rollouts of the candidates that can win, up to all of them, while there are several."""
        at, room, n = len(response), self.max_new_tokens - len(response) - 1, self.rollouts.n
        risk = self.savings.adaptive_rollouts / (len(candidates.ids) * math.ceil(math.log2(n)))
        draws = {z: Draws(of=n) for z in candidates.ids}
        near_ties, drawn = candidates.near_ties, 0
        while going_on := [z for z in candidates.ids if draws[z].more]:
            rule = replace(self.rollouts, first=drawn, n=max(1, min(drawn, n - drawn)))
            futures = await rule.after(self.prompt.ids + response, going_on, at, room)
            valued = await self.transfer.values(self.prompt, response, going_on, futures, log_z)
            for z, new, v in zip(going_on, futures, valued, strict=True):
                draws[z].add(new, v.rewards)
            drawn += rule.n
            if drawn == n:
                break
            winnable, doubts = self._winnable(candidates, [draws[z] for z in candidates.ids], risk, at)
            near_ties += doubts + _near_ties(draws[candidates.ids[i]].futures for i in np.flatnonzero(~winnable))
            candidates = _only(candidates, np.flatnonzero(winnable).tolist())
            if len(candidates.ids) == 1:
                break
        left = [draws[z] for z in candidates.ids]
        return Left(
            candidates=candidates, futures=[d.futures for d in left],
            valued=[Valued(value=direct(d.rewards), rewards=d.rewards) for d in left], near_ties=near_ties,
        )  # fmt: skip

    def _winnable(
        self, candidates: Candidates, draws: Sequence[Draws], risk: float, at: int
    ) -> tuple[NDArray[np.bool_], int]:
        """Whether each candidate's highest possible score reaches every other's lowest [c]; how many are in doubt."""
        assert self.bounds is not None, "racing was checked to have them"
        bounds = [mean_bounds(d.rewards, d.of, self.bounds, risk) for d in draws]
        lowest, highest = (self._at_values(candidates, values, at) for values in zip(*bounds, strict=True))
        behind, doubt = np.max(lowest) - highest, self.decision.doubt(self.bounds)
        return behind <= doubt, int(np.sum((behind > 0) & (behind <= 2 * doubt)))

    def _at_values(self, candidates: Candidates, values: Sequence[float], at: int) -> Array:
        valued = [Valued(value=Value(tq=value), rewards=np.zeros(0)) for value in values]
        return self.decision.maximised(self.decision.scores(candidates, valued, ()), candidates.ids, at)


def _only(candidates: Candidates, kept: Sequence[int]) -> Candidates:
    return replace(candidates, ids=tuple(candidates.ids[i] for i in kept), logps=candidates.logps[list(kept)])


def _near_ties(futures: Iterable[Sequence[Continuation]]) -> int:
    return sum(rollout.near_ties for drawn in futures for rollout in drawn)


def _ranked(maximised: Array, candidates: Candidates) -> list[int]:
    """Indices, best first, ties as `stable_argmax` breaks them."""
    logps, ids = candidates.logps.tolist(), candidates.ids
    return sorted(range(len(ids)), key=lambda i: (-float(maximised[i]), -logps[i], ids[i]))
