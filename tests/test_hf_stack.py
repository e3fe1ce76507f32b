"""Products in tiles, and all layers in one call."""

from __future__ import annotations

from array import array
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from alignstar.models.hf import kernels, native
from alignstar.models.hf.native import NativeForward
from alignstar.models.hf.network import LogitsReadout, Network
from alignstar.models.hf.paged import PagedRow, Pool, Table
from alignstar.models.hf.stack import laid_out
from alignstar.models.hf.tiles import LANES, MOST


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def multiplied(values: Any, weight: Any, bias: Any, first: int, last: int) -> Any:
    out = np.full((len(values), weight.shape[1]), 7, np.float32)
    kernels.product(values, weight, bias, out, first, last)
    return out


@pytest.mark.parametrize("inputs", [1, 8, 127, 128, 129, 300])
@pytest.mark.parametrize("outputs", [1, LANES, 2 * LANES + 1, 11 * LANES, 15 * LANES + 3])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_of_all_inputs_for_all_outputs(inputs: int, outputs: int, biased: bool):
    most = 2 * MOST + 3
    values, weight, bias = drawn((most, inputs)), drawn((inputs, outputs), 1), drawn((outputs if biased else 0,), 2)
    whole = values.astype(np.float64) @ weight + (bias if biased else 0)
    for count in (1, 2, 3, 4, 5, 6, 7, MOST - 1, MOST, MOST + 1, most - 2):
        out = multiplied(values, weight, bias, 1, 1 + count)
        np.testing.assert_allclose(out[1 : 1 + count], whole[1 : 1 + count], rtol=0, atol=5e-5)
        assert np.all(out[0] == 7)
        assert np.all(out[1 + count :] == 7)


def test_weights_read_out_by_rows_are_of_all_inputs():
    for inputs in (8, 9, 23, 300):
        values, weight, read = drawn((5, inputs)), drawn((inputs, 7), 1), np.empty((5, 7), np.float32)
        kernels.read_out(values, np.ascontiguousarray(weight.T), read, 0, 5)
        np.testing.assert_allclose(read, values @ weight, rtol=0, atol=3e-5)


def test_a_positions_product_is_the_same_whoever_else_is_there():
    values, weight, bias = drawn((40, 300)), drawn((300, 11 * LANES + 5), 1), drawn((11 * LANES + 5,), 2)
    whole = multiplied(values, weight, bias, 0, 40)
    for first in range(40):
        for count in (1, 2, 5, 9):
            last = min(40, first + count)
            assert np.array_equal(multiplied(values, weight, bias, first, last)[first:last], whole[first:last])


def test_long_sums_are_of_shorter_ones():
    """One after the other, the last ones would lose more digits the larger the sum is: 8e-4 of it here."""
    inputs = 1 << 18
    values = np.full((1, inputs), 1 / 3, np.float32)
    for outputs in (1, 2 * LANES):
        out = multiplied(values, np.ones((inputs, outputs), np.float32), np.zeros(0, np.float32), 0, 1)
        np.testing.assert_allclose(out, values[0, 0] * np.float64(inputs), rtol=2e-5)


def test_arrays_that_lie_otherwise_are_refused():
    right = [drawn((2, 16)), drawn((16, 32)), drawn((0,)), drawn((2, 32))]
    for place, wrong in ((0, drawn((2, 32))[:, ::2]), (1, drawn((32, 16)).T), (3, np.zeros((2, 32)))):
        given = [*right[:place], wrong, *right[place + 1 :]]
        with pytest.raises(kernels.numba.errors.TypingError):
            kernels.product(*given, 0, 2)


