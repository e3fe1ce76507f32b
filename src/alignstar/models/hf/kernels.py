"""What a decoder layer does to a few positions, for a CPU in single precision, compiled by numba at the first use.

Every kernel computes the positions `first` to `last` (not with it) of arrays that begin with positions, so that threads
can share them, and none of a position's numbers depends on which others are there. Knows arrays; no modules, no rows.
Importing this needs numba.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np

numba: Any = import_module("numba")
extending: Any = import_module("numba.extending")
cgutils: Any = import_module("numba.core.cgutils")
ir: Any = import_module("llvmlite.ir")

Kernel: TypeAlias = Callable[..., None]

F, INT = np.float32, np.int32

LANE: Any = ir.IntType(32)
"""The number of a lane of a vector."""

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


def kernel(function: Callable[..., Any]) -> Kernel:
    """Compiled at its first call, or taken from where an earlier process has left what it compiled."""
    try:
        return numba.njit(cache=True, **HOW)(function)
    except RuntimeError:  # nowhere to leave it
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


class Vector(numba.types.Type):
    """The numbers of a head in registers: `parts` vectors of `lanes` single-precision numbers each."""

    def __init__(self, dim: int) -> None:
        super().__init__(name=f"Vector({dim})")
        self.dim = dim
        self.lanes = math.gcd(dim, 16)
        self.parts = dim // self.lanes
        self.part = ir.VectorType(ir.FloatType(), self.lanes)
        self.zeros = ir.Constant(ir.ArrayType(self.part, self.parts), None)


@extending.register_model(Vector)
class _InRegisters(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.zeros.type)


@extending.intrinsic(prefer_literal=True)
def zeros(_: Any, dim: Any) -> Any:
    """A Vector of `dim` zeros."""
    kind = Vector(dim.literal_value)
    return kind(dim), lambda context, builder, signature, given: kind.zeros


@extending.intrinsic(prefer_literal=True)
def load(_: Any, dim: Any, array: Any, i: Any, j: Any) -> Any:
    """The Vector at [i, j] of an array [any, any, dim]; neither counts from the end."""
    kind = Vector(dim.literal_value)

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_place(context, builder, kind, array, *given[1:]), align=4)

    return kind(dim, array, numba.types.intp, numba.types.intp), emit


@extending.intrinsic
def store(_: Any, vector: Any, array: Any, i: Any, j: Any) -> Any:
    """Put a Vector where `load` would find it."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[0], _place(context, builder, vector, array, *given[1:]), align=4)
        return context.get_dummy_value()

    return numba.types.void(vector, array, numba.types.intp, numba.types.intp), emit


