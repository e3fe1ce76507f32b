"""DeAL: decoding as heuristic search. Huang et al. 2024, arXiv:2402.06147.

c(y_<=t) = log P(y_<=t | x) + lambda h(y_<=t+L, x): beams are extended by their k most probable tokens, each is looked
ahead from greedily, and the reward (or a programmatic constraint) h reads the text that this leads to.

Differs: 1) the beams that are best by c are kept, in every step; 2) a beam that ended keeps its place while its c
suffices, and the search goes on until all kept beams have ended; 3) no length normalisation; 4) a beam at the length
limit is scored as it stands.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from alignstar.meter import current_meter, together
from alignstar.methods import parameters as p
from alignstar.methods.roles import one_model
from alignstar.methods.rollouts import RolloutRule
from alignstar.methods.selection import weighted
from alignstar.models import Continuation, TokenModel, Top
from alignstar.rewards import Scorer
from alignstar.sampling import GREEDY, near_tie
from alignstar.types import Candidate, Ids, Prompt, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """A response so far: its tokens' log-probabilities [nats], c as `score`, h as `value`, the lookahead `future`."""

    ids: Ids = ()
    logps: tuple[float, ...] = ()
    score: float = 0.0
    value: float = 0.0
    future: Ids = ()
    ended: bool = False

    @property
    def logp(self) -> float:
        """Log P(y_<=t | x) [nats]."""
        return sum(self.logps)

    def shown(self, known: int) -> Candidate:
        """As a trace shows it, after `known` tokens that are emitted already."""
        return Candidate(
            ids=self.ids[known:],
            logp=sum(self.logps[known:]),
            score=self.score,
            value=self.value,
            future=self.future,
        )


async def deal(
    prompt: Prompt,
    *,
    sft: TokenModel | None = None,
    baseline: TokenModel | None = None,
    reward: Scorer,
    model: p.Model = None,
    beam: p.Beams = 1,
    k: p.K = 10,
    rollout_len: p.Lookahead = 32,
    alpha: p.Alpha = 1.0,
    weight: p.OtherWeight = None,
    max_new_tokens: p.MaxNewTokens = 128,
    seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:
    """A Step whenever all beams agree on more tokens (with `beam` 1: one per token), and one at the end.

    lambda is `weight`, or 1/`alpha`; `seed` changes nothing. Raises NeedsError without the model.
    """
    base = one_model(model, sft, baseline, "deal")
    search = Search(
        prompt=prompt, base=base, reward=reward, k=k, weight=1.0 / alpha if weight is None else weight,
        lookahead=RolloutRule(
            model=base, n=1, length=rollout_len, sampling=GREEDY, past_max=False, stop_on_eos=True, seed=seed
        ),
    )  # fmt: skip
    beams, known, index, near_ties = [Beam()], 0, 0, 0
    for t in range(max_new_tokens):
        pool, doubts = await search.extended(beams, t, max_new_tokens - t - 1)
        beams = sorted(pool, key=lambda b: (-b.score, -b.logp, b.ids))
        over = t + 1 == max_new_tokens or all(b.ended for b in beams[:beam])
        kept = 1 if over else beam
        near_ties += doubts + search.in_doubt(beams, kept, known)
        beams = beams[:kept]

        agreed = shared_start([b.ids for b in beams])
        if len(agreed) == known:
            continue
        current_meter().add("near_ties", near_ties)
        yield Step(
            index=index,
            emitted=agreed[known:],
            considered=tuple(b.shown(known) for b in pool) if len(beams) == 1 else (),
            chosen=pool.index(beams[0]) if len(beams) == 1 else 0,
            near_ties=near_ties,
            finish=None if not over else "stop" if beams[0].ended else "length",
        )
        if over:
            return
        known, index, near_ties = len(agreed), index + 1, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How beams are extended and compared."""

    prompt: Prompt
    base: TokenModel
    reward: Scorer
    k: int
    weight: float
    lookahead: RolloutRule

    async def extended(self, beams: Sequence[Beam], step: int, room: int) -> tuple[list[Beam], int]:
        """The beams that ended and every running one's extensions; and how many near ties were met."""
        running = [b for b in beams if not b.ended]
        found = await together([self._proposed(b, step, room) for b in running])
        rows = [
            (parent, int(z), float(logp), future)
            for parent, (top, futures) in zip(running, found, strict=True)
            for z, logp, future in zip(top.ids, top.logps, futures, strict=True)
        ]
        values = await self.reward(self.prompt, [(*b.ids, z, *future.ids) for b, z, _, future in rows])
        current_meter().add("candidates", len(rows))
        children = [
            Beam(
                ids=(*parent.ids, z),
                logps=(*parent.logps, logp),
                # What differs between siblings is added first: rounding then compares them as it would at the root.
                score=parent.logp + (logp + gain),
                value=float(value),
                future=future.ids,
                ended=z in self.base.eos_ids,
            )
            for (parent, z, logp, future), value, gain in zip(
                rows, values, weighted(values, self.weight).tolist(), strict=True
            )
        ]
        near_ties = sum(top.near_tie + sum(future.near_ties for future in futures) for top, futures in found)
        return [*(b for b in beams if b.ended), *children], near_ties

    async def _proposed(self, beam: Beam, step: int, room: int) -> tuple[Top, list[Continuation]]:
        """A beam's next tokens, and where each leads."""
        state = self.prompt.ids + beam.ids
        top = await self.base.top_next(state, self.k)
        futures = await self.lookahead.after(state, top.ids.tolist(), step, room)
        return top, [drawn[0] for drawn in futures]

    def in_doubt(self, ranked: Sequence[Beam], kept: int, known: int) -> bool:
        """Whether the last of the `kept` best and the next one are within tolerance; they share `known` tokens."""
        useless = np.isneginf(ranked[0].score)  # then the most probable are kept
        apart = max(len(b.ids) for b in ranked) - known
        tolerance = self.base.tie_tolerance * (apart + (0.0 if useless else self.weight))
        cut = ranked[kept - 1 : kept + 1]
        return near_tie([b.logp if useless else b.score for b in cut], tolerance)


def shared_start(rows: Sequence[Ids]) -> Ids:
    """The tokens that all rows begin with."""
    pairs = zip(min(rows), max(rows), strict=False)  # the two that differ first
    return tuple(z for z, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
