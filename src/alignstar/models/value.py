"""What a value model can be asked: the expected final reward of a response that goes on from here.

Knows token ids; knows no reward, no method and no model's inside. Values are in the unit of the reward that the value
model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from alignstar.sampling import Array, IntArray
from alignstar.types import Ids


class PrefixScorer(Protocol):
    """V(s): one number per prefix (Controlled Decoding's prefix scorer)."""

    @property
    def name(self) -> str:
        """What to call it in messages: a path."""
        ...

    @property
    def max_context(self) -> int | None:
        """Most positions that it can read; None where there is no limit."""
        ...

    async def prefix_values(self, prefixes: Sequence[Ids]) -> Array:
        """V [len(prefixes)] of whole prefixes (prompt and response so far). Raises EngineError if a forward fails."""
        ...


class TokenValues(Protocol):
    """Q(s, .): the values of the prefixes that next tokens make, from what is known of s."""

    async def next_values(self, prefix: Ids, ids: IntArray) -> Array:
        """Q(s, z) = V([s, z]) [len(ids)] of next tokens. Raises EngineError if a forward fails."""
        ...


class ValueModel(PrefixScorer, TokenValues, Protocol):
    """Both questions. One of them is what the value model was made for; the other one it answers with that.

    A prefix scorer needs a forward per token for Q(s, z), token values need the state before the last token for V.
    """
