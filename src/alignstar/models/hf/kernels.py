"""What a decoder layer does to a few positions, for a CPU in single precision, compiled by numba at the first use.

Every kernel computes the positions `first` to `last` (not with it) of arrays that begin with positions, so that threads
can share them, and none of a position's numbers depends on which others are there. Knows arrays; no modules, no rows.
Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

numba: Any = import_module("numba")

Kernel: TypeAlias = Callable[..., None]

F, INT, LONG = np.float32, np.int32, np.int64

UNROLLED = 4
"""Keys of a query that are gone through side by side."""

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


def _kernel(function: Callable[..., Any]) -> Kernel:
    """Compiled at its first call, or taken from where an earlier process has left what it compiled."""
    try:
        return numba.njit(cache=True, **HOW)(function)
    except RuntimeError:  # nowhere to leave it
        return numba.njit(**HOW)(function)


def _part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Of kernels, in each of which it is compiled anew: what is known of its arguments there is known here."""
    return numba.njit(inline="always", **HOW)(function)


@_part
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


@_kernel
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


@_kernel
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


@_kernel
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


@_kernel
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


@_kernel
def before_attention(
    hidden: Any, norm: Any, eps: Any, weight: Any, bias: Any, cos: Any, sin: Any, heads: Any, head_eps: Any,
    written: Any, buffer: Any, qkv: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Of states [N, H] what attention needs, into `qkv` [N, heads, dim] and into the pool; see `stored`."""
    normal = np.empty_like(hidden)
    normed(hidden, norm, eps, normal, first, last)
    product(normal, weight, bias, qkv.reshape(len(qkv), -1), first, last)
    stored(qkv, cos, sin, heads, head_eps, written, buffer, first, last)


@_kernel
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


@_part
def scored(heads: Any, buffer: Any, at: Any, each: int, scaling: Any, dim: int, weights: Any) -> None:
    """Products of the first heads [heads, dim] with the keys that lie in `buffer` at the slots `at`, into `weights`.

    All heads of a key are next to each other in memory: a key is gone to once.
    """
    full = len(at) // UNROLLED * UNROLLED
    for j in range(0, full, UNROLLED):
        k0, k1, k2, k3 = buffer[at[j]], buffer[at[j + 1]], buffer[at[j + 2]], buffer[at[j + 3]]
        for h in range(len(weights)):
            q, g = heads[h], h // each
            s0, s1, s2, s3 = F(0), F(0), F(0), F(0)
            for d in range(dim):
                s0 += q[d] * k0[g, d]
                s1 += q[d] * k1[g, d]
                s2 += q[d] * k2[g, d]
                s3 += q[d] * k3[g, d]
            weights[h, j], weights[h, j + 1] = s0 * scaling, s1 * scaling
            weights[h, j + 2], weights[h, j + 3] = s2 * scaling, s3 * scaling
    for j in range(full, len(at)):
        for h in range(len(weights)):
            k0, s0 = buffer[at[j], h // each], F(0)
            for d in range(dim):
                s0 += heads[h, d] * k0[d]
            weights[h, j] = s0 * scaling


@_kernel
def read_out(values: Any, weight: Any, at: Any, out: Any, first: int, last: int) -> None:
    """Products of `values` [N, in] with every row of `weight` [out, in], into `out` [N, out]; `at` counts the rows.

    For few positions, and for weights that lie so because tokens are embedded by them too.
    """
    rows = weight.reshape(len(weight), 1, -1)
    scored(values[first:last], rows, at, last - first, F(1), weight.shape[1], out[first:last])


@_part
def softmaxed(weights: Any, count: int, power: Any) -> None:
    """The softmax of the first `count` numbers of each row, in place; `power` is memory for so many."""
    scale = power.view(F)
    for h in range(len(weights)):
        most = F(-3e38)
        for j in range(count):
            most = max(most, weights[h, j])
        for j in range(count):
            weights[h, j], power[j] = exp_parts(max(weights[h, j] - most, F(-87)))
        total = F(0)
        for j in range(count):
            weights[h, j] *= scale[j]
            total += weights[h, j]
        total = F(1) / total
        for j in range(count):
            weights[h, j] *= total


@_part
def summed(weights: Any, buffer: Any, at: Any, each: int, dim: int, into: Any) -> None:
    """The values that lie in `buffer` at the slots `at`, weighted and summed, into `into` [heads * dim]."""
    n_kv = buffer.shape[1] // 2
    full = len(at) // UNROLLED * UNROLLED
    into[:] = F(0)
    for j in range(0, full, UNROLLED):
        v0, v1, v2, v3 = buffer[at[j]], buffer[at[j + 1]], buffer[at[j + 2]], buffer[at[j + 3]]
        for h in range(len(weights)):
            g = n_kv + h // each
            w0, w1, w2, w3 = weights[h, j], weights[h, j + 1], weights[h, j + 2], weights[h, j + 3]
            for d in range(dim):
                into[h * dim + d] += w0 * v0[g, d] + w1 * v1[g, d] + w2 * v2[g, d] + w3 * v3[g, d]
    for j in range(full, len(at)):
        for h in range(len(weights)):
            w0, v0 = weights[h, j], buffer[at[j], n_kv + h // each]
            for d in range(dim):
                into[h * dim + d] += w0 * v0[d]


@cache
def attention(dim: int) -> Kernel:
    """Attention for heads of `dim` numbers, which is known when it is compiled."""

    def attended(
        qkv: Any, buffer: Any, slots: Any, row: Any, position: Any, window: int, scaling: Any, out: Any,
        first: int, last: int,
    ) -> None:  # fmt: skip
        """Attention of the first heads of `qkv` [N, heads, dim] into `out` [N, query heads * dim].

        Position n reads the keys and values that lie in `buffer` [slots, 2 kv heads, dim] at `slots[row[n]]`, up to
        `position[n]`; the last `window` of them, if it is not 0.
        """
        n_q = out.shape[1] // dim
        each = n_q // (buffer.shape[1] // 2)
        weights = np.empty((n_q, slots.shape[1]), dtype=F)
        power = np.empty(slots.shape[1], dtype=INT)
        for n in range(first, last):
            begin = max(0, position[n] + 1 - window) if window > 0 else 0
            at = slots[row[n], begin : position[n] + 1]
            scored(qkv[n], buffer, at, each, scaling, dim, weights)
            softmaxed(weights, len(at), power)
            summed(weights, buffer, at, each, dim, out[n])

    attended.__qualname__ = f"attention_{dim}"  # by which what was compiled is found again
    return _kernel(attended)


@_part
def exp_parts_double(x: Any) -> Any:
    """exp(x) of -708 <= x <= 0 as `exp_parts` gives it, in double precision (Cephes, 2e-16)."""
    whole = np.floor(x * 1.4426950408889634 + 0.5)
    x = x - whole * 6.93145751953125e-1 - whole * 1.42860682030941723212e-6
    square = x * x
    above = x * ((1.26177193074810590878e-4 * square + 3.02994407707441961300e-2) * square + 1.0)
    below = (3.00198505138664455042e-6 * square + 2.52448340349684104192e-3) * square + 2.27265548208155028766e-1
    below = below * square + 2.0
    return 1.0 + 2.0 * above / (below - above), (LONG(whole) + LONG(1023)) << LONG(52)


@_kernel
def best(logits: Any, values: Any, ids: Any, log_z: Any, first: int, last: int) -> None:
    """The largest of `logits` [N, V] in order, ties by the lower id, into `values` and `ids` [N, keep].

    And the logarithm of the sum of all their exponentials, in double precision, into `log_z` [N]; NaN where one is NaN.
    """
    size, keep = logits.shape[1], values.shape[1]
    part, power = np.empty(size), np.empty(size, dtype=LONG)
    scale = power.view(np.float64)
    for n in range(first, last):
        kept = 0
        for j in range(size):
            x = logits[n, j]
            if kept < keep or x > values[n, kept - 1]:
                at = min(kept, keep - 1)
                kept = at + 1
                while at > 0 and values[n, at - 1] < x:
                    values[n, at], ids[n, at] = values[n, at - 1], ids[n, at - 1]
                    at -= 1
                values[n, at], ids[n, at] = x, j
        most = np.float64(values[n, 0])
        if np.isinf(most):
            log_z[n] = most
            continue
        for j in range(size):  # of max(x, y) the first where x is no number: it stays so
            part[j], power[j] = exp_parts_double(max(np.float64(logits[n, j]) - most, -708.0))
        total = 0.0
        for j in range(size):
            total += part[j] * scale[j]
        log_z[n] = most + np.log(total)
