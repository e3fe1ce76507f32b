"""Every method on the same models and prompts: reward, learned and true, against tokens and against KL.

A method that the seed changes is decoded with several seeds; its intervals are over prompts all the same, each prompt's
seeds averaged first. Knows plans and a world to decode them on; what is concluded is `frontier_claims`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from alignstar.bench.frontier_plans import WORKS, Plan
from alignstar.bench.frontier_world import World
from alignstar.evaluate.statistics import Interval, mean_interval
from alignstar.rewards import Scorer
from alignstar.types import Reply, Response

TOGETHER = 512
"""Rows drawn at once over all prompts, about."""
MOST_PROMPTS = 1000
"""A prompt's seeds are its number, and that plus this, twice this, ..."""

KLKind: TypeAlias = Literal["exact", "estimate", "bound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One of the responses among which best-of-n chose: its tokens, the learned reward and the true ones by taste.

    `surprise` is -log pi_sft of it [nats].
    """

    reply: Reply
    tokens: int
    learned: float
    true: Mapping[str, float]
    surprise: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One response. `surprise` is -log pi_sft(y), `law` the log-probability under what was drawn from [nats].

    `generated` counts the tokens that the SFT model drew for it, `tokens` those of the response itself.
    """

    prompt: int
    repeat: int
    prompt_tokens: int
    tokens: int
    learned: float
    true: Mapping[str, float]
    surprise: float
    law: float
    lm_tokens: int
    rm_tokens: int
    generated: int
    draws: tuple[Draw, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A plan's runs, in order of repeat and prompt. `rm_weight`: see World."""

    plan: Plan
    runs: tuple[Run, ...]
    seconds: float
    rm_weight: float = 1.0

    def per_prompt(self, value: Callable[[Run], float]) -> tuple[float, ...]:
        """The mean over a prompt's repeats, prompt by prompt."""
        found: dict[int, list[float]] = {}
        for run in self.runs:
            found.setdefault(run.prompt, []).append(value(run))
        return tuple(sum(values) / len(values) for _, values in sorted(found.items()))

    def mean(self, value: Callable[[Run], float]) -> float:
        """The mean over prompts."""
        values = self.per_prompt(value)
        return sum(values) / len(values)

    def cost(self, run: Run) -> float:
        """LM tokens, and RM tokens at their weight."""
        return run.lm_tokens + self.rm_weight * run.rm_tokens

    @property
    def tastes(self) -> tuple[str, ...]:
        """The true rewards that are wanted in this plan's work."""
        return WORKS[self.plan.work]

    def learned(self) -> Interval:
        """Of the reward that the plan was decoded with."""
        return mean_interval(self.per_prompt(lambda run: run.learned))

    def true(self, taste: str) -> Interval:
        """The true reward of a taste."""
        return mean_interval(self.per_prompt(lambda run: run.true[taste]))

    def kl(self) -> tuple[float, KLKind]:
        """KL to the SFT model [nats].

        Exact for what no seed changes, -log pi_sft(y); an estimate where the law that was drawn from is known; else a
        bound, the lesser of the plan's and of E[-log pi_sft(y)], which leaves out the entropy.
        """
        surprise = self.mean(lambda run: run.surprise)
        if not self.plan.drawn:
            return surprise, "exact"
        if self.plan.law:
            return self.mean(lambda run: run.law + run.surprise), "estimate"
        return min(surprise, math.inf if self.plan.kl_bound is None else self.plan.kl_bound), "bound"

    def as_json(self) -> dict[str, Any]:
        """Keys: work, method (its curve), at, options, reward, prompts, seeds; means with intervals; counts per reply.

        `values` holds the learned and true rewards prompt by prompt.
        """
        kl, kind = self.kl()
        return {
            "work": self.plan.work,
            "method": self.plan.label,
            "at": self.plan.at,
            "options": dict(self.plan.options),
            "reward": self.plan.reward,
            "prompts": len({run.prompt for run in self.runs}),
            "seeds": len({run.repeat for run in self.runs}),
            "learned_reward": interval_json(self.learned()),
            "true_reward": {taste: interval_json(self.true(taste)) for taste in self.runs[0].true},
            "kl": kl,
            "kl_kind": kind,
            "lm_tokens": self.mean(lambda run: run.lm_tokens),
            "rm_tokens": self.mean(lambda run: run.rm_tokens),
            "tokens": self.mean(self.cost),
            "drawn_tokens": self.mean(lambda run: run.generated),
            "wall_s": self.seconds,
            "values": {
                "learned": self.per_prompt(lambda run: run.learned),
                **{taste: self.per_prompt(lambda run, t=taste: run.true[t]) for taste in self.runs[0].true},
            },
        }


def interval_json(interval: Interval) -> dict[str, float]:
    """A mean and the ends of its 95 % interval."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


async def measure(world: World, plan: Plan, *, seeds: int, on_reply: Callable[[], None] = lambda: None) -> Point:
    """Decode the world's prompts with a plan, `seeds` times if the seed changes it, and measure."""
    aligner, count = world.aligners[plan.reward], len(world.messages)
    pairs = [(repeat, prompt) for repeat in range(seeds if plan.drawn else 1) for prompt in range(count)]
    world.sft.generated.clear()
    finished: dict[int, Response] = {}
    started = time.perf_counter()
    responses = aligner.agenerate_many(
        [world.messages[prompt] for _, prompt in pairs],
        seeds=[_seed(repeat, prompt) for repeat, prompt in pairs],
        concurrency=max(2, min(32, TOGETHER // plan.rows)),
        method=plan.method,
        max_new_tokens=world.max_new_tokens,
        **plan.options,
    )
    async with aclosing(responses):
        async for index, response in responses:
            finished[index] = response
            on_reply()
    seconds = time.perf_counter() - started
    surprise = await asyncio.gather(*(_surprise(world, finished[i]) for i in range(len(pairs))))
    return Point(
        plan=plan,
        runs=tuple(
            _run(world, plan, repeat, prompt, finished[i], surprise[i]) for i, (repeat, prompt) in enumerate(pairs)
        ),
        seconds=seconds,
        rm_weight=world.rm_weight,
    )


def _seed(repeat: int, prompt: int) -> int:
    return repeat * MOST_PROMPTS + prompt


async def _surprise(world: World, response: Response) -> float:
    return -float((await world.sft.logprobs(response.prompt.ids, response.ids)).sum())


def _run(world: World, plan: Plan, repeat: int, prompt: int, response: Response, surprise: float) -> Run:
    message = world.messages[prompt]
    return Run(
        prompt=prompt,
        repeat=repeat,
        prompt_tokens=len(response.prompt.ids),
        tokens=len(response.ids),
        learned=math.nan if response.reward is None else response.reward,
        true=world.true(message, response.text, response.finish_reason == "stop"),
        surprise=surprise,
        law=sum(step.considered[step.chosen].logp for step in response.steps) if plan.law else math.nan,
        lm_tokens=response.usage.lm_tokens,
        rm_tokens=response.usage.rm_tokens,
        generated=world.sft.generated[_seed(repeat, prompt)],
        draws=_draws(world, plan, message, response) if plan.keeps_the_best else (),
    )


def _draws(world: World, plan: Plan, message: str, response: Response) -> tuple[Draw, ...]:
    """In the order in which they were drawn: the first m of them are those of best-of-m."""
    aligner = world.aligners[plan.reward]
    scorer = Scorer(aligner.rewards["reward"], aligner.codec)
    made: list[Draw] = []
    for candidate in response.steps[0].considered:
        reply = scorer.reply(candidate.ids)
        made.append(
            Draw(
                reply=reply,
                tokens=len(candidate.ids),
                learned=candidate.score,
                true=world.true(message, reply.text, reply.complete),
                surprise=-candidate.logp,
            )
        )
    return tuple(made)
