"""Transfer Q* by a value head: TQ*(s, z) of every next token as a head tells it, instead of rollouts or before them.

Knows a value model, candidates and values; rolls nothing out. The head was trained on rollouts of the baseline
(`alignstar train value`, loss transfer-q).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignstar.methods.candidates import Candidates
from alignstar.methods.decision import Decision
from alignstar.methods.transfer import Valued
from alignstar.methods.values import direct
from alignstar.models import Continuation
from alignstar.models.value import TokenValues
from alignstar.sampling import Array, near_tie
from alignstar.types import Ids, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRule:
    """In a TransferRule's place: the head's Q(s, z) for what rollouts would tell."""

    head: TokenValues

    async def log_z(self, prompt: Prompt, room: int) -> float:
        """No rollout, no normaliser."""
        return 0.0

    async def values(
        self,
        prompt: Prompt,
        response: Ids,
        candidates: Sequence[int],
        futures: Sequence[Sequence[Continuation]],
        log_z: float,
    ) -> list[Valued]:
        """TQ*(s, z) of every candidate; one forward tells all."""
        return [_valued(q) for q in await self.head.next_values(prompt.ids + response, np.array(candidates))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilter:
    """Leaves the `top` candidates of the highest score by the head's values; the score is that of `decision`."""

    head: TokenValues
    top: int
    decision: Decision

    async def __call__(self, state: Ids, step: int, candidates: Candidates, protected: Ids) -> Candidates:
        """The best candidates in their old order; `protected` ones stay."""
        if self.top >= len(candidates.ids):
            return candidates
        values = await self.head.next_values(state, np.array(candidates.ids))
        scores = self.decision.scores(candidates, [_valued(q) for q in values], ())
        maximised: Array = self.decision.maximised(scores, candidates.ids, step)
        order = sorted(
            range(len(candidates.ids)), key=lambda i: (-maximised[i], -candidates.logps[i], candidates.ids[i])
        )
        doubt = near_tie(maximised[order[self.top - 1 : self.top + 1]], self.decision.doubt())
        kept = sorted({*order[: self.top], *(candidates.ids.index(z) for z in protected if z in candidates.ids)})
        return replace(
            candidates,
            ids=tuple(candidates.ids[i] for i in kept),
            logps=candidates.logps[kept],
            near_ties=candidates.near_ties + doubt,
        )


def _valued(q: float) -> Valued:
    rewards = np.array([float(q)])
    return Valued(value=direct(rewards), rewards=rewards)
