"""Packed rows: whatever shares a row, every query sees the keys of its own text and no others."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

import tiny
from alignstar.bench import stores
from alignstar.models.hf import attending, paged
from alignstar.models.hf import packed as packing
from alignstar.models.hf.fused import FusedForward, fused_forward
from alignstar.models.hf.network import LogitsReadout, Network, attention_windows
from alignstar.models.hf.paged import PagedRow, Pool, Table

CPU = torch.device("cpu")

TYPES = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference of two logits; single precision has keys padded to full vectors."""

PARTED = [(6, 1, 10**6), (7, 20_000, 10**6), (8, 20_000, 1), (9, 1 << 20, 10**6)]
"""Attention row by row, in parts of several rows, with and without what is padding; everything at once, padded."""


def parts(seed: int) -> Any:
    """A layout that puts rows together at random."""

    def lay(rows: list[PagedRow], **how: Any) -> Any:
        drawn = random.Random(seed)
        order = drawn.sample(range(len(rows)), len(rows))
        groups: list[list[int]] = [[]]
        for i in order:
            groups[-1].append(i)
            if drawn.random() < 0.3:
                groups.append([])
        groups = [group for group in groups if group]
        return packing.packed(Table.of(rows), groups, **how)

    return lay


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(("seed", "at_once", "spared"), [(s, 1 << 20, 4) for s in range(6)] + PARTED)
@pytest.mark.parametrize("dtype", TYPES)
def test_any_grouping_equals_the_modules_own_forward(
    family: str, seed: int, at_once: int, spared: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "AT_ONCE", at_once)
    monkeypatch.setattr(paged, "LEAST_SPARED", spared)
    model = tiny.causal_lm(family, dtype=dtype)
    network = Network("tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=CPU)
    windows = attention_windows(model.config)
    assert windows is not None
    forward = fused_forward(model, windows=windows, dtype=dtype, device=CPU, layout=parts(seed))
    assert isinstance(forward, FusedForward)
    drawn, pool = random.Random(seed), Pool(600, CPU)
    shared = tuple(drawn.randrange(3, tiny.VOCAB) for _ in range(9))
    common = pool.take(len(shared))
    texts, slots, known = [], [], []
    for _ in range(7):
        keep = drawn.randrange(0, 10)
        text = shared[:keep] + tuple(drawn.randrange(3, tiny.VOCAB) for _ in range(drawn.randrange(2, 12)))
        texts.append(text)
        slots.append(common[:keep] + pool.take(len(text) - keep))
        known.append(drawn.randrange(keep, len(text)))
    with torch.inference_mode():
        forward(pool, [PagedRow(new=shared, slots=common)])
        begun = [i for i in range(7) if known[i]]
        forward(pool, [PagedRow(new=texts[i][: known[i]], slots=slots[i][: known[i]]) for i in begun])
        rows = [PagedRow(new=t[k:], slots=s) for t, s, k in zip(texts, slots, known, strict=True)]
        want = min(len(row.new) for row in rows)
        got = forward(pool, rows, logits_to_keep=want).logits
    for row, text in zip(got, texts, strict=True):
        torch.testing.assert_close(row, network.plain([text], want)[0], rtol=0, atol=TYPES[dtype])


def rows_of(prompts: int, branches: int, prefix: int, own: int) -> list[PagedRow]:
    pool, rows = Pool(10**6, CPU), list[PagedRow]()
    for _ in range(prompts):
        shared = pool.take(prefix)
        rows += [PagedRow(new=(3,), slots=shared + pool.take(own)) for _ in range(branches)]
    return rows


@pytest.mark.parametrize(
    ("prompts", "branches", "prefix", "own", "most"),
    [
        (1, 1, 500, 5, 505),  # alone: nothing to share
        (16, 1, 80, 5, 16 * 85),  # nothing in common: a row each
        (1, 10, 500, 5, 560),  # one prompt: the union
        (16, 10, 80, 5, 16 * 144),  # several prompts: each its own union
    ],
)
def test_what_is_shared_is_gathered_once(prompts: int, branches: int, prefix: int, own: int, most: int) -> None:
    laid = packing.layout(
        rows_of(prompts, branches, prefix, own), windows={"full_attention": None}, dtype=torch.float32, device=CPU
    )
    assert laid.read.numel() <= most


def test_many_branches_are_a_few_rows() -> None:
    """In one row of a hundred queries all would pay for everybody's keys."""
    laid = packing.layout(rows_of(1, 100, 100, 20), windows={"full_attention": None}, dtype=torch.float32, device=CPU)
    assert laid.tokens.shape == (17, 6)
    assert laid.read.shape == (17, 224)  # 100 + 6 * 20, in full vectors


def test_the_benchmark_compares_equal_logits() -> None:
    shape = {
        "vocab_size": 1000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    case = stores.Case(prompts=2, branches=5, prefix=100, depth=3)
    rows = stores.run(shape, repeats=1, device=CPU, dtype=torch.float32, on_case=lambda _: None, cases=[case])
    gathered = {row.way: row.gathered for row in rows}
    assert gathered == {stores.ROWS: 10 * 104, stores.ONE: 240, stores.CHOSEN: 2 * 128, stores.IN_PLACE: 0}


def test_parts_hold_as_much_as_fits() -> None:
    """Neighbours together, padded to the widest; what is too wide alone is a part by itself."""
    assert attending._ranges([5, 4, 9, 3, 3, 3, 30, 2], 12) == [
        (0, 2, 5), (2, 3, 9), (3, 6, 3), (6, 7, 30), (7, 8, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("together", [False, True])
def test_nothing_but_attention_is_padded_and_the_last_layer_ends_for_what_is_read(together: bool) -> None:
    model = tiny.causal_lm("llama")
    windows = attention_windows(model.config)
    assert windows is not None
    lay = parts(3) if together else packing.layout
    forward = fused_forward(model, windows=windows, dtype=torch.float64, device=CPU, layout=lay)
    assert isinstance(forward, FusedForward)
    after, states = forward.after, list[int]()

    def counted(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        states.append(len(hidden))
        return after(hidden, *rest)

    forward.after = counted
    pool = Pool(100, CPU)
    texts = [tuple(range(3, 3 + n)) for n in (20, 2, 7)]
    rows = [PagedRow(new=text, slots=pool.take(len(text))) for text in texts]
    network = Network("tiny", model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=CPU)
    with torch.inference_mode():
        got = forward(pool, rows, keep=1, logits_to_keep=1).logits
    assert states == [29] * (len(forward.layers) - 1) + [3]
    for row, text in zip(got, texts, strict=True):
        torch.testing.assert_close(row, network.plain([text], 1)[0], rtol=0, atol=1e-9)
