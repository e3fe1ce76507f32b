"""Value heads: V(s) or Q(s, z) by regression on rollouts, over a frozen language model.

Losses: FUDGE (Yang and Klein 2021, arXiv:2104.05218): every prefix regresses on the final reward. CD-Q (Mudgal et al.
2024, arXiv:2310.17022): on the expected value after one more token. Transfer Q*: on the values of candidates by
rollouts of the baseline. All are 1/2 (V - target)^2. Knows tensors and heads; rollouts come from `rollouts.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from alignstar.models.hf.branch import truncated
from alignstar.models.hf.classifier import chains
from alignstar.models.hf.value import HeadConfig, ValueHead
from alignstar.sampling import IntArray, Noise
from alignstar.train.head_training import HeadTraining, learn
from alignstar.train.rollouts import Seen
from alignstar.train.settings import OnProgress, untold
from alignstar.types import Ids

Loss: TypeAlias = Literal["fudge", "cd-q", "transfer-q"]

POSITIONS = 8192
"""Most positions of one forward of the trunk."""

HELD_OUT = 0.1
"""Share of the prompts on which the epochs are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What a head is fitted to: N tokens after states, as rows of `states` [S, d] and of `embeddings` [V, d].

    `at` and `token` [N] say which. `rewards`, `weights` [N]; `ended` [N] marks a response's last token. CD-Q needs what
    follows: `next_at`, `next_token`, `next_p` [N, m] (p 0: none). `prompt` [N] numbers the prompts.
    """

    states: torch.Tensor
    embeddings: torch.Tensor
    at: torch.Tensor
    token: torch.Tensor
    rewards: torch.Tensor
    ended: torch.Tensor
    prompt: torch.Tensor
    weights: torch.Tensor
    next_at: torch.Tensor
    next_token: torch.Tensor
    next_p: torch.Tensor

    def only(self, rows: torch.Tensor) -> Examples:
        """Some of the N."""
        per_row = ("at", "token", "rewards", "ended", "prompt", "weights", "next_at", "next_token", "next_p")
        return replace(self, **{name: getattr(self, name)[rows] for name in per_row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A head, its training and its held-out loss by epoch and, of held-out targets, the share of variance explained."""

    head: ValueHead
    losses: tuple[float, ...]
    held_out: tuple[float, ...]
    explained: float


def targets(head: ValueHead, data: Examples, loss: Loss) -> torch.Tensor:
    """What V([s, z]) is to be [N]; no gradient flows through it."""
    if loss != "cd-q":
        return data.rewards
    with torch.no_grad():
        following = head(data.states[data.next_at], data.embeddings[data.next_token])  # [N, m]
        return torch.where(data.ended, data.rewards, (data.next_p * following).sum(-1))


def loss_of(head: ValueHead, data: Examples, loss: Loss) -> torch.Tensor:
    """1/2 (V - target)^2, averaged by weight."""
    told = head(data.states[data.at], data.embeddings[data.token])
    errors = 0.5 * (told - targets(head, data, loss)) ** 2
    return (data.weights * errors).sum() / data.weights.sum()


