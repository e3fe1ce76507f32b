"""The same 50 requests alone, together, without cache, in another order and after a restart: the same answers.

In float64 ids and every identity count of Usage are equal. In float32 two runs are compared up to their first
difference, which is excused only by a near tie in that step.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import alignstar
import checkpoints
from alignstar.aligner import Aligner
from alignstar.types import Response

PROMPTS = ("Where is it?", "a", "The kettle leaks.", "Hello there", "Where is it now?")
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "greedy", "model": "sft"},
    {"method": "sample", "temperature": 0.9, "top_p": 0.95},
    {"method": "best-of-n", "n": 3},
    {"method": "args", "k": 4, "strategy": "stochastic"},
    {"method": "transfer-q", "k": 3, "rollout_len": 4},
    {"method": "transfer-q", "k": 3, "rollout_len": 3, "selection": "sample", "rollout_strategy": "sample"},
    {"method": "transfer-q", "k": 3, "rollout_len": 4, "transfer": "direct", "base_policy": "sft"},
    {"method": "transfer-q", "preset": "cd-minus", "k": 3, "rollout_len": 4},
    {"method": "transfer-q", "k": 2, "rollout_len": 3, "num_rollouts": 2, "rollout_strategy": "sample"},
    {"method": "transfer-q", "k": 3, "transfer": "direct", "rollout_len": None, "winner_protection": True},
)
IDENTITY = ("lm_tokens", "sequential_steps", "rm_tokens", "rm_calls", "near_ties", "nan_rewards")
TOKENS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sft": str(checkpoints.language_model(root / "sft", seed=1)),
        "baseline": str(checkpoints.language_model(root / "baseline", seed=2)),
        "reward": str(checkpoints.classifier(Path(root / "reward"), seed=3)),
        "baseline_reward": str(checkpoints.classifier(Path(root / "baseline_reward"), seed=4)),
    }


def requests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (prompt, {**method, "seed": 10 * i + j, "max_new_tokens": TOKENS})
        for i, prompt in enumerate(PROMPTS)
        for j, method in enumerate(METHODS)
    ]


def answers(way: str, folders: dict[str, str], dtype: str) -> list[Response]:
    """All 50 in order, decoded this way."""
    asked = requests()
    order = list(range(len(asked)))
    if way == "reordered":
        order = order[1::2] + order[::2][::-1]

    async def all_at_once(aligner: Aligner) -> list[Response]:
        return await asyncio.gather(*(aligner.agenerate(asked[i][0], **asked[i][1]) for i in order))

    with alignstar.load(**folders, dtype=dtype, device="cpu", reuse=way != "no cache") as aligner:
        if way in ("alone", "restarted"):
            done = [aligner.generate(asked[i][0], **asked[i][1]) for i in order]
        else:
            done = asyncio.run(all_at_once(aligner))
    return [done[order.index(i)] for i in range(len(asked))]


@pytest.mark.slow
def test_float64_is_identical(folders: dict[str, str]) -> None:
    first = answers("alone", folders, "float64")
    for way in ("together", "no cache", "reordered", "restarted"):
        for one, other in zip(first, answers(way, folders, "float64"), strict=True):
            assert other.ids == one.ids, (way, one.options)
            assert [s.chosen for s in other.steps] == [s.chosen for s in one.steps]
            counts, others = asdict(one.usage), asdict(other.usage)
            assert {f: others[f] for f in IDENTITY} == {f: counts[f] for f in IDENTITY}, (way, one.options)


@pytest.mark.slow
def test_float32_is_identical_but_for_near_ties(folders: dict[str, str]) -> None:
    first = answers("alone", folders, "float32")
    excused = 0
    for way in ("together", "no cache", "reordered", "restarted"):
        for one, other in zip(first, answers(way, folders, "float32"), strict=True):
            differing = next((a for a, b in zip(one.steps, other.steps, strict=False) if a.emitted != b.emitted), None)
            if differing is not None:
                assert differing.near_ties > 0, (way, one.options)
                excused += 1
    assert excused <= 2  # of 200: 1 %
