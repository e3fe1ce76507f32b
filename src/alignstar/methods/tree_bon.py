"""TreeBoN: grow N responses segment by segment, each time from the best few by a partial reward.

Qiu et al. 2024, arXiv:2410.16033. The partial reward is the weighted implicit reward of a DPO policy pi* (the baseline)
against its reference pi (the SFT model), sum_k w_k log pi*(y_k|x, y_<k) / pi(y_k|x, y_<k).
The reward chooses among the leaves.

Differs: 1) w_k = 1/(k+1): the paper's 1/|y_<k| is not defined at k = 0; 2) a node that has ended can be kept but only
as itself, and the children it does not need go to the next best nodes; 3) N need not be a multiple of the children: the
best nodes get one more each; 4) where every node has ended the reward chooses among them at once; 5) log-ratios are
clipped. Options give the other readings; more in docs/papers.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignstar.meter import current_meter, together
from alignstar.methods import parameters as p
from alignstar.methods.roles import required
from alignstar.methods.rows import Drawing, Row, step_of_best
from alignstar.models import Sampler, TokenModel
from alignstar.rewards import Scorer
from alignstar.sampling import Array, Noise, Sampling, near_tie
from alignstar.types import Prompt, Step


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A row of the tree; `total` is the weighted sum of the log-ratios of its first `seen` tokens, or its reward."""

    row: Row
    total: float = 0.0
    seen: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitScore:
    """The weighted implicit reward; `kind` names the weights, `clip` bounds a token's log-ratio [nats]."""

    prompt: Prompt
    aligned: TokenModel
    kind: str
    clip: float | None

    async def scored(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes with what their new tokens add; nothing of the parents is read again."""
        return await together([self._one(node) for node in nodes])

    async def _one(self, node: Node) -> Node:
        ids, first = node.row.ids, node.seen
        aligned = await self.aligned.logprobs(self.prompt.ids + ids[:first], ids[first:])
        ratios = aligned - node.row.logps[first:]  # [new] nats
        if self.clip is not None:
            ratios = np.clip(ratios, -self.clip, self.clip)
        return replace(node, total=node.total + float(self.weights(first, len(ids)) @ ratios), seen=len(ids))

    def weights(self, first: int, last: int) -> Array:
        """w_k of the tokens first..last-1; the mean divides afterwards."""
        k = np.arange(first, last)
        if self.kind == "1/(k+1)":
            return 1.0 / (k + 1)
        return 1.0 / np.maximum(1, k) if self.kind == "1/max(1,k)" else np.ones(len(k))

    def of(self, node: Node) -> float:
        """What nodes are ranked by [nats]."""
        return node.total / len(node.row.ids) if self.kind == "1/K" else node.total

    def tolerance(self, nodes: Sequence[Node], one: float) -> float:
        """The tolerance of a score, from that of one log-probability."""
        longest = max(len(node.row.ids) for node in nodes)
        return one if self.kind == "1/K" else one * float(self.weights(0, longest).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardScore:
    """The reward of the partial text in the place of the implicit one."""

    prompt: Prompt
    reward: Scorer

    async def scored(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes with their rewards."""
        rewards = await self.reward(self.prompt, [node.row.ids for node in nodes])
        return [replace(node, total=float(r), seen=len(node.row.ids)) for node, r in zip(nodes, rewards, strict=True)]

    def of(self, node: Node) -> float:
        """What nodes are ranked by."""
        return node.total

    def tolerance(self, nodes: Sequence[Node], one: float) -> float:
        """The tolerance of a reward is that of a log-probability."""
        return one


def allotted(ended: Sequence[bool], n: int, children: int, *, redistribute: bool) -> list[int]:
    """How many children each node has, nodes in rank order: n in all, of the best n // children nodes.

    The remainder goes to the best, one each. A node that has `ended` has one child, itself; with `redistribute` what it
    leaves makes parents of the next best nodes that have not ended, and where there are none, falls to the other
    parents.
    """
    width = max(1, n // children)
    share, rest = divmod(n, width)
    shares = [share + (i < rest) if i < width else 0 for i in range(len(ended))]
    free = 0
    for i in range(width):
        if ended[i]:
            free += shares[i] - 1
            shares[i] = 1
    if not redistribute:
        return shares
    for i in range(width, len(ended)):
        if not ended[i]:
            shares[i] = min(children, free)
            free -= shares[i]
    growing = [i for i, over in enumerate(ended) if not over and shares[i] > 0]
    for j in range(free if growing else 0):
        shares[growing[j % len(growing)]] += 1
    return shares


async def tree_bon(
    prompt: Prompt, *, sft: Sampler, baseline: TokenModel | None = None, reward: Scorer,
    n: p.Draws = 16, children: p.Children = 4, layers: p.Layers = 4, partial_reward: p.PartialReward = "1/(k+1)",
    log_ratio_clip: p.LogRatioClip = 20.0, redistribute: p.Redistribute = True,
    temperature: p.Temperature = 1.0, top_k: p.TopK = None, top_p: p.TopP = 1.0,
    max_new_tokens: p.MaxNewTokens = 128, seed: p.Seed = 0,
) -> AsyncGenerator[Step, None]:  # fmt: skip
    """One Step at the end; `considered` holds the leaves, at most `n`. Root i is the beginning of best-of-n's draw i.

    Raises NeedsError without the baseline, except under partial_reward=rm.
    """
    score = (
        RewardScore(prompt=prompt, reward=reward)
        if partial_reward == "rm"
        else ImplicitScore(
            prompt=prompt, aligned=required(baseline, "baseline", "tree-bon"), kind=partial_reward, clip=log_ratio_clip
        )
    )
    drawing = Drawing(
        model=sft, prompt=prompt, scorer=reward, sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    segment = math.ceil(max_new_tokens / layers)
    roots = await drawing.extended(Row(noise=Noise(seed=seed, purpose="sample")), segment, n=n)
    pool = [Node(row=row) for row in roots]  # C_1
    near_ties = sum(row.near_ties for row in roots)
    for layer, length in enumerate(range(segment, max_new_tokens, segment), start=1):
        if all(node.row.ended for node in pool):
            break
        pool = await _scored(score, pool)
        shares, doubt = _shares(score, pool, n, children, redistribute, sft.tie_tolerance)
        grown = await together(
            [
                _children(drawing, node, share, min(segment, max_new_tokens - length), Noise(
                    seed=seed, purpose="tree", step=layer, candidate=i
                ))
                for i, (node, share) in enumerate(zip(pool, shares, strict=True)) if share > 0
            ]
        )  # fmt: skip
        pool = [child for family in grown for child in family]  # C_{layer+1}, siblings together
        near_ties += doubt + sum(node.row.near_ties for node in pool if node.seen < len(node.row.ids))
    rewards = await reward(prompt, [node.row.ids for node in pool])
    step = step_of_best([node.row for node in pool], rewards.tolist(), near_ties=near_ties, tolerance=sft.tie_tolerance)
    current_meter().add("near_ties", step.near_ties)
    yield step


async def _scored(score: ImplicitScore | RewardScore, pool: Sequence[Node]) -> list[Node]:
    """The pool with every node scored to its end; one that ended before keeps its score."""
    new = [i for i, node in enumerate(pool) if node.seen < len(node.row.ids)]
    told = dict(zip(new, await score.scored([pool[i] for i in new]), strict=True))
    return [told.get(i, node) for i, node in enumerate(pool)]


def _shares(
    score: ImplicitScore | RewardScore,
    pool: Sequence[Node],
    n: int,
    children: int,
    redistribute: bool,
    tolerance: float,
) -> tuple[list[int], bool]:
    """Children of each node of the pool, and whether neighbours in rank might change places; ties to the earlier."""
    scores = [score.of(node) for node in pool]
    ranking = np.argsort(-np.array(scores), kind="stable").tolist()
    dealt = allotted([pool[i].row.ended for i in ranking], n, children, redistribute=redistribute)
    shares = [0] * len(pool)
    for i, share in zip(ranking, dealt, strict=True):
        shares[i] = share
    tolerance = score.tolerance(pool, tolerance)
    doubt = any(
        dealt[at] != dealt[at + 1] and near_tie([scores[i], scores[j]], tolerance)
        for at, (i, j) in enumerate(itertools.pairwise(ranking))
    )
    return shares, doubt


async def _children(drawing: Drawing, node: Node, share: int, tokens: int, noise: Noise) -> list[Node]:
    """A node that has ended as it is; an only child goes on with its parent's noise, several have `noise`."""
    if node.row.ended:
        return [node]
    row = node.row if share == 1 else replace(node.row, noise=noise)
    return [replace(node, row=child) for child in await drawing.extended(row, tokens, n=share)]
