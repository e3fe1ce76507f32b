"""What makes the groups of `bench frontier` comparable, and one set of draws for all of their rewards."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import numpy as np
import pytest

from alignstar.bench.frontier import Point, measure
from alignstar.bench.frontier_draws import measure_after, same_draws
from alignstar.bench.frontier_plans import POOLED, Plan
from alignstar.bench.frontier_world import group_rewards, held
from alignstar.bench.ratings import RATED, shared, stars, training_messages
from alignstar.demo import prompts
from alignstar.rewards import Scorer
from alignstar.rewards.game import worst_weights
from alignstar.sampling import Array, Noise, Sampling
from frontier_worlds import SHARED, SOURCE, TARGET, TOKENS, toy_world, true


def test_rewards_are_held_to_their_spread_and_compared_in_stars():
    scale = {"source": (0.5, 0.1), "target": (0.0, 0.1)}
    by_taste = held({"source": SOURCE, "target": TARGET}, scale)
    assert by_taste["source"].range == pytest.approx((0.1, 0.9))
    assert by_taste["target"].range == pytest.approx((0.0, 0.4))
    rewards = group_rewards(by_taste, scale=scale, shared=SHARED)
    assert rewards["min standardised"].range == pytest.approx((-4.0, 4.0))
    low, high = {"source": 0.15, "target": 0.4}, {"source": 0.55, "target": 0.5}
    assert rewards["min"].range == pytest.approx((0.15, 0.5))
    for share, name in ((0.75, "maxmin weights"), *((share, f"pooled {share:g}") for share in POOLED)):
        ends = [share * end["source"] + (1 - share) * end["target"] for end in (low, high)]
        assert rewards[name].range == pytest.approx(ends)


def test_a_group_rates_in_whole_stars():
    assert [stars(x) for x in (0.0, 0.12, 0.13, 0.5, 0.87, 0.88, 1.0)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_rewards_are_calibrated_on_stars_of_replies_to_training_prompts():
    texts = training_messages(40)
    assert len(set(texts)) == 40
    assert texts[:10] == training_messages(10)
    assert not set(texts) & {*prompts("evaluation"), *prompts("tuning"), *prompts("demo")}
    world, draws = toy_world(), 5
    asked = [text for length in (1, 2) for text in map("".join, itertools.product("ABCD", repeat=length))]

    def truth(message: str, reply: str, complete: bool) -> dict[str, float]:
        return {name: 3 * x - 0.4 for name, x in true(message, reply, complete).items()}

    base, rewards = world.aligners["source"], {"source": SOURCE, "target": TARGET}
    found = shared(base, rewards, messages=asked, true=truth, max_new_tokens=TOKENS, beta=0.2, draws=draws)
    expected: list[Array] = []
    for name, reward in rewards.items():
        x, y = np.zeros((len(asked), draws)), np.zeros((len(asked), RATED))
        for i, text in enumerate(asked):
            prompt = base.codec.prompt(text)
            drawn = asyncio.run(
                world.sft.continue_(
                    prompt.ids, max_new_tokens=TOKENS, n=draws, sampling=Sampling(),
                    noise=Noise(seed=i, purpose="sample"),
                )
            )  # fmt: skip
            replies = [Scorer(reward, base.codec).reply(row.ids) for row in drawn]
            x[i] = [reward.value(prompt, reply.text, reply.complete) for reply in replies]
            y[i] = [stars(truth(text, reply.text, reply.complete)[name]) for reply in replies[:RATED]]
        slope, intercept = np.polyfit(x[:, :RATED].ravel(), y.ravel(), 1)
        line = found.calibrated[name]
        assert (line.slope, line.intercept, line.n) == pytest.approx((slope, intercept, len(asked) * RATED))
        expected.append(slope * x + intercept)
    weights = worst_weights(np.zeros((len(asked), draws)), np.stack(expected, axis=2), 0.2).weights
    assert list(found.weights.values()) == pytest.approx(weights, abs=1e-6)


def test_what_another_reward_keeps_of_the_same_draws_is_what_it_would_have_decoded():
    world, at = toy_world(4), "n=4"
    rewards = ("min", "min standardised", "maxmin weights", "pooled 0.5")
    options = {"method": "best-of-n", "options": {"model": "sft", "n": 4}, "drawn": True}
    made = [
        Plan(work="groups", label=f"best-of-n, {name}", reward=name, at=at, **options) for name in (*rewards, "game")
    ]

    async def both() -> tuple[list[Point], list[Point]]:
        points: list[Point] = []
        for plan in made:
            points.append(await measure_after(world, plan, points, seeds=2))
        return points, [await measure(toy_world(4), plan, seeds=2) for plan in made]

    points, alone = asyncio.run(both())
    assert [same_draws(made[0], plan) for plan in made] == [True] * 4 + [False]
    assert not same_draws(made[0], replace(made[1], options={"model": "sft", "n": 3}))
    for ours, theirs in zip(points, alone, strict=True):
        assert [replace(r, surprise=0.0) for r in ours.runs] == [replace(r, surprise=0.0) for r in theirs.runs]
        assert [r.surprise for r in ours.runs] == pytest.approx([r.surprise for r in theirs.runs])
    assert len({tuple(r.true["source"] for r in point.runs) for point in points}) > 2, "rewards keep different ones"
