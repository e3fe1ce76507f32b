"""A value model that is a table: exact, for tests and enumeration. Costs are charged as a transformers head's would be.

Knows the contract of `models.value` and token ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from alignstar.meter import current_meter
from alignstar.sampling import Array, IntArray, Noise
from alignstar.types import Ids


class ToyValue:
    """A ValueModel whose value is a pure function of the prefix.

    `per_token` says which of the questions it was made for: True reads a state once for all next tokens. What it reads
    is charged as `share` of a language model's position; 0: read off the decoding model's own forward, which is free.
    """

    def __init__(
        self,
        rule: Callable[[Ids], float],
        *,
        per_token: bool = True,
        share: float = 0.0,
        name: str = "toy value",
        max_context: int | None = None,
    ) -> None:
        self._rule = rule
        self._per_token = per_token
        self.share = share
        self.name = name
        self.max_context = max_context

    @classmethod
    def random(cls, seed: int, *, per_token: bool = True, share: float = 0.0) -> ToyValue:
        """A value in (0, 1) for every prefix."""

        def rule(prefix: Ids) -> float:
            return float(Noise(seed=seed, purpose=f"toy value {prefix}").uniform(0, 1)[0])

        return cls(rule, per_token=per_token, share=share, name=f"toy value {seed}")

    def value(self, prefix: Ids) -> float:
        """V(s), free of charge."""
        return self._rule(prefix)

    async def prefix_values(self, prefixes: Sequence[Ids]) -> Array:
        """See PrefixScorer."""
        await asyncio.sleep(0)
        self._charge([prefix[:-1] if self._per_token else prefix for prefix in prefixes])
        return np.array([self._rule(prefix) for prefix in prefixes])

    async def next_values(self, prefix: Ids, ids: IntArray) -> Array:
        """See TokenValues."""
        await asyncio.sleep(0)
        prefixes = [(*prefix, int(z)) for z in ids]
        self._charge([prefix] if self._per_token else prefixes)
        return np.array([self._rule(each) for each in prefixes])

    def _charge(self, read: Sequence[Ids]) -> None:
        if self.share:
            current_meter().read(self, read, share=self.share)
