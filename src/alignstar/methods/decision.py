"""From values to a choice (Transfer Q*, Eq. 12 and 17): scores, winner protection, the best complete response seen.

Knows arrays and the values of a step; asks no model and no reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alignstar.methods.candidates import Candidates
from alignstar.methods.selection import Choice, choose, perturbed, weighted
from alignstar.methods.transfer import Valued
from alignstar.methods.values import candidate_zscore
from alignstar.models import Continuation
from alignstar.sampling import Array, Noise
from alignstar.types import Candidate, Ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """score(z) = log pi_base(z|s) [+ log M(s, z), `with_m`] + `weight` TQ*(s, z); `temperature` None takes the best.

    `tolerance` is that of one log-probability or reward [nats]; a score's is larger by what it is multiplied with.
    """

    weight: float
    with_m: bool
    beta: float
    zscore: bool
    temperature: float | None
    tolerance: float
    seed: int

    def scores(self, candidates: Candidates, valued: Sequence[Valued], protected: Ids) -> Array:
        """Scores [c]; with a protected token those of less value are -inf (it wins or something better)."""
        tq = np.array([v.value.tq for v in valued])
        values = candidate_zscore(tq) if self.zscore else tq
        scores = candidates.logps + weighted(values, self.weight)
        if self.with_m:
            scores = scores + np.array([v.value.log_m for v in valued])
        if protected and protected[0] in candidates.ids:
            scores = np.where(tq >= tq[candidates.ids.index(protected[0])], scores, -np.inf)
        return scores

    @property
    def score_tolerance(self) -> float:
        """Two scores closer than this are a near tie [nats]."""
        return self.tolerance * (1.0 + self.weight + (2.0 / self.beta if self.with_m else 0.0))

    def doubt(self, bounds: tuple[float, float] | None = None) -> float:
        """What is maximised is not told apart this close [nats]; at least what rounding does to values in `bounds`."""
        largest = 1.0 + self.weight * max(abs(bound) for bound in bounds or (0.0,))
        return max(self.score_tolerance, 1e-12 * largest) / (self.temperature or 1.0)

    def choice(self, scores: Array, candidates: Candidates, step: int) -> Choice:
        """The candidate that is emitted."""
        return choose(
            scores,
            candidates.logps,
            candidates.ids,
            noise=self._noise(step),
            temperature=self.temperature,
            tolerance=self.score_tolerance,
            base_tolerance=self.tolerance,
        )

    def maximised(self, scores: Array, ids: Sequence[int], step: int) -> Array:
        """What `choice` takes the arg-max of [c]: the scores, or scores / temperature plus each candidate's noise."""
        return perturbed(scores, ids, noise=self._noise(step), temperature=self.temperature)

    def _noise(self, step: int) -> Noise:
        return Noise(seed=self.seed, purpose="select", step=step)


def considered(
    candidates: Candidates, scores: Array, valued: Sequence[Valued], futures: Sequence[Sequence[Continuation]]
) -> tuple[Candidate, ...]:
    """The step's candidates as a trace shows them."""
    return tuple(
        Candidate(
            ids=(z,),
            logp=float(logp),
            score=float(score),
            value=v.value.tq,
            future=drawn[0].ids,
            log_m=v.value.log_m if v.value.ess is not None else None,
            ess=v.value.ess,
        )
        for z, logp, score, v, drawn in zip(candidates.ids, candidates.logps, scores, valued, futures, strict=True)
    )


@dataclass(slots=True)
class BestSeen:
    """The complete response of the highest reward among all that were scored; the first one on ties."""

    max_new_tokens: int
    eos_ids: frozenset[int]
    ids: Ids = ()
    reward: float = field(default=-np.inf)

    def see(
        self,
        response: Ids,
        candidates: Sequence[int],
        futures: Sequence[Sequence[Continuation]],
        valued: Sequence[Valued],
    ) -> None:
        """Look at the responses of one step."""
        for z, drawn, v in zip(candidates, futures, valued, strict=True):
            for rollout, reward in zip(drawn, v.rewards, strict=True):
                ids = (*response, z, *rollout.ids)
                complete = ids[-1] in self.eos_ids or len(ids) == self.max_new_tokens
                if complete and reward > self.reward:
                    self.ids, self.reward = ids, float(reward)