def fit(
    config: HeadConfig,
    data: Examples,
    *,
    loss: Loss,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    checkpoint: Path | None = None,
    on_progress: OnProgress = untold,
) -> Fitted:
    """The head of the epoch that is best on held-out prompts (on all of them where there are too few to hold out).

    The same seed gives the same head on the same machine, also where the training goes on from the file `checkpoint`,
    into which every epoch is written (None: nowhere). Raises FailedError where the loss is not finite.
    """
    mean, scale = moments(data.rewards, data.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ValueHead(replace(config, mean=mean, scale=scale))
    training, judging = _split(data, torch.Generator().manual_seed(seed))
    lesson = Rows(head, training, judging, loss=loss, batch_size=batch_size, seed=seed)
    going = HeadTraining(head, learning_rate=learning_rate, steps=epochs * lesson.steps)
    learn(going, lesson, epochs=epochs, learning_rate=learning_rate, checkpoint=checkpoint, on_progress=on_progress)
    spread = float(targets(head, judging, loss).var(correction=0))
    return Fitted(
        head=head.eval(),
        losses=tuple(going.losses),
        held_out=tuple(going.held_out),
        explained=1.0 - 2.0 * going.least / spread if spread else 0.0,
    )


class Rows:
    """A Lesson of examples whose states do not change."""

    def __init__(
        self, head: ValueHead, training: Examples, judging: Examples, *, loss: Loss, batch_size: int, seed: int
    ) -> None:
        self.head = head
        self.training = training
        self.judging = judging
        self.kind: Loss = loss
        self.batch_size = batch_size
        self.seed = seed

    @property
    def steps(self) -> int:
        """See Lesson."""
        return -(-len(self.training.at) // self.batch_size)

    def batches(self, epoch: int) -> Iterator[IntArray]:
        """See Lesson."""
        order = shuffled(len(self.training.at), seed=self.seed, epoch=epoch)
        yield from (order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size))

    def loss(self, rows: IntArray) -> torch.Tensor:
        """See Lesson."""
        return loss_of(self.head, self.training.only(torch.from_numpy(rows)), self.kind)

    @torch.no_grad()
    def judged(self) -> float:
        """See Lesson."""
        parts = [self.judging.only(rows) for rows in torch.arange(len(self.judging.at)).split(POSITIONS)]
        total = sum(float(loss_of(self.head, part, self.kind)) * float(part.weights.sum()) for part in parts)
        return total / float(self.judging.weights.sum())


def shuffled(n: int, *, seed: int, epoch: int) -> IntArray:
    """In which order an epoch takes n examples."""
    return np.argsort(Noise(seed=seed, purpose="examples", step=epoch).uniform(0, n), kind="stable")


def examples(
    model: Any, layer: int, rank: int, seen: Sequence[Seen], *, name: str, on_progress: OnProgress = untold
) -> Examples:
    """Read the states of `seen` off a frozen causal model's layer.

    A prefix scorer (`rank` 0) reads the state that a token makes, token values the state before it.
    """
    width = max((len(s.next_ids) for s in seen), default=0) or 1
    read = [s.state if rank else s.reached for s in seen]
    following = [[s.reached if rank else (*s.reached, z) for z in s.next_ids] for s in seen]
    texts = list(dict.fromkeys([*read, *(text for several in following for text in several)]))
    row = {text: i for i, text in enumerate(texts)}
    with torch.inference_mode():
        states = last_states(
            truncated(model, layer, name=name), texts, lambda done: on_progress("reading", done, len(texts))
        )

    def padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*r, *([0] * (width - len(r)))] for r in rows], dtype=dtype)

    return Examples(
        states=states.clone(),
        embeddings=model.get_input_embeddings().weight.detach().to("cpu", torch.float32),
        at=torch.tensor([row[text] for text in read]),
        token=torch.tensor([s.token for s in seen]),
        rewards=torch.tensor([s.reward for s in seen], dtype=torch.float32),
        ended=torch.tensor([s.ended for s in seen]),
        prompt=torch.tensor([s.prompt for s in seen]),
        weights=torch.tensor([s.weight for s in seen], dtype=torch.float32),
        next_at=padded([[row[text] for text in several] for several in following], torch.long),
        next_token=padded([s.next_ids for s in seen], torch.long),
        next_p=padded([s.next_p for s in seen], torch.float32),
    )


def last_states(trunk: Any, texts: Sequence[Ids], on_forward: Callable[[int], None]) -> torch.Tensor:
    """Hidden states [texts, d] at each text's last token; texts that begin each other are read in one row.

    The texts are different. `on_forward` is told how many are read.
    """
    device = next(trunk.parameters()).device
    row = {text: i for i, text in enumerate(texts)}
    states = torch.empty(0)
    done, read, groups = 0, 0, sorted(chains(texts), key=lambda chain: len(chain[-1]))
    while done < len(groups):
        count = 1
        while done + count < len(groups) and (count + 1) * len(groups[done + count][-1]) <= POSITIONS:
            count += 1
        batch = groups[done : done + count]
        longest = len(batch[-1][-1])
        tokens = torch.tensor([[*chain[-1], *([0] * (longest - len(chain[-1])))] for chain in batch], device=device)
        lengths = torch.tensor([len(chain[-1]) for chain in batch], device=device)
        mask = (torch.arange(longest, device=device)[None] < lengths[:, None]).long()
        hidden = trunk(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        if not len(states):
            states = torch.empty(len(texts), hidden.shape[-1])
        wanted = [(i, len(text) - 1, row[text]) for i, chain in enumerate(batch) for text in chain]
        rows, positions, into = torch.tensor(wanted).T
        states[into] = hidden[rows.to(device), positions.to(device)].to("cpu", torch.float32)
        done += count
        read += sum(len(chain) for chain in batch)
        on_forward(read)
    return states


def moments(rewards: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of rewards [N] by weight; 1 for a deviation of 0."""
    mean = float((weights * rewards).sum() / weights.sum())
    spread = float((weights * (rewards - mean) ** 2).sum() / weights.sum()) ** 0.5
    return mean, spread or 1.0


def held_out(prompt: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Which of the rows [N] of prompts are held out: HELD_OUT of the prompts; none with fewer than 1 / HELD_OUT."""
    prompts = prompt.unique()
    held = prompts[torch.randperm(len(prompts), generator=generator)[: int(HELD_OUT * len(prompts))]]
    return torch.isin(prompt, held)


def _split(data: Examples, generator: torch.Generator) -> tuple[Examples, Examples]:
    """Training and held-out prompts; both are all of them where none is held out."""
    apart = held_out(data.prompt, generator)
    return (data.only(~apart), data.only(apart)) if apart.any() else (data, data)
