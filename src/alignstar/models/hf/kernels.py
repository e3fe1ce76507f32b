"""What a decoder layer does to a few positions, for a CPU in single precision, compiled by numba at the first use.

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

numba: Any = import_module("numba")

Kernel: TypeAlias = Callable[..., None]

F, INT = np.float32, np.int32

UNROLLED = 4
"""Keys of a query, and rows of weights, that are gone through side by side."""

SUMMED = 8
"""Inputs of a product whose shares are added to an output at a time, which is then read and written once for all."""

PART = 128
"""Inputs whose shares are summed by themselves first: long sums lose their last digits."""

HOW: dict[str, Any] = {
    # Sums in any order, but numbers that are none must stay so: a model that gives NaN is found out by that.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "nogil": True,
    "error_model": "numpy",
}


def _stamp() -> str | None:
    """Of this file as it is read now."""
    try:
        return f"{crc32(Path(__file__).read_bytes()):08x}"
    except OSError:
        return None


STAMP = _stamp()


def kernel(function: Callable[..., Any]) -> Kernel:
    """Compiled at its first call, or taken from where an earlier process has left what it compiled.

    That is found by the kernel's name and file; the name tells of changes in this one, which is in all of them.
    """
    if STAMP is not None:
        function.__qualname__ += f"_{STAMP}"
        with suppress(RuntimeError):  # nowhere to leave it
            return numba.njit(cache=True, **HOW)(function)
    return numba.njit(**HOW)(function)


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


@kernel
def product(values: Any, weight: Any, bias: Any, out: Any, first: int, last: int) -> None:
    """Of `values` [N, in] the products with `weight` [in, out], and `bias` [0 or out], into `out` [N, out].

    For few positions: a weight is read once for all of them.
    """
    inputs, size = weight.shape
    part = np.empty((last - first, size), dtype=F)
    for n in range(first, last):
        for j in range(size):
            out[n, j] = bias[j] if len(bias) > 0 else F(0)
    for begin in range(0, inputs, PART):
        part[:] = F(0)
        full = begin + min(PART, inputs - begin) // SUMMED * SUMMED
        for k in range(begin, full, SUMMED):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            w4, w5, w6, w7 = weight[k + 4], weight[k + 5], weight[k + 6], weight[k + 7]
            for n in range(first, last):
                x, into = values[n, k : k + SUMMED], part[n - first]
                x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
                for j in range(size):
                    into[j] += (
                        x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
                        + x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
                    )  # fmt: skip
        for k in range(full, min(begin + PART, inputs)):
            for n in range(first, last):
                x0 = values[n, k]
                for j in range(size):
                    part[n - first, j] += x0 * weight[k, j]
        out[first:last] += part


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
    normal = np.empty_like(hidden)
    normed(hidden, norm, eps, normal, first, last)
    product(normal, weight, bias, qkv.reshape(len(qkv), -1), first, last)
    stored(qkv, cos, sin, heads, head_eps, written, buffer, first, last)


@kernel
def after_attention(
    hidden: Any, attended: Any, out: Any, out_bias: Any, norm: Any, eps: Any, gate_up: Any, gate_up_bias: Any,
    down: Any, down_bias: Any, first: int, last: int,
) -> None:  # fmt: skip
    """The layer's outcome in the place of its states [N, H], of what attention gave for them."""
    more, normal = np.empty_like(hidden), np.empty_like(hidden)
    product(attended, out, out_bias, more, first, last)
    hidden[first:last] += more[first:last]  # at once: part by part, each would be rounded to the states' last digit
    normed(hidden, norm, eps, normal, first, last)
    both = np.empty((len(hidden), gate_up.shape[1]), dtype=F)
    product(normal, gate_up, gate_up_bias, both, first, last)
    gate = np.empty((len(hidden), down.shape[0]), dtype=F)
    gated(both, gate, first, last)
    product(gate, down, down_bias, more, first, last)
    hidden[first:last] += more[first:last]


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
