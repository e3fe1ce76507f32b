"""The attention kernel: equal to torch's, and to the bit the same whoever else is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch

from alignstar.models.hf import kernels, largest
from alignstar.models.hf.attention import attention, together
from alignstar.models.hf.stack import stack


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("dim", [6, 12, 8, 32, 64, 80])  # vectors of 2, 4, 8 and 16 numbers; values in pieces
@pytest.mark.parametrize("window", [0, 6])
@pytest.mark.parametrize("keys", range(1, 14))
def test_attention_reads_as_many_keys_as_there_are(keys: int, window: int, dim: int):
    qkv, buffer = drawn((1, 8, dim), keys), drawn((30, 4, dim), 1)
    slots = np.random.default_rng(keys).permutation(30)[None, :keys]
    out = np.empty((1, 4 * dim), np.float32)
    given = (np.zeros(1, np.int64), np.array([keys - 1]), window, np.float32(0.3), out, 0, 1)
    attention(dim)(qkv, buffer, slots, *given)
    seen = torch.from_numpy(buffer[slots[0, max(0, keys - window) if window else 0 :]]).transpose(0, 1)
    told = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(qkv[:, :4]).transpose(0, 1), seen[:2], seen[2:], scale=0.3, enable_gqa=True
    )
    np.testing.assert_allclose(out.reshape(4, dim), told[:, 0].numpy(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("dim", [6, 8, 80])
@pytest.mark.parametrize("window", [0, 9])
def test_positions_that_share_keys_have_their_own_numbers(window: int, dim: int):
    """To the bit: texts with several positions, texts that share a prompt of some length, and others between them."""
    draw = np.random.default_rng(5)
    slots = np.stack([draw.permutation(200)[:50] for _ in range(9)])
    for other, shared in ((1, 46), (2, 45), (3, 31), (4, 26), (5, 24), (6, 3), (8, 50)):
        slots[other, :shared] = slots[0, :shared]
    row = np.repeat(np.arange(9), [1, 1, 2, 1, 3, 1, 1, 6, 1])
    ends = np.array([46, 47, 45, 46, 30, 47, 48, 49, 33, 40, 11, 12, 13, 14, 15, 16, 49])
    qkv, buffer = drawn((17, 8, dim)), drawn((200, 4, dim), 1)
    out, alone = np.zeros((17, 4 * dim), np.float32), np.zeros((17, 4 * dim), np.float32)
    attention(dim)(qkv, buffer, slots, row, ends, window, np.float32(0.3), out, 0, 17)
    for n in range(17):
        attention(dim)(qkv, buffer, slots, row, ends, window, np.float32(0.3), alone, n, n + 1)
        seen = torch.from_numpy(buffer[slots[row[n], max(0, ends[n] + 1 - window) if window else 0 : ends[n] + 1]])
        seen = seen.transpose(0, 1)
        told = torch.nn.functional.scaled_dot_product_attention(
            torch.from_numpy(qkv[n, :4, None]), seen[:2], seen[2:], scale=0.3, enable_gqa=True
        )
        np.testing.assert_allclose(alone[n].reshape(4, dim), told[:, 0].numpy(), rtol=0, atol=5e-6)
    assert np.array_equal(out, alone)


def test_how_many_positions_go_to_their_keys_together():
    slots = np.arange(5)[:, None] * 100 + np.arange(50)
    slots[1, :30], slots[2, :29], slots[3, :14] = slots[0, :30], slots[0, :29], slots[0, :14]
    row, ends = np.array([0, 0, 0, 1, 2, 3, 4]), np.array([39, 40, 41, 35, 35, 35, 35])
    found = [together.py_func(slots, row, ends, n, 7) for n in range(7)]
    assert found == [(4, 28), (4, 28), (3, 28), (2, 28), (1, 36), (1, 36), (1, 36)]
    assert together.py_func(slots, row, ends, 0, 2) == (2, 40)
    assert together.py_func(slots, np.array([3, 3]), np.array([12, 48]), 0, 2) == (1, 12)  # a short one before a long


def test_arrays_that_lie_otherwise_are_refused():
    given = (np.zeros((1, 1), int), np.zeros(1, int), np.zeros(1, int), 0, np.float32(1), drawn((1, 8)), 0, 1)
    heads, keys = drawn((1, 3, 8)), drawn((1, 2, 8))
    for wrong in ((drawn((1, 3, 16))[:, :, ::2], keys), (heads, keys.astype(np.float64)), (heads[..., None], keys)):
        with pytest.raises(kernels.numba.errors.TypingError):
            attention(8)(*wrong, *given)


def test_kernels_are_compiled_anew_where_what_they_share_has_changed():
    here = Path(kernels.__file__)
    shared = b"".join(here.with_name(name).read_bytes() for name in ("kernels.py", "tiles.py", "attention.py"))
    stamp = f"_{crc32(shared):08x}"
    assert largest.best.py_func.__qualname__ == "best" + stamp
    assert attention(8).py_func.__qualname__ == "attention_8" + stamp
    assert stack(8).py_func.__qualname__ == "stack_8" + stamp


def test_what_is_compiled_for_heads_is_found_again(tmp_path: Path):
    """By another process: it depends on nothing that is made anew in each."""
    told = """
import sys, numpy as np
from alignstar.models.hf.attention import attention
run = attention(8)
run(np.zeros((1, 3, 8), "f"), np.zeros((1, 2, 8), "f"), *np.zeros((2, 1, 1), int)[:1], np.zeros(1, int),
    np.zeros(1, int), 0, np.float32(1), np.zeros((1, 8), "f"), 0, 1)
print(sum(run.stats.cache_hits.values()))
"""
    where = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [subprocess.check_output([sys.executable, "-c", told], env=where, text=True).strip() for _ in range(2)]
    assert hits == ["0", "1"]


def test_keys_far_below_the_best_weigh_nothing():
    where = np.arange(3)[None], np.zeros(1, np.int64), np.array([2])
    for gap in (90, 100, 200, 1e4):  # one key weighs everything
        heads, keys, told = (
            np.zeros((1, 3, 8), np.float32),
            np.zeros((3, 2, 8), np.float32),
            np.empty((1, 8), np.float32),
        )
        for least in (0, -3 * gap):
            heads[0, 0, 0], keys[:, 0, 0], keys[:, 1, 0] = 1, (least, least + 5, least + gap), (1, 2, 3)
            attention(8)(heads, keys, *where, 0, np.float32(1), told, 0, 1)
            assert told[0, 0] == 3


def test_a_position_alone_has_the_numbers_it_has_among_others():
    heads, buffer = drawn((50, 6, 8)), drawn((40, 4, 8), 1)
    slots, row, position = np.arange(80).reshape(2, 40) % 40, np.arange(50) % 2, 39 - np.arange(50) % 30
    out, parts = np.zeros((50, 32), np.float32), np.zeros((50, 32), np.float32)
    given = (heads, buffer, slots, row, position, 0, np.float32(0.3))
    attention(8)(*given, out, 0, 50)
    for first in range(50):
        attention(8)(*given, parts, first, first + 1)
    assert np.array_equal(out, parts)
