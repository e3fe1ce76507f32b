"""Toy models that count for themselves what is pushed through them, by sets alone; and one that tells text only.

For tests of accounting: every position of a call costs that no earlier call had; the rows of one call share nothing
but their prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignstar.models.toy import ToyModel, ToyReward
from alignstar.types import Ids, Prompt


class Counted:
    """Positions pushed so far."""

    def __init__(self) -> None:
        self.tokens = 0
        self.known: set[Ids] = set()

    def push(self, prefix: Ids, rows: Sequence[Ids]) -> None:
        heads = {prefix[: i + 1] for i in range(len(prefix))}
        tails = [{prefix + row[: i + 1] for i in range(len(row))} for row in rows]
        self.tokens += len(heads - self.known) + sum(len(tail - self.known) for tail in tails)
        self.known.update(heads, *tails)


class CountedModel(ToyModel):
    """A model that counts for itself."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.counted = Counted()

    async def continue_(self, prefix: Ids, **options: Any):
        """See Sampler."""
        rows = await super().continue_(prefix, **options)
        drawn = rows[:1] if "sampling" not in options or options["sampling"].greedy else rows
        if options["max_new_tokens"]:
            self.counted.push(prefix, [row.ids[:-1] for row in drawn])
        return rows

    async def top_next(self, prefix: Ids, k: int | None = None):
        """See TokenModel."""
        told = await super().top_next(prefix, k)
        self.counted.push(prefix, [])
        return told

    async def next_logprobs(self, prefix: Ids, ids: Any):
        """See TokenModel."""
        told = await super().next_logprobs(prefix, ids)
        self.counted.push(prefix, [])
        return told

    async def logprobs(self, prefix: Ids, continuation: Ids):
        """See TokenModel."""
        told = await super().logprobs(prefix, continuation)
        if continuation:
            self.counted.push(prefix, [continuation[:-1]])
        return told


class CountedReward(ToyReward):
    """A reward that counts for itself."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counted = Counted()
        self.replies = 0

    async def score(self, prompt: Prompt, replies: Any) -> list[float]:
        """See Reward."""
        scores = await super().score(prompt, replies)
        self.replies += len(replies)
        self.counted.push(tuple(map(ord, prompt.text)), [tuple(map(ord, reply.text)) for reply in replies])
        return scores


class TextOnly:
    """A Sampler and no TokenModel: what a text service can do."""

    def __init__(self, model: ToyModel) -> None:
        self.name = model.name
        self.eos_ids = model.eos_ids
        self.max_context = model.max_context
        self.tie_tolerance = model.tie_tolerance
        self.default_sampling = model.default_sampling
        self.continue_ = model.continue_