@extending.intrinsic
def more(_: Any, total: Any, weight: Any, vector: Any) -> Any:
    """The Vector total + weight * vector."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        out, factor, _ = given
        first = builder.insert_element(vector.part(ir.Undefined), factor, LANE(0))
        factors = _picked(builder, first, first, [0] * vector.lanes)
        for i in range(vector.parts):
            x, y = (builder.extract_value(each, i) for each in (given[0], given[2]))
            out = builder.insert_value(out, _plus(builder, x, y, factors), i)
        return out

    return vector(vector, numba.types.float32, vector), emit


@extending.intrinsic
def dots(_: Any, x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The scalar products of `x` with the four others, each summed in the same order."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        products = [x.part(None)] * 4
        for i in range(x.parts):
            query, *keys = (builder.extract_value(each, i) for each in given)
            products = [_plus(builder, total, query, key) for total, key in zip(products, keys, strict=True)]
        return context.make_tuple(builder, signature.return_type, _sums(builder, products, x.lanes))

    return numba.types.UniTuple(numba.types.float32, 4)(x, x, x, x, x), emit


def _place(context: Any, builder: Any, kind: Vector, arrays: Any, array: Any, i: Any, j: Any) -> Any:
    array = context.make_array(arrays)(context, builder, array)
    row = builder.add(builder.mul(i, cgutils.unpack_tuple(builder, array.shape)[1]), j)
    at = builder.gep(array.data, [builder.mul(row, row.type(kind.dim))])
    return builder.bitcast(at, kind.zeros.type.as_pointer())


def _plus(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """The sum of the first and the product of the others: one instruction where there is such."""
    return builder.fadd(total, builder.fmul(x, y, flags=["contract"]), flags=["contract"])


def _picked(builder: Any, x: Any, y: Any, order: list[int]) -> Any:
    """Of the lanes of two vectors, those of the second counted on, some."""
    return builder.shuffle_vector(x, y, ir.VectorType(LANE, len(order))(order))


def _sums(builder: Any, four: list[Any], lanes: int) -> list[Any]:
    """The sums of the lanes of each of four vectors: pairs are added side by side, of all four at once."""
    if lanes % 4:
        return [reduce(builder.fadd, (builder.extract_element(x, LANE(i)) for i in range(lanes))) for x in four]

    def paired(x: Any, y: Any) -> Any:
        even = [i for group in range(0, lanes, 4) for i in (group, group + 2, lanes + group, lanes + group + 2)]
        return builder.fadd(_picked(builder, x, y, even), _picked(builder, x, y, [i + 1 for i in even]))

    a, b, c, d = four
    sums = paired(paired(a, b), paired(c, d))  # in every four lanes a's, b's, c's and d's
    while lanes > 4:
        lanes //= 2
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        sums = builder.fadd(_picked(builder, sums, sums, low), _picked(builder, sums, sums, high))
    return [builder.extract_element(sums, LANE(i)) for i in range(4)]


@inlined
def ordered(bits: Any) -> Any:
    """The bits of a number as an integer that is larger where the number is, or the bits of such an integer."""
    return bits ^ ((bits >> INT(31)) & INT(0x7FFFFFFF))


@inlined
def softmaxed(weights: Any, count: int, power: Any) -> None:
    """The softmax of the first `count` numbers of each row, in place; `power` is memory for so many."""
    scale, bits = power.view(F), weights.view(INT)
    for h in range(len(weights)):
        largest = ordered(bits[h, 0])
        for j in range(count):  # of integers, of which a loop becomes vectors
            largest = max(largest, ordered(bits[h, j]))
        power[0] = ordered(largest)
        most = scale[0]
        for j in range(count):
            weights[h, j], power[j] = exp_parts(max(weights[h, j] - most, F(-87)))
        total = F(0)
        for j in range(count):
            weights[h, j] *= scale[j]
            total += weights[h, j]
        total = F(1) / total
        for j in range(count):
            weights[h, j] *= total


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
        n_q, n_kv = out.shape[1] // dim, buffer.shape[1] // 2
        each, into = n_q // n_kv, out.reshape(len(out), n_q, dim)
        weights = np.empty((n_q, slots.shape[1]), dtype=F)
        power = np.empty(slots.shape[1], dtype=INT)
        for n in range(first, last):
            begin = max(0, position[n] + 1 - window) if window > 0 else 0
            at = slots[row[n], begin : position[n] + 1]
            full = len(at) // UNROLLED * UNROLLED
            for j in range(0, full, UNROLLED):  # a key's heads are next to each other in memory: it is gone to once
                j0, j1, j2, j3 = at[j], at[j + 1], at[j + 2], at[j + 3]
                for h in range(n_q):
                    g = h // each
                    k0, k1 = load(dim, buffer, j0, g), load(dim, buffer, j1, g)
                    k2, k3 = load(dim, buffer, j2, g), load(dim, buffer, j3, g)
                    s0, s1, s2, s3 = dots(load(dim, qkv, n, h), k0, k1, k2, k3)
                    weights[h, j], weights[h, j + 1] = s0 * scaling, s1 * scaling
                    weights[h, j + 2], weights[h, j + 3] = s2 * scaling, s3 * scaling
            for j in range(full, len(at)):
                for h in range(n_q):
                    k0 = load(dim, buffer, at[j], h // each)
                    weights[h, j] = dots(load(dim, qkv, n, h), k0, k0, k0, k0)[0] * scaling
            softmaxed(weights, len(at), power)
            for h in range(n_q):
                g = n_kv + h // each
                t0, t1, t2, t3 = zeros(dim), zeros(dim), zeros(dim), zeros(dim)
                for j in range(0, full, UNROLLED):
                    t0 = more(t0, weights[h, j], load(dim, buffer, at[j], g))
                    t1 = more(t1, weights[h, j + 1], load(dim, buffer, at[j + 1], g))
                    t2 = more(t2, weights[h, j + 2], load(dim, buffer, at[j + 2], g))
                    t3 = more(t3, weights[h, j + 3], load(dim, buffer, at[j + 3], g))
                for j in range(full, len(at)):
                    t0 = more(t0, weights[h, j], load(dim, buffer, at[j], g))
                store(more(more(t0, F(1), t1), F(1), more(t2, F(1), t3)), into, n, h)

    attended.__qualname__ = f"attention_{dim}"  # by which what was compiled is found again
    return kernel(attended)
