"""All layers of a model in one call, for a CPU in single precision: one of the `kernels`.

Between two kernels a thread waits for the interpreter, which others may hold: as long as within a small layer, and at
every layer anew. Here layers that are alike, which are found by the addresses of their weights, are gone through
without it; and what comes before them does not let go of it, as torch's operations and large ones of numpy's do.
Importing this needs numba.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignstar.models.hf.attention import attended, parts
from alignstar.models.hf.kernels import F, Kernel, after_attention, before_attention, kernel, normed, picked
from alignstar.models.hf.paged import Ints, PagedRow, Pool, Table, in_order

numba: Any = import_module("numba")
extending: Any = import_module("numba.extending")

SINGLE: Any = numba.types.CPointer(numba.types.float32)


class Stack:
    """Layers that are alike: `arrays` of each, in the order in which `stack` takes them.

    `least` [L, 4]: what keeps the norms before attention, of heads and after it from dividing by zero, and the scaling.
    `windows` [L]; `norm`, a weight and what keeps it from dividing by zero, comes after the last layer. All arrays are
    of single precision and lie row by row: there is nothing that would find out if not.
    """

    def __init__(
        self, arrays: Sequence[tuple[NDArray[np.float32], ...]], least: NDArray[np.float32], windows: Ints,
        norm: tuple[NDArray[np.float32], np.float32], embedding: NDArray[np.float32],
    ) -> None:  # fmt: skip
        self.arrays = arrays  # which live as long as their addresses are used
        self.addresses = np.array([[each.ctypes.data for each in of] for of in arrays])
        self.like: torch.Tensor | None = None  # no slots of a layer's buffer; made once
        self.least, self.windows, self.norm, self.embedding = least, windows, norm, embedding

    def __call__(self, pool: Pool, table: Table, angles: tuple[Any, Any, Ints], chosen: Ints) -> NDArray[np.float32]:
        """States [C, H], normed, after the last layer at the `chosen` ones of the table's tokens; the last ends there.

        Raises ValueError where the angles are not those of these heads, or the pool is another model's.
        """
        _, qkv, b0, heads, out, b1, _, _, b2, down, b3 = self.arrays[0]
        dim = angles[0].shape[1]
        if len(out) % dim or qkv.shape[1] % dim:
            raise ValueError(f"rotations of {dim} numbers do not make up the heads")  # the kernel would write beyond
        n_q = len(out) // dim
        stores = qkv.shape[1] // dim - n_q
        if self.like is None or self.like.shape[1:] != (stores, dim):
            self.like = torch.empty(0, stores, dim, dtype=torch.float32, device="cpu")
        held = [pool.buffer(index, self.like) for index in range(len(self.arrays))]
        if any(each.shape[1:] != self.like.shape[1:] or each.dtype != torch.float32 for each in held):
            raise ValueError(f"the pool holds other keys and values than {stores} heads of {dim} numbers")
        shapes = (
            n_q, stores // 2, len(down), len(heads), min(len(each) for each in held), len(b0), len(b1), len(b2), len(b3)
        )  # fmt: skip
        told = np.empty((len(chosen), qkv.shape[0]), dtype=F)
        stack(dim)(
            self.embedding, table.tokens, *angles, table.slots, table.row, table.positions, table.written,
            self.addresses, self.least, self.windows, np.array([each.data_ptr() for each in held]), shapes,
            *self.norm, chosen, told, 0,
        )  # fmt: skip
        return told


@extending.intrinsic
def at(_: Any, address: Any) -> Any:
    """The single-precision numbers at an address."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(SINGLE))

    return SINGLE(numba.types.intp), emit


