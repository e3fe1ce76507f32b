"""Guessed tokens and streamed ones: what is decided is what a token at a time decides, whatever was guessed."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch

from alignstar.engine import Engine
from alignstar.errors import EngineError
from alignstar.meter import Meter, metering, together
from alignstar.models.hf.guesses import ENDINGS, Guesses
from alignstar.models.hf.language import HFModel
from alignstar.sampling import GREEDY, Noise, Sampling
from tiny import CONFIGS, REUSE, VOCAB, causal_lm, greedy_reference, hf_model

PROMPT = tuple(range(5, 25))


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


@pytest.fixture
async def idle(engine: Engine) -> AsyncIterator[list[HFModel]]:
    models: list[HFModel] = []
    yield models
    for model in models:
        await model.logprobs((3, 4), (5,))  # whatever was cancelled is dropped before this is computed
        while model.worker.running:  # a request may be answered just before the worker forgets it
            await asyncio.sleep(0.001)
        assert model.worker.kv_in_use == 0


def test_what_followed_the_longest_ending_is_guessed() -> None:
    guesses = Guesses()
    guesses.learn([1, 2, 3, 4, 5, 6, 7, 8], 0)
    assert guesses.after([9, 2, 3], 8) == [4, 5]  # an ending of two tokens vouches for two
    assert guesses.after([1, 2, 3, 4], 3) == [5, 6, 7]
    assert guesses.after([1, 2, 3, 4], 8) == [5, 6, 7, 8]
    assert guesses.after([7, 8], 8) == []
    assert guesses.after([3], 8) == []
    guesses.learn([0, 2, 3, 9], 3)
    assert guesses.after([5, 2, 3], 8) == [9]  # the latest text


def test_a_text_that_repeats_itself_guesses_on_beyond_its_end() -> None:
    guesses, text = Guesses(), [1, 2, 3] * 4
    guesses.learn(text, 0)
    assert guesses.after(text, 8) == [1, 2, 3, 1, 2, 3, 1, 2]


def test_old_texts_are_forgotten() -> None:
    guesses, n = Guesses(), 1 << 17
    first = [-1, -2, -3]
    guesses.learn(first, 0)
    for start in range(0, 3 * n, 1000):
        guesses.learn(list(range(start, start + 1000)), 0)
    assert guesses.after([-1, -2], 1) == []
    assert guesses.after([3 * n - 9, 3 * n - 8], 1) == [3 * n - 7]


class Wild(Guesses):
    """Guesses what is there, or rubbish, or a mixture that turns wrong in the middle."""

    def __init__(self, truth: dict[tuple[int, ...], int]) -> None:
        super().__init__()
        self.truth = truth
        self.random = random.Random(5)
        self.made = 0

    def after(self, text: Any, count: int) -> list[int]:
        right, made = self.random.randint(0, count), list[int]()
        for i in range(self.random.randint(0, count)):
            known = self.truth.get(tuple([*text, *made][-ENDINGS[0] :]), 0)
            made.append(known if i < right else self.random.randrange(VOCAB))
        self.made += len(made)
        return made


@pytest.mark.parametrize("family", [name for name, reuse in REUSE.items() if reuse])
async def test_whatever_is_guessed_decides_nothing(family: str, engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm(family, dtype=torch.float32 if family == "gemma2" else torch.float64)
    model, plain = hf_model(raw, engine=engine), hf_model(raw, engine=engine, guesses=False)
    idle += [model, plain]
    prefixes = [PROMPT, PROMPT[:7], (*PROMPT, 9), (*PROMPT, 10), (*PROMPT[:10], 3, 4)]
    truth: dict[tuple[int, ...], int] = {}
    price = Meter()
    with metering(price):
        expected = await together([plain.continue_(p, max_new_tokens=20, stop_at_eos=False, top=3) for p in prefixes])
    for prefix, (one,) in zip(prefixes, expected, strict=True):
        text = (*prefix, *one.ids)
        truth.update({text[max(0, at - ENDINGS[0]) : at]: text[at] for at in range(len(prefix), len(text))})
    model.guesses = wild = Wild(truth)
    meter = Meter()
    with metering(meter):
        made = await together([model.continue_(p, max_new_tokens=20, stop_at_eos=False, top=3) for p in prefixes])
    for (one,), (other,) in zip(made, expected, strict=True):
        assert one.ids == other.ids
        assert one.near_ties == other.near_ties
        np.testing.assert_allclose(one.logps, other.logps, atol=model.tie_tolerance)
        for mine, theirs in zip(one.tops, other.tops, strict=True):
            assert mine.ids.tolist() == theirs.ids.tolist()
    usage = meter.usage()
    assert wild.made > 20
    assert 0 < usage.discarded_tokens < wild.made
    assert (usage.lm_tokens, usage.sequential_steps) == (price.usage().lm_tokens, price.usage().sequential_steps)
    # What stays in memory is what was decided: a question about any state of it is free.
    before = model.worker.forwards
    for prefix, (one,) in zip(prefixes, made, strict=True):
        for at in range(len(one.ids)):
            assert (await model.top_next(prefix + one.ids[:at], 1)).ids.tolist() == [one.ids[at]]
    assert model.worker.forwards == before


async def test_the_end_of_sequence_and_the_length_are_met_inside_a_guess(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm(seed=4)
    whole = greedy_reference(raw, PROMPT, 30, stop=False)
    for length in range(1, 9):
        for eos in {whole[3], whole[6], VOCAB}:
            model = hf_model(raw, engine=engine)
            idle.append(model)
            model.vocabulary.eos_ids = frozenset({eos})
            model.guesses.learn([*PROMPT, *whole], 1)
            end = min(length, whole.index(eos) + 1 if eos in whole else length)
            ((one),) = await model.continue_(PROMPT, max_new_tokens=length)
            assert one.ids == whole[:end]
            assert one.ended == (eos in one.ids)
            assert model.worker.forwards <= end


async def test_guesses_behind_a_beginning_that_is_read_in_parts(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm(seed=3)
    model = hf_model(raw, engine=engine, max_tokens=8)
    idle.append(model)
    prefix = PROMPT[:17]  # two parts, and a last token with which guesses may come
    model.guesses = wild = Wild({})
    ((one),) = await model.continue_(prefix, max_new_tokens=12, stop_at_eos=False)
    assert one.ids == greedy_reference(raw, prefix, 12, stop=False)
    assert wild.made > 4


async def test_a_known_text_takes_fewer_forwards(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm(seed=3)
    model = hf_model(raw, engine=engine)
    idle.append(model)
    text = [*PROMPT, *greedy_reference(raw, PROMPT, 24, stop=False)]
    model.guesses.learn(text, 1)
    meter = Meter()
    with metering(meter):
        ((one),) = await model.continue_(PROMPT, max_new_tokens=24, stop_at_eos=False)
    assert one.ids == tuple(text[len(PROMPT) :])
    assert meter.usage().lm_calls <= 1 + 4  # the prompt, and then eight guesses and the token after them at a time
    assert meter.usage().sequential_steps == 24  # what is charged does not depend on what is remembered


# Streamed


async def streamed(model: HFModel, prefix: tuple[int, ...], **how: Any) -> list[Any]:
    return [token async for token in model.stream(prefix, **how)]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.9, top_k=20)])
@pytest.mark.parametrize("family", CONFIGS)
async def test_a_stream_is_the_continuation_token_by_token(
    family: str, sampling: Sampling, engine: Engine, idle: list[HFModel]
) -> None:
    raw = causal_lm(family)
    model, other = hf_model(raw, engine=engine), hf_model(raw, engine=engine)
    idle.append(model)
    noise = Noise(seed=3, purpose="x")
    prefixes = [PROMPT, PROMPT[:7], (*PROMPT, 9)]
    how: dict[str, Any] = {"max_new_tokens": 12, "sampling": sampling, "noise": noise}
    meter, meter_2 = Meter(), Meter()
    with metering(meter):
        told = await together([streamed(model, p, **how) for p in prefixes])
    with metering(meter_2):
        whole = await together([other.continue_(p, **how) for p in prefixes])
    for tokens, (one,) in zip(told, whole, strict=True):
        assert tuple(token.ids[0] for token in tokens) == one.ids
        assert [token.ended for token in tokens] == [False] * (len(tokens) - 1) + [one.ended]
        assert sum(token.near_ties for token in tokens) == one.near_ties
        np.testing.assert_allclose(np.concatenate([t.logps for t in tokens]), one.logps, atol=model.tie_tolerance)
    usage, usage_2 = meter.usage(), meter_2.usage()
    assert (usage.lm_tokens, usage.sequential_steps) == (usage_2.lm_tokens, usage_2.sequential_steps)
    again = await streamed(model, PROMPT, **how)
    assert [token.ids for token in again] == [token.ids for token in told[0]]


async def test_a_stream_that_is_left_costs_what_was_taken(engine: Engine, idle: list[HFModel]) -> None:
    raw = causal_lm(seed=3)
    for ahead in (False, True):
        model = hf_model(raw, engine=engine)
        idle.append(model)
        if ahead:  # all tokens come at once
            await model.continue_(PROMPT, max_new_tokens=30, stop_at_eos=False)
        meter = Meter()
        with metering(meter):
            async with aclosing(model.stream(PROMPT, max_new_tokens=30)) as tokens:
                for _ in range(3):
                    await anext(tokens)
        assert meter.usage().lm_tokens == len(PROMPT) + 2
        assert meter.usage().sequential_steps == 3


async def test_a_streams_failure_reaches_its_reader(
    engine: Engine, idle: list[HFModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hf_model(causal_lm(), engine=engine)
    idle.append(model)
    forward, seen = model.network.paged, list[int]()

    def failing(*args: Any) -> Any:
        seen.append(1)
        if len(seen) > 3:
            raise RuntimeError("no more")
        return forward(*args)

    monkeypatch.setattr(model.network, "paged", failing)
    with pytest.raises(EngineError, match="no more"):
        await streamed(model, PROMPT, max_new_tokens=30)
    monkeypatch.undo()


async def test_cancelling_a_stream_returns_the_memory(engine: Engine, idle: list[HFModel]) -> None:
    model = hf_model(causal_lm(), engine=engine)
    idle.append(model)
    for delay in range(6):
        tasks = [asyncio.create_task(streamed(model, (*PROMPT, z), max_new_tokens=60)) for z in range(4)]
        for _ in range(delay):
            await asyncio.sleep(0.002)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
