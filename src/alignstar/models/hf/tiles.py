"""Tiles of a product, for a CPU in single precision: what the kernel of products is made of.

A tile of some positions by some outputs stays in registers while one input after the other is added to it: a weight is
read once for all of its positions, and an output written once for all inputs. Which positions are in a tile changes
none of their numbers: each is summed over its inputs in order. Importing this needs numba.
"""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Any

numba: Any = import_module("numba")
extending: Any = import_module("numba.extending")
cgutils: Any = import_module("numba.core.cgutils")
ir: Any = import_module("llvmlite.ir")
binding: Any = import_module("llvmlite.binding")

X86 = platform.machine().lower() in ("x86_64", "amd64")


def _registers() -> tuple[int, int]:
    """How many numbers a register of this processor holds, and how many registers a tile may fill."""
    if not X86:
        return 4, 24
    return (16, 24) if binding.get_host_cpu_features().get("avx512f") else (8, 12)


LANES, SUMS = _registers()

MOST = SUMS // 2
"""Positions of a tile at most: each has two registers of outputs then."""

INT, PLACE, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()

VECTOR: Any = ir.VectorType(FLOAT, LANES)


@extending.intrinsic(prefer_literal=True)
def tile(
    _: Any, vectors: Any, values: Any, first: Any, last: Any, weight: Any, begin: Any, end: Any, column: Any, out: Any
) -> Any:
    """Adds to the positions `first` to `last` of `out` [N, out] their products over the inputs `begin` to `end`.

    For the `vectors` * LANES outputs from `column` on. There are one to MOST positions, at most SUMS / `vectors`, and
    one input at least. `values` [N, in], `weight` [in, out].
    """
    if not all(_whole(array) for array in (values, weight, out)):
        return None
    width, place = vectors.literal_value, numba.types.intp

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        def at(kind: Any, array: Any, row: Any, more: Any) -> Any:
            """Where [row, more] of an array is."""
            made = context.make_array(kind)(context, builder, array)
            size = cgutils.unpack_tuple(builder, made.shape)[1]
            return builder.gep(made.data, [builder.add(builder.mul(row, size), more)])

        _, x, n, past, w, k, until, j, y = given
        done = builder.append_basic_block("done")
        cases = builder.switch(builder.sub(past, n), done)
        for rows in range(1, min(MOST, SUMS // width) + 1):
            block = builder.append_basic_block(f"of_{rows}")
            cases.add_case(PLACE(rows), block)
            builder.position_at_end(block)
            row = [builder.add(n, PLACE(r)) for r in range(rows)]
            sums = _summed(
                builder,
                [at(values, x, r, PLACE(0)) for r in row],
                lambda i: at(weight, w, i, j),
                (k, until),
                width,
            )
            for r, total in zip(row, sums, strict=True):
                into = at(out, y, r, j)
                for v in range(width):
                    where = _vector(builder, into, v)
                    builder.store(builder.fadd(builder.load(where, align=4), total[v]), where, align=4)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return numba.types.void(vectors, values, place, place, weight, place, place, place, out), emit


def _whole(array: Any) -> bool:
    """Whether an array's numbers lie as `tile` takes them to."""
    return bool(array.ndim == 2 and array.layout == "C" and array.dtype == numba.types.float32)


def _vector(builder: Any, where: Any, v: int) -> Any:
    """The place of the v-th vector from a place on."""
    return builder.bitcast(builder.gep(where, [PLACE(LANES * v)]), VECTOR.as_pointer())


def _summed(builder: Any, rows: list[Any], weights: Any, inputs: tuple[Any, Any], width: int) -> list[list[Any]]:
    """A loop over inputs; its sums per row: `width` vectors each. `weights` tells where those of an input are."""
    before, loop, after = builder.block, builder.append_basic_block("inputs"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(PLACE)
    sums = [[builder.phi(VECTOR) for _ in range(width)] for _ in rows]
    here = weights(k)
    weight = [builder.load(_vector(builder, here, v), align=4) for v in range(width)]
    for v in range(width):  # what the tiles of the next columns read first
        _soon(builder, builder.gep(here, [PLACE(LANES * (width + v))]))
    totals: list[list[Any]] = []
    for row, before_this in zip(rows, sums, strict=True):
        x = everywhere(builder, builder.load(builder.gep(row, [k])), LANES)
        totals.append([plus(builder, total, x, w) for total, w in zip(before_this, weight, strict=True)])
    following = builder.add(k, PLACE(1))
    for phi, start, to in [(k, inputs[0], following)] + [
        (phi, VECTOR(None), to) for a, b in zip(sums, totals, strict=True) for phi, to in zip(a, b, strict=True)
    ]:
        phi.add_incoming(start, before)
        phi.add_incoming(to, loop)
    builder.cbranch(builder.icmp_signed("<", following, inputs[1]), loop, after)
    builder.position_at_end(after)
    return totals


def plus(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """The sum of the first and the product of the others: one instruction where there is such."""
    return builder.fadd(total, builder.fmul(x, y, flags=["contract"]), flags=["contract"])


def everywhere(builder: Any, number: Any, lanes: int) -> Any:
    """The vector of so many times a number."""
    one = builder.insert_element(ir.VectorType(FLOAT, lanes)(ir.Undefined), number, INT(0))
    return builder.shuffle_vector(one, one, ir.VectorType(INT, lanes)([0] * lanes))


def _soon(builder: Any, where: Any) -> None:
    """Has memory bring what will be read; where there is none, nothing happens."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
    fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(fetch, [builder.bitcast(where, byte), INT(0), INT(2), INT(1)])
