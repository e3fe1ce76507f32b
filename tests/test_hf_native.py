"""The forward on kernels of our own: equal to the modules', whoever else is in it, and what happens without numba."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import tiny
from alignstar.engine import Engine
from alignstar.models.hf import kernels, largest, native, tiles
from alignstar.models.hf.attention import attention
from alignstar.models.hf.fused import FusedForward
from alignstar.models.hf.native import EACH, FEW, FEW_BY_MKL, Angles, NativeForward
from alignstar.models.hf.network import LogitsReadout, Network
from alignstar.models.hf.paged import PagedRow, Pool
from alignstar.models.hf.tops import read_states

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # grouped heads; windows everywhere, and in some layers; head norms

LONG = tuple(tuple((7 * i + 3 * n) % tiny.VOCAB for i in range(n)) for n in (29, 11, 17, 7))


def network(model: Any, **options: Any) -> Network:
    return Network(
        "tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=torch.device("cpu"), **options
    )  # fmt: skip


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def pushed(made: Network, last: int, want: int) -> tuple[torch.Tensor, list[Any]]:
    """All texts but for their last tokens in one forward, those in another, whose outputs are told."""
    pool = Pool(200, torch.device("cpu"))
    slots = [pool.take(len(text)) for text in LONG]
    both = list(zip(LONG, slots, strict=True))
    made.paged(pool, [PagedRow(new=text[:-last], slots=where[:-last]) for text, where in both], 1)
    return made.paged(pool, [PagedRow(new=text[-last:], slots=where) for text, where in both], want), both


@pytest.fixture(params=["stack", "layers", "oneDNN", "MKL"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All positions go that way, in the last two by products of torch's; skipped where it has no such."""
    if request.param == "MKL":
        monkeypatch.setattr(native, "one_dnn", lambda: None)
    elif request.param == "oneDNN" and native.one_dnn() is None:
        pytest.skip("no oneDNN here")
    way = request.param if request.param in ("stack", "layers") else "torch"
    monkeypatch.setattr(NativeForward, "_way", lambda *given: way)
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [1, 2, 5])
def test_every_way_equals_the_modules_own_forward(family: str, last: int, way: str):
    assert len(LONG) * 2 <= FEW < len(LONG) * 5  # few and many are told
    made = network(tiny.causal_lm(family, dtype=torch.float32))
    assert isinstance(made._paged, NativeForward)
    assert (made._paged.linear is torch.nn.functional.linear) == (way == "MKL")
    want = min(last, 3)
    got, both = pushed(made, last, want)
    for row, (text, _) in zip(got, both, strict=True):
        torch.testing.assert_close(row, made.plain([text], want)[0], rtol=0, atol=1e-5)


