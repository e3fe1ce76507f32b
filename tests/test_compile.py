"""The compiled forward: padded and replayed rows say what they say alone; what is not compiled is named in the log.

A CUDA graph replays operations on the memory that they were recorded with. `Tape` does exactly that on a CPU.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import alignstar
import checkpoints
import tiny
from alignstar import cli
from alignstar.bench import compiled as measured
from alignstar.engine import Engine
from alignstar.errors import OptionError
from alignstar.evaluate.recipe import resolve
from alignstar.evaluate.worlds import open_world
from alignstar.loading import open_reward
from alignstar.models.hf import compiled as compiling
from alignstar.models.hf import network as networks
from alignstar.models.hf.compiled import LEAST_KEYS, RecordedForward, blank, fill, size_for, sizes
from alignstar.models.hf.fused import FusedForward
from alignstar.models.hf.network import LogitsReadout, Network
from alignstar.models.hf.paged import PagedRow, Pool

CPU = torch.device("cpu")
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


class Tape(TorchDispatchMode):
    """Operations with the tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, told))
        return told

    def replay(self) -> None:
        """Everything again, into the same memory."""
        for func, args, kwargs, told in self.done:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(told), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder:
    """Tapes, counted."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, run: Callable[[], Any]) -> Callable[[], Any]:
        self.recorded += 1
        with Tape() as tape:
            told = run()

        def again() -> Any:
            self.replayed += 1
            tape.replay()
            return told

        return again


def network(model: Any) -> Network:
    return Network("tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=CPU)


def fused(made: Network) -> FusedForward:
    assert isinstance(made._paged, FusedForward)
    return made._paged


def test_sizes_are_few_and_waste_at_most_a_third():
    told = [size_for(count) for count in range(1, 1025)]
    assert sorted(set(told)) == sorted({1 << i for i in range(11)} | {3 << i for i in range(9)})
    for count, size in enumerate(told, start=1):
        assert count <= size
        assert size == 1 or size * 2 <= count * 3 - 1 or size == count
    assert size_for(3, LEAST_KEYS) == LEAST_KEYS
    assert size_for(65, LEAST_KEYS) == 96


def filled(made: Network, drawn: random.Random) -> tuple[Pool, list[PagedRow], list[tuple[int, ...]]]:
    """Rows of unequal lengths of which some share a beginning; everything but their last tokens is in the pool."""
    pool, shared = Pool(900, CPU), tuple(drawn.randrange(3, tiny.VOCAB) for _ in range(12))
    common = pool.take(len(shared))
    made.paged(pool, [PagedRow(new=shared, slots=common)], 1)
    rows, texts = list[PagedRow](), list[tuple[int, ...]]()
    for _ in range(drawn.randrange(1, 12)):
        keep = drawn.choice([0, 9, 12])
        text = shared[:keep] + tuple(drawn.randrange(3, tiny.VOCAB) for _ in range(drawn.randrange(4, 9)))
        slots, new = common[:keep] + pool.take(len(text) - keep), drawn.randrange(1, 4)
        if len(text) - new > keep:
            made.paged(pool, [PagedRow(new=text[keep:-new], slots=slots[:-new])], 1)
        rows.append(PagedRow(new=text[-new:], slots=slots))
        texts.append(text)
    return pool, rows, texts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(5))
def test_padding_changes_no_output(family: str, seed: int):
    made = network(tiny.causal_lm(family))
    forward = fused(made)
    pool, rows, texts = filled(made, random.Random(seed))
    packed = forward.layout(rows, windows=forward.windows, dtype=torch.float64, device=CPU)
    want = min(len(row.new) for row in rows)
    padded = sizes(packed, want)
    room = blank(padded, list(forward.windows), dtype=torch.float64, device=CPU)
    for leftover in (room.tokens, room.positions, room.written, room.read, room.rows):
        assert leftover is not None
        leftover.fill_(5)  # what another forward left there
    with torch.inference_mode():
        fill(room, packed)
        got = forward.run(pool, room, logits_to_keep=padded.kept).logits
        exact = forward.run(pool, packed, logits_to_keep=want).logits
    assert room.tokens.shape == (padded.batch, padded.queries)
    assert room.read.shape == (padded.batch, padded.keys)
    assert got.shape[:2] == (padded.rows, padded.kept)
    for row, expected, text in zip(got[: len(rows), -want:], exact, texts, strict=False):
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(row, made.plain([text], want)[0], rtol=0, atol=1e-9)


def test_padding_is_kept_nowhere():
    made = network(tiny.causal_lm("llama"))
    forward, (pool, rows, _) = fused(made), filled(made, random.Random(3))
    packed = forward.layout(rows, windows=forward.windows, dtype=torch.float64, device=CPU)
    room = blank(sizes(packed, 1), list(forward.windows), dtype=torch.float64, device=CPU)
    before = [buffer.clone() for buffer in pool.buffers]
    with torch.inference_mode():
        fill(room, packed)
        forward.run(pool, room, logits_to_keep=1)
    written = {slot for row in rows for slot in row.slots[-len(row.new) :]} | {0}
    for old, new in zip(before, pool.buffers, strict=True):
        changed = (old != new).flatten(1).any(1).nonzero().flatten().tolist()
        assert set(changed) <= written


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """Networks that are compiled are recorded on tapes instead; a recorder for each."""
    recorders = list[Recorder]()

    def made(forward: FusedForward) -> RecordedForward:
        recorders.append(Recorder())
        return RecordedForward(forward, recorders[-1])

    monkeypatch.setattr(networks, "compiled", made)
    return recorders


@pytest.mark.parametrize("family", FAMILIES)
async def test_ids_are_equal_where_forwards_are_replayed(family: str, monkeypatch: pytest.MonkeyPatch):
    recorders = recorded(monkeypatch)
    engine = Engine()
    raw = tiny.causal_lm(family)
    plain, quick = (tiny.hf_model(raw, engine=engine, compile=compile) for compile in (False, True))
    assert isinstance(quick.network._paged, RecordedForward)
    checked = recorders[0].recorded
    assert checked, "the self-check has recorded and replayed a step"
    for length in (5, 40, 90):  # the pool grows, and the padded keys with it
        prefix = tuple(3 + (7 * i) % 50 for i in range(length))
        expected = await plain.continue_(prefix, max_new_tokens=30, stop_at_eos=False)
        told = await quick.continue_(prefix, max_new_tokens=30, stop_at_eos=False)
        assert told[0].ids == expected[0].ids
        torch.testing.assert_close(torch.tensor(told[0].logps), torch.tensor(expected[0].logps), rtol=0, atol=1e-9)
    assert recorders[0].recorded > checked
    assert recorders[0].replayed > 2 * recorders[0].recorded
    engine.close()


def test_what_was_recorded_on_other_memory_is_forgotten():
    made = network(tiny.causal_lm("llama"))
    record = Recorder()
    quick = RecordedForward(fused(made), record)
    pool, text = Pool(20_000, CPU), tuple(3 + i % 50 for i in range(20))
    slots = pool.take(20)
    step = [PagedRow(new=text[-1:], slots=slots)]
    with torch.inference_mode():
        quick(pool, [PagedRow(new=text[:-1], slots=slots[:-1])], logits_to_keep=1)
        expected = [quick(pool, step, logits_to_keep=1).logits for _ in range(3)]
        assert (record.recorded, record.replayed) == (1, 2)
        pool.take(6000)  # no longer all in the buffers
        quick(pool, step, logits_to_keep=1)
        assert (record.recorded, record.replayed) == (1, 2)
        for buffer in pool.buffers:
            buffer[slots[0]] = 0.5  # seen only by who reads the buffers of now
        fresh = fused(made)(pool, step, logits_to_keep=1).logits
        again = quick(pool, step, logits_to_keep=1).logits
    assert record.recorded == 2
    torch.testing.assert_close(again, fresh, rtol=0, atol=1e-9)
    assert (fresh - expected[0]).abs().max() > 1e-6


def test_an_answer_outlives_the_next_one():
    made = network(tiny.causal_lm("llama"))
    quick, (pool, rows, texts) = RecordedForward(fused(made), Recorder()), filled(made, random.Random(1))
    made.paged(pool, rows, 1)
    first, other = [PagedRow(new=rows[0].new[-1:], slots=rows[0].slots)], [PagedRow(new=(9,), slots=rows[0].slots)]
    with torch.inference_mode():
        for _ in range(3):
            kept = quick(pool, first, logits_to_keep=1).logits
        quick(pool, other, logits_to_keep=1)
    torch.testing.assert_close(kept[0], made.plain([texts[0]], 1)[0], rtol=0, atol=1e-9)


def test_a_device_that_records_nothing_runs_compiled(caplog: pytest.LogCaptureFixture):
    made, asked = network(tiny.causal_lm("llama")), list[object]()

    def refuse(run: Any) -> Any:
        asked.append(run)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    plain, quick, (pool, rows, _) = fused(made), RecordedForward(fused(made), refuse), filled(made, random.Random(1))
    with torch.inference_mode():
        for _ in range(4):
            assert torch.equal(quick(pool, rows, logits_to_keep=1).logits, plain(pool, rows, logits_to_keep=1).logits)
    assert len(asked) == len(caplog.records) == 1
    assert "not recorded: operation not permitted when stream" in caplog.text


def test_recordings_are_bounded_and_large_forwards_are_not_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "MOST_RECORDED", 2)
    monkeypatch.setattr(compiling, "MOST_TOKENS", 8)
    made = network(tiny.causal_lm("llama"))
    record = Recorder()
    quick, pool = RecordedForward(fused(made), record), Pool(2000, CPU)
    slots = pool.take(200)
    text = tuple(3 + i % 50 for i in range(200))
    with torch.inference_mode():
        for end in (50, 80, 120, 180, 180, 50, 80, 50, 120):
            for _ in range(2):
                quick(pool, [PagedRow(new=text[end - 4 : end], slots=slots[:end])], logits_to_keep=1)
        assert len(quick.recordings) == 2
        assert {padded.keys for padded in quick.recordings} == {64, 128}
        before = record.recorded
        for _ in range(3):
            quick(pool, [PagedRow(new=text[:20], slots=slots[:20])], logits_to_keep=1)
    assert record.recorded == before


@pytest.mark.parametrize(("family", "reuse"), [("gpt2", True), ("llama", False)])
def test_a_network_that_cannot_be_compiled_says_so_and_runs(family: str, reuse: bool, caplog: pytest.LogCaptureFixture):
    model = tiny.causal_lm(family)
    made = Network(
        "tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=CPU, reuse=reuse, compile=True
    )
    assert made.reuse == reuse
    assert caplog.messages == ["tiny runs uncompiled: only Llama-shaped networks without adapters are compiled."]


@pytest.mark.parametrize("fault", ["wrong", "failing"])
def test_a_compiled_forward_that_is_wrong_or_fails_is_not_used(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def forward(*given: Any, **how: Any) -> Any:
        if fault == "failing":
            raise RuntimeError("no ptxas\nand much more.")
        return SimpleNamespace(logits=torch.zeros(len(given[1]), 1, tiny.VOCAB, dtype=torch.float64))

    monkeypatch.setattr(networks, "compiled", lambda fused: forward)
    model = tiny.causal_lm("llama")
    made = Network("tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=CPU, compile=True)
    assert isinstance(made._paged, FusedForward)
    (said,) = caplog.messages
    assert said.startswith("tiny runs uncompiled: compiled, ")
    assert len(said.splitlines()) == 1
    assert ("(RuntimeError: no ptxas and much more)" in said) == (fault == "failing")


def recipe(models: dict[str, Any]) -> dict[str, Any]:
    return {"name": "c", "models": models, "methods": [{"method": "greedy"}], "data": "prompts.jsonl"}


def test_without_a_compiler_one_sentence_says_so_wherever_compiling_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    sft = str(checkpoints.language_model(tmp_path / "sft", seed=0))
    reward = str(checkpoints.classifier(tmp_path / "reward", seed=1))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = "compile=True needs a C\\+\\+ compiler and 'no-such-compiler' is not there; install it"
    alignstar.load(sft=sft, device="cpu").close()
    with pytest.raises(OptionError, match=missing):
        alignstar.load(sft=sft, device="cpu", compile=True)
    with pytest.raises(OptionError, match=missing), open_reward([reward], device="cpu", compile=True):
        pass
    models = {"sft": sft, "device": "cpu", "compile": True}
    with pytest.raises(OptionError, match=missing):
        open_world(resolve(recipe(models)).recipe)
    for command in (
        ("generate", "--sft", sft, "--method", "greedy", "--prompt", "a"),
        ("rewardbench", reward, "--data", str(pairs)),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, "--device", "cpu", "--compile"])
        assert "'no-such-compiler' is not there" in capsys.readouterr().err
    with pytest.raises(OptionError, match="device is mps"):
        compiling.check_compiler(torch.device("mps"))


def test_compiling_models_that_a_function_opens_is_refused():
    with pytest.raises(OptionError, match=r"models\.compile=true is for models opened by their paths"):
        resolve(recipe({"open": "python:somewhere:models", "compile": True}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when its compiler is imported
async def test_compiled_ids_are_equal_and_two_graphs_serve_every_forward(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.INFO, logger="alignstar")
    monkeypatch.setattr("alignstar.models.hf.network.native_forward", lambda fused: None)
    engine = Engine()
    raw = tiny.causal_lm("qwen3", dtype=torch.float32)  # norms are computed in it whatever the type
    torch._dynamo.utils.counters.clear()
    plain, quick = (tiny.hf_model(raw, engine=engine, compile=compile) for compile in (False, True))
    assert [said.partition(" in ")[0] for said in caplog.messages] == ["tiny was compiled and checked"]
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert made == 4, "two functions, for one state and for more"
    prompts = [tuple(3 + (i + j) % 50 for i in range(5 + 9 * j)) for j in range(4)]
    for prefix in prompts:
        expected = await plain.continue_(prefix, max_new_tokens=20, n=3, stop_at_eos=False)
        told = await quick.continue_(prefix, max_new_tokens=20, n=3, stop_at_eos=False)
        assert [one.ids for one in told] == [one.ids for one in expected]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made
    engine.close()


def test_the_benchmark_compares_equal_logits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measured, "compiled", lambda forward: RecordedForward(forward, Recorder()))
    shape = {
        "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    found = measured.run(shape, repeats=2, device=CPU, dtype=torch.float32, on_case=lambda _: None, counts=(1, 3))
    assert [row.rows for row in found.rows] == [1, 3]
    assert set(found.rows[0].as_json()) == {"rows", "uncompiled_s", "compiled_s", "x_uncompiled"}
    assert found.compile_s > 0
    assert found.compile_cpu_s >= 0
