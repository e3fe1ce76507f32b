"""A value head with layers of its own: head and branch fitted together, by reading whole rows of text at every step.

The model below and beside the branch stays as it is. Knows tensors, heads and branches; rollouts come from
`rollouts.py`, the losses are those of `value.py`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alignstar.models.hf.branch import Branch, Grafted, branch_of, truncated
from alignstar.models.hf.classifier import chains
from alignstar.models.hf.value import HeadConfig, ValueHead
from alignstar.sampling import IntArray
from alignstar.train.head_training import HeadTraining, learn
from alignstar.train.rollouts import Seen
from alignstar.train.settings import OnProgress, untold
from alignstar.train.value import POSITIONS, Fitted, held_out, moments, shuffled
from alignstar.types import Ids

ALIKE = 16
"""So many batches' rows are sorted by length together, so that a batch's rows are of about one length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedBranch(Fitted):
    """A head that reads `branch`."""

    branch: Branch


def fit_branch(
    model: Any,
    config: HeadConfig,
    seen: Sequence[Seen],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    branch_learning_rate: float,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress = untold,
) -> FittedBranch:
    """Head and branch of the epoch that is best on held-out prompts, by 1/2 (V - reward)^2.

    A step takes whole rows, of about `batch_size` examples and at most POSITIONS positions. The same seed gives equal
    weights on the same machine; `checkpoint` as in `fit`. Raises ModelError where the model has no such layers,
    FailedError where the loss is not finite.
    """
    branch = branch_of(model, config.layer, config.branch, name=config.base)
    lines = Lines(seen, rank=config.rank)
    mean, scale = moments(lines.rewards, lines.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ValueHead(replace(config, mean=mean, scale=scale)).to(model.device)
    with _frozen(model):
        branch.requires_grad_(True)
        grafted = Grafted(truncated(model, config.layer, name=config.base), branch.eval())  # without dropout
        embeddings = model.get_input_embeddings().weight.detach()
        lesson = Reading(head, grafted, embeddings, lines, batch_size=batch_size, seed=seed)
        going = HeadTraining(
            torch.nn.ModuleDict({"head": head, "branch": branch}),
            learning_rate=learning_rate, rates={"branch": branch_learning_rate}, steps=epochs * lesson.steps,
        )  # fmt: skip
        learn(going, lesson, epochs=epochs, learning_rate=learning_rate, checkpoint=checkpoint, on_progress=on_progress)
    spread = float(lines.rewards[lesson.held].var(correction=0))
    return FittedBranch(
        head=head.eval(),
        branch=branch.eval(),
        losses=tuple(going.losses),
        held_out=tuple(going.held_out),
        explained=1.0 - 2.0 * going.least / spread if spread else 0.0,
    )


class Lines:
    """What was seen, by rows of text that hold it: N examples at `position` [N] of `row` [N]."""

    def __init__(self, seen: Sequence[Seen], *, rank: int) -> None:
        read = [s.state if rank else s.reached for s in seen]
        groups = chains(read)
        place = {text: number for number, group in enumerate(groups) for text in group}
        self.texts: list[Ids] = [group[-1] for group in groups]
        self.lengths: IntArray = np.array([len(text) for text in self.texts])
        self.row = torch.tensor([place[text] for text in read])
        self.position = torch.tensor([len(text) - 1 for text in read])
        self.token = torch.tensor([s.token for s in seen])
        self.rewards = torch.tensor([s.reward for s in seen], dtype=torch.float32)
        self.weights = torch.tensor([s.weight for s in seen], dtype=torch.float32)
        self.prompt = torch.tensor([s.prompt for s in seen])


class Reading:
    """A Lesson of rows of text that are read anew whenever they are asked for. `held` [N] marks what is held out."""

    def __init__(
        self, head: ValueHead, grafted: Grafted, embeddings: torch.Tensor, lines: Lines, *, batch_size: int, seed: int
    ) -> None:
        self.head = head
        self.grafted = grafted
        self.embeddings = embeddings
        self.lines = lines
        self.seed = seed
        apart = held_out(lines.prompt, torch.Generator().manual_seed(seed))
        self.held = apart if apart.any() else ~apart
        self.taught = _by_row(lines, ~apart)
        self.asked = _by_row(lines, self.held)
        self.rows: IntArray = np.array(sorted(self.taught))
        wanted = round(batch_size * len(self.rows) / int((~apart).sum()))
        self.size = max(1, min(wanted, POSITIONS // int(lines.lengths.max())))

    @property
    def steps(self) -> int:
        """See Lesson."""
        return -(-len(self.rows) // self.size)

    def batches(self, epoch: int) -> Iterator[IntArray]:
        """See Lesson."""
        order = self.rows[shuffled(len(self.rows), seed=self.seed, epoch=epoch)]
        made: list[IntArray] = []
        for start in range(0, len(order), ALIKE * self.size):
            some = order[start : start + ALIKE * self.size]
            alike = some[np.argsort(self.lines.lengths[some], kind="stable")]
            made.extend(alike[at : at + self.size] for at in range(0, len(alike), self.size))
        yield from (made[i] for i in shuffled(len(made), seed=self.seed, epoch=-1 - epoch))

    def loss(self, rows: IntArray) -> torch.Tensor:
        """See Lesson."""
        errors, weights = self._errors(rows.tolist(), self.taught)
        return errors.sum() / weights.sum()

    @torch.no_grad()
    def judged(self) -> float:
        """See Lesson."""
        rows = sorted(self.asked, key=lambda row: len(self.lines.texts[row]))
        total = weight = 0.0
        while rows:
            longest = len(self.lines.texts[rows[-1]])
            batch, rows = rows[-max(1, POSITIONS // longest) :], rows[: -max(1, POSITIONS // longest)]
            errors, weights = self._errors(batch, self.asked)
            total, weight = total + float(errors.sum()), weight + float(weights.sum())
        return total / weight

    def _errors(self, rows: Sequence[int], examples: dict[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted errors [n] of the rows' examples and their weights [n]."""
        texts = [self.lines.texts[row] for row in rows]
        longest = max(map(len, texts))
        device = self.embeddings.device
        tokens = torch.tensor([[*text, *([0] * (longest - len(text)))] for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = (torch.arange(longest, device=device)[None] < lengths[:, None]).long()
        size = self.head.config.state_size
        hidden = self.grafted(input_ids=tokens, attention_mask=mask).last_hidden_state[..., -size:]
        which = torch.cat([examples[row] for row in rows])
        at = torch.cat([torch.full((len(examples[row]),), place) for place, row in enumerate(rows)])
        states = hidden[at.to(device), self.lines.position[which].to(device)]
        told = self.head(states.float(), self.embeddings[self.lines.token[which].to(device)].float()).cpu()
        weights = self.lines.weights[which]
        return weights * 0.5 * (told - self.lines.rewards[which]) ** 2, weights


def _by_row(lines: Lines, chosen: torch.Tensor) -> dict[int, torch.Tensor]:
    """The numbers of the chosen [N] examples, by their row."""
    numbers = chosen.nonzero()[:, 0]
    order = numbers[torch.argsort(lines.row[numbers], stable=True)]
    rows, counts = lines.row[order].unique_consecutive(return_counts=True)
    return dict(zip(rows.tolist(), order.split(counts.tolist()), strict=True))


@contextmanager
def _frozen(model: Any) -> Generator[None]:
    """Inside, no gradient of the model's own weights is kept."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
