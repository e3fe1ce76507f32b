"""A toy world for `bench frontier`: two groups, their rewards, what brings them to one scale."""

from __future__ import annotations

import asyncio

from alignstar.aligner import Aligner
from alignstar.bench.frontier import Point, measure
from alignstar.bench.frontier_plans import Plan
from alignstar.bench.frontier_world import World, held, world_of
from alignstar.bench.ratings import Shared
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.models.toy_value import ToyValue
from alignstar.rewards.calibration import Calibration
from alignstar.types import Message, Prompt

V, TOKENS = 6, 6
BETA = 0.5
SCALE = {"source": (0.5, 0.3), "target": (0.4, 0.2)}
SHARED = Shared(
    calibrated={
        "source": Calibration(slope=0.5, intercept=0.1, explained=1.0, n=2),
        "target": Calibration(slope=0.25, intercept=0.4, explained=1.0, n=2),
    },
    weights={"source": 0.75, "target": 0.25},
)
SOURCE, TARGET = ToyReward(seed=3, declared=True), ToyReward(seed=4, declared=True)


def true(message: str, reply: str, complete: bool) -> dict[str, float]:
    """The learned rewards, to one figure: ties are common."""
    prompt = Prompt(messages=(Message(role="user", content=message),), text=message, ids=())
    rewards = {"source": SOURCE, "target": TARGET}
    return {name: round(reward.value(prompt, reply, complete), 1) for name, reward in rewards.items()}


def toy_world(prompts: int = 2) -> World:
    base = Aligner(
        sft=ToyModel.random(1, V, eos_weight=0.3),
        baseline=ToyModel.random(2, V, eos_weight=0.3),
        reward=TARGET,
        baseline_reward=SOURCE,
        value=ToyValue.random(5),
        codec=ToyCodec(V),
    )
    return world_of(
        base,
        held({"source": SOURCE, "target": TARGET}, SCALE),
        scale=SCALE,
        shared=SHARED,
        prompts=["AB", "C", "BA", "DD"][:prompts],
        true=true,
        max_new_tokens=TOKENS,
        beta=BETA,
        rm_weight=0.5,
    )


def measured(plan: Plan, *, prompts: int = 2, seeds: int = 1) -> Point:
    return asyncio.run(measure(toy_world(prompts), plan, seeds=seeds))
