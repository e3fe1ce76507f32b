"""Attention, for a CPU in single precision, compiled by numba at the first use: one of the `kernels`.

Loops over arrays take more instructions for finding a head's numbers, and for making sure that what is written is not
what is read, than for the numbers. Here a head is a Vector, a value of its own that the compiler keeps in registers.
Importing this needs numba.
"""

from __future__ import annotations

import math
from functools import cache, partial, reduce
from importlib import import_module
from typing import Any

import numpy as np

from alignstar.models.hf.kernels import INT, UNROLLED, F, Kernel, exp_parts, inlined, kernel
from alignstar.models.hf.tiles import everywhere, plus

numba: Any = import_module("numba")
extending: Any = import_module("numba.extending")
cgutils: Any = import_module("numba.core.cgutils")
ir: Any = import_module("llvmlite.ir")

LANE: Any = ir.IntType(32)
"""The number of a lane of a vector."""

LANES = 16
"""Numbers of a vector at most; processors whose registers hold fewer take several."""

TOGETHER = 4
"""Positions that go to the keys that they share together."""

SUMS = 64
"""Numbers of a head whose weighted sums are in registers at a time, four of each; every part goes to all keys."""


class Vector(numba.types.Type):
    """The numbers of a head in registers: `parts` vectors of `lanes` single-precision numbers each."""

    def __init__(self, dim: int) -> None:
        super().__init__(name=f"Vector({dim})")
        self.dim = dim
        self.lanes = math.gcd(dim, LANES)
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
    if not _whole(array):
        return None
    kind = Vector(dim.literal_value)

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_place(context, builder, kind, array, *given[1:]), align=4)

    return kind(dim, array, numba.types.intp, numba.types.intp), emit


@extending.intrinsic
def store(_: Any, vector: Any, array: Any, i: Any, j: Any) -> Any:
    """Put a Vector where `load` would find it."""
    if not _whole(array):
        return None

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[0], _place(context, builder, vector, array, *given[1:]), align=4)
        return context.get_dummy_value()

    return numba.types.void(vector, array, numba.types.intp, numba.types.intp), emit


@extending.intrinsic
def more(_: Any, total: Any, weight: Any, vector: Any) -> Any:
    """The Vector total + weight * vector."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        out, factor, _ = given
        factors = everywhere(builder, factor, vector.lanes)
        for i in range(vector.parts):
            x, y = (builder.extract_value(each, i) for each in (given[0], given[2]))
            out = builder.insert_value(out, plus(builder, x, y, factors), i)
        return out

    return vector(vector, numba.types.float32, vector), emit


@extending.intrinsic
def dots(_: Any, x: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The scalar products of `x` with the four others, each summed in the same order."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        products = [x.part(None)] * 4
        for i in range(x.parts):
            query, *keys = (builder.extract_value(each, i) for each in given)
            products = [plus(builder, total, query, key) for total, key in zip(products, keys, strict=True)]
        return context.make_tuple(builder, signature.return_type, _sums(builder, products, x.lanes))

    return numba.types.UniTuple(numba.types.float32, 4)(x, x, x, x, x), emit


def _whole(array: Any) -> bool:
    """Whether an array's numbers lie as `_place` takes them to."""
    return bool(array.ndim == 3 and array.layout == "C" and array.dtype == numba.types.float32)


def _place(context: Any, builder: Any, kind: Vector, arrays: Any, array: Any, i: Any, j: Any) -> Any:
    array = context.make_array(arrays)(context, builder, array)
    row = builder.add(builder.mul(i, cgutils.unpack_tuple(builder, array.shape)[1]), j)
    at = builder.gep(array.data, [builder.mul(row, row.type(kind.dim))])
    return builder.bitcast(at, kind.zeros.type.as_pointer())


def _added(builder: Any, x: Any, y: Any) -> Any:
    """Their sum, in this order: what has no flags is given those in HOW."""
    return builder.fadd(x, y, flags=["contract"])


def _picked(builder: Any, x: Any, y: Any, order: list[int]) -> Any:
    """Of the lanes of two vectors, those of the second counted on, some."""
    return builder.shuffle_vector(x, y, ir.VectorType(LANE, len(order))(order))


def _sums(builder: Any, four: list[Any], lanes: int) -> list[Any]:
    """The sums of the lanes of each of four vectors: pairs are added side by side, of all four at once."""
    if lanes % 4:
        return [
            reduce(partial(_added, builder), (builder.extract_element(x, LANE(i)) for i in range(lanes))) for x in four
        ]

    def paired(x: Any, y: Any) -> Any:
        even = [i for group in range(0, lanes, 4) for i in (group, group + 2, lanes + group, lanes + group + 2)]
        return _added(builder, _picked(builder, x, y, even), _picked(builder, x, y, [i + 1 for i in even]))

    a, b, c, d = four
    sums = paired(paired(a, b), paired(c, d))  # in every four lanes a's, b's, c's and d's
    while lanes > 4:
        lanes //= 2
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        sums = _added(builder, _picked(builder, sums, sums, low), _picked(builder, sums, sums, high))
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


@inlined
def together(slots: Any, row: Any, position: Any, n: int, last: int) -> Any:
    """How many positions from n on share at least half of what they read, and how many slots, the first, they do."""
    count, shared, most = 1, position[n] + 1, position[n] + 1
    while count < TOGETHER and n + count < last:
        reads, mine, other = position[n + count] + 1, row[n], row[n + count]
        also, most = min(shared, reads), max(most, reads)
        if other != mine:
            same = 0
            while same < also and slots[mine, same] == slots[other, same]:
                same += 1
            also = same
        if 2 * also < most:
            break
        count, shared = count + 1, also
    return count, shared // UNROLLED * UNROLLED


