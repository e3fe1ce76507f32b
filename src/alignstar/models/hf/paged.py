"""Paged key-value storage for transformers models, and the forward that uses it.

Knows torch and the transformers `Cache` protocol, no requests and no text. One slot holds one position of every layer.
A row of a forward is a list of slots in the order of positions, so rows share whatever slots they like (a prompt, a
chosen rollout) and nothing is ever cropped, selected or copied to make a branch. Attention gathers a row's slots per
layer and the mask is computed from positions alone: key j of a row *is* position j.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache

from alignstar.types import Ids

Ints = NDArray[np.int64]

LANES = 16
"""Single-precision numbers in a vector register."""

SMALL = 1 << 16
"""Entries of a mask up to which it is made on the host."""

LEAST_SPARED = 4
"""Padded positions, and an eighth of those that are none: fewer are computed with the others."""

EAGER, LAZY = (256, 2), (4096, 8)
"""Slots of a buffer at first, and by how much it grows; more where memory is taken when it is first written to."""

LINE = 64
"""Bytes of a line of a processor's cache, or a multiple of them."""

TRASH = 0
"""Slot that padding writes to and nothing reads."""


class Pool:
    """Buffers [slots, heads, dim] of a model's layers, grown up to `capacity` slots."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity = capacity
        self.device = device
        self.slots = 0
        self.buffers: list[torch.Tensor] = []
        self._gathered: dict[int, torch.Tensor] = {}
        self._free: list[int] = []
        self._fresh = TRASH + 1  # slots from here on were never handed out
        self.in_use = 0

    def take(self, count: int) -> list[int]:
        """`count` slots; the caller has made sure that they exist within `capacity`."""
        if count == 1 and self._free:  # a row that decodes
            self.in_use += 1
            return [self._free.pop()]
        recycled = min(count, len(self._free))
        taken = self._free[len(self._free) - recycled :]
        del self._free[len(self._free) - recycled :]
        fresh = count - recycled
        taken.extend(range(self._fresh, self._fresh + fresh))
        self._fresh += fresh
        assert self._fresh <= self.capacity + 1, "more slots than the pool's capacity were asked for"
        self.in_use += count
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        """Return slots; their contents are garbage from now on."""
        self._free.extend(slots)
        self.in_use -= len(slots)

    def buffer(self, index: int, example: torch.Tensor) -> torch.Tensor:
        """A layer's buffer, made or grown to hold every slot handed out; one of its slots is like example[0]."""
        while len(self.buffers) <= index:
            self.buffers.append(example.new_zeros(0, *example.shape[1:]))
        if self.buffers[index].shape[0] < self._fresh:
            try:
                self._grow(index, *(LAZY if self.device.type == "cpu" else EAGER))
            except MemoryError:  # memory may be limited before it is touched
                self._grow(index, *EAGER)
        return self.buffers[index]

    def _grow(self, index: int, least: int, times: int) -> None:
        held = self.buffers[index]
        size = min(max(times * held.shape[0], self._fresh, least), self.capacity + 1)
        self.buffers[index] = _grown(held, size)
        self.slots = size

    @property
    def complete(self) -> bool:
        """Whether the buffers hold every slot handed out: a forward leaves them where they are."""
        return bool(self.buffers) and self.buffers[-1].shape[0] >= self._fresh

    def gather(self, buffer: torch.Tensor, slots: torch.Tensor, *, place: int = 0) -> torch.Tensor:
        """buffer[slots], written over the last answer in this `place`: fresh memory would cost more than the copy."""
        size = slots.numel() * buffer[0].numel()
        if place not in self._gathered or self._gathered[place].numel() < size:
            self._gathered[place] = buffer.new_empty(2 * size)
        out = self._gathered[place][:size].view(-1, *buffer.shape[1:])
        return torch.index_select(buffer, 0, slots, out=out)

    @property
    def bytes(self) -> int:
        """Memory reserved by the buffers."""
        return sum(t.numel() * t.element_size() for t in self.buffers)


def _grown(buffer: torch.Tensor, size: int) -> torch.Tensor:
    bigger = _zeros(buffer, (size, *buffer.shape[1:]))  # zeros: a masked slot must never hold NaN
    bigger[: buffer.shape[0]] = buffer
    return bigger