def test_biases_of_every_projection_count(way: str):
    model = LlamaForCausalLM(LlamaConfig(**tiny._SHAPE, attention_bias=True, mlp_bias=True)).eval()
    tiny.randomise(model, 0, 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    made = network(model)
    assert isinstance(made._paged, NativeForward)
    got, both = pushed(made, 3, 1)
    for row, (text, _) in zip(got, both, strict=True):
        torch.testing.assert_close(row, made.plain([text], 1)[0], rtol=0, atol=1e-5)


def test_the_way_is_the_fastest_one(monkeypatch: pytest.MonkeyPatch):
    made = network(tiny.causal_lm("llama", dtype=torch.float32))._paged
    assert isinstance(made, NativeForward)

    def ways(threads: int, largest: int, x86: bool = True) -> list[str]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(tiles, "X86", x86)
        made.largest = largest
        return [made._way(count, 10 * count) for count in (1, FEW_BY_MKL + 1, EACH * 4, 1000)]

    assert ways(1, 10**8) == ["stack"] * 4
    assert ways(4, 10**5) == ["stack", "stack", "stack", "layers"]  # not worth a thread, but for many
    assert ways(4, 10**6) == ["stack", "stack", "layers", "layers"]
    assert ways(4, 10**7) == ["torch", "torch", "layers", "layers"]  # many weights
    assert ways(4, 10**5, x86=False) == ["stack", "torch", "torch", "torch"]
    assert ways(1, 10**5, x86=False) == ["stack", "torch", "torch", "torch"]
    monkeypatch.setattr(tiles, "X86", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    made.largest = 10**5
    assert made._way(EACH * 4, 10**7) == "layers"  # long texts are work too
    made.stack = None
    assert made._way(1, 10) == "layers"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_run_on_torch(dtype: torch.dtype):
    assert isinstance(network(tiny.causal_lm("llama", dtype=dtype))._paged, FusedForward)


def test_without_numba_the_fused_forward_runs_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "alignstar.models.hf.native", None)
    with caplog.at_level(logging.WARNING, logger="alignstar"):
        made = network(tiny.causal_lm("llama", dtype=torch.float32))
    assert isinstance(made._paged, FusedForward)
    assert "kernels by numba, which are not to be had: import of" in caplog.text


@pytest.mark.parametrize("wrong", ["stack", "layers", "torch"])
def test_ways_that_are_wrong_are_found_at_load(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Whichever of them its few positions would take."""
    call = NativeForward.__call__

    def called(self: Any, *given: Any, way: str = "", **more: Any) -> Any:
        made = call(self, *given, way=way, **more)
        if way == wrong:
            made.logits = made.logits + 0.01
        return made

    monkeypatch.setattr(NativeForward, "__call__", called)
    with caplog.at_level(logging.WARNING, logger="alignstar"):
        made = network(tiny.causal_lm("llama", dtype=torch.float32))
    assert isinstance(made._paged, FusedForward)
    assert "tiny runs without kernels of our own: paged and plain forwards differ by" in caplog.text


def test_numbers_that_are_none_stay_so():
    """A model that gives NaN is found out by it, though the kernels may sum in any order."""
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        model = tiny.causal_lm("llama", dtype=torch.float32)
        made = network(model)
        with torch.no_grad():
            model.model.layers[1].get_submodule(name).weight[3, 4] = torch.nan
        for last in (1, 5):
            got, _ = pushed(made, last, 1)
            assert bool(torch.isnan(got).all()), name


@pytest.mark.parametrize(("way", "each", "kernel"), [("torch", 7, "gated"), ("layers", 6, "after_attention")])
def test_threads_share_positions_and_change_none(way: str, each: int, kernel: str, monkeypatch: pytest.MonkeyPatch):
    made = network(tiny.causal_lm("mistral", dtype=torch.float32))
    alone, _ = pushed(made, 5, 3)
    threads = torch.get_num_threads()
    calls: dict[str, set[tuple[int, int]]] = {}
    assert len(LONG) * 5 == 20

    def counted(name: str, run: Any) -> Any:
        return lambda *given: (calls.setdefault(name, set()).add(given[-2:]), run(*given))

    monkeypatch.setattr(native, "EACH", each)
    monkeypatch.setattr(native, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(native, "WORTH_SHARING", 1)
    monkeypatch.setattr(kernels, kernel, counted("positions", getattr(kernels, kernel)))
    monkeypatch.setattr(native, "attention", lambda dim: counted("texts", attention(dim)))
    try:
        torch.set_num_threads(3)
        assert isinstance(made._paged, NativeForward)
        assert made._paged._way(20, 0) == way
        shared, _ = pushed(made, 5, 3)
    finally:
        torch.set_num_threads(threads)
    assert {(0, 6), (6, 13), (13, 20)} <= calls["positions"]  # one piece each: they are the same work
    assert {(0, 1), (18, 20)} <= calls["texts"]  # twelve: they are not
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5)


def test_exponentials_are_right_far_away_too():
    gate = np.concatenate([np.linspace(-120, 120, 4001), [0.0, 1e-30, -1e-30]]).astype(np.float32)
    out = np.empty((1, len(gate)), np.float32)
    kernels.gated(np.concatenate([gate, np.ones_like(gate)])[None], out, 0, 1)
    np.testing.assert_allclose(
        out[0], torch.nn.functional.silu(torch.from_numpy(gate)).numpy(), rtol=3e-6, atol=1e-35
    )  # fmt: skip


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn", "dynamic", "longrope"])
def test_angles_are_those_of_the_module(rope: str):
    given: dict[str, Any] = {"rope_type": rope, "rope_theta": 100.0, "factor": 2.0}
    if rope == "llama3":
        given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if rope == "longrope":
        given |= {"short_factor": [1.0] * 4, "long_factor": [1.5] * 4}
    if rope != "default":
        given["original_max_position_embeddings"] = 32
    config = LlamaConfig(**tiny._GROUPED, rope_parameters=given)
    config.max_position_embeddings = 32
    angles, module = Angles(LlamaRotaryEmbedding(config)), LlamaRotaryEmbedding(config)
    assert angles.fixed == (rope not in ("dynamic", "longrope"))
    for positions in ([3], [0, 7, 7, 2], [31, 5], [90, 1, 40], [4, 6]):  # beyond what was known, and beyond training
        given_, told = np.array(positions), angles(np.array(positions))
        cos, sin = module(torch.empty(1), position_ids=torch.from_numpy(given_)[None])
        np.testing.assert_allclose(told[0], cos[0].numpy(), rtol=0, atol=1e-7)
        np.testing.assert_allclose(told[1], sin[0].numpy(), rtol=0, atol=1e-7)


def test_known_angles_are_not_computed_again(monkeypatch: pytest.MonkeyPatch):
    angles = Angles(LlamaRotaryEmbedding(LlamaConfig(**tiny._GROUPED)))
    computed: list[int] = []
    compute = angles._computed
    monkeypatch.setattr(angles, "_computed", lambda positions: (computed.append(len(positions)), compute(positions))[1])
    for last in range(1, 200):
        angles(np.array([last]))
    assert len(computed) <= 8


def test_there_is_room_for_all_positions_and_few_sizes_of_it():
    sizes = [len(native._room(count, 3)) for count in range(1, 2049)]
    assert all(count <= size <= max(count, 1.125 * count) for count, size in enumerate(sizes, 1))
    assert len(set(sizes)) <= 8 * 11


def test_products_of_any_number_of_positions_are_compiled_for_few(monkeypatch: pytest.MonkeyPatch):
    """And those that mean nothing are told nobody."""
    monkeypatch.setattr(NativeForward, "_way", lambda *given: "torch")
    if native.one_dnn() is None:
        pytest.skip("no oneDNN here")
    made = network(tiny.causal_lm("qwen2", dtype=torch.float32))
    assert isinstance(made._paged, NativeForward)
    linear, sizes = made._paged.linear, list[int]()
    monkeypatch.setattr(
        made._paged, "linear", lambda values, *by: (sizes.append(len(values)), linear(values, *by))[1]
    )  # fmt: skip
    pool = Pool(2000, torch.device("cpu"))
    text = tuple(7 * i % tiny.VOCAB for i in range(232))
    whole = made.plain([text], 232)[0]
    for count in range(200, 232):
        slots = pool.take(count)
        told = made.paged(pool, [PagedRow(new=text[:count], slots=slots)], 57)
        torch.testing.assert_close(told[0], whole[count - 57 : count], rtol=0, atol=2e-5)
        pool.give_back(slots)
    assert set(sizes) == {208, 224, 240, 60}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_processs_default_precision_decides_nothing(dtype: torch.dtype):
    """Another thread may be loading a model, for which transformers sets it."""
    made = network(tiny.causal_lm("llama", dtype=torch.float32))
    before, _ = pushed(made, 5, 3)
    torch.set_default_dtype(dtype)
    try:
        assert isinstance(made._paged, NativeForward)
        made._paged.angles = Angles(made.module.model.rotary_emb)
        during, _ = pushed(made, 5, 3)
        assert (native.one_dnn.__wrapped__() is None) == (native.one_dnn() is None)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, during)


def test_angles_are_kept_for_no_more_positions_than_the_model_has():
    config = LlamaConfig(**tiny._GROUPED)
    angles = Angles(LlamaRotaryEmbedding(config))
    for last in (200, 255, 300):  # of 256
        angles(np.array([last]))
        assert len(angles.known[0]) == max(last + 1, 256)


def test_buffers_begin_where_a_line_of_the_cache_does():
    pool = Pool(100_000, torch.device("cpu"))
    for layer, count in enumerate((5, 5, 5000, 40_000)):
        pool.take(count)
        assert all(pool.buffer(i, torch.empty(0, 4, 8)).data_ptr() % 64 == 0 for i in range(layer + 1))


def test_tokens_that_no_vocabulary_has_are_refused():
    made = network(tiny.causal_lm("llama", dtype=torch.float32))
    pool = Pool(20, torch.device("cpu"))
    for wrong in (-1, tiny.VOCAB):
        with pytest.raises(IndexError, match=f"token {wrong} is none of a vocabulary of {tiny.VOCAB}"):
            made.paged(pool, [PagedRow(new=(3, wrong), slots=pool.take(2))], 1)


def test_large_outputs_may_differ_in_proportion():
    model = tiny.causal_lm("llama", dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(2000)
    most = float(model(torch.tensor([LONG[0]])).logits.detach().abs().max())
    assert most > 300
    made = network(model)
    assert made.native
    assert 0.5 * most / 10 <= made.tolerance / 1e-4 <= 2 * most / 10  # what is a near tie grows with it
    assert network(tiny.causal_lm("llama", dtype=torch.float32)).tolerance == 1e-4


def test_what_is_told_of_many_positions_is_checked_at_load(monkeypatch: pytest.MonkeyPatch):
    tell = NativeForward._logits

    def wrong(self: Any, told: torch.Tensor) -> torch.Tensor:
        return tell(self, told) * (1 if told.shape[0] * told.shape[1] <= FEW else 2)

    monkeypatch.setattr(NativeForward, "_logits", wrong)
    assert isinstance(network(tiny.causal_lm("llama", dtype=torch.float32))._paged, FusedForward)


def test_without_one_dnn_the_log_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, logger="alignstar"):
        assert native.one_dnn.__wrapped__() is None
    assert "Products on this CPU are not oneDNN's, which can take half the time: not for this processor" in caplog.text


def test_the_last_layer_ends_for_what_is_told(monkeypatch: pytest.MonkeyPatch):
    made = network(tiny.causal_lm("llama", dtype=torch.float32))
    ended: list[int] = []
    after = NativeForward._after
    monkeypatch.setattr(NativeForward, "_way", lambda *given: "layers")
    monkeypatch.setattr(
        NativeForward,
        "_after",
        lambda self, hidden, *more, **way: (ended.append(len(hidden)), after(self, hidden, *more, **way)),
    )
    pushed(made, 5, 2)
    assert ended[4:] == [20, 20, 20, 8]


def test_what_has_kernels_is_not_compiled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr("alignstar.models.hf.network.compiled", lambda forward: forward)
    with caplog.at_level(logging.WARNING, logger="alignstar"):
        made = network(tiny.causal_lm("llama", dtype=torch.float32), compile=True)
    assert isinstance(made._paged, NativeForward)
    assert "tiny runs uncompiled: it has kernels of its own here." in caplog.text


@pytest.mark.parametrize("keep", [1, 5, 16, 60])
def test_states_are_read_as_torch_reads_them_and_ties_go_to_the_lower_id(keep: int):
    logits = np.round(4 * drawn((9, 60))) / 4  # many ties
    logits[1, 3:40], logits[2] = -np.inf, -300
    logits[2, 7], logits[3, 50] = 300, 90  # one holds everything, and what is far below counts for nothing
    told = read_states(torch.from_numpy(logits), keep, native=True)
    by_torch = read_states(torch.from_numpy(logits), keep)
    np.testing.assert_allclose(told.log_z, by_torch.log_z, rtol=0, atol=4e-14)
    for row, top, same in zip(logits, told.best, by_torch.best, strict=True):
        order = np.lexsort((np.arange(60), -row))[:keep]
        assert top.ids.tolist() == order.tolist()
        np.testing.assert_allclose(top.logps, same.logps, rtol=0, atol=4e-14)


def test_a_state_that_holds_no_number_says_so():
    logits = drawn((4, 30))
    logits[0, 20], logits[1, 0], logits[2, 5] = np.nan, np.nan, np.inf
    _, _, log_z = native.best(torch.from_numpy(logits), 4)
    assert np.isnan(log_z).tolist() == [True, True, False, False]
    assert log_z[2] == np.inf
    assert np.isfinite(log_z[3])


def test_sums_of_exponentials_are_of_double_precision():
    for gap in (0, 0.3, 1, 5, 20, 30):
        logits = np.array([[0.0] + [-gap] * 2000], dtype=np.float32)
        exact = np.log1p(2000 * np.exp(np.float64(logits[0, 1])))
        np.testing.assert_allclose(
            read_states(torch.from_numpy(logits), 2, native=True).log_z, exact, rtol=0, atol=2e-14
        )


def test_only_networks_with_kernels_are_read_by_one(monkeypatch: pytest.MonkeyPatch):
    read: list[torch.dtype] = []
    kernel = native.best
    monkeypatch.setattr(native, "best", lambda logits, keep: (read.append(logits.dtype), kernel(logits, keep))[1])
    engine = Engine()
    for dtype in (torch.float64, torch.float32):
        model = tiny.hf_model(tiny.causal_lm("llama", dtype=dtype), engine=engine)
        read.clear()  # the kernel is tried at load
        asyncio.run(model.continue_((3, 4, 5), max_new_tokens=3))
        assert set(read) == ({torch.float32} if dtype == torch.float32 else set())
    engine.close()


def test_without_the_kernel_that_reads_states_no_other_is_used(monkeypatch: pytest.MonkeyPatch):
    def uncompiled(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(largest, "best", uncompiled)
    made = network(tiny.causal_lm("llama", dtype=torch.float32))
    assert isinstance(made._paged, FusedForward)
    assert not made.native
