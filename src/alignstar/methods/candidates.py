"""Candidate tokens of a step: Algorithm 1's "C = k candidate tokens from pi_BL", and the other rules people use.

Knows models and arrays; knows neither rewards nor rollouts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.meter import together
from alignstar.models import TokenModel, Top
from alignstar.sampling import Array, IntArray, Noise, near_tie, top_ids
from alignstar.types import Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Candidate tokens of one state: `ids` [c], best of the source first, and finite base `logps` [c]."""

    ids: tuple[int, ...]
    logps: Array
    near_ties: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRule:
    """How candidates are proposed: by which models (`sources`), by which rule, and judged by which `base` policy."""

    sources: Sequence[TokenModel]
    base: TokenModel
    rule: str
    k: int
    top_p: float
    seed: int
    prefilter: Callable[[Ids, int, Candidates, Ids], Awaitable[Candidates]] | None = None

    async def at(self, state: Ids, step: int, protected: Ids = ()) -> Candidates:
        """The candidates after `state`, `protected` tokens among them; those that a `prefilter` leaves.

        Tokens that the base policy forbids (log-probability -inf) are dropped; if none is left its best token stands.
        """
        found = await self._found(state, step, protected)
        return found if self.prefilter is None else await self.prefilter(state, step, found, protected)

    async def _found(self, state: Ids, step: int, protected: Ids) -> Candidates:
        tops = await together([self._proposed(source, state, step) for source in self.sources])
        ids = tuple(dict.fromkeys([*(int(z) for top in tops for z in top.ids), *protected]))
        known = dict(zip(tops[0].ids.tolist(), tops[0].logps.tolist(), strict=True))
        if self.base is not self.sources[0] or len(known) < len(ids):
            logps = await self.base.next_logprobs(state, np.array(ids, dtype=np.int64))
        else:
            logps = np.array([known[z] for z in ids])
        kept = [i for i, logp in enumerate(logps) if np.isfinite(logp)]
        near_ties = sum(top.near_tie for top in tops)
        if not kept:
            best = await self.base.top_next(state, 1)
            return Candidates(ids=(int(best.ids[0]),), logps=best.logps, near_ties=near_ties + best.near_tie)
        return Candidates(ids=tuple(ids[i] for i in kept), logps=logps[kept], near_ties=near_ties)

    def kept(self, best: Top, tolerance: float) -> Top:
        """Those of a state's best tokens that the rule takes ("sample_without_replacement" has another way)."""
        return nucleus(best, self.top_p, tolerance) if self.rule == "topp" else best

    async def _proposed(self, source: TokenModel, state: Ids, step: int) -> Top:
        if self.rule == "full":
            return await source.top_next(state)
        if self.rule == "sample_without_replacement":
            everything = await source.top_next(state)
            noise = Noise(seed=self.seed, purpose="candidates", step=step)
            return gumbel_top_k(everything, self.k, noise, source.vocab_size, source.tie_tolerance)
        return self.kept(await source.top_next(state, self.k), source.tie_tolerance)


def gumbel_top_k(everything: Top, k: int, noise: Noise, vocab_size: int, tolerance: float) -> Top:
    """Draw k without replacement: the k best of log-probability plus Gumbel noise (Kool et al. 2019)."""
    perturbed = everything.logps + noise.gumbel(0, vocab_size)[everything.ids]
    order: IntArray = top_ids(perturbed, k + 1)
    doubt = len(order) > k and near_tie(perturbed[order[k - 1 :]], tolerance)
    kept = order[:k]
    return Top(ids=everything.ids[kept], logps=everything.logps[kept], near_tie=doubt)


def nucleus(top: Top, top_p: float, tolerance: float) -> Top:
    """The smallest set of best tokens with probability `top_p`; all of `top` where it covers less."""
    p = np.exp(top.logps)
    kept = int(np.sum(np.cumsum(p) - p < top_p))
    doubt = top.near_tie if kept == len(p) else near_tie(top.logps[kept - 1 : kept + 1], tolerance)
    return Top(ids=top.ids[:kept], logps=top.logps[:kept], near_tie=doubt)
