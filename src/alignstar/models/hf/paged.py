"""Paged key-value storage for transformers models, and the forward that uses it.

Knows torch and the transformers `Cache` protocol, no requests and no text. One slot holds one position of every layer.
A row of a forward is a list of slots in the order of positions, so rows share whatever slots they like (a prompt, a
chosen rollout) and nothing is ever cropped, selected or copied to make a branch. Attention gathers a row's slots per
layer and the mask is computed from positions alone: key j of a row *is* position j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Cache

from alignstar.types import Ids

SMALL = 1 << 16
"""Entries of a mask up to which it is made on the host."""

TRASH = 0
"""Slot that padding writes to and nothing reads."""


class Pool:
    """Buffers [slots, heads, dim] of a model's layers, grown by doubling up to `capacity` slots."""

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
            size = min(max(2 * self.buffers[index].shape[0], self._fresh, 256), self.capacity + 1)
            self.buffers[index] = _grown(self.buffers[index], size)
            self.slots = size
        return self.buffers[index]

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
        """Memory held by the buffers."""
        return sum(t.numel() * t.element_size() for t in self.buffers)


def _grown(buffer: torch.Tensor, size: int) -> torch.Tensor:
    bigger = buffer.new_zeros(size, *buffer.shape[1:])  # zeros: a masked slot must never hold NaN
    bigger[: buffer.shape[0]] = buffer
    return bigger


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
    slots: list[int]


def masks(
    lengths: Sequence[int],
    new: Sequence[int],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks [B, 1, Q, K] for rows of `lengths` positions whose last `new` ones are right-aligned queries.

    `windows` maps a layer type to its sliding window (None: full attention); one type gives a plain tensor, several
    give the dict that models with mixed layers take.
    """
    queries, keys = max(new), max(lengths)
    # Small ones by numpy, which does not let go of the interpreter: torch would wait for it anew at every operation.
    small = len(lengths) * queries * keys <= SMALL
    count: Any = np.arange if small else partial(torch.arange, device=device)
    ends: Any = np.array(lengths) if small else torch.tensor(lengths, device=device)
    position = ends[:, None, None] - queries + count(queries)[:, None]
    key = count(keys)
    made: dict[str, torch.Tensor] = {}
    number = np.float64 if dtype == torch.float64 else np.float32
    least = torch.finfo(dtype).min
    for kind, window in windows.items():
        hidden: Any = key > position  # [B, Q, K]; padding queries (position < length - new) may see anything
        if window is not None:
            hidden |= key <= position - window
        if small:
            mask = torch.from_numpy(np.where(hidden, number(least), number(0))).to(device=device, dtype=dtype)
        else:
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, least)
        made[kind] = mask[:, None]
    return next(iter(made.values())) if len(made) == 1 else made


@dataclass(frozen=True, slots=True)
class Packed:
    """The tensors of one forward over rows whose new tokens are right-aligned: [B, Q] and, for keys, [B, K].

    `written` [B*Q] and `read` [B, K] are slots; `mask` is what `masks` makes, None where every query may see all keys.
    Where rows were packed together, `rows` [rows, longest] tells where in [B*Q] each one's queries are, at the right.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    written: torch.Tensor
    read: torch.Tensor
    mask: torch.Tensor | dict[str, torch.Tensor] | None
    rows: torch.Tensor | None = None


def pack(
    rows: Sequence[PagedRow],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
    unmasked: bool = False,
) -> Packed:
    """Lay rows out for a forward; with `unmasked` a mask that would hide nothing is left out."""
    queries = max(len(row.new) for row in rows)
    lengths = [len(row.slots) for row in rows]
    width = max(lengths)
    tokens = np.zeros((len(rows), queries), dtype=np.int64)
    positions = np.zeros((len(rows), queries), dtype=np.int64)
    written = np.full((len(rows), queries), TRASH, dtype=np.int64)
    read = np.full((len(rows), width), TRASH, dtype=np.int64)
    for i, row in enumerate(rows):
        n, end = len(row.new), lengths[i]
        tokens[i, queries - n :] = row.new
        positions[i, queries - n :] = np.arange(end - n, end)
        read[i, :end] = row.slots
        written[i, queries - n :] = read[i, end - n : end]
    seen = queries == 1 and min(lengths) == width and all(w is None or w >= width for w in windows.values())
    return Packed(
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(positions).to(device),
        written=torch.from_numpy(written.reshape(-1)).to(device),
        read=torch.from_numpy(read).to(device),
        mask=None
        if unmasked and seen
        else masks(lengths, [len(r.new) for r in rows], windows=windows, dtype=dtype, device=device),
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

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], **kwargs: Any) -> Any:
        """The module's output for right-aligned queries [B, Q, ...]: a row's last new token is at index -1."""
        packed = pack(rows, windows=self.windows, dtype=self.dtype, device=self.device)
        return self.module(
            input_ids=packed.tokens,
            position_ids=packed.positions,
            attention_mask=packed.mask,
            past_key_values=PagedCache(pool, packed.written, packed.read),
            use_cache=True,
            **kwargs,
        )
