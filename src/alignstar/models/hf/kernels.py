"""What a decoder layer does to positions, for a CPU in single precision, compiled by numba at the first use.

Every kernel computes the positions `first` to `last` (not with it) of arrays that begin with positions, so that threads
can share them, and none of a position's numbers depends on which others are there. Knows arrays; no modules, no rows.
Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np

from alignstar.models.hf.tiles import LANES, MOST, SUMS, tile

numba: Any = import_module("numba")

Kernel: TypeAlias = Callable[..., None]

F, INT = np.float32, np.int32

UNROLLED = 4
"""Keys of a query, and rows of weights, that are gone through side by side."""

PART = 128
"""Inputs whose shares are summed by themselves first: long sums lose their last digits."""

HOW: dict[str, Any] = {
    # Sums in any order, but numbers that are none must stay so: a model that gives NaN is found out by that.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",
}


SHARED = ("kernels.py", "tiles.py", "attention.py")
"""The files of which parts are in kernels of other files."""


def _stamp() -> str | None:
    """Of the files that kernels share as they are read now."""
    try:
        return f"{crc32(b''.join(Path(__file__).with_name(name).read_bytes() for name in SHARED)):08x}"
    except OSError:
        return None


STAMP = _stamp()


def kernel(function: Callable[..., Any], *, nogil: bool = True) -> Kernel:
    """Compiled at its first call, or taken from where an earlier process has left what it compiled.

    That is found by the kernel's name and file; the name tells of changes in what is in all of them. `nogil`: other
    threads have the interpreter meanwhile.
    """
    if STAMP is not None:
        function.__qualname__ += f"_{STAMP}"
        with suppress(RuntimeError):  # nowhere to leave it
            return numba.njit(cache=True, nogil=nogil, **HOW)(function)
    return numba.njit(nogil=nogil, **HOW)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of kernels, in each of which it is compiled anew: what is known of its arguments there is known here."""
    return numba.njit(inline="always", **HOW)(function)


@inlined
def exp_parts(x: Any) -> Any:
    """exp(x) of -87 <= x <= 87 as a number near 1 and the bits of a power of two, by Cephes' polynomial (2e-7).

    Loops of it become vectors, which loops of the library's function do not.
    """
    whole = np.floor(x * F(1.44269504) + F(0.5))
    x = x - whole * F(0.693359375) + whole * F(2.12194440e-4)
    y = F(1.9875691500e-4) * x + F(1.3981999507e-3)
    y = y * x + F(8.3334519073e-3)
    y = y * x + F(4.1665795894e-2)
    y = y * x + F(1.6666665459e-1)
    y = y * x + F(5.0000001201e-1)
    return y * x * x + x + F(1), (INT(whole) + INT(127)) << INT(23)


@inlined
def added(states: Any, more: Any, first: int, last: int) -> None:
    """Adds `more` [N, H] to `states`: at once, for part by part each would be rounded to the states' last digit."""
    for n in range(first, last):
        for i in range(states.shape[1]):
            states[n, i] += more[n, i]


@inlined
def picked(rows: Any, which: Any, out: Any) -> None:
    """The rows `which` [C] of an array [any, size], into `out` [C, size]."""
    for n in range(len(which)):
        for i in range(rows.shape[1]):
            out[n, i] = rows[which[n], i]


@kernel
def normed(hidden: Any, weight: Any, eps: Any, out: Any, first: int, last: int) -> None:
    """Root-mean-square norm of `hidden` [N, H], into `out`."""
    size = hidden.shape[1]
    for n in range(first, last):
        total = F(0)
        for i in range(size):
            total += hidden[n, i] * hidden[n, i]
        scale = F(1) / np.sqrt(total / F(size) + eps)
        for i in range(size):
            out[n, i] = hidden[n, i] * scale * weight[i]


@kernel
def stored(
    qkv: Any, cos: Any, sin: Any, norms: Any, eps: Any, written: Any, buffer: Any, first: int, last: int
) -> None:
    """Of `qkv` [N, heads, dim] queries and keys rotated, queries in place; keys and values put into the pool.

    The queries' heads are followed by those of keys and of values; `buffer` [slots, 2 kv heads, dim] takes the latter
    two at `written` [N]. `cos` and `sin` [N, dim]. `norms` [0 or 2, dim]: what queries' and keys' heads are normed with
    before.
    """
    stores, dim = buffer.shape[1], qkv.shape[2]
    half, n_kv = dim // 2, stores // 2
    n_q = qkv.shape[1] - stores
    for n in range(first, last):
        slot = written[n]
        for h in range(n_q + n_kv):
            if norms.shape[0] > 0:
                weight = norms[0] if h < n_q else norms[1]
                total = F(0)
                for d in range(dim):
                    total += qkv[n, h, d] * qkv[n, h, d]
                scale = F(1) / np.sqrt(total / F(dim) + eps)
                for d in range(dim):
                    qkv[n, h, d] = qkv[n, h, d] * scale * weight[d]
            for d in range(half):
                a, b = qkv[n, h, d], qkv[n, h, half + d]
                qkv[n, h, d] = a * cos[n, d] - b * sin[n, d]
                qkv[n, h, half + d] = b * cos[n, half + d] + a * sin[n, half + d]
        for h in range(stores):
            for d in range(dim):
                buffer[slot, h, d] = qkv[n, n_q + h, d]


