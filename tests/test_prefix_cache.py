"""The prefix cache under random use: no slot is lost, shared by mistake, or taken from somebody who needs it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from alignstar.models.hf import paged, prefix
from alignstar.models.hf.paged import PagedRow, Pool, masks
from alignstar.models.hf.prefix import Lease, PrefixCache

CPU = torch.device("cpu")


def slots_of(cache: PrefixCache, ids: tuple[int, ...]) -> list[int]:
    lease = cache.lease(ids)
    slots = list(lease.slots)
    cache.release(lease)
    return slots


@pytest.mark.parametrize("tried", [0, 100])
@pytest.mark.parametrize("seed", range(20))
def test_random_use_keeps_the_books(seed: int, tried: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "TRIED", tried)
    draw = random.Random(seed)
    cache = PrefixCache(Pool(60, CPU))
    contents: dict[int, tuple[int, ...]] = {}  # slot -> the prefix whose last position it holds
    live: list[tuple[Lease, tuple[int, ...]]] = []
    for _ in range(300):
        action = draw.random()
        if action < 0.5 and cache.room() >= 12:
            ids = tuple(draw.randrange(2) for _ in range(draw.randint(1, 10)))
            lease = cache.lease(ids)
            known = len(lease.slots)
            for position, slot in enumerate(lease.slots):
                assert contents[slot] == ids[: position + 1]
            cache.extend(lease, len(ids) - known)
            for position in range(known, len(ids)):
                contents[lease.slots[position]] = ids[: position + 1]
            live.append((lease, ids))
        elif live:
            lease, ids = live.pop(draw.randrange(len(live)))
            if action < 0.9:
                cache.publish(lease, ids)
                assert lease.own == 0
                assert [contents[s] for s in lease.slots] == [ids[: i + 1] for i in range(len(ids))]
            cache.release(lease)
            cache.most = 0
        for lease, ids in live:  # nobody's positions were taken away or overwritten
            assert [contents[s] for s in lease.slots] == [ids[: i + 1] for i in range(len(lease.slots))]
        assert cache.pool.in_use == cache.held <= 60
        assert cache.in_use <= cache.held
        assert cache._tried_size == sum(len(node.tokens) for node in cache._tried)
        assert cache._tried.keys() == {leaf for leaf in cache.tree.leaves() if leaf.refs == 0 and leaf.uses == 1}
    for lease, _ in live:
        cache.release(lease)
    assert cache.in_use == 0
    cache.clear()
    assert cache.pool.in_use == cache.held == 0


def test_the_least_recently_used_goes_first_and_pinned_stays() -> None:
    cache = PrefixCache(Pool(9, CPU))
    for ids in ((1, 1, 1), (2, 2, 2), (3, 3, 3)):
        lease = cache.lease(ids)
        cache.extend(lease, 3)
        cache.publish(lease, ids)
        cache.release(lease)
    pinned = cache.lease((1, 1, 1))
    for used in ((2, 2, 2), (3, 3, 3)):  # the pinned one is now the least recently used of all
        cache.release(cache.lease(used))
    newcomer = cache.lease((4, 4))
    cache.extend(newcomer, 2)
    assert len(slots_of(cache, (2, 2, 2))) == 0
    assert len(slots_of(cache, (3, 3, 3))) == 3
    assert len(pinned.slots) == 3


def leave(cache: PrefixCache, ids: tuple[int, ...]) -> None:
    lease = cache.lease(ids)
    cache.extend(lease, len(ids) - len(lease.slots))
    cache.publish(lease, ids)
    cache.release(lease)


def test_of_what_nobody_came_back_to_the_latest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "TRIED", 12)
    cache = PrefixCache(Pool(90, CPU))
    texts = [(1, 2, 3, 10 + i, 0, 0, 0) for i in range(14)]
    for text in texts[:10]:
        leave(cache, text)
    assert [cache.tree.known(text) for text in texts[:10]] == [3] * 7 + [7] * 3  # what all begin with stays
    cache.release(cache.lease(texts[7]))
    for text in texts[10:]:
        leave(cache, text)
    assert [cache.tree.known(text) for text in texts[7:]] == [7, 3, 3, 3, 7, 7, 7]
    cache.clear()
    assert (cache._tried, cache._tried_size, cache.held) == ({}, 0, 0)


def test_what_is_answered_from_notes_is_come_back_to_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "TRIED", 12)
    cache = PrefixCache(Pool(90, CPU))
    texts = [(1, 2, 3, 10 + i, 0, 0, 0) for i in range(9)]
    for text in texts:
        lease = cache.lease(text)
        cache.extend(lease, len(text) - len(lease.slots))
        cache.publish(lease, text)
        cache.remember(lease, {at: at for at in range(len(text))})
        cache.release(lease)
        assert cache.follow(texts[0], lambda note: None) == ()
    assert [cache.tree.known(text) for text in texts] == [7, 3, 3, 3, 3, 3, 7, 7, 7]


def test_as_much_of_it_is_kept_as_was_ever_needed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the rollouts of a step is come back to, and all of them were there at a time."""
    monkeypatch.setattr(prefix, "TRIED", 0)
    cache = PrefixCache(Pool(90, CPU))
    texts = [(1, 2, 3, 10 + i, 0, 0, 0) for i in range(8)]
    leave(cache, texts[0][:3])
    leases = [cache.lease(text) for text in texts]
    for lease in leases:
        cache.extend(lease, 4)
    assert cache.most == 3 + 4 * 8
    for lease, text in zip(leases, texts, strict=True):
        cache.publish(lease, text)
        cache.release(lease)
    assert [cache.tree.known(text) for text in texts] == [7] * 8