@cache
def stack(dim: int) -> Kernel:
    """All layers, with heads of `dim` numbers, which is known when it is compiled."""
    size = parts(dim)

    def stack(
        embedding: Any, tokens: Any, cos: Any, sin: Any, where: Any, slots: Any, row: Any, position: Any, written: Any,
        addresses: Any, least: Any, windows: Any, buffers: Any, shapes: Any, norm: Any, eps: Any, chosen: Any,
        told: Any, first: int,
    ) -> None:  # fmt: skip
        """Of `tokens` [N] what comes out at the `chosen` ones, into `told` [C, H]; see Stack and `before_attention`.

        Of each layer there are `addresses` [L, 11], and those of the pool's `buffers` [L]. `shapes`: the numbers of
        query heads, of key heads, of gates, of heads' norms and of slots, and how long biases are. `first` is 0: were
        that known here, another kind of each kernel would be compiled.
        """
        count, width = len(tokens), embedding.shape[1]
        n_q, n_kv, gates, norms, room, b0, b1, b2, b3 = shapes
        hidden, turned, aside = np.empty((count, width), F), np.empty((count, dim), F), np.empty((count, dim), F)
        picked(embedding, tokens, hidden)
        picked(cos, where, turned)
        picked(sin, where, aside)
        qkv = np.empty((count, n_q + 2 * n_kv, dim), F)
        out = np.empty((count, n_q * dim), F)
        for index in range(len(addresses)):
            a, e = addresses[index], least[index]
            buffer = numba.carray(at(buffers[index]), (room, 2 * n_kv, dim))
            before_attention(
                hidden, numba.carray(at(a[0]), (width,)), e[0],
                numba.carray(at(a[1]), (width, (n_q + 2 * n_kv) * dim)), numba.carray(at(a[2]), (b0,)),
                turned, aside, numba.carray(at(a[3]), (norms, dim)), e[1], written, buffer, qkv, first, count,
            )  # fmt: skip
            if index + 1 == len(addresses):
                count = len(chosen)
                ended, queries = np.empty((count, width), F), np.empty((count, n_q + 2 * n_kv, dim), F)
                picked(hidden, chosen, ended)
                picked(qkv.reshape(len(qkv), -1), chosen, queries.reshape(count, -1))
                hidden, qkv, out = ended, queries, np.empty((count, n_q * dim), F)
                row, position = row[chosen], position[chosen]
            attended(dim, size, qkv, buffer, slots, row, position, windows[index], e[3], out, first, count)
            after_attention(
                hidden, out, numba.carray(at(a[4]), (n_q * dim, width)), numba.carray(at(a[5]), (b1,)),
                numba.carray(at(a[6]), (width,)), e[2],
                numba.carray(at(a[7]), (width, 2 * gates)), numba.carray(at(a[8]), (b2,)),
                numba.carray(at(a[9]), (gates, width)), numba.carray(at(a[10]), (b3,)), first, count,
            )  # fmt: skip
        normed(hidden, norm, eps, told, first, count)

    stack.__qualname__ = f"stack_{dim}"  # by which what was compiled is found again
    return kernel(stack)


def laid_out(rows: Sequence[PagedRow]) -> Table:
    """`Table.of`, in half the time and without letting go of the interpreter."""
    lengths, new, known, tokens = in_order(rows)
    slots = np.empty((len(rows), max(len(row.slots) for row in rows)), dtype=np.int64)
    of = np.empty((4, len(tokens)), dtype=np.int64)
    _lay(lengths, new, known, slots, of)
    return Table(lengths, new, slots, tokens, *of)


@partial(kernel, nogil=False)
def _lay(lengths: Any, new: Any, known: Any, slots: Any, of: Any) -> None:
    """Into `slots` [B, K] those `known`, row after row; and into `of` [4, N] what else a Table has of tokens."""
    begin = n = 0
    for row in range(len(lengths)):
        length = lengths[row]
        for k in range(slots.shape[1]):
            slots[row, k] = known[begin + k] if k < length else -1 - row
        begin += length
        for left in range(new[row] - 1, -1, -1):
            of[0, n], of[1, n], of[2, n], of[3, n] = row, left, length - 1 - left, known[begin - 1 - left]
            n += 1
