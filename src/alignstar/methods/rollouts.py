"""Rollouts tau ~ rho_BL(.|s, z): where each candidate of a step would lead, and how likely each rollout was.

Knows models; knows neither rewards nor how values are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.meter import together
from alignstar.models import Continuation, TokenModel
from alignstar.sampling import GREEDY, Array, Noise, Sampling, log_softmax, tempered
from alignstar.types import Ids

NO_ROLLOUT = (Continuation(ids=(), logps=np.zeros(0), ended=False),)
"""What stands for the rollouts of a candidate after which there is nothing to roll out: one, of no tokens."""


def rollout_sampling(strategy: str, temperature: float, top_p: float, checkpoint: Sampling) -> Sampling:
    """How rollouts are drawn; `checkpoint` is the model's own default."""
    if strategy == "checkpoint":
        return checkpoint
    return GREEDY if strategy == "greedy" else Sampling(temperature=temperature, top_p=top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRule:
    """How rollouts are made: the `first`-th and those after it, `n` in all.

    `length` None: to the end of the response. Length never exceeds the room left in the response unless `past_max`. A
    candidate that ends the response has no rollout if `stop_on_eos`.

    Of `corrected` rollouts the law that they were drawn from is asked for too, which `log_q` needs.
    """

    model: TokenModel
    n: int
    length: int | None
    sampling: Sampling
    past_max: bool
    stop_on_eos: bool
    seed: int
    corrected: bool = False
    first: int = 0

    @property
    def full_laws(self) -> bool:
        """Whether each rollout carries the whole next-token law of every state visited."""
        return self.corrected and not self.sampling.greedy and self.sampling != Sampling()

    @property
    def open_ended(self) -> bool:
        """Whether a rollout may go on where a response would have ended."""
        return self.past_max or not self.stop_on_eos

    def reach(self, room: int) -> int:
        """Most tokens of a rollout where the response may still take `room`."""
        return room if self.length is None else self.length if self.past_max else min(self.length, room)

    async def after(self, state: Ids, candidates: Sequence[int], step: int, room: int) -> list[Sequence[Continuation]]:
        """Each candidate's rollouts, all started together; `room` is how many tokens the response may still take."""
        length = self.reach(room)
        going_on = [z for z in candidates if length > 0 and not (self.stop_on_eos and z in self.model.eos_ids)]
        noises = [
            Noise(seed=self.seed, purpose="rollout", step=step, candidate=z, rollout=self.first) for z in going_on
        ]
        drawn = await together(
            [self._drawn((*state, z), length, self.n, noise) for z, noise in zip(going_on, noises, strict=True)]
        )
        known = dict(zip(going_on, drawn, strict=True))
        return [known.get(z, NO_ROLLOUT) for z in candidates]

    async def from_prompt(self, prompt: Ids, n: int, room: int) -> Sequence[Continuation]:
        """`n` rollouts of the prompt itself, one token longer than a candidate's (the candidate is theirs too)."""
        length = room if self.length is None else min(self.length + 1, room)
        return await self._drawn(prompt, length, n, Noise(seed=self.seed, purpose="normaliser"))

    async def _drawn(self, prefix: Ids, length: int, n: int, noise: Noise) -> Sequence[Continuation]:
        return await self.model.continue_(
            prefix,
            max_new_tokens=length,
            n=n,
            sampling=self.sampling,
            noise=noise,
            top=self.model.vocab_size if self.full_laws else None,
        )

    def log_q(self, rollout: Continuation) -> float:
        """log-probability of a rollout under the law that it was drawn from [nats].

        A greedy rollout's law is a point mass, with which no ratio is defined: its model's own law stands in.
        """
        if not self.full_laws:
            return float(rollout.logps.sum())
        total = 0.0
        for z, top in zip(rollout.ids, rollout.tops, strict=False):
            law: Array = np.full(self.model.vocab_size, -np.inf)
            law[top.ids] = top.logps
            total += float(log_softmax(tempered(law, self.sampling))[z])
        return total
