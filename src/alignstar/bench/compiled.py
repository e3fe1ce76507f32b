"""The compiled forward against the uncompiled one, for rows that share nothing, and what compiling takes.

Both give the same logits, or the benchmark fails. The weights are random: only shapes matter here. On a CPU times are
the processor's, so that other work on the machine does not count. Compiling starts from empty caches.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignstar.bench.random_models import SHAPE_30M
from alignstar.bench.stores import Case, filled
from alignstar.models.hf.compiled import check_compiler, compiled
from alignstar.models.hf.fused import fused_forward
from alignstar.models.hf.load import pick_device
from alignstar.models.hf.network import TOLERANCE, native_forward

ROWS = (1, 10, 40, 160)
PREFIX, DEPTH = 64, 10
"""Positions behind which every row stands, and its own ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of one forward of so many rows [s]; `times` is the median of paired ratios."""

    rows: int
    uncompiled: float
    compiled: float
    times: float

    def as_json(self) -> dict[str, float]:
        """Keys: rows, uncompiled_s, compiled_s, x_uncompiled (how often faster the compiled one is)."""
        return {
            "rows": self.rows, "uncompiled_s": self.uncompiled, "compiled_s": self.compiled, "x_uncompiled": self.times
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows, and what they were measured on.

    `compile_s`, and in the processor's seconds `compile_cpu_s`: the first three forwards of every number of rows, in
    which it is compiled and recorded.
    """

    rows: Sequence[Row]
    compile_s: float
    compile_cpu_s: float
    threads: int
    accelerator: str | None


def run_30m(*, device: str, dtype: str, threads: int | None, repeats: int, on_case: Callable[[str], None]) -> Found:
    """`run` on a Llama shape of 30 million parameters. Raises OptionError where the device cannot be compiled for."""
    if threads is not None:
        torch.set_num_threads(threads)
    where = pick_device(device)
    check_compiler(where)
    return run(asdict(SHAPE_30M), repeats=repeats, device=where, dtype=getattr(torch, dtype), on_case=on_case)


def run(
    shape: Mapping[str, int],
    *,
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
    on_case: Callable[[str], None],
    counts: Sequence[int] = ROWS,
) -> Found:
    """Alternating forwards of both. Raises AssertionError on other logits."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(dict(shape)))
    model.to(device, dtype).eval()
    how: dict[str, Any] = {"windows": {"full_attention": None}, "dtype": dtype, "device": device}
    fused = fused_forward(model, **how)
    assert fused is not None
    plain, quick = native_forward(fused) or fused, compiled(fused)
    config: Any = torch.compiler.config
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    made, waited, worked = list[Row](), 0.0, 0.0
    for count in counts:
        on_case(f"{count} rows")
        pool, rows = filled(model, Case(prompts=count, branches=1, prefix=PREFIX, depth=DEPTH), **how)

        def timed(forward: Any, pool: Any = pool, rows: Any = rows) -> tuple[float, torch.Tensor]:
            started = clock()
            with torch.inference_mode():
                logits = forward(pool, rows, logits_to_keep=1).logits
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return clock() - started, logits

        at, busy = time.perf_counter(), sum(os.times()[:4])
        with config.patch(force_disable_caches=True), warnings.catch_warnings(action="ignore"):
            first = [timed(quick) for _ in range(3)]  # compiled at the first, recorded at the second
        waited, worked = waited + time.perf_counter() - at, worked + sum(os.times()[:4]) - busy
        pairs = [(timed(plain), timed(quick)) for _ in range(repeats)]
        for (_, expected), (_, logits) in [*pairs, *((pairs[0][0], told) for told in first)]:
            torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[dtype])
        slow, fast = ([pair[i][0] for pair in pairs] for i in (0, 1))
        made.append(
            Row(
                rows=count, uncompiled=statistics.median(slow), compiled=statistics.median(fast),
                times=statistics.median(a / b for a, b in zip(slow, fast, strict=True)),
            )
        )  # fmt: skip
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Found(
        rows=made, compile_s=waited, compile_cpu_s=worked, threads=torch.get_num_threads(), accelerator=accelerator
    )
