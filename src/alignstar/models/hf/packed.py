"""Rows that have slots in common, packed: their new tokens are queries of one row, over the union of their slots.

Which keys a query may see is told by a mask (the "tree mask" of tree attention: Miao et al. 2023, arXiv:2305.09781).
What branches share is gathered once and not once per branch, and rows need no padding to each other's length. Rows
without anything in common would pay for each other's keys; `layout` weighs that by counting. Knows slots, no requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from alignstar.models.hf.paged import TRASH, Ints, Packed, PagedRow, Table, aligned, masking, pack, placed

PAIRS_PER_SLOT = 8
"""Gathering a slot's keys and values takes as long as so many pairs of a query and a key."""

PACKING = 500
"""Packing itself takes as long as gathering so many slots."""

PADDING = np.iinfo(np.int64).min
"""In the place of a slot: no row has it."""

DEPTHS = (128, 32, 8, 0)
"""Positions by whose slots rows are sorted, so that those which share them are neighbours."""


def layout(
    rows: Sequence[PagedRow], *, windows: dict[str, int | None], dtype: torch.dtype, device: torch.device
) -> Packed:
    """The rows laid out for a forward in the cheapest way: each for itself or packed with its like."""
    table = Table.of(rows)
    alone = len(rows) * _cost(int(table.new.max()), int(table.lengths.max()))
    if len(rows) > 1 and alone > PACKING:
        groups, cost = grouped(table)
        if PACKING + cost < alone:
            return packed(table, groups, windows=windows, dtype=dtype, device=device)
    return pack(rows, windows=windows, dtype=dtype, device=device, own=True, table=table)


def _cost(queries: int, keys: int) -> float:
    return keys * (1 + queries / PAIRS_PER_SLOT)


def grouped(table: Table) -> tuple[list[list[int]], float]:
    """Rows put together as long as that makes a query cheaper, and what their forward costs, padded to each other.

    What neighbours share is known from where their slots part: no slot follows two others.
    """
    order = np.lexsort([table.slots[:, d] for d in DEPTHS if d < table.slots.shape[1]])
    slots = table.slots[order]
    parting = np.argmin(slots[1:] == slots[:-1], axis=1)
    own = (table.lengths[order] - np.concatenate(([0], parting))).tolist()
    lengths, new = table.lengths[order].tolist(), table.new[order].tolist()
    groups = list[list[int]]()
    keys = queries = widest = most = 0
    for i, row in enumerate(order.tolist()):
        together, asked = keys + own[i], queries + new[i]
        if groups and _cost(asked, together) * queries <= _cost(queries, keys) * asked:
            groups[-1].append(row)
        else:
            groups.append([row])
            together, asked = lengths[i], new[i]
        keys, queries = together, asked
        widest, most = max(widest, keys), max(most, queries)
    return groups, len(groups) * _cost(most, widest)


def packed(
    table: Table,
    groups: Sequence[Sequence[int]],
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
) -> Packed:
    """One row [Q] of queries and [K] of slots per group; `rows` of the result finds each row's queries again."""
    sizes = [int(table.new[group].sum()) for group in groups]
    queries, longest = max(sizes), int(table.new.max())
    read, depth, counts = _united(table, groups)
    widths = [aligned(count, queries, dtype) for count in counts]
    more = ((0, 0), (0, max(widths) - max(counts)))
    read, depth = np.pad(read, more, constant_values=PADDING), np.pad(depth, more)
    begin = np.zeros(len(table.new), dtype=np.int64)  # of a row's queries, in [G*Q]
    asker = np.empty((len(groups), queries), dtype=np.int64)  # padding sees what a group's first row does at first
    for g, group in enumerate(groups):
        new = table.new[group]
        begin[group] = g * queries + np.cumsum(new) - new
        asker[g, : sizes[g]] = np.repeat(group, new)
        asker[g, sizes[g] :] = group[0]
    places = begin[table.row] + table.new[table.row] - 1 - table.left
    found = np.zeros((len(table.new), longest), dtype=np.int64)
    found[table.row, longest - 1 - table.left] = places
    told = placed(table, places, (len(groups), queries), device=device)
    # A key is seen by a row that has its slot at its depth, from there on.
    unseen = table.slots[asker[:, :, None], depth[:, None, :]] != read[:, None, :]
    at = np.zeros((len(groups), queries), dtype=np.int64)
    at.reshape(-1)[places] = table.positions
    if longest > 1:
        unseen |= depth[:, None, :] > at[:, :, None]
    masks = {
        kind: masking(
            unseen if window is None else unseen | (depth[:, None, :] <= at[:, :, None] - window),
            dtype=dtype,
            device=device,
        )
        for kind, window in windows.items()
    }
    return Packed(
        **told,
        read=torch.from_numpy(np.maximum(read, TRASH)).to(device),
        mask=next(iter(masks.values())) if len(masks) == 1 else masks,
        rows=torch.from_numpy(found).to(device),
        widths=widths,
    )


def _united(table: Table, groups: Sequence[Sequence[int]]) -> tuple[Ints, Ints, list[int]]:
    """The different slots of each group [G, K] (padding: below all), how deep in its rows each is, how many."""
    member = np.array([row for group in groups for row in group])
    group = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    slots, top = table.slots[member], int(table.slots.max()) + 1
    fresh = np.arange(slots.shape[1]) < table.lengths[member, None]
    beside = (group[1:] == group[:-1])[:, None] & (slots[1:] == slots[:-1])
    fresh[1:] &= ~beside  # what the row before it has too
    of, deep = np.nonzero(fresh)
    marks, first = np.unique(group[of] * top + slots[of, deep], return_index=True)
    where = marks // top
    counts = np.bincount(where, minlength=len(groups))
    place = np.arange(len(marks)) - (np.cumsum(counts) - counts)[where]
    read = np.full((len(groups), counts.max()), PADDING)
    depth = np.zeros_like(read)
    read[where, place], depth[where, place] = marks % top, deep[first]
    return read, depth, counts.tolist()
