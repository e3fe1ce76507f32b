"""A forward for which memory does not suffice: smaller ones follow, no request is lost, no token changes."""

import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from alignstar.engine import Engine
from alignstar.errors import EngineError
from alignstar.meter import Meter, metering, together
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.network import out_of_memory
from alignstar.sampling import Noise, Sampling
from tiny import causal_lm, greedy_reference, hf_model

PROMPT = tuple(range(5, 25))
CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.close()


def limited(model: HFModel, tokens: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let every forward of more than `tokens` padded tokens fail; returns the sizes of those that did."""
    forward, plain, failed = model.network.paged, model.network.plain, list[int]()

    def check(size: int) -> None:
        if size > tokens:
            failed.append(size)
            raise error

    def paged(pool: Any, rows: Any, want: int) -> Any:
        check(len(rows) * max(len(row.new) for row in rows))
        return forward(pool, rows, want)

    def whole(rows: Any, want: int) -> Any:
        check(len(rows) * len(rows[0]))
        return plain(rows, want)

    monkeypatch.setattr(model.network, "paged", paged)
    monkeypatch.setattr(model.network, "plain", whole)
    return failed


async def everything(model: HFModel) -> list[Any]:
    """Requests of all kinds at once, and what they cost."""
    noise, meter = Noise(seed=1, purpose="x"), Meter()
    with metering(meter):
        asked: list[Any] = [model.continue_((*PROMPT, z), max_new_tokens=8) for z in range(6)]
        asked += [
            model.continue_(PROMPT[z:], max_new_tokens=6, n=3, sampling=Sampling(), noise=noise) for z in range(3)
        ]
        answers: list[Any] = [[c.ids for c in answer] for answer in await together(asked)]
        answers += [t.ids.tolist() for t in await together([model.top_next(PROMPT[: 9 + z], 3) for z in range(6)])]
        tops = await together([model.logprobs(PROMPT[: 5 + z], (7, 8, 9)) for z in range(4)])
    usage = meter.usage()
    return [*answers, *[t.round(6).tolist() for t in tops], usage.lm_tokens, usage.sequential_steps]


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()])
async def test_no_request_is_lost(
    reuse: bool, error: Exception, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raw = causal_lm()
    expected = await everything(hf_model(raw, engine=engine))
    model = hf_model(raw, engine=engine, reuse=reuse)
    failed = limited(model, 30, monkeypatch, error)
    with caplog.at_level(logging.WARNING, logger="alignstar"):
        assert await everything(model) == expected
    assert failed
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(failed) < 10
    assert all("out of memory in a forward of" in line for line in said)
    await model.logprobs((3, 4), (5,))
    assert model.worker.kv_in_use == 0


async def test_what_a_failed_forward_held_is_free_for_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_model(causal_lm(), engine=engine)
    forward, states, freed = model.network.paged, list[weakref.ref[torch.Tensor]](), list[bool]()

    def paged(pool: Any, rows: Any, want: int) -> Any:
        if max(len(row.new) for row in rows) > 3:
            state = torch.zeros(3)
            states.append(weakref.ref(state))
            raise torch.OutOfMemoryError("out of memory")
        return forward(pool, rows, want)

    monkeypatch.setattr(model.network, "paged", paged)
    monkeypatch.setattr(model.network, "release", lambda: freed.append(states[-1]() is None))
    await model.top_next(PROMPT, 1)
    assert freed
    assert all(freed)


async def test_positions_are_accounted_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_model(causal_lm(), engine=engine)
    limited(model, 12, monkeypatch, torch.OutOfMemoryError("out of memory"))
    meter = Meter()
    with metering(meter):
        ((one),) = await model.continue_(PROMPT, max_new_tokens=5, stop_at_eos=False)
    assert one.ids == greedy_reference(causal_lm(), PROMPT, 5, stop=False)
    usage = meter.usage()
    assert (usage.recomputed_tokens, usage.cached_tokens) == (0, 0)
    assert usage.lm_tokens == model.worker.pushed == len(PROMPT) + 4
    assert usage.lm_calls == 2 + 4  # the prompt in two parts


async def test_wrong_guesses_go_before_anything_else(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = causal_lm(seed=3)
    model = hf_model(raw, engine=engine)
    text = greedy_reference(raw, PROMPT, 20, stop=False)
    await model.top_next(PROMPT, 1)
    model.guesses.learn([*PROMPT, *text], 1)
    failed = limited(model, 1, monkeypatch, torch.OutOfMemoryError("out of memory"))
    ((one),) = await model.continue_(PROMPT, max_new_tokens=20, stop_at_eos=False)
    assert one.ids == text
    assert len(failed) == 1


async def test_what_can_be_no_smaller_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model = hf_model(causal_lm(), engine=engine)
    limited(model, 2, monkeypatch, torch.OutOfMemoryError("out of memory"))
    with pytest.raises(EngineError, match="failed: out of memory"):
        await model.logprobs(PROMPT, (7, 8, 9))  # needs three positions at once
    assert (await model.top_next(PROMPT, 1)).ids.tolist() == list(greedy_reference(causal_lm(), PROMPT, 1))
    await model.logprobs((3, 4), (5,))
    assert model.worker.kv_in_use == 0


def test_other_errors_are_no_want_of_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("out of memory"))
    assert out_of_memory(torch.OutOfMemoryError("no matter what"))


async def test_what_is_too_much_for_one_forward_is_no_failure(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = causal_lm()
    model = hf_model(raw, engine=engine)
    failed = limited(model, 8, monkeypatch, torch.OutOfMemoryError("out of memory"))
    ((one),) = await model.continue_(PROMPT, max_new_tokens=3, stop_at_eos=False)
    assert one.ids == greedy_reference(raw, PROMPT, 3, stop=False)
    assert failed == [20, 10]