@inlined
def tiled(vectors: int, values: Any, weight: Any, out: Any, first: int, last: int, column: int) -> int:
    """Adds products to `out`, whose columns from `column` on are gone through in tiles; the first that is left."""
    inputs, size = weight.shape
    count, width = last - first, vectors * LANES
    tiles = -(-count // min(MOST, SUMS // vectors))
    while column + width <= size:
        for begin in range(0, inputs, PART):
            end = min(begin + PART, inputs)
            for t in range(tiles):
                n, to = first + count * t // tiles, first + count * (t + 1) // tiles
                tile(vectors, values, n, to, weight, begin, end, column, out)
        column += width
    return column


@kernel
def product(values: Any, weight: Any, bias: Any, out: Any, first: int, last: int) -> None:
    """Of `values` [N, in] the products with `weight` [in, out], and `bias` [0 or out], into `out` [N, out].

    In broad tiles where positions are few: what is read of an input's weights is side by side in memory.
    """
    inputs, size = weight.shape
    for n in range(first, last):
        for j in range(size):
            out[n, j] = bias[j] if len(bias) > 0 else F(0)
    column = 0
    if 8 * (last - first) <= SUMS:
        column = tiled(8, values, weight, out, first, last, column)
    if 4 * (last - first) <= SUMS:
        column = tiled(4, values, weight, out, first, last, column)
    column = tiled(2, values, weight, out, first, last, column)
    column = tiled(1, values, weight, out, first, last, column)
    for n in range(first, last):
        for j in range(column, size):
            for begin in range(0, inputs, PART):
                part = F(0)
                for k in range(begin, min(begin + PART, inputs)):
                    part += values[n, k] * weight[k, j]
                out[n, j] += part


@kernel
def gated(gate_up: Any, out: Any, first: int, last: int) -> None:
    """SiLU of the first half of `gate_up` [N, 2 I] times the second, into `out` [N, I]."""
    size = out.shape[1]
    power = np.empty(size, dtype=INT)
    scale = power.view(F)
    for n in range(first, last):
        for i in range(size):
            out[n, i], power[i] = exp_parts(min(max(-gate_up[n, i], F(-87)), F(87)))
        for i in range(size):
            out[n, i] = gate_up[n, i] / (F(1) + out[n, i] * scale[i]) * gate_up[n, size + i]


@kernel
def before_attention(
    hidden: Any, norm: Any, eps: Any, weight: Any, bias: Any, cos: Any, sin: Any, heads: Any, head_eps: Any,
    written: Any, buffer: Any, qkv: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Of states [N, H] what attention needs, into `qkv` [N, heads, dim] and into the pool; see `stored`."""
    states, made = hidden[first:last], qkv[first:last]
    begin, end = first - first, last - first  # of a 0 that is known another kind of each kernel would be compiled
    normal = np.empty_like(states)
    normed(states, norm, eps, normal, begin, end)
    product(normal, weight, bias, made.reshape(len(made), -1), begin, end)
    stored(made, cos[first:last], sin[first:last], heads, head_eps, written[first:last], buffer, begin, end)


@kernel
def after_attention(
    hidden: Any, attended: Any, out: Any, out_bias: Any, norm: Any, eps: Any, gate_up: Any, gate_up_bias: Any,
    down: Any, down_bias: Any, first: int, last: int,
) -> None:  # fmt: skip
    """The layer's outcome in the place of its states [N, H], of what attention gave for them."""
    states, begin, end = hidden[first:last], first - first, last - first
    more, normal = np.empty_like(states), np.empty_like(states)
    product(attended[first:last], out, out_bias, more, begin, end)
    added(states, more, begin, end)
    normed(states, norm, eps, normal, begin, end)
    both = np.empty((len(states), gate_up.shape[1]), dtype=F)
    product(normal, gate_up, gate_up_bias, both, begin, end)
    gate = np.empty((len(states), down.shape[0]), dtype=F)
    gated(both, gate, begin, end)
    product(gate, down, down_bias, more, begin, end)
    added(states, more, begin, end)


@kernel
def read_out(values: Any, weight: Any, out: Any, first: int, last: int) -> None:
    """Products of `values` [N, in] with every row of `weight` [out, in], into `out` [N, out].

    For few positions, and for weights that lie so because tokens are embedded by them too.
    """
    rows, inputs = weight.shape
    full = rows // UNROLLED * UNROLLED
    for j in range(0, full, UNROLLED):
        w0, w1, w2, w3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        for n in range(first, last):
            x, s0, s1, s2, s3 = values[n], F(0), F(0), F(0), F(0)
            for i in range(inputs):
                s0 += x[i] * w0[i]
                s1 += x[i] * w1[i]
                s2 += x[i] * w2[i]
                s3 += x[i] * w3[i]
            out[n, j], out[n, j + 1], out[n, j + 2], out[n, j + 3] = s0, s1, s2, s3
    for j in range(full, rows):
        for n in range(first, last):
            s0 = F(0)
            for i in range(inputs):
                s0 += values[n, i] * weight[j, i]
            out[n, j] = s0