def test_what_another_row_published_first_stays_and_the_duplicate_is_returned() -> None:
    cache = PrefixCache(Pool(20, CPU))
    ids = (1, 2, 3, 4)
    one, two = cache.lease(ids), cache.lease(ids)
    cache.extend(one, 4)
    cache.extend(two, 4)
    kept = list(one.slots)
    cache.publish(one, ids)
    cache.publish(two, ids)
    assert list(two.slots) == kept
    assert cache.pool.in_use == 4


@pytest.mark.parametrize("host", [True, False])
def test_masks_by_hand(host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are made on the host, large ones on the device."""
    monkeypatch.setattr(paged, "SMALL", paged.SMALL if host else 0)
    made = masks([3, 2], [2, 1], windows={"full_attention": None}, dtype=torch.float32, device=CPU)
    assert isinstance(made, torch.Tensor)
    # Row 0: queries at positions 1 and 2. Row 1: a padding query at 0, its query at position 1.
    assert (made == 0).int().tolist() == [[[[1, 1, 0], [1, 1, 1]]], [[[1, 0, 0], [1, 1, 0]]]]
    windowed = masks([4], [1], windows={"sliding_attention": 2}, dtype=torch.float32, device=CPU)
    assert isinstance(windowed, torch.Tensor)
    assert (windowed == 0).int().tolist() == [[[[0, 0, 1, 1]]]]
    mixed = masks([2], [1], windows={"full_attention": None, "sliding_attention": 1}, dtype=torch.float32, device=CPU)
    assert isinstance(mixed, dict)
    assert {kind: (m == 0).int().tolist() for kind, m in mixed.items()} == {
        "full_attention": [[[[1, 1]]]],
        "sliding_attention": [[[[0, 1]]]],
    }


def test_a_module_is_given_no_more_keys_than_there_are() -> None:
    """GPT-Neo finds its window from the end of the keys; only our own attention may have some more."""
    rows = [PagedRow(new=tuple(range(9)), slots=list(range(1, 42)))]
    how: Any = {"windows": {"full_attention": None}, "dtype": torch.float32, "device": CPU}
    given, own = paged.pack(rows, **how), paged.pack(rows, own=True, **how)
    assert isinstance(given.mask, torch.Tensor)
    assert (given.read.shape[1], given.mask.shape[-1]) == (41, 41)
    assert own.read.shape[1] == 48


def test_notes_are_found_on_every_edge_that_they_belong_to() -> None:
    cache = PrefixCache(Pool(20, CPU))
    ids, other = (1, 2, 3, 4, 5, 6), (1, 2, 3, 9)

    def told(note: object) -> int | None:
        return note if isinstance(note, int) else None

    for text in (ids, other):  # the second cuts the first one's edge
        lease = cache.lease(text)
        cache.extend(lease, len(text) - len(lease.slots))
        cache.publish(lease, text)
        cache.remember(lease, {at: text[at + 1] for at in range(1, len(text) - 1)})
    assert cache.follow(ids[:4], told) == (5, 6)
    assert cache.follow(ids[:2], told) == (3, 9)
    lease = cache.lease(ids)
    cache.remember(lease, {1: 3, 2: 4, 3: 5})  # on both edges
    assert cache.follow(ids[:2], told) == (3, 4, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_buffer_keeps_what_it_holds_when_it_grows(dtype: torch.dtype) -> None:
    pool, example = Pool(60_000, CPU), torch.zeros(1, 2, 8, dtype=dtype)
    grown: set[int] = set()
    for count in (100, 5_900, 14_000, 40_000):
        slots = pool.take(count)
        before = pool.buffer(0, example)
        assert before.dtype == dtype
        assert not before[slots].any()  # a slot that is masked must not hold NaN
        before[slots] = (torch.tensor(slots) % 200).to(dtype)[:, None, None]
        grown.add(len(before))
    after = pool.buffer(0, example)
    assert after.shape == (60_001, 2, 8)
    assert len(grown) == 3
    assert torch.equal(after[1:60_001, 1, 3], (torch.arange(1, 60_001) % 200).to(dtype))


def test_a_buffer_grows_less_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros

    def scarce(size: int, **more: Any) -> Any:
        if size > 21_000 * 64:
            raise MemoryError
        return zeros(size, **more)

    monkeypatch.setattr("alignstar.models.hf.paged.np.zeros", scarce)
    pool, example = Pool(60_000, CPU), torch.zeros(1, 2, 8)
    for count, size in ((4_000, 4096), (5_000, 9_001), (11_000, 20_001)):
        pool.take(count)
        assert len(pool.buffer(0, example)) == size


def test_memory_that_is_not_to_be_had_for_keys_counts_as_such() -> None:
    pool = Pool(1 << 17, CPU)
    pool.take(1 << 16)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        pool.buffer(0, torch.zeros(()).expand(1, 1 << 15, 1 << 15))
