"""Ways to lay out rows that share a beginning for one decoding forward: what they gather, and how long they take.

Compares a row of keys per branch, one packed row with a tree mask, packing where counting says that it pays, and, on a
CPU, keys read where they lie. The engine takes the last of these that there is. Every way gives the same logits, or the
benchmark fails. The weights are random: only shapes matter here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignstar.bench.random_models import SHAPE_30M
from alignstar.models.hf.fused import FusedForward, fused_forward
from alignstar.models.hf.load import pick_device
from alignstar.models.hf.network import TOLERANCE, Forward, native_forward
from alignstar.models.hf.packed import layout, packed
from alignstar.models.hf.paged import Packed, PagedRow, Pool, Table, pack

ROWS, ONE, CHOSEN, IN_PLACE = "a row per branch", "one packed row", "packed where it pays", "read where they lie"

Layout: TypeAlias = Callable[..., Packed]


def one_row(rows: Sequence[PagedRow], **how: Any) -> Packed:
    """Everything in one row."""
    return packed(Table.of(rows), [range(len(rows))], **how)


def a_row_each(rows: Sequence[PagedRow], **how: Any) -> Packed:
    """Each for itself."""
    return pack(rows, own=True, **how)


WAYS: Mapping[str, Layout] = {ROWS: a_row_each, ONE: one_row, CHOSEN: layout}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`branches` rows of each of `prompts` texts of `prefix` positions, `depth` own positions into their rollouts."""

    prompts: int
    branches: int
    prefix: int
    depth: int


CASES = tuple(
    Case(prompts=prompts, branches=branches, prefix=prefix, depth=depth)
    for prompts, branches in ((1, 4), (1, 10), (1, 80), (16, 1), (16, 10))
    for prefix, depth in ((64, 10), (512, 10))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A way in a case: medians of `seconds`, and the positions gathered (copied) per layer."""

    case: Case
    way: str
    seconds: float
    gathered: int
    times_rows: float

    def as_json(self) -> dict[str, Any]:
        """Keys: prompts, branches, prefix, depth, way, seconds, gathered, x_rows (how often faster than a row each)."""
        case = self.case
        return {
            "prompts": case.prompts, "branches": case.branches, "prefix": case.prefix, "depth": case.depth,
            "way": self.way, "seconds": self.seconds, "gathered": self.gathered, "x_rows": self.times_rows,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows, and what they were measured on."""

    rows: Sequence[Row]
    threads: int
    accelerator: str | None


def run_30m(*, device: str, threads: int | None, repeats: int, on_case: Callable[[str], None]) -> Found:
    """`run` on a Llama shape of 30 million parameters."""
    if threads is not None:
        torch.set_num_threads(threads)
    where = pick_device(device)
    rows = run(asdict(SHAPE_30M), repeats=repeats, device=where, dtype=torch.float32, on_case=on_case)
    accelerator = torch.cuda.get_device_name() if where.type == "cuda" else None
    return Found(rows=rows, threads=torch.get_num_threads(), accelerator=accelerator)


def run(
    shape: Mapping[str, int],
    *,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
    on_case: Callable[[str], None],
    cases: Sequence[Case] = CASES,
) -> list[Row]:
    """Alternating forwards of every way; ratios are medians of paired ones. Raises AssertionError on other logits."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(dict(shape)))
    model.to(device, dtype).eval()
    how: dict[str, Any] = {"windows": {"full_attention": None}, "dtype": dtype, "device": device}
    made: list[Row] = []
    ways: dict[str, Forward] = {}
    for way, lay in WAYS.items():
        fused = fused_forward(model, **how, layout=lay)
        assert fused is not None
        ways[way] = fused
    own = native_forward(cast("FusedForward", ways[ROWS]))
    if own is not None:
        ways[IN_PLACE] = own
    for case in cases:
        on_case(f"{case.prompts} x {case.branches} branches behind {case.prefix} positions")
        pool, rows = filled(model, case, **how)
        spent: dict[str, list[float]] = {way: [] for way in ways}
        answers: dict[str, torch.Tensor] = {}
        for _ in range(repeats + 1):
            for way, forward in ways.items():
                started = time.perf_counter()
                with torch.inference_mode():
                    answers[way] = forward(pool, rows, keep=1, logits_to_keep=1).logits
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                spent[way].append(time.perf_counter() - started)
        for way in ways:
            torch.testing.assert_close(answers[way], answers[ROWS], rtol=0, atol=TOLERANCE[dtype])
            ratios = [a / b for a, b in zip(spent[ROWS][1:], spent[way][1:], strict=True)]
            gathered = WAYS[way](rows, **how).read.numel() if way in WAYS else 0
            made.append(
                Row(
                    case=case, way=way, seconds=statistics.median(spent[way][1:]), gathered=gathered,
                    times_rows=statistics.median(ratios),
                )
            )  # fmt: skip
    return made


def filled(model: Any, case: Case, **how: Any) -> tuple[Pool, list[PagedRow]]:
    """Rows whose earlier positions are in the pool, each with one token to push."""
    own = case.depth + 1
    pool = Pool(case.prompts * (case.prefix + case.branches * own) + 1, how["device"])
    forward = fused_forward(model, **how)
    assert forward is not None
    rows: list[PagedRow] = []
    with torch.inference_mode():
        for prompt in range(case.prompts):
            shared = pool.take(case.prefix)
            text = tuple((prompt + 7 * i) % 1000 for i in range(case.prefix))
            forward(pool, [PagedRow(new=text, slots=shared)], logits_to_keep=1)
            for branch in range(case.branches):
                slots = shared + pool.take(own)
                tokens = tuple((branch + 3 * i) % 1000 for i in range(own))
                forward(pool, [PagedRow(new=tokens[:-1], slots=slots[:-1])], logits_to_keep=1)
                rows.append(PagedRow(new=tokens[-1:], slots=slots))
    return pool, rows
