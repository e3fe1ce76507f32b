"""Responses drawn a part at a time. A row goes on with the noise it was begun with: its parts make what one draw makes.

Knows one model and one request's Scorer (for what ends a response); knows nothing of how rows are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alignstar.models import Sampler
from alignstar.rewards import Scorer
from alignstar.sampling import Array, Noise, Sampling, near_tie, stable_argmax
from alignstar.types import Candidate, Ids, Prompt, Step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """A response under way: `ids` so far with `logps` [len(ids)] nats; `near_ties` are those of its newest part.

    `ended` says that it is complete: its last token is an end-of-sequence token, or its text holds a stop string.
    """

    noise: Noise
    ids: Ids = ()
    logps: Array = field(default_factory=lambda: np.zeros(0))
    ended: bool = False
    near_ties: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """How rows are drawn."""

    model: Sampler
    prompt: Prompt
    scorer: Scorer
    sampling: Sampling

    async def extended(self, row: Row, tokens: int, *, n: int = 1) -> list[Row]:
        """`n` rows that continue `row` by at most `tokens`; row i uses its noise with `rollout` raised by i."""
        drawn = await self.model.continue_(
            self.prompt.ids + row.ids, max_new_tokens=tokens, n=n, sampling=self.sampling, noise=row.noise
        )
        return [
            Row(
                noise=replace(row.noise, rollout=row.noise.rollout + i),
                ids=row.ids + part.ids,
                logps=np.concatenate([row.logps, part.logps]),
                ended=part.ended or self.scorer.reply(row.ids + part.ids).complete,
                near_ties=part.near_ties,
            )
            for i, part in enumerate(drawn)
        ]


def step_of_best(rows: Sequence[Row], rewards: Sequence[float], *, near_ties: int, tolerance: float) -> Step:
    """The one Step of a method that returns the row of highest reward, the first one on ties.

    `near_ties` are those found on the way; the choice among the rows may add one. Equal responses are no doubt.
    """
    best = stable_argmax(rewards, np.zeros(len(rows)), range(len(rows)))
    rivals = [r for row, r in zip(rows, rewards, strict=True) if row.ids != rows[best].ids]
    return Step(
        index=0,
        emitted=rows[best].ids,
        considered=tuple(
            Candidate(ids=row.ids, logp=float(row.logps.sum()), score=float(r), value=float(r))
            for row, r in zip(rows, rewards, strict=True)
        ),
        chosen=best,
        near_ties=near_ties + near_tie([rewards[best], *rivals], tolerance),
        finish="stop" if rows[best].ended else "length",
    )
