"""Whole requests on transformers models: whoever leaves, fails or dawdles, the others finish and the memory returns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import alignstar
import checkpoints
from alignstar.aligner import Aligner
from alignstar.errors import PromptError, RewardError

ASK: dict[str, Any] = {"method": "transfer-q", "k": 3, "rollout_len": 5, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sft": str(checkpoints.language_model(root / "sft", seed=1)),
        "baseline": str(checkpoints.language_model(root / "baseline", seed=2)),
        "reward": str(checkpoints.classifier(root / "reward", seed=3)),
    }


@pytest.fixture
def aligner(folders: dict[str, str]) -> Iterator[Aligner]:
    with alignstar.load(**folders, device="cpu") as made:
        yield made
        settle(made)


def settle(aligner: Aligner) -> None:
    """Nothing runs, nothing waits, and no KV position is needed by anybody."""
    reward: Any = aligner.rewards["reward"]
    models: list[Any] = [*aligner.models.values(), reward._heads]
    for model in models:
        for _ in range(200):
            if not model.worker.running and not model.worker.waiting:
                break
            time.sleep(0.01)
        assert not model.worker.running
        assert model.worker.kv_in_use == 0


@pytest.mark.parametrize("delay", range(12))
async def test_cancelling_anywhere_returns_the_memory(delay: int, aligner: Aligner) -> None:
    expected = await aligner.agenerate("Where?", **ASK)
    doomed = [asyncio.create_task(aligner.agenerate(f"{i}: it leaks", **ASK)) for i in range(3)]
    kept = asyncio.create_task(aligner.agenerate("Where?", **ASK))
    await asyncio.sleep(0.003 * delay)
    for task in doomed:
        task.cancel()
    assert (await kept).ids == expected.ids
    outcomes = await asyncio.gather(*doomed, return_exceptions=True)
    assert all(isinstance(o, asyncio.CancelledError) or o.ids for o in outcomes)


def test_a_reader_who_leaves_early_ends_the_request(aligner: Aligner) -> None:
    whole = [step.emitted for step in aligner.stream("Where?", **ASK)]
    for count in range(3):
        seen = []
        with closing(aligner.stream("Where?", **ASK)) as steps:
            for step in steps:
                seen.append(step.emitted)
                if len(seen) > count:
                    break
        assert seen == whole[: count + 1]


@pytest.mark.parametrize("method", ["greedy", "sample"])
async def test_who_waits_for_the_end_gets_what_a_reader_sees(method: str, aligner: Aligner) -> None:
    """Step by step, near ties in their places, at the same cost; a stop string ends both at the same token."""
    model: Any = aligner.models["sft"]
    model.vocabulary.tolerance = 0.3
    ask: dict[str, Any] = {"method": method, "model": "sft", "max_new_tokens": 24, "seed": 3}
    whole = await aligner.agenerate("Where?", **ask)
    assert 0 < sum(step.near_ties for step in whole.steps) == whole.usage.near_ties < 24
    for stop in ((), whole.text[8:10]):
        seen = aligner.astream("Where?", stop=stop, **ask)
        steps = [step async for step in seen]
        assert seen.response is not None
        waited = await aligner.agenerate("Where?", stop=stop, **ask)
        assert waited.steps == seen.response.steps == tuple(steps)
        assert (waited.text, waited.finish_reason) == (seen.response.text, seen.response.finish_reason)
        for name in ("lm_tokens", "sequential_steps", "near_ties"):
            assert getattr(waited.usage, name) == getattr(seen.response.usage, name)
    assert len(waited.ids) < 24


async def test_nobody_is_woken_for_tokens_that_nobody_reads(aligner: Aligner) -> None:
    model: Any = aligner.models["sft"]
    told: list[object] = []
    put = model.engine.outbox.put
    model.engine.outbox.put = lambda loop, tell: told.append(tell) or put(loop, tell)
    ask: dict[str, Any] = {"method": "greedy", "model": "sft", "max_new_tokens": 8}
    assert len((await aligner.agenerate("Where?", **ask)).ids) == 8
    assert len(told) == 2  # the response, and its reward
    told.clear()
    assert len([step async for step in aligner.astream("What?", **ask)]) == 8
    assert len(told) >= 2 + 1  # tokens, and the reward


async def test_a_slow_reader_does_not_hold_up_a_fast_one(aligner: Aligner) -> None:
    finished: list[str] = []

    async def read(name: str, pause_s: float) -> None:
        async for _ in aligner.astream(name, **ASK):
            await asyncio.sleep(pause_s)
        finished.append(name)

    await asyncio.gather(read("slow", 0.3), read("fast", 0.0))
    assert finished == ["fast", "slow"]


async def test_a_reward_that_raises_fails_its_own_request_only(folders: dict[str, str]) -> None:
    def moody(prompt: str, response: str, complete: bool) -> float:
        if "bad" in prompt:
            raise ZeroDivisionError("no mood")
        time.sleep(0.01)
        return float(len(response))

    with alignstar.load(sft=folders["sft"], baseline=folders["baseline"], reward=moody, device="cpu") as aligner:
        fine = asyncio.create_task(aligner.agenerate("good", **ASK))
        with pytest.raises(RewardError, match="no mood"):
            await aligner.agenerate("bad", **ASK)
        assert (await fine).reward is not None


def test_twice_in_a_row_and_under_a_running_loop(aligner: Aligner) -> None:
    first = aligner.generate("Where?", **ASK)

    async def notebook() -> tuple[int, ...]:
        return aligner.generate("Where?", **ASK).ids  # the plain call while a loop runs in this thread

    assert asyncio.run(notebook()) == first.ids == aligner.generate("Where?", **ASK).ids


def test_a_prompt_too_long_for_the_reward_is_refused_or_cut(folders: dict[str, str], tmp_path: Path) -> None:
    small = checkpoints.classifier(tmp_path / "small", seed=3, max_position_embeddings=24)
    long = "The kettle leaks all over my kitchen."
    with alignstar.load(**{**folders, "reward": f"0.5*{small}|clip:-1,1"}, device="cpu") as aligner:
        with pytest.raises(PromptError, match=r"for the reward .*small and 6 may follow, but it reads 24"):
            aligner.generate(long, **ASK)
        assert aligner.generate(long, **ASK, truncate="left").reward is not None
        assert aligner.generate("Short", **ASK).reward is not None
