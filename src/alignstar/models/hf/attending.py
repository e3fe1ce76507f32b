"""Attention of a forward's new positions over gathered slots, in parts that a CPU's cache holds.

Rows are padded to each other for attention only; everything else of a layer is computed without padding. Knows laid-out
rows (`Packed`) and tensors; no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from alignstar.models.hf.paged import Packed

AT_ONCE = 2 << 20
"""Bytes of keys and values that a CPU gathers at once: read again from its cache they cost half as much."""


class Slots(Protocol):
    """What a forward needs of a Pool."""

    def buffer(self, index: int, example: torch.Tensor) -> torch.Tensor:
        """See Pool."""
        ...

    def gather(self, buffer: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """See Pool."""
        ...


class New:
    """A forward's new positions [N] without padding: `tokens`, `positions` and the slots that are `written`."""

    def __init__(self, packed: Packed) -> None:
        self.tokens, self.positions = packed.tokens.view(-1), packed.positions.view(-1)
        self.written = packed.written
        self._real, self._index = packed.real, None
        if packed.real is not None:
            self._index = torch.zeros_like(self.tokens)
            self._index[packed.real] = torch.arange(len(packed.real), device=self.tokens.device)
            self.tokens, self.positions = self.tokens[packed.real], self.positions[packed.real]
            self.written = self.written[packed.real]

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Of values [N, ...] those of all places [G * Q, ...]; a padded place has those of the first position."""
        return values if self._index is None else values.index_select(0, self._index)

    def real(self, values: torch.Tensor) -> torch.Tensor:
        """Of all places' values [G * Q, ...] those of the new positions [N, ...]."""
        return values if self._real is None else values.index_select(0, self._real)

    def places(self, packed: Packed, keep: int) -> torch.Tensor | None:
        """Where in [N] each row's last `keep` positions are (0: all) [rows, kept]; None: they are [N] in order."""
        if packed.rows is not None:
            places = packed.rows if self._index is None else self._index[packed.rows]
        elif self._index is not None:
            places = self._index.view(packed.tokens.shape)
        elif not keep or keep >= packed.tokens.shape[1]:
            return None
        else:
            places = torch.arange(packed.tokens.numel(), device=packed.tokens.device).view(packed.tokens.shape)
        return places[:, -keep:]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` to `last` (not with it) of a forward: their slots [rows * width], and masks [rows, 1, Q, width]."""

    first: int
    last: int
    slots: torch.Tensor
    mask: torch.Tensor | dict[str, torch.Tensor] | None


def parted(packed: Packed, slot_bytes: int) -> list[Part]:
    """The forward's rows in parts for a CPU, each no wider than its widest row; elsewhere in one."""
    batch, width = packed.read.shape
    most = AT_ONCE // slot_bytes
    if packed.widths is None or packed.read.device.type != "cpu" or batch * width <= 2 * most:
        return [Part(0, batch, packed.read.reshape(-1), packed.mask)]
    return [
        Part(first, last, packed.read[first:last, :widest].reshape(-1), _cut(packed.mask, first, last, widest))
        for first, last, widest in _ranges(packed.widths, most)
    ]


def _ranges(widths: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """Neighbours as long as they and their padding are at most so many slots: first, last, width."""
    ranges, first, widest = list[tuple[int, int, int]](), 0, 0
    for i, width in enumerate(widths):
        if i > first and (i + 1 - first) * max(widest, width) > most:
            ranges.append((first, i, widest))
            first, widest = i, 0
        widest = max(widest, width)
    return [*ranges, (first, len(widths), widest)]


def _cut(
    mask: torch.Tensor | dict[str, torch.Tensor] | None, first: int, last: int, width: int
) -> torch.Tensor | dict[str, torch.Tensor] | None:
    if isinstance(mask, dict):
        return {kind: each[first:last, ..., :width] for kind, each in mask.items()}
    return None if mask is None else mask[first:last, ..., :width]


def attend(
    pool: Slots, buffer: torch.Tensor, query: torch.Tensor, parts: Sequence[Part], *, kind: str, scaling: float
) -> torch.Tensor:
    """Attention of the queries [G, Q, heads, dim] over a layer's buffer [slots, 2 kv heads, dim]: [G * Q, heads * dim].

    `kind` is the layer's type, whose mask counts.
    """
    made = list[torch.Tensor]()
    for part in parts:
        rows = part.last - part.first
        kept = pool.gather(buffer, part.slots).view(rows, -1, *buffer.shape[1:]).transpose(1, 2)
        keys, values = kept.chunk(2, dim=1)
        told = F.scaled_dot_product_attention(
            query[part.first : part.last].transpose(1, 2),
            keys,
            values,
            attn_mask=part.mask[kind] if isinstance(part.mask, dict) else part.mask,
            scale=scaling,
            enable_gqa=query.shape[2] != keys.shape[1],
        )
        made.append(told.transpose(1, 2).reshape(rows * query.shape[1], -1))
    return made[0] if len(made) == 1 else torch.cat(made)