def _zeros(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros; on a CPU by numpy: its large arrays lie in huge pages, first touched when something is stored.

    They begin where a line of the processor's cache does: a vector that lies in two lines takes twice as long.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    size = math.prod(shape) * like.element_size()
    memory = np.zeros(size + LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % LINE
    return torch.from_numpy(memory[begin : begin + size]).view(like.dtype).view(shape)


class PagedCache(Cache):
    """The view of a Pool that one forward has: writes go to `written` [B*Q], reads gather `read` [B, K]."""

    def __init__(self, pool: Pool, written: torch.Tensor, read: torch.Tensor) -> None:
        super().__init__(layers=[])
        self.pool = pool
        self.written = written
        self.read = read

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions' keys and values [B, heads, Q, dim]; return all of the rows' [B, heads, K, dim]."""
        rows, width = self.read.shape
        gathered: list[torch.Tensor] = []
        for i, new in enumerate((key_states, value_states)):
            per_slot = new.transpose(1, 2).reshape(-1, new.shape[1], new.shape[3])
            buffer = self.pool.buffer(2 * layer_idx + i, per_slot)
            buffer[self.written] = per_slot
            kept = self.pool.gather(buffer, self.read.reshape(-1), place=i)
            gathered.append(kept.view(rows, width, *buffer.shape[1:]).transpose(1, 2))
        return gathered[0], gathered[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions before the new ones in the longest row; models that need it per row are not run paged."""
        return self.read.shape[1] - self.written.shape[0] // self.read.shape[0]


@dataclass(slots=True)
class PagedRow:
    """One row of a forward: `new` tokens, and the slots of every position up to the last of them."""

    new: Ids
    slots: Sequence[int]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows as arrays: per row `lengths` and `new` [B] and `slots` [B, K]; per new token, in order, what it needs [N].

    `slots` are padded with numbers below zero, another one in every row. Of each token: its row, how many of the row's
    come after it (`left`), its position, and the slot that it is written to.
    """

    lengths: Ints
    new: Ints
    slots: Ints
    tokens: Ints
    row: Ints
    left: Ints
    positions: Ints
    written: Ints

    @classmethod
    def of(cls, rows: Sequence[PagedRow]) -> Table:
        """The table of some rows, of which each has a new token."""
        lengths, new, known, tokens = in_order(rows)
        slots = np.empty((len(rows), lengths.max()), dtype=np.int64)
        slots[:] = -1 - np.arange(len(rows))[:, None]
        slots[np.arange(slots.shape[1]) < lengths[:, None]] = known
        row = np.repeat(np.arange(len(rows)), new)
        left = np.cumsum(new)[row] - 1 - np.arange(len(row))
        positions = lengths[row] - 1 - left
        return cls(lengths, new, slots, tokens, row, left, positions, slots[row, positions])


def in_order(rows: Sequence[PagedRow]) -> tuple[Ints, Ints, Ints, Ints]:
    """How many slots and new tokens rows have [B], and all their slots and all those tokens, row after row."""
    lengths, new = np.array([len(row.slots) for row in rows]), np.array([len(row.new) for row in rows])
    known = b"".join(row.slots if isinstance(row.slots, array) else array("q", row.slots) for row in rows)
    tokens = np.fromiter(chain.from_iterable(row.new for row in rows), dtype=np.int64)
    return lengths, new, np.frombuffer(known, dtype=np.int64), tokens


def masks(
    lengths: Sequence[int],
    new: Sequence[int],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
    keys: int | None = None,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks [B, 1, Q, K] for rows of `lengths` positions whose last `new` ones are right-aligned queries.

    `keys` is K; None: as many as the longest row has.
    `windows` maps a layer type to its sliding window (None: full attention); one type gives a plain tensor, several
    give the dict that models with mixed layers take.
    """
    queries = max(new)
    keys = max(lengths) if keys is None else keys
    # Small ones by numpy, which does not let go of the interpreter: torch would wait for it anew at every operation.
    small = len(lengths) * queries * keys <= SMALL
    count: Any = np.arange if small else partial(torch.arange, device=device)
    ends: Any = np.array(lengths) if small else torch.tensor(lengths, device=device)
    position = ends[:, None, None] - queries + count(queries)[:, None]
    key = count(keys)
    made: dict[str, torch.Tensor] = {}
    for kind, window in windows.items():
        hidden: Any = key > position  # [B, Q, K]; padding queries (position < length - new) may see anything
        if window is not None:
            hidden |= key <= position - window
        made[kind] = masking(hidden, dtype=dtype, device=device)
    return next(iter(made.values())) if len(made) == 1 else made


def masking(hidden: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The additive mask [B, 1, Q, K] of what is hidden [B, Q, K], an array or a tensor."""
    least = torch.finfo(dtype).min
    if isinstance(hidden, np.ndarray) and hidden.size <= SMALL:
        number = np.float64 if dtype == torch.float64 else np.float32
        mask = torch.from_numpy(np.where(hidden, number(least), number(0))).to(device=device, dtype=dtype)
    else:
        known = torch.from_numpy(hidden).to(device) if isinstance(hidden, np.ndarray) else hidden
        mask = torch.zeros(known.shape, dtype=dtype, device=device).masked_fill_(known, least)
    return mask[:, None]


@dataclass(frozen=True, slots=True)
class Packed:
    """The tensors of one forward over rows whose new tokens are right-aligned: [B, Q] and, for keys, [B, K].

    `written` [B*Q] and `read` [B, K] are slots; `mask` is what `masks` makes, None where every query may see all keys.
    Where rows were packed together, `rows` [rows, longest] tells where in [B*Q] each one's queries are, at the right.
    `real` [N] tells where in [B*Q] what is no padding is (None: everywhere, or padding is not worth leaving out),
    `widths` how many of the K slots each row needs.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    written: torch.Tensor
    read: torch.Tensor
    mask: torch.Tensor | dict[str, torch.Tensor] | None
    rows: torch.Tensor | None = None
    real: torch.Tensor | None = None
    widths: Sequence[int] | None = None


class Placed(TypedDict):
    """The fields of Packed that tell of new tokens."""

    tokens: torch.Tensor
    positions: torch.Tensor
    written: torch.Tensor
    real: torch.Tensor | None


def aligned(keys: int, queries: int, dtype: torch.dtype) -> int:
    """A width for so many keys that a CPU's attention is quick with: a third slower if vectors are not full."""
    return keys if queries == 1 or dtype != torch.float32 else -(-keys // LANES) * LANES


def placed(table: Table, places: Ints, shape: tuple[int, int], *, device: torch.device) -> Placed:
    """Each new token put into [B, Q] at its place [N] in [B*Q]."""

    def put(values: Ints, padding: int) -> torch.Tensor:
        whole = np.full(shape, padding, dtype=np.int64)
        whole.reshape(-1)[places] = values
        return torch.from_numpy(whole).to(device)

    spared = shape[0] * shape[1] - len(places)
    return Placed(
        tokens=put(table.tokens, 0),
        positions=put(table.positions, 0),
        written=put(table.written, TRASH).view(-1),
        real=torch.from_numpy(places).to(device) if spared >= max(LEAST_SPARED, len(places) // 8) else None,
    )


def pack(
    rows: Sequence[PagedRow],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
    own: bool = False,
    table: Table | None = None,
) -> Packed:
    """Lay rows out for a forward. `table`: the rows'.

    For our `own` attention a mask that would hide nothing is left out, and K is a width that it is quick with; modules
    may read more from K than how many keys there are.
    """
    table = Table.of(rows) if table is None else table
    lengths, new = table.lengths.tolist(), table.new.tolist()
    queries, width = max(new), max(lengths)
    widths = [aligned(n, queries, dtype) for n in lengths] if own else lengths
    read = np.full((len(rows), max(widths)), TRASH)
    read[:, :width] = np.maximum(table.slots, TRASH)
    places = (table.row + 1) * queries - 1 - table.left
    seen = queries == 1 and min(lengths) == width and all(w is None or w >= width for w in windows.values())
    return Packed(
        **placed(table, places, (len(rows), queries), device=device),
        read=torch.from_numpy(read).to(device),
        mask=None
        if own and seen
        else masks(lengths, new, windows=windows, dtype=dtype, device=device, keys=max(widths)),
        widths=widths,
    )


class PagedForward:
    """Runs a backbone or a whole causal model over paged rows."""

    def __init__(
        self, module: torch.nn.Module, *, windows: dict[str, int | None], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.module = module
        self.windows = windows
        self.dtype = dtype
        self.device = device

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], *, keep: int = 0, **kwargs: Any) -> Any:
        """The module's output for right-aligned queries [B, Q, ...]: a row's last new token is at index -1.

        How many last positions are wanted (`keep`) makes no difference here.
        """
        packed = pack(rows, windows=self.windows, dtype=self.dtype, device=self.device)
        return self.module(
            input_ids=packed.tokens,
            position_ids=packed.positions,
            attention_mask=packed.mask,
            past_key_values=PagedCache(pool, packed.written, packed.read),
            use_cache=True,
            **kwargs,
        )