@inlined
def scored(
    dim: int, qkv: Any, n: int, count: int, buffer: Any, at: Any, first: int, last: int, each: int, n_q: int,
    scaling: Any, weights: Any,
) -> None:  # fmt: skip
    """Of `count` positions from n on the products of queries and keys at `at[first:last]`, into `weights`.

    All heads of a key are next to each other in memory: a key is gone to once.
    """
    full = first + (last - first) // UNROLLED * UNROLLED
    for j in range(first, full, UNROLLED):
        j0, j1, j2, j3 = at[j], at[j + 1], at[j + 2], at[j + 3]
        for h in range(n_q):
            g = h // each
            k0, k1 = load(dim, buffer, j0, g), load(dim, buffer, j1, g)
            k2, k3 = load(dim, buffer, j2, g), load(dim, buffer, j3, g)
            for m in range(count):
                s0, s1, s2, s3 = dots(load(dim, qkv, n + m, h), k0, k1, k2, k3)
                into = weights[m * n_q + h]
                into[j], into[j + 1], into[j + 2], into[j + 3] = s0 * scaling, s1 * scaling, s2 * scaling, s3 * scaling
    for j in range(full, last):
        for h in range(n_q):
            k0 = load(dim, buffer, at[j], h // each)
            for m in range(count):
                weights[m * n_q + h, j] = dots(load(dim, qkv, n + m, h), k0, k0, k0, k0)[0] * scaling


@inlined
def summed(dim: int, weights: Any, buffer: Any, at: Any, g: int, into: Any, n: int, h: int) -> None:
    """The values of head g that lie in `buffer` at the slots `at`, weighted and summed, into `into[n, h]`."""
    full = len(at) // UNROLLED * UNROLLED
    t0, t1, t2, t3 = zeros(dim), zeros(dim), zeros(dim), zeros(dim)
    for j in range(0, full, UNROLLED):
        t0 = more(t0, weights[j], load(dim, buffer, at[j], g))
        t1 = more(t1, weights[j + 1], load(dim, buffer, at[j + 1], g))
        t2 = more(t2, weights[j + 2], load(dim, buffer, at[j + 2], g))
        t3 = more(t3, weights[j + 3], load(dim, buffer, at[j + 3], g))
    for j in range(full, len(at)):
        t0 = more(t0, weights[j], load(dim, buffer, at[j], g))
    store(more(more(t0, F(1), t1), F(1), more(t2, F(1), t3)), into, n, h)


@inlined
def attended(
    dim: int, size: int, qkv: Any, buffer: Any, slots: Any, row: Any, position: Any, window: int, scaling: Any,
    out: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Attention of the first heads of `qkv` [N, heads, dim] into `out` [N, query heads * dim].

    Position n reads the keys and values that lie in `buffer` [slots, 2 kv heads, dim] at `slots[row[n]]`, up to
    `position[n]`, which that has; the last `window` of them, if it is not 0. `size` numbers of a head are summed at a
    time.
    """
    n_q, n_kv = out.shape[1] // dim, buffer.shape[1] // 2
    each, pieces, into = n_q // n_kv, dim // size, out.reshape(len(out), -1, size)
    values = buffer.reshape(len(buffer), -1, size)
    weights = np.empty((TOGETHER * n_q, slots.shape[1]), dtype=F)
    power = np.empty(slots.shape[1], dtype=INT)
    n = first
    while n < last:
        count, shared = together(slots, row, position, n, last) if window == 0 else (1, 0)
        scored(dim, qkv, n, count, buffer, slots[row[n]], 0, shared, each, n_q, scaling, weights)
        for m in range(count):
            begin = max(0, position[n + m] + 1 - window) if window > 0 else 0
            at, mine = slots[row[n + m], begin : position[n + m] + 1], weights[m * n_q : (m + 1) * n_q]
            scored(dim, qkv, n + m, 1, buffer, at, shared, len(at), each, n_q, scaling, mine)
            softmaxed(mine, len(at), power)
        for h in range(n_q * pieces):  # the values that positions share are near when the second goes to them
            g = (n_kv + h // pieces // each) * pieces + h % pieces
            for m in range(count):
                begin = max(0, position[n + m] + 1 - window) if window > 0 else 0
                at = slots[row[n + m], begin : position[n + m] + 1]
                summed(size, weights[m * n_q + h // pieces], values, at, g, into, n + m, h)
        n += count


def parts(dim: int) -> int:
    """How many numbers of a head of `dim` are summed at a time."""
    return max(s for s in range(math.gcd(dim, LANES), SUMS + 1, math.gcd(dim, LANES)) if dim % s == 0)


@cache
def attention(dim: int) -> Kernel:
    """Attention for heads of `dim` numbers, which is known when it is compiled; see `attended`."""
    size = parts(dim)

    def attention(
        qkv: Any, buffer: Any, slots: Any, row: Any, position: Any, window: int, scaling: Any, out: Any,
        first: int, last: int,
    ) -> None:  # fmt: skip
        attended(dim, size, qkv, buffer, slots, row, position, window, scaling, out, first, last)

    attention.__qualname__ = f"attention_{dim}"  # by which what was compiled is found again
    return kernel(attention)
