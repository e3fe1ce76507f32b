"""The models, rewards and prompts of `bench frontier`: one pair of language models, one engine, a reward per name.

Every reward is held to four standard deviations around its mean, for every method alike: a declared range is what lets
Transfer Q* skip candidates. Rewards of groups are standardised first. Knows names of rewards, no method.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from alignstar.aligner import Aligner
from alignstar.bench.frontier_plans import GAME_BETA, POOLED
from alignstar.demo import BOUNDS, model_dir, true_reward
from alignstar.demo import prompts as messages
from alignstar.demo.settings import MAX_NEW_TOKENS, baseline_beta
from alignstar.loading import load
from alignstar.models import Continuation, TokenModel, Top, Within
from alignstar.rewards import Reward, combine, groups
from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling
from alignstar.types import Ids

True_: TypeAlias = Callable[[str, str, bool], Mapping[str, float]]
"""(message, reply, complete) -> the true reward of every taste."""

KV_TOKENS = 1 << 16
"""Positions that each model holds: what all rows of a point fill at once, and some more."""

SPREAD = 4.0
"""Standard deviations to which rewards are held."""


class Counted:
    """A model that counts the tokens it draws, by the seed of the request that they are drawn for."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self.name = model.name
        self.eos_ids = model.eos_ids
        self.max_context = model.max_context
        self.tie_tolerance = model.tie_tolerance
        self.default_sampling = model.default_sampling
        self.vocab_size = model.vocab_size
        self.generated: Counter[int] = Counter()

    async def continue_(
        self,
        prefix: Ids,
        *,
        max_new_tokens: int,
        n: int = 1,
        sampling: Sampling = GREEDY,
        noise: Noise | None = None,
        stop_at_eos: bool = True,
        top: Within | None = None,
    ) -> list[Continuation]:
        """See models.Sampler."""
        drawn = await self._model.continue_(
            prefix, max_new_tokens=max_new_tokens, n=n, sampling=sampling, noise=noise, stop_at_eos=stop_at_eos, top=top
        )
        if noise is not None:
            self.generated[noise.seed] += sum(len(row.ids) for row in drawn)
        return drawn

    async def top_next(self, prefix: Ids, k: int | None = None) -> Top:
        """See models.TokenModel."""
        return await self._model.top_next(prefix, k)

    async def next_logprobs(self, prefix: Ids, ids: IntArray) -> Array:
        """See models.TokenModel."""
        return await self._model.next_logprobs(prefix, ids)

    async def logprobs(self, prefix: Ids, continuation: Ids) -> Array:
        """See models.TokenModel."""
        return await self._model.logprobs(prefix, continuation)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What plans are decoded on. `aligners` by the name of their reward; all of them decode with `sft`.

    `beta` is the strength that the baseline was trained with, `rm_weight` what a token of a reward model costs in
    tokens of the language model, by parameters.
    """

    messages: tuple[str, ...]
    aligners: Mapping[str, Aligner]
    sft: Counted
    true: True_
    max_new_tokens: int
    beta: float
    rm_weight: float = 1.0


def rewards_by_name(source: Reward, target: Reward, *, scale: Mapping[str, tuple[float, float]]) -> dict[str, Reward]:
    """Every reward that a plan can name; `scale` has the mean and standard deviation of both."""
    held, standard = dict[str, Reward](), list[Reward]()
    for name, reward in (("source", source), ("target", target)):
        mean, std = scale[name]
        held[name] = combine.clip(reward, mean - SPREAD * std, mean + SPREAD * std)
        standard.append(combine.standardise(held[name], mean, std))
    pooled = {
        f"pooled {share:g}": combine.WeightedSum([(share, standard[0]), (1.0 - share, standard[1])]) for share in POOLED
    }
    return {
        **held, **pooled, "min": groups.pointwise_min(standard), "game": groups.game(standard, beta=GAME_BETA),
    }  # fmt: skip


def world_of(
    base: Aligner, rewards: Mapping[str, Reward], *, prompts: Sequence[str], true: True_, max_new_tokens: int,
    beta: float, rm_weight: float = 1.0,
) -> World:  # fmt: skip
    """A world on the models of `base`, which keeps their engine; "target" is decoded knowing what "source" was."""
    sft, baseline = base.models["sft"], base.models["baseline"]
    assert isinstance(sft, TokenModel)
    counted = Counted(sft)
    aligners = {
        name: Aligner(
            sft=counted,
            baseline=baseline,
            reward=reward,
            baseline_reward=rewards["source"] if name == "target" else None,
            value=base.values.get("value"),
            codec=base.codec,
        )
        for name, reward in rewards.items()
    }
    return World(
        messages=tuple(prompts), aligners=aligners, sft=counted, true=true, max_new_tokens=max_new_tokens, beta=beta,
        rm_weight=rm_weight,
    )  # fmt: skip


def demo_world(
    prompts: int, *, value: str | None = None, device: str = "auto", threads: int | None = None
) -> World:  # fmt: skip
    """The embedded models, on the first prompts of the evaluation split, and the value head in a folder.

    `threads` of torch (None: its own choice). Raises ModelError for a folder that holds no value head.
    """
    import torch

    from alignstar.bench.shapes import shape_of

    if threads is not None:
        torch.set_num_threads(threads)
    base = load(
        sft=str(model_dir("sft")),
        baseline=str(model_dir("baseline")),
        reward=str(model_dir("reward_target")),
        baseline_reward=str(model_dir("reward_source")),
        value=value,
        device=device,
        kv_tokens=KV_TOKENS,
    )
    scale = {name: _scale(f"reward_{name}") for name in BOUNDS}
    rewards = rewards_by_name(base.rewards["baseline_reward"], base.rewards["reward"], scale=scale)
    sizes = [shape_of(str(model_dir(name)), {}).parameters for name in ("reward_source", "sft")]
    return world_of(
        base, rewards, prompts=messages("evaluation")[:prompts], true=_true, max_new_tokens=MAX_NEW_TOKENS,
        beta=baseline_beta(), rm_weight=sizes[0] / sizes[1],
    )  # fmt: skip


def _true(message: str, reply: str, complete: bool) -> dict[str, float]:
    return {name: true_reward(name, message=message, reply=reply, complete=complete) for name in BOUNDS}


def _scale(name: str) -> tuple[float, float]:
    told = json.loads((model_dir(name) / "alignstar.json").read_text(encoding="utf-8"))
    return float(told["mean"]), float(told["std"])
