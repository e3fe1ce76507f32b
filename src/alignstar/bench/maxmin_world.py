"""What `bench maxmin` compares on: replies of the embedded SFT model, true tastes of two groups, rewards from choices.

All rewards are linear in the same frozen features: states of the two embedded reward models, each trained for one of
the groups, along the directions in which replies vary most. What is compared is how choices are pooled, not how well a
network can be trained. Knows no figure and no claim.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from alignstar.demo import model_dir
from alignstar.demo import prompts as messages
from alignstar.demo.customers import message
from alignstar.demo.people import TASTES, Annotator, Reply, annotate, staff
from alignstar.demo.settings import MAX_NEW_TOKENS
from alignstar.demo.truth import true_reward
from alignstar.models.hf.checkpoint import open_classifier
from alignstar.sampling import Array
from alignstar.train.generation import generate_answers
from alignstar.train.linear import LinearRewards
from alignstar.train.mixture import cast_votes
from alignstar.train.search import Plan, search
from alignstar.train.tokenizer import encode_exchanges

Exchange: TypeAlias = tuple[str, Reply]
"""A message and a reply to it."""

GROUPS = MAJORITY, MINORITY = ("thorough", "brief")
"""Of `people.TASTES`; the first one is the majority wherever one is larger."""

REFERENCES = 4
"""Replies of the SFT model that a response is compared with."""

FEWEST_ANNOTATORS = 20
SEEN = 3
"""Every annotator chooses in one of so many annotated pairs."""
SHARPNESS = 12.0
"""Of the annotators' choices [nats per unit of true reward], as when the embedded rewards were trained."""

DIRECTIONS = 32
"""Of the features so many directions are kept, all brought to the same variance."""

L2 = 0.03
RESTARTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Replies:
    """Several replies to each of some messages, all with what they are like: features [prompts, replies, d]."""

    messages: tuple[str, ...]
    replies: tuple[tuple[Reply, ...], ...]
    features: Array

    def truth(self, group: str) -> Array:
        """What a group truly thinks of them [prompts, replies], in [0, 1]."""
        return judged(self.messages, self.replies, group)


