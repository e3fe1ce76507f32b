"""The models, rewards and prompts of `bench frontier`: one pair of language models, one engine, a reward per name.

Every reward is held to four standard deviations around its mean, for every method alike: a declared range is what lets
Transfer Q* skip candidates. Rewards of groups are then calibrated on stars that the groups gave, fair and pooled ones
alike; `min standardised` shows what that does. Knows names of rewards, no method.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from alignstar.aligner import Aligner
from alignstar.bench.frontier_plans import GAME_BETA, POOLED, WEIGHTS_BETA
from alignstar.bench.ratings import PROMPTS, Shared, True_, shared, training_messages
from alignstar.demo import BOUNDS, model_dir, true_reward
from alignstar.demo import prompts as messages
from alignstar.demo.settings import MAX_NEW_TOKENS, baseline_beta
from alignstar.loading import load
from alignstar.models import Continuation, TokenModel, Top, Within
from alignstar.rewards import Reward, combine, groups
from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling
from alignstar.types import Ids, Prompt, Reply

KV_TOKENS = 1 << 16
"""Positions that each model holds: what all rows of a point fill at once, and some more."""

SPREAD = 4.0
"""Standard deviations to which rewards are held."""

Scale: TypeAlias = Mapping[str, tuple[float, float]]
"""By taste, mean and standard deviation of its learned reward."""


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


class Recorded:
    """A reward that keeps what it told."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self.name = reward.name
        self.range = reward.range
        self.told: dict[tuple[str, Reply], float] = {}

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """See Reward."""
        scores = await self._reward.score(prompt, replies)
        self.told.update(((prompt.text, reply), score) for reply, score in zip(replies, scores, strict=True))
        return scores


class Retold:
    """What a recorded reward told, once more; KeyError for what it was not asked."""

    def __init__(self, recorded: Recorded) -> None:
        self.name = recorded.name
        self.range = recorded.range
        self._told = recorded.told

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """See Reward."""
        return [self._told[prompt.text, reply] for reply in replies]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What plans are decoded on. `aligners` by the name of their reward; all of them decode with `sft`.

    `retold` are the rewards of `groups` once more, which tell what those of `aligners` told of a prompt and a reply.

    `beta` is the strength that the baseline was trained with, `rm_weight` what a token of a reward model costs in
    tokens of the language model, by parameters. `shared` is what brought the rewards of `groups` to one scale; None
    where they were not asked for.
    """

    messages: tuple[str, ...]
    aligners: Mapping[str, Aligner]
    sft: Counted
    true: True_
    max_new_tokens: int
    beta: float
    rm_weight: float = 1.0
    shared: Shared | None = None
    retold: Mapping[str, Reward] = field(default_factory=dict[str, Reward])


def held(rewards: Mapping[str, Reward], scale: Scale) -> dict[str, Reward]:
    """The rewards by taste, inside their spread."""
    return {
        name: combine.clip(rewards[name], mean - SPREAD * std, mean + SPREAD * std)
        for name, (mean, std) in scale.items()
    }


def group_rewards(by_taste: Mapping[str, Reward], *, scale: Scale, shared: Shared) -> dict[str, Reward]:
    """What plans of `groups` can name; the rewards are those of `held`, first source, then target."""
    rated = [shared.calibrated[name].of(reward) for name, reward in by_taste.items()]
    standard = [combine.standardise(reward, *scale[name]) for name, reward in by_taste.items()]
    pooled = {
        f"pooled {share:g}": combine.WeightedSum([(share, rated[0]), (1.0 - share, rated[1])]) for share in POOLED
    }
    weighted = combine.WeightedSum([(shared.weights[name], r) for name, r in zip(by_taste, rated, strict=True)])
    return {
        **pooled, "maxmin weights": weighted, "min": groups.pointwise_min(rated),
        "game": groups.game(rated, beta=GAME_BETA), "min standardised": groups.pointwise_min(standard),
    }  # fmt: skip


def world_of(
    base: Aligner, by_taste: Mapping[str, Reward], *, scale: Scale, shared: Shared | None, prompts: Sequence[str],
    true: True_, max_new_tokens: int, beta: float, rm_weight: float = 1.0,
    headed: Mapping[str, Aligner] = MappingProxyType({}),
) -> World:  # fmt: skip
    """A world on the models of `base`, which keeps their engine; "target" is decoded knowing what "source" was.

    `by_taste` are the rewards of `held`. Without `shared` there are no rewards of groups. `headed`: rewards that are
    decoded with the baseline and the value head of another aligner, since a model carries one head.
    """
    sft = base.models["sft"]
    assert isinstance(sft, TokenModel)
    counted = Counted(sft)
    rewards, retold = dict(by_taste), dict[str, Reward]()
    if shared is not None:
        recorded = {taste: Recorded(reward) for taste, reward in by_taste.items()}
        rewards |= group_rewards(recorded, scale=scale, shared=shared)
        retold = group_rewards({taste: Retold(one) for taste, one in recorded.items()}, scale=scale, shared=shared)
    aligners = {
        name: Aligner(
            sft=counted,
            baseline=headed.get(name, base).models["baseline"],
            reward=reward,
            baseline_reward=rewards["source"] if name == "target" else None,
            value=headed.get(name, base).values.get("value"),
            codec=base.codec,
        )
        for name, reward in rewards.items()
    }
    return World(
        messages=tuple(prompts), aligners=aligners, sft=counted, true=true, max_new_tokens=max_new_tokens, beta=beta,
        rm_weight=rm_weight, shared=shared, retold=retold,
    )  # fmt: skip


def demo_world(
    prompts: int,
    *,
    value: str | None = None,
    value_target: str | None = None,
    rated: int = PROMPTS,
    device: str = "auto",
    threads: int | None = None,
) -> World:
    """The embedded models, on the first prompts of the evaluation split, and the value heads in two folders.

    `value` tells values of the reward "source", `value_target` those of "target". For rewards of groups, replies to
    `rated` training prompts are drawn and rated; 0: there are none. `threads` of torch (None: its own choice). Raises
    ModelError for a folder that holds no value head.
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
    by_taste = held({"source": base.rewards["baseline_reward"], "target": base.rewards["reward"]}, scale)
    told = None
    if rated:
        told = shared(
            base, by_taste, messages=training_messages(rated), true=_true, max_new_tokens=MAX_NEW_TOKENS,
            beta=WEIGHTS_BETA,
        )  # fmt: skip
    sizes = [shape_of(str(model_dir(name)), {}).parameters for name in ("reward_source", "sft")]
    headed = {}
    if value_target is not None:
        headed["target"] = load(
            baseline=str(model_dir("baseline")), value=value_target, device=device, kv_tokens=KV_TOKENS
        )
    return world_of(
        base, by_taste, scale=scale, shared=told, prompts=messages("evaluation")[:prompts], true=_true,
        max_new_tokens=MAX_NEW_TOKENS, beta=baseline_beta(), rm_weight=sizes[0] / sizes[1], headed=headed,
    )  # fmt: skip


def _true(message: str, reply: str, complete: bool) -> dict[str, float]:
    return {name: true_reward(name, message=message, reply=reply, complete=complete) for name in BOUNDS}


def _scale(name: str) -> tuple[float, float]:
    told = json.loads((model_dir(name) / "alignstar.json").read_text(encoding="utf-8"))
    return float(told["mean"]), float(told["std"])