def network(model: Any) -> Network:
    return Network("tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=torch.device("cpu"))


def test_tables_are_what_numpy_makes_them():
    rng = np.random.default_rng(5)
    for _ in range(50):
        rows: list[PagedRow] = []
        for _ in range(rng.integers(1, 6)):
            slots, new = rng.integers(1, 99, rng.integers(1, 12)).tolist(), 1 + int(rng.integers(0, 3))
            new = min(new, len(slots))
            rows.append(
                PagedRow(new=tuple(rng.integers(0, 60, new).tolist()), slots=array("q", slots) if new % 2 else slots)
            )
        ours, known = laid_out(rows), Table.of(rows)
        for field in fields(Table):
            assert np.array_equal(getattr(ours, field.name), getattr(known, field.name)), field.name


def test_layers_that_are_not_alike_are_gone_through_one_by_one():
    made = network(tiny.causal_lm("llama", dtype=torch.float32))._paged
    assert isinstance(made, NativeForward)
    assert made.stack is not None
    one = made.layers[0]
    biased = replace(one, qkv=one.qkv._replace(bias=np.zeros(one.qkv.weight.shape[1], np.float32)))
    assert native._stack([one, biased], made.norm, made.embedding) is None
    assert native._stack([one, one], made.norm, made.embedding) is not None
    norm = one.attention_norm
    for weight in (norm.weight.astype(np.float16), np.broadcast_to(np.float32(1), norm.weight.shape)):
        other = replace(one, attention_norm=norm._replace(weight=weight))  # nothing would find it out
        assert native._stack([other, other], made.norm, made.embedding) is None


def test_rows_without_new_tokens_or_slots_are_refused():
    made = network(tiny.causal_lm("llama", dtype=torch.float32))._paged
    pool = Pool(20, torch.device("cpu"))
    slots = pool.take(3)
    for row in (PagedRow(new=(), slots=slots[:1]), PagedRow(new=(1, 2, 3, 4), slots=slots)):
        with pytest.raises(IndexError, match="a row has no new tokens, or fewer slots than those"):
            made(pool, [PagedRow(new=(8,), slots=slots[:1]), row], keep=1)


def test_a_pool_of_another_model_is_refused():
    made = network(tiny.causal_lm("llama", dtype=torch.float32))._paged
    pool = Pool(20, torch.device("cpu"))
    slots = pool.take(3)
    pool.buffer(0, torch.empty(0, 2, 8))
    with pytest.raises(ValueError, match="the pool holds other keys and values than"):
        made(pool, [PagedRow(new=(1, 2, 3), slots=slots)], way="stack")


@pytest.mark.parametrize("way", ["stack", "layers"])
def test_rotations_of_other_heads_are_refused(way: str, monkeypatch: pytest.MonkeyPatch):
    made = network(tiny.causal_lm("llama", dtype=torch.float32))._paged
    assert isinstance(made, NativeForward)
    wrong = np.zeros((9, 6), np.float32)
    monkeypatch.setattr(made.angles, "looked_up", lambda positions: (wrong, wrong, positions))
    pool = Pool(20, torch.device("cpu"))
    with pytest.raises(ValueError, match="rotations of 6 numbers do not make up the heads"):
        made(pool, [PagedRow(new=(3, 4), slots=pool.take(2))], way=way)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_one_call_tells_what_layer_by_layer_is_told(keep: int):
    """Also of rows whose first position is told for want of others."""
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        made = network(tiny.causal_lm(family, dtype=torch.float32))._paged
        assert isinstance(made, NativeForward)
        pools = {way: Pool(200, torch.device("cpu")) for way in ("stack", "layers")}
        told: dict[str, list[Any]] = {way: [] for way in pools}
        for way, pool in pools.items():
            slots = [pool.take(30), pool.take(20)]
            for new, length in (((9, 20), 20), ((1, 2), 22), ((4, 4), 26), ((1, 1), 27)):
                rows = [
                    PagedRow(new=tuple(range(3, 3 + count)), slots=where[: min(length, len(where))])
                    for count, where in zip(new, slots, strict=True)
                ]
                told[way].append(made(pool, rows, keep=keep, logits_to_keep=keep or 1, way=way))
        for ours, theirs in zip(told["stack"], told["layers"], strict=True):
            torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-5)
            torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=1e-5)
