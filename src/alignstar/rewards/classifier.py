"""A reward model: a sequence classifier with its own tokenizer and template.

Knows how its outputs become one number and what reading costs. What it reads is `rewards.rendering`, the forward is
asked of `Heads`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from alignstar.errors import OptionError
from alignstar.meter import current_meter
from alignstar.rewards.rendering import EndOfTurn, Rendering
from alignstar.types import Ids, Prompt, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Outputs(Protocol):
    """An answer of `Heads` with what it took."""

    @property
    def value(self) -> list[list[float]]:
        """Raw head outputs, [texts][labels]."""
        ...

    @property
    def computed(self) -> int:
        """Positions pushed through the model."""
        ...

    @property
    def held(self) -> int:
        """Most KV positions held meanwhile."""
        ...


class Heads(Protocol):
    """A sequence classifier's forward."""

    @property
    def name(self) -> str:
        """What to call it in messages: a path, an id."""
        ...

    @property
    def labels(self) -> int:
        """How many outputs the head gives for a text."""
        ...

    async def outputs(self, texts: Sequence[Ids]) -> Outputs:
        """The head's outputs at the last token of each text, or at the encoder's own position."""
        ...


class ClassifierReward:
    """A head's output, or a weighted sum of several, for each reply.

    `output` chooses one output by index, `weights` gives a factor per output (or index to factor); a head with one
    output needs neither. `end_of_turn`, `template` and `max_context` are those of `Rendering`. `causal` says that a
    token's state depends on nothing after it, so that what texts have in common counts once; for an encoder every text
    counts whole. Raises OptionError where the choice does not fit the head.
    """

    def __init__(
        self,
        heads: Heads,
        tokenizer: PreTrainedTokenizerBase,
        *,
        output: int | None = None,
        weights: Sequence[float] | Mapping[int, float] | None = None,
        end_of_turn: EndOfTurn = "complete",
        template: str | None = None,
        max_context: int | None = None,
        causal: bool = True,
    ) -> None:
        self.name = heads.name
        self.range: tuple[float, float] | None = None
        self.end_of_turn = end_of_turn
        self.max_context = max_context
        self._heads = heads
        self._causal = causal
        self._factors = _factors(heads, output, weights)
        self.rendering = Rendering(
            tokenizer, name=heads.name, end_of_turn=end_of_turn, template=template, max_context=max_context
        )

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """One number per reply. Charges the positions of each text that this request had not given the model before."""
        texts = [self.rendering.ids(prompt, reply) for reply in replies]
        answer = await self._heads.outputs(texts)
        self._charge(texts, answer)
        return [sum(factor * row[i] for i, factor in self._factors) for row in answer.value]

    def _charge(self, texts: Sequence[Ids], answer: Outputs) -> None:
        meter = current_meter()
        meter.add("rm_calls", len(texts))
        before = meter.counts.get("rm_tokens", 0)
        for ids in texts:
            if self._causal:
                # One at a time: what two replies have in common (the prompt) is read once.
                meter.forward(self._heads, ids, reward=True, held=answer.held)
            else:
                meter.add("rm_tokens", len(ids))
        charged = meter.counts.get("rm_tokens", 0) - before
        meter.add("cached_tokens", max(0, charged - answer.computed))
        meter.add("recomputed_tokens", max(0, answer.computed - charged))


def _factors(
    heads: Heads, output: int | None, weights: Sequence[float] | Mapping[int, float] | None
) -> list[tuple[int, float]]:
    """Which outputs count, and by how much."""
    last = heads.labels - 1
    if output is not None and weights is not None:
        raise OptionError(f"output={output} and weights={weights} exclude each other; give one of them.")
    if output is not None:
        if not 0 <= output <= last:
            raise OptionError(f"output={output} must lie in 0..{last}: reward {heads.name!r} has {last + 1} output(s).")
        return [(output, 1.0)]
    if weights is None:
        if last > 0:
            raise OptionError(
                f"Reward {heads.name!r} has {last + 1} outputs and none is chosen; give output=0..{last}, or weights."
            )
        return [(0, 1.0)]
    if not isinstance(weights, Mapping):
        if len(weights) != heads.labels:
            raise OptionError(
                f"weights={list(weights)} has {len(weights)} entries; reward {heads.name!r} has {last + 1} output(s)."
            )
        weights = dict(enumerate(weights))
    if not weights or not all(0 <= i <= last and math.isfinite(w) for i, w in weights.items()):
        raise OptionError(f"weights={dict(weights)} must give finite numbers to outputs 0..{last} of {heads.name!r}.")
    return list(weights.items())
