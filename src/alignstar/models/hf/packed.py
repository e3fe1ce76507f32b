"""Rows that have slots in common, packed: their new tokens are queries of one row, over the union of their slots.

Which keys a query may see is told by a mask (the "tree mask" of tree attention: Miao et al. 2023, arXiv:2305.09781).
What branches share is gathered once and not once per branch, and rows need no padding to each other's length. Rows
without anything in common would pay for each other's keys; `layout` weighs that by counting. Knows slots, no requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from alignstar.models.hf.paged import TRASH, Packed, PagedRow, pack

PAIRS_PER_SLOT = 8
"""Gathering a slot's keys and values takes as long as so many pairs of a query and a key."""

PACKING = 200
"""Packing itself takes as long as gathering so many slots."""

DEPTHS = (0, 8, 32, 128)
"""Positions at which rows are compared: those with the same slot there may share a row."""

MOST_QUERIES = (None, 16)
"""Queries in a packed row; the best number grows with what is shared and falls with what is not."""

Ints = NDArray[np.int64]


def layout(
    rows: Sequence[PagedRow], *, windows: dict[str, int | None], dtype: torch.dtype, device: torch.device
) -> Packed:
    """The rows laid out for a forward in the cheapest way: each for itself or packed with its like."""
    lengths, queries = [len(row.slots) for row in rows], [len(row.new) for row in rows]
    slots = [np.array(row.slots, dtype=np.int64) for row in rows]
    best, least = None, _cost(len(rows), max(queries), max(lengths))
    for depth in DEPTHS if len(rows) > 1 else ():
        if depth >= min(lengths):
            break
        grouped = _grouped(int(own[depth]) for own in slots)
        if len(grouped) == len(rows):
            break
        for most in MOST_QUERIES:
            groups = [part for group in grouped for part in _parted(group, queries, most)]
            if most is not None and len(groups) == len(grouped):
                break
            unions = [union([slots[i] for i in group]) for group in groups]
            widest = max(len(merged) for merged, _ in unions)
            cost = PACKING + _cost(len(groups), max(sum(queries[i] for i in group) for group in groups), widest)
            if cost < least:
                best, least = (groups, unions), cost
    if best is None:
        return pack(rows, windows=windows, dtype=dtype, device=device, unmasked=True)
    return packed(rows, *best, windows=windows, dtype=dtype, device=device)


def _cost(rows: int, queries: int, keys: int) -> float:
    return rows * keys * (1 + queries / PAIRS_PER_SLOT)


def _grouped(marks: Iterable[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for i, mark in enumerate(marks):
        groups.setdefault(mark, []).append(i)
    return list(groups.values())


def _parted(group: list[int], queries: Sequence[int], most: int | None) -> Iterator[list[int]]:
    """The group in parts of so many queries each: in one row all pay for every branch's keys."""
    part, total = list[int](), 0
    for i in group:
        if part and most is not None and total + queries[i] > most:
            yield part
            part, total = [], 0
        part.append(i)
        total += queries[i]
    yield part


def union(slots: Sequence[Ints]) -> tuple[Ints, list[Ints]]:
    """The different slots, and where in them each row's slots are."""
    top = max(int(own.max()) for own in slots) + 1
    place = np.full(top, -1, dtype=np.int64)
    for own in slots:
        place[own] = 0
    merged = np.flatnonzero(place == 0)
    place[merged] = np.arange(len(merged))
    return merged, [place[own] for own in slots]


def packed(
    rows: Sequence[PagedRow],
    groups: Sequence[Sequence[int]],
    unions: Sequence[tuple[Ints, list[Ints]]],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> Packed:
    """One row [Q] of queries and [K] of slots per group; `rows` of the result finds each row's queries again."""
    queries = max(sum(len(rows[i].new) for i in group) for group in groups)
    width, longest = max(len(merged) for merged, _ in unions), max(len(row.new) for row in rows)
    tokens = np.zeros((len(groups), queries), dtype=np.int64)
    positions = np.zeros_like(tokens)
    written = np.full_like(tokens, TRASH)
    read = np.full((len(groups), width), TRASH, dtype=np.int64)
    found = np.zeros((len(rows), longest), dtype=np.int64)
    hidden = {kind: np.ones((len(groups), queries, width), dtype=bool) for kind in windows}
    for g, (group, (merged, places)) in enumerate(zip(groups, unions, strict=True)):
        read[g, : len(merged)] = merged
        start = 0
        for i, place in zip(group, places, strict=True):
            row, end = rows[i], start + len(rows[i].new)
            at = np.arange(len(place) - len(row.new), len(place))
            tokens[g, start:end] = row.new
            positions[g, start:end] = at
            written[g, start:end] = row.slots[len(place) - len(row.new) :]
            found[i, longest - len(row.new) :] = g * queries + np.arange(start, end)
            key = np.arange(len(place))
            for kind, window in windows.items():
                unseen = key > at[:, None]
                if window is not None:
                    unseen |= key <= at[:, None] - window
                hidden[kind][g, start:end, place] = unseen.T
            start = end
        for mask in hidden.values():
            mask[g, start:, 0] = False  # padding must see something, or it is NaN
    least = torch.finfo(dtype).min
    masks = {
        kind: torch.zeros(mask.shape, dtype=dtype, device=device)
        .masked_fill_(torch.from_numpy(mask).to(device), least)[:, None]
        for kind, mask in hidden.items()
    }  # fmt: skip
    return Packed(
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(positions).to(device),
        written=torch.from_numpy(written.reshape(-1)).to(device),
        read=torch.from_numpy(read).to(device),
        mask=next(iter(masks.values())) if len(masks) == 1 else masks,
        rows=torch.from_numpy(found).to(device),
    )
