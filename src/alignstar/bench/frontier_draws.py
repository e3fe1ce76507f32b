"""Best-of-n by several rewards of the groups from the same draws: decoded once, chosen among again for each reward.

Only what is the same anyway is taken over. Draws are a function of prompt and seed, and every reward of the groups but
the game of a prompt (which draws more) reads all of them with both groups' rewards: so do its tokens count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from alignstar.bench.frontier import Point, Run, measure
from alignstar.bench.frontier_plans import Plan
from alignstar.bench.frontier_world import World
from alignstar.rewards import Scorer


async def measure_after(
    world: World, plan: Plan, before: Sequence[Point], *, seeds: int, on_reply: Callable[[], None] = lambda: None
) -> Point:
    """As `measure`, from the draws of one of the points before where that is the same."""
    first = next((point for point in before if same_draws(point.plan, plan)), None)
    if first is None:
        return await measure(world, plan, seeds=seeds, on_reply=on_reply)
    started = time.perf_counter()
    runs: list[Run] = []
    for run in first.runs:
        runs.append(await _chosen_again(world, plan, run))
        on_reply()
    return Point(plan=plan, runs=tuple(runs), seconds=time.perf_counter() - started, rm_weight=world.rm_weight)


def same_draws(first: Plan, plan: Plan) -> bool:
    """Whether both keep one of the same draws, at the same cost."""
    return (
        all(p.work == "groups" and p.method == "best-of-n" and p.reward != "game" for p in (first, plan))
        and first.options == plan.options
    )


async def _chosen_again(world: World, plan: Plan, run: Run) -> Run:
    codec = world.aligners[plan.reward].codec
    prompt = codec.prompt(world.messages[run.prompt])
    scores = await Scorer(world.retold[plan.reward], codec).replies(prompt, [draw.reply for draw in run.draws])
    draws = tuple(replace(draw, learned=float(score)) for draw, score in zip(run.draws, scores, strict=True))
    kept = draws[int(np.argmax(scores))]  # the first one on ties, as best-of-n
    return replace(
        run, tokens=kept.tokens, learned=kept.learned, true=kept.true, surprise=kept.surprise, draws=draws
    )  # fmt: skip
