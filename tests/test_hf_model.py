"""The transformers backend against plain whole forwards, over many families; company and cache change nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from alignstar.engine import Engine
from alignstar.errors import EngineError, PromptError
from alignstar.meter import Meter, metering, together
from alignstar.models import Top
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.tops import narrow
from alignstar.sampling import GREEDY, Noise, Sampling
from tiny import CONFIGS, EOS, REUSE, VOCAB, causal_lm, greedy_reference, hf_model

PROMPT = tuple(range(5, 25))
DRAW = Sampling(temperature=0.8, top_k=40, top_p=0.95)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


@pytest.fixture
async def idle(engine: Engine) -> AsyncIterator[list[HFModel]]:
    """Models whose running requests must need no KV at the end of the test."""
    models: list[HFModel] = []
    yield models
    for model in models:
        assert model.worker.kv_in_use == 0
        assert not model.worker.running
        assert not model.worker.waiting


@pytest.mark.parametrize("family", CONFIGS)
async def test_every_family_equals_plain_forwards(family: str, engine: Engine, idle: list[HFModel]) -> None:
    # Gemma2 has no sdpa attention, and eager attention computes its softmax in float32 whatever the weights are.
    dtype = torch.float32 if family == "gemma2" else torch.float64
    raw = causal_lm(family, dtype=dtype)
    model = hf_model(raw, engine=engine)
    idle.append(model)
    assert model.reuse is REUSE[family]
    prefixes = [PROMPT, PROMPT[:7], (*PROMPT, 9), (*PROMPT, 10), (*PROMPT[:10], 3, 4)]
    continued = await together([model.continue_(p, max_new_tokens=14) for p in prefixes])
    for prefix, (one,) in zip(prefixes, continued, strict=True):
        assert one.ids == greedy_reference(raw, prefix, 14)
        again = await model.logprobs(prefix, one.ids)
        np.testing.assert_allclose(again, one.logps, atol=2 * model.tie_tolerance)
    with torch.inference_mode():
        plain = torch.log_softmax(raw(input_ids=torch.tensor([PROMPT])).logits[0, -1].double(), -1).numpy()
    top = await model.top_next(PROMPT, 5)
    np.testing.assert_allclose(top.logps, np.sort(plain)[::-1][:5], atol=model.tie_tolerance)
    assert top.ids.tolist() == np.argsort(-plain, kind="stable")[:5].tolist()
    everything = await model.top_next(PROMPT)
    assert len(everything.ids) == VOCAB
    np.testing.assert_allclose(everything.mass, 1.0, atol=1e-6)


async def ask_everything(model: HFModel, which: int) -> tuple[Any, ...]:
    """One of 50 different requests, as plain values."""
    start = 3 + which % 4 * 4
    prefix = (*PROMPT[:start], which % 5, which % 3)
    noise = Noise(seed=which, purpose="test")
    if which % 4 == 0:
        made = await model.continue_(prefix, max_new_tokens=3 + which % 9, sampling=GREEDY, top=3)
    elif which % 4 == 1:
        made = await model.continue_(prefix, n=3, max_new_tokens=3 + which % 9, sampling=DRAW, noise=noise)
    elif which % 4 == 2:
        made = await model.continue_(prefix, max_new_tokens=8, sampling=Sampling(), noise=noise, stop_at_eos=False)
    else:
        top = await model.top_next(prefix, 4)
        return (*top.ids.tolist(), round(float((await model.logprobs(prefix, (4, 5, 6))).sum()), 9))
    return tuple(c.ids for c in made)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2", "bloom"])
async def test_fifty_requests_alone_together_reordered_and_without_cache(family: str) -> None:
    raw = causal_lm(family)
    results: list[list[tuple[Any, ...]]] = []
    for way in ("alone", "together", "reversed", "no cache", "restart"):
        engine = Engine()
        model = hf_model(raw, engine=engine, reuse=way != "no cache")
        order = list(range(50))
        if way in ("alone", "restart"):
            answers = [await ask_everything(model, i) for i in order]
        else:
            order = order[::-1] if way == "reversed" else order
            answers = await together([ask_everything(model, i) for i in order])
        results.append([answers[order.index(i)] for i in range(50)])
        engine.close()
    assert all(result == results[0] for result in results[1:])


async def test_small_memory_evicts_waits_and_changes_nothing(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm()
    large, small = hf_model(raw, engine=engine), hf_model(raw, engine=engine, kv_tokens=70)
    idle.append(small)
    expected = [await ask_everything(large, i) for i in range(30)]
    assert await together([ask_everything(small, i) for i in range(30)]) == expected
    assert small.worker.cache is not None
    assert small.worker.cache.pool.slots <= 71
    with pytest.raises(PromptError, match="KV positions"):
        await small.continue_(PROMPT, n=10, max_new_tokens=10, sampling=Sampling(), noise=Noise(seed=0, purpose="x"))


async def test_a_rollouts_first_forward_makes_the_next_step_free(engine: Engine, idle: list[HFModel]) -> None:
    model = hf_model(causal_lm(seed=3), engine=engine, guesses=False)
    idle.append(model)
    meter = Meter()
    with metering(meter):
        top = await model.top_next(PROMPT, 3)
        rollouts = await together(
            [model.continue_((*PROMPT, int(z)), max_new_tokens=6, stop_at_eos=False) for z in top.ids]
        )
        before = model.worker.forwards
        await model.top_next((*PROMPT, int(top.ids[1])), 3)
        winner = (*PROMPT, int(top.ids[1]), rollouts[1][0].ids[0])
        assert model.worker.forwards == before  # the state after a candidate was computed by its rollout
        await model.continue_(winner, max_new_tokens=6, stop_at_eos=False)
    assert model.worker.forwards - before == 1  # and the greedy candidate's rollout is the old one, shifted
    usage = meter.usage()
    assert usage.lm_tokens == len(PROMPT) + 3 * 6 + 1
    assert usage.sequential_steps == 1 + 6 + 1
    assert usage.cached_tokens == usage.recomputed_tokens == 0
    assert usage.lm_calls == 1 + 3 * 6 + 1


async def test_a_shared_prompt_is_computed_once(engine: Engine) -> None:
    model = hf_model(causal_lm(), engine=engine)
    await together([model.continue_((*PROMPT, z), max_new_tokens=1) for z in range(10)])
    assert model.worker.pushed <= len(PROMPT) + 1 + 9 * 2
    meter = Meter()
    with metering(meter):
        await model.top_next((*PROMPT, 5), 3)
    assert meter.usage().lm_tokens == meter.usage().cached_tokens == len(PROMPT) + 1


@pytest.mark.parametrize("delay", range(8))
async def test_cancelling_at_any_moment_returns_the_memory(delay: int, engine: Engine, idle: list[HFModel]) -> None:
    model = hf_model(causal_lm(), engine=engine)
    idle.append(model)
    noise = Noise(seed=1, purpose="x")
    tasks = [
        asyncio.ensure_future(
            model.continue_((*PROMPT, z), n=3, max_new_tokens=40, sampling=Sampling(), noise=noise, stop_at_eos=False)
        )
        for z in range(5)
    ]
    kept = asyncio.ensure_future(model.continue_((*PROMPT, 7), max_new_tokens=12))
    await asyncio.sleep(0.004 * delay)
    for task in tasks:
        task.cancel()
    assert (await kept)[0].ids == greedy_reference(model.network.module, (*PROMPT, 7), 12)
    await asyncio.gather(*tasks, return_exceptions=True)
    await model.top_next((1, 2), 1)  # one more forward takes the cancelled rows out


async def test_a_failing_forward_fails_its_own_rows_only(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm()
    model = hf_model(raw, engine=engine)
    idle.append(model)
    # Long enough to be running still when the other one fails.
    fine = asyncio.ensure_future(model.continue_(PROMPT, max_new_tokens=200, stop_at_eos=False))
    await asyncio.sleep(0.01)
    with pytest.raises(EngineError, match="forward of tiny failed"):
        await model.top_next((3, 4, VOCAB + 5), 2)  # a token without an embedding
    assert (await fine)[0].ids == greedy_reference(raw, PROMPT, 200, stop=False)


@pytest.mark.parametrize("reuse", [True, False])
async def test_a_request_that_cannot_be_computed_takes_no_other_with_it(reuse: bool, engine: Engine) -> None:
    """Submitted at once, they share forwards; the one that fails is found out."""
    raw = causal_lm()
    model = hf_model(raw, engine=engine, reuse=reuse)
    prefixes = [(*PROMPT, VOCAB + 5) if i in (3, 7) else (*PROMPT, 3 + i) for i in range(12)]
    meter = Meter()
    with metering(meter):
        asked = [model.continue_(p, max_new_tokens=4, stop_at_eos=False) for p in prefixes]
        told = await asyncio.gather(*asked, return_exceptions=True)
    for i, (prefix, answer) in enumerate(zip(prefixes, told, strict=True)):
        if i in (3, 7):
            assert isinstance(answer, EngineError)
        else:
            assert not isinstance(answer, BaseException)
            assert answer[0].ids == greedy_reference(raw, prefix, 4, stop=False)
    await model.top_next((3, 4), 1)
    assert model.worker.kv_in_use == 0


async def test_tops_are_told_at_every_state(engine: Engine) -> None:
    model = hf_model(causal_lm(seed=5), engine=engine)
    (one,) = await model.continue_(PROMPT, max_new_tokens=5, top=2.5)
    for i, top in enumerate(one.tops):
        alone = await model.top_next((*PROMPT, *one.ids[:i]))
        within = alone.logps >= alone.logps[0] - 2.5
        assert top.ids.tolist() == alone.ids[within].tolist()
    (again,) = await model.continue_(PROMPT, max_new_tokens=5, top=20)
    assert again.ids == one.ids
    assert [len(t.ids) for t in again.tops] == [20] * len(one.ids)


async def test_long_prompts_go_in_pieces(engine: Engine) -> None:
    raw = causal_lm()
    pieces, whole = hf_model(raw, engine=engine, max_tokens=16), hf_model(raw, engine=engine)
    prefix = tuple(range(2, 58)) * 2
    assert (await pieces.continue_(prefix, max_new_tokens=4))[0].ids == greedy_reference(raw, prefix, 4)
    np.testing.assert_allclose(
        await pieces.logprobs(prefix[:50], prefix[50:80]), await whole.logprobs(prefix[:50], prefix[50:80]), atol=1e-9
    )


async def test_what_is_not_in_the_vocabulary_has_no_probability(engine: Engine) -> None:
    model = hf_model(causal_lm(), engine=engine)
    told = await model.next_logprobs(PROMPT, np.array([3, VOCAB + 4, EOS]))
    assert told[1] == -np.inf
    assert np.isfinite(told[[0, 2]]).all()
    with pytest.raises(PromptError, match="no token"):
        await model.top_next((), 3)


def test_what_cannot_follow_is_no_alternative() -> None:
    top = Top(ids=np.array([4, 1, 2, 0]), logps=np.array([-0.1, -2.4, -np.inf, -np.inf]))
    for count in (2, 3, 4, 9):
        told = narrow(top, count, tolerance=1e-4, vocab_size=4)
        assert told is not None
        assert told.ids.tolist() == [4, 1]
        assert told.logps.tolist() == [-0.1, -2.4]
