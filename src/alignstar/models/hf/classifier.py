"""A sequence classifier on the engine: head outputs for token sequences.

Knows token ids and heads' outputs; text, templates and what the outputs mean are `alignstar.rewards.classifier`'s
business. Texts that begin alike share their beginning: the prompt, and the response so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignstar.engine import Engine
from alignstar.models.hf.network import Network
from alignstar.models.hf.rows import Row, RowRequest, RowWorker, Served
from alignstar.types import Ids

Outputs = list[list[float]]


def read_outputs(tensor: torch.Tensor) -> Outputs:
    """Head outputs [B, 1, labels] as lists."""
    return tensor[:, -1].to(torch.float64).cpu().tolist()


class ScoreRequest(RowRequest[list[list[float]]]):
    """Head outputs at the last token of each text; equal texts are computed once."""

    def __init__(self, texts: Sequence[Ids]) -> None:
        super().__init__()
        self.texts = list(texts)
        self.outputs: dict[Ids, list[float]] = {}
        # A text needs at most its own length; texts that share a beginning need less, which is found out row by row.
        self.worst = sum(len(text) for text in dict.fromkeys(self.texts))

    def begin(self, worker: RowWorker) -> None:
        """One row per different text."""
        for text in dict.fromkeys(self.texts):
            worker.add(self, text, state=text)
        if not self.texts:
            self.answer([])

    def advance(self, worker: RowWorker, row: Row, outputs: Outputs, index: int) -> None:
        """Keep the outputs; answer when every text has its own."""
        self.outputs[row.state] = outputs[index]
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
        return await self.engine.ask(self.worker, ScoreRequest(texts))
