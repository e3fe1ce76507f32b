"""A sequence classifier on the engine: head outputs for token sequences.

Knows token ids and heads' outputs; text, templates and what the outputs mean are `alignstar.rewards.classifier`'s
business. Texts that begin alike share their beginning: the prompt, and the response so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from alignstar.engine import Engine
from alignstar.models.hf.network import Network
from alignstar.models.hf.rows import Row, RowRequest, RowWorker, Served
from alignstar.radix import common
from alignstar.types import Ids

Outputs = list[list[list[float]]]
"""Head outputs [B][want][labels]."""


def read_outputs(tensor: torch.Tensor) -> Outputs:
    """Head outputs [B, want, labels] as lists."""
    return tensor.to(torch.float64).cpu().tolist()


def chains(texts: Sequence[Ids]) -> list[list[Ids]]:
    """Different texts in groups, each text the beginning of the next one: a causal model reads a group in one row."""
    groups: list[list[Ids]] = []
    for text in sorted(set(texts)):  # in this order nothing comes between a text and what it begins, but its like
        if groups and text[: len(groups[-1][-1])] == groups[-1][-1]:
            groups[-1].append(text)
        else:
            groups.append([text])
    return groups


def positions(texts: Sequence[Ids]) -> int:
    """Different positions of all texts together: those of a common beginning count once."""
    total = 0
    before: Ids = ()
    for text in sorted(set(texts)):  # what a text shares with any earlier one, it shares with the one before it
        total += len(text) - common(before, text)
        before = text
    return total


class ScoreRequest(RowRequest[list[list[float]]]):
    """Head outputs at the last token of each text; what equal texts and equal beginnings share is computed once."""

    def __init__(self, texts: Sequence[Ids], *, causal: bool) -> None:
        super().__init__()
        self.texts = list(texts)
        self.causal = causal
        self.outputs: dict[Ids, list[float]] = {}
        if causal:  # a row reads its last positions anew, also where another row has read them
            again = sum(len(chain[-1]) - len(chain[0]) + 1 for chain in chains(self.texts))
            self.worst = positions(self.texts) + again
        else:
            self.worst = sum(len(text) for text in set(self.texts))

    def begin(self, worker: RowWorker) -> None:
        """Take what is remembered; one row per chain of the other texts."""
        different = dict.fromkeys(self.texts)
        if worker.cache is not None:
            for text in different:
                worker.cache.follow(text, lambda note, text=text: self._recall(text, note))
        left = [text for text in different if text not in self.outputs]
        for chain in chains(left) if self.causal else [[text] for text in left]:
            longest = chain[-1]
            worker.add(self, longest, want=len(longest) - len(chain[0]) + 1, state=chain)
        if not left:
            self.answer([self.outputs[text] for text in self.texts])

    def _recall(self, text: Ids, note: object) -> None:
        assert isinstance(note, list)
        self.outputs.setdefault(text, cast("list[float]", note))

    def advance(self, worker: RowWorker, row: Row, outputs: Outputs, index: int) -> None:
        """Keep the outputs; answer when every text has its own."""
        for text in row.state:
            back = len(row.ids) - len(text)
            self.outputs[text] = outputs[index][-1 - back]
            row.notes[len(text) - 1] = self.outputs[text]
        worker.finish(row)
        if not self.rows:
            self.answer([self.outputs[text] for text in self.texts])


class HFClassifier:
    """Head outputs of a transformers classifier, asked from any event loop (the `Heads` protocol of rewards)."""

    def __init__(
        self,
        network: Network,
        engine: Engine,
        *,
        labels: int,
        max_context: int | None,
        kv_tokens: int,
        max_tokens: int = 2048,
    ) -> None:
        self.network = network
        self.engine = engine
        self.labels = labels
        self.max_context = max_context
        self.worker = RowWorker(network, kv_capacity=kv_tokens, max_tokens=max_tokens, read=read_outputs)

    @property
    def name(self) -> str:
        """Path or id."""
        return self.network.name

    @property
    def causal(self) -> bool:
        """Whether texts that begin alike need not be read twice."""
        return self.network.causal

    @property
    def reuse(self) -> bool:
        """Whether prefixes are reused (causal, and the load-time self-check passed)."""
        return self.network.reuse

    async def outputs(self, texts: Sequence[Ids]) -> Served[list[list[float]]]:
        """Head outputs [len(texts)][labels] at each text's last token. Raises EngineError if a forward fails."""
        return await self.engine.ask(self.worker, ScoreRequest(texts, causal=self.network.causal))