def judged(texts: Sequence[str], replies: Sequence[Sequence[Reply]], group: str) -> Array:
    """What a group truly thinks of replies to messages [prompts, replies], in [0, 1]."""
    return np.array(
        [
            [true_reward(TASTES[group], message=text, reply=r.text, complete=r.complete) for r in row]
            for text, row in zip(texts, replies, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """An annotator's choice in a pair; `first`: of its first reply."""

    pair: int
    first: bool
    annotator: Annotator


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Rewards that are linear in the features, brought to mean 0 and variance 1 over the replies that were annotated.

    `pooled` [d] is one Bradley-Terry reward for all choices, `groups` [U, d] are those of the mixture that EM found in
    them, the largest group first, `shares` [U] how many annotators each has. `recovered` is the share of annotators
    whom EM puts together with those of their own group.
    """

    pooled: Array
    groups: Array
    shares: tuple[float, ...]
    recovered: float


Features: TypeAlias = Callable[[Sequence[Exchange]], Array]


def features_of(classifiers: Sequence[tuple[Any, PreTrainedTokenizerBase]], *, batch_size: int = 128) -> Features:
    """From exchanges to features [n, raw]: of each classifier the last state, and mean states of the reply's tokens."""

    def features(exchanges: Sequence[Exchange]) -> Array:
        return np.concatenate([_states(*one, exchanges, batch_size) for one in classifiers], axis=1)

    return features


@torch.inference_mode()
def _states(
    model: Any, tokenizer: PreTrainedTokenizerBase, exchanges: Sequence[Exchange], batch_size: int
) -> Array:  # fmt: skip
    encoded = encode_exchanges(tokenizer, [(m, r.text, r.complete) for m, r in exchanges])
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))
    made: dict[int, Array] = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        ids = [encoded[i][0] + encoded[i][1] for i in chunk]
        batch = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        told: Any = model(**{k: v.to(model.device) for k, v in batch.items()}, output_hidden_states=True)
        middle, last = (told.hidden_states[depth].float().cpu() for depth in (len(told.hidden_states) // 2, -1))
        for row, i in enumerate(chunk):
            end = len(ids[row])
            own = slice(min(len(encoded[i][0]), end - 1), end)  # of an empty reply, the last token before it
            parts = [last[row, end - 1], last[row, own].mean(dim=0), middle[row, own].mean(dim=0)]
            made[i] = torch.cat(parts).double().numpy()
    return np.stack([made[i] for i in range(len(exchanges))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The directions [raw, d] along which replies vary most, about a mean [raw]."""

    mean: Array
    basis: Array

    @classmethod
    def of(cls, raw: Array, directions: int = DIRECTIONS) -> Space:
        """Of features [n, raw]: principal directions, each scaled to variance 1."""
        mean, spread = np.mean(raw, axis=0), np.std(raw, axis=0)
        unit = np.where(spread > 0.0, spread, 1.0)
        values, vectors = np.linalg.eigh(np.cov((raw - mean) / unit, rowvar=False))
        kept = [i for i in np.argsort(-values)[:directions].tolist() if values[i] > 1e-9 * values[-1]]
        return cls(mean=mean, basis=vectors[:, kept] / np.sqrt(values[kept]) / unit[:, None])

    def __call__(self, raw: Array) -> Array:
        """Features [n, d]."""
        return (raw - self.mean) @ self.basis


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Replies to annotate (two per message), and to other messages: to choose among, and to compare with.

    `features` are those of any reply; `policy` opens the SFT model anew, to be trained.
    """

    annotated: Replies
    pool: Replies
    references: Replies
    features: Features
    policy: Callable[[], PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase


def demo_world(*, pairs: int, prompts: int, draws: int, references: int, threads: int | None = None) -> World:
    """The embedded models: `pairs` messages of the training split to annotate, `prompts` ones of the evaluation split.

    Each of the latter has `draws` replies to choose among and `references` others to be compared with. `threads` of
    torch (None: its own choice).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    rng = random.Random("alignstar bench maxmin")
    tokenizer = AutoTokenizer.from_pretrained(model_dir("sft"))
    model = AutoModelForCausalLM.from_pretrained(model_dir("sft"), dtype=torch.float32).eval()
    rewards = [open_classifier(str(model_dir(f"reward_{name}")), torch.float32) for name in TASTES.values()]
    raw = features_of(rewards)
    asked = [message(rng, split="train").text for _ in range(pairs)]
    held = messages("evaluation")[:prompts]
    drawn = [
        (texts, _drawn(model, tokenizer, texts, count, seed))
        for texts, count, seed in ((asked, 2, 1), (held, draws, 2), (held, references, 3))
    ]
    told = [raw([(m, r) for m, row in zip(texts, rows, strict=True) for r in row]) for texts, rows in drawn]
    space = Space.of(told[0])
    annotated, pool, compared = (
        Replies(messages=tuple(texts), replies=rows, features=space(x).reshape(len(rows), len(rows[0]), -1))
        for (texts, rows), x in zip(drawn, told, strict=True)
    )
    return World(
        annotated=annotated, pool=pool, references=compared, features=lambda given: space(raw(given)),
        policy=lambda: AutoModelForCausalLM.from_pretrained(model_dir("sft"), dtype=torch.float32), tokenizer=tokenizer,
    )  # fmt: skip


def _drawn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int, seed: int
) -> tuple[tuple[Reply, ...], ...]:
    """`count` samples for each message."""
    asked = [text for text in texts for _ in range(count)]
    answers = generate_answers(model, tokenizer=tokenizer, prompts=asked, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    replies = [Reply(text=text, complete=ended) for text, ended in answers]
    return tuple(tuple(replies[i : i + count]) for i in range(0, len(replies), count))


def vote(annotated: Replies, *, ratio: int, seed: int) -> list[Vote]:
    """The choices of annotators of whom `ratio` in `ratio` + 1 are of the majority, each in some of the pairs."""
    count = (ratio + 1) * -(-FEWEST_ANNOTATORS // (ratio + 1))
    people = staff(n=count, thorough_share=ratio / (ratio + 1), sharpness=SHARPNESS, seed=seed)
    pairs = [(m, a, b) for m, (a, b) in zip(annotated.messages, annotated.replies, strict=True)]
    votes: list[Vote] = []
    for number, person in enumerate(people):
        own = seed * 1000 + number
        shown = random.Random(f"shown {own}").sample(range(len(pairs)), max(1, len(pairs) // SEEN))
        told = annotate([pairs[i] for i in shown], annotators=[person], seed=own)
        votes += [
            Vote(pair=i, first=p.chosen is pairs[i][1], annotator=person) for i, p in zip(shown, told, strict=True)
        ]
    return votes


def learn(annotated: Replies, votes: Sequence[Vote], *, seed: int) -> Learned:
    """One pooled reward, and those of two groups that EM finds without being told who belongs where."""
    gaps = annotated.features[:, 0] - annotated.features[:, 1]
    differences = np.stack([gaps[v.pair] if v.first else -gaps[v.pair] for v in votes])
    family = LinearRewards(differences, l2=L2, n_votes=len(votes))
    pooled = family.fitted(family.start(), np.ones(len(votes)))
    users = cast_votes([v.annotator.id for v in votes], held_out=0.0, seed=seed)
    plan = Plan(groups=(len(GROUPS),), l2=(L2,), restarts=RESTARTS, seed=seed)
    found = search(differences, users, plan, known={}, on_state=lambda _trial, _state: None).state
    majority = {v.annotator.id: v.annotator.group == MAJORITY for v in votes}
    same = float(np.mean([majority[i] == (g == 0) for i, g in zip(users.users, found.groups, strict=True)]))
    every = annotated.features.reshape(-1, annotated.features.shape[-1])
    return Learned(
        pooled=_standard(pooled, every),
        groups=np.stack([_standard(reward, every) for reward in found.rewards]),
        shares=tuple(found.shares.tolist()),
        recovered=max(same, 1.0 - same),
    )


def _standard(reward: Array, features: Array) -> Array:
    """The reward [d] with variance 1 over `features` [n, d]; the features' mean is 0, and so is the reward's."""
    spread = float(np.std(features @ reward))
    return reward / spread if spread > 0.0 else reward
