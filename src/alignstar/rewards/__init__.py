"""What a reward is: text in, one float per reply out.

A reward knows nothing of the language model's tokens. `Scorer` is what a method holds: it turns token ids into replies
(text without special tokens and stop strings), asks the reward, and deals with numbers that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from alignstar.errors import RewardError
from alignstar.meter import current_meter
from alignstar.sampling import Array
from alignstar.text import Codec, Stops
from alignstar.types import Ids, Prompt, Reply


class Reward(Protocol):
    """Scores replies to one prompt. May be called concurrently, from any event loop."""

    @property
    def name(self) -> str:
        """What to call it in messages and tables."""
        ...

    @property
    def range(self) -> tuple[float, float] | None:
        """Bounds that hold for every reply by construction; None where there are none."""
        ...

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """One float per reply, in order. NaN is allowed (and counted by the caller), +inf is an error."""
        ...


class Scorer:
    """A reward bound to one request's codec and stop strings, for methods that know token ids only."""

    def __init__(self, reward: Reward, codec: Codec, stops: Stops | None = None) -> None:
        self.reward = reward
        self.codec = codec
        self.stops = stops or Stops(())

    @property
    def range(self) -> tuple[float, float] | None:
        """The reward's declared bounds."""
        return self.reward.range

    def reply(self, ids: Ids) -> Reply:
        """The reply that these response tokens make: complete if they end with EOS or contain a stop string."""
        ended = bool(ids) and ids[-1] in self.codec.eos_ids
        text, stopped = self.stops.cut(self.codec.decode(ids))
        return Reply(text=text, complete=ended or stopped, ids=ids)

    async def __call__(self, prompt: Prompt, responses: Sequence[Ids]) -> Array:
        """Rewards [len(responses)] in order; NaN becomes -inf, or the declared minimum, and is counted."""
        return await self.replies(prompt, [self.reply(ids) for ids in responses])

    async def verbatim(self, prompt: Prompt, responses: Sequence[Ids], *, fill_to_longest: bool = True) -> Array:
        """Rewards [len(responses)] of the whole decoded text, special tokens kept, as the published code scores it.

        With `fill_to_longest` shorter responses are filled with the pad token up to the longest of this call, as a
        batched `generate` leaves them; the fill stays in the text.
        """
        longest = max((len(ids) for ids in responses), default=0) if fill_to_longest else 0
        replies = [
            replace(
                self.reply(ids),
                verbatim=self.codec.decode(
                    prompt.ids + ids + (self.codec.pad_id,) * max(0, longest - len(ids)), special=True
                ),
            )
            for ids in responses
        ]
        return await self.replies(prompt, replies)

    async def replies(self, prompt: Prompt, replies: Sequence[Reply]) -> Array:
        """The same for replies that are made already."""
        if not replies:
            return np.zeros(0)
        scores = await self.reward.score(prompt, replies)
        if len(scores) != len(replies):
            raise RewardError(
                f"Reward {self.reward.name!r} gave {len(scores)} scores for {len(replies)} replies; one each is needed."
            )
        return np.array([self._finite(float(score)) for score in scores])

    def _finite(self, score: float) -> float:
        if math.isnan(score):
            current_meter().add("nan_rewards")
            return -math.inf if self.range is None else self.range[0]
        if score == math.inf:
            raise RewardError(
                f"Reward {self.reward.name!r} gave +inf, which no response can be compared with; bound it with clip."
            )
        return score
