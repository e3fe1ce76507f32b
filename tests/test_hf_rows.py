"""Methods that draw rows in parts, on the engine: what survives keeps its KV, and reuse changes no response."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from alignstar.engine import Engine
from alignstar.errors import NeedsError
from alignstar.meter import Meter, metering
from alignstar.methods.speculative_rejection import speculative_rejection
from alignstar.methods.tree_bon import tree_bon
from alignstar.models.hf.language import HFModel
from alignstar.models.toy import ToyCodec, ToyReward
from alignstar.rewards import Scorer
from alignstar.types import Step, Usage
from tiny import VOCAB, causal_lm, hf_model
from worlds import PROMPT, steps_of

LONG = replace(PROMPT, ids=tuple(range(5, 25)))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def model(engine: Engine, **options: Any) -> HFModel:
    return hf_model(causal_lm("llama", seed=options.pop("seed", 0)), engine=engine, **options)


async def run(method: Any, **options: Any) -> tuple[Step, Usage]:
    reward = Scorer(ToyReward(), ToyCodec(VOCAB))
    with metering(Meter()) as meter:
        (step,) = await steps_of(method(LONG, reward=reward, max_new_tokens=20, **options))
    return step, meter.usage()


def rows(step: Step) -> list[tuple[int, ...]]:
    return [candidate.ids for candidate in step.considered]


async def test_survivors_of_rejection_keep_their_kv(engine: Engine) -> None:
    held, unheld = model(engine, kv_tokens=150), model(engine, reuse=False)
    step, usage = await run(speculative_rejection, sft=held, budget="auto")
    assert usage.recomputed_tokens == 0
    assert usage.rm_calls > 16, "rows were rejected"
    assert held.worker.kv_in_use == 0
    again, slow = await run(speculative_rejection, sft=unheld, budget=149)
    assert rows(again) == rows(step)
    assert slow.recomputed_tokens > 0
    with pytest.raises(NeedsError, match="budget=auto needs a backend that holds KV"):
        await run(speculative_rejection, sft=unheld, budget="auto")


async def test_children_share_their_parents_kv(engine: Engine) -> None:
    given = {"n": 6, "children": 3, "layers": 3}
    step, usage = await run(tree_bon, sft=model(engine), baseline=model(engine, seed=1), **given)
    plain = [model(engine, reuse=False), model(engine, seed=1, reuse=False)]
    again, slow = await run(tree_bon, sft=plain[0], baseline=plain[1], **given)
    assert rows(again) == rows(step)
    assert usage.recomputed_tokens * 10 < slow.recomputed_tokens
