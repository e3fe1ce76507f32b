"""A transformers module as the engine runs it: paged where that was checked to be exact, whole sequences otherwise.

Knows torch and one module (with its adapter, if any); no requests, no queue. What comes out of a row is decided by the
`Readout`: next-token logits for a language model, head outputs for a classifier.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeAlias, cast

import torch

from alignstar.models.hf.compiled import RecordedForward, compiled
from alignstar.models.hf.fused import FusedForward, fused_forward
from alignstar.models.hf.paged import PagedForward, PagedRow, Pool
from alignstar.types import Ids

log = logging.getLogger("alignstar")

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest difference of two outputs that the shape of a batch may cause, by dtype, where they are at most LARGE."""

LARGE = 10.0
"""Outputs beyond which they may differ in proportion: of larger numbers fewer decimals are known."""

CHECK_TOKENS = 24

FREE_QUERIES = {"cpu": 24}
"""Tokens that a forward takes in little more time than one, by type of device: what guesses may fill up."""

FREE_QUERIES_ELSEWHERE = 256

Forward: TypeAlias = Callable[..., Any]
"""Runs paged rows: (pool, rows, **kwargs) to a module's output; see PagedForward."""


class Readout(Protocol):
    """Runs the module and reads the last positions of every row."""

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """`run(**extra)` runs the module; returns [B, want, V] for language models, [B, want, labels] for heads."""
        ...


class LogitsReadout:
    """The next-token logits of the last positions, cut to the first `vocab_size` tokens."""

    def __init__(self, model: torch.nn.Module, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """Logits [B, want, vocab_size]."""
        logits = run(logits_to_keep=want).logits if self.keeps else run().logits
        return logits[:, -want:, : self.vocab_size]


class HeadReadout:
    """The outputs of a linear head on the last positions' hidden states of a causal backbone.

    `size` is how many numbers of a state it reads, the last ones; None: all.
    """

    def __init__(self, head: torch.nn.Module, size: int | None = None) -> None:
        self.head = head
        self.size = size

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """Head outputs [B, want, labels]."""
        hidden = run().last_hidden_state[:, -want:]
        return self.head(hidden if self.size is None else hidden[..., -self.size :])


class PooledReadout:
    """The outputs of a whole classifier that pools by itself (bidirectional models)."""

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """Head outputs [B, 1, labels]."""
        return run().logits[:, None]


class Network:
    """One module (a base, or a base with one of its adapters) and how to run rows of token ids through it."""

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        readout: Readout,
        *,
        config: Any,
        device: torch.device,
        adapter: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        causal: bool = True,
        reuse: bool = True,
        compile: bool = False,
    ) -> None:
        self.name = name
        self.module = module
        self.readout = readout
        self.config = config
        self.device = device
        self.dtype: torch.dtype = next(p.dtype for p in module.parameters() if p.is_floating_point())
        self.adapter = adapter
        self.causal = causal
        self.bytes_per_position = 0  # of KV; known after the self-check
        self.native = False  # whether it runs on kernels of our own
        self.scale = 1.0  # of the largest outputs that the self-check saw, how many times LARGE they are; at least 1
        self._paged = self._checked() if reuse and causal else None
        if compile:
            self._paged = self._compiled()

    @property
    def reuse(self) -> bool:
        """Whether prefixes are reused: there is a paged forward that the self-check found exact."""
        return self._paged is not None

    @property
    def queries(self) -> int:
        """See FREE_QUERIES."""
        return FREE_QUERIES.get(self.device.type, FREE_QUERIES_ELSEWHERE)

    @property
    def tolerance(self) -> float:
        """By how much two outputs may differ, and what is a near tie: TOLERANCE, in proportion to `scale`."""
        return TOLERANCE[self.dtype] * self.scale

    def paged(self, pool: Pool, rows: Sequence[PagedRow], want: int) -> torch.Tensor:
        """Outputs of paged rows' last `want` new positions."""
        assert self._paged is not None
        return self._outputs(self._paged, pool, rows, want)

    def _outputs(self, forward: Forward, pool: Pool, rows: Sequence[PagedRow], want: int) -> torch.Tensor:
        with self._running():
            return self.readout(lambda **extra: forward(pool, rows, keep=want, **extra), want)

    def plain(self, rows: Sequence[Ids], want: int) -> torch.Tensor:
        """Outputs of whole sequences of equal length, computed from nothing: right for any model, fast for none."""
        tokens = torch.tensor(rows, dtype=torch.long, device=self.device)
        with self._running():
            return self.readout(
                lambda **extra: self.module(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), **self._no_cache(), **extra
                ),
                want,
            )

    def release(self) -> None:
        """Give memory that the allocator keeps for later back to the device."""
        if isinstance(self._paged, RecordedForward):
            self._paged.recordings.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _no_cache(self) -> dict[str, bool]:
        takes = inspect.signature(self.module.forward).parameters
        return {"use_cache": False} if "use_cache" in takes else {}

    @contextlib.contextmanager
    def _running(self) -> Generator[None]:
        with torch.inference_mode(), self.adapter():
            yield

    def _checked(self) -> Forward | None:
        """The first of the paged forwards, the fastest before the most general, that equals the plain one."""
        windows = attention_windows(self.config)
        if windows is None:
            log.warning(
                "%s runs without prefix reuse: some of its layers are not attention over given positions.", self.name
            )
            return None
        settings: dict[str, Any] = {"windows": windows, "dtype": self.dtype, "device": self.device}
        fused = fused_forward(self.module, **settings)
        if fused is not None:
            own = native_forward(fused)
            if own is not None:
                wrong = self._difference(own)
                if wrong is None:
                    self.native = True
                    return own
                log.warning("%s runs without kernels of our own: %s.", self.name, wrong)
            if self._difference(fused) is None:
                return fused
        general = PagedForward(self.module, **settings)
        wrong = self._difference(general)
        if wrong is None:
            return general
        log.warning("%s runs without prefix reuse: %s.", self.name, wrong)
        return None

    def _compiled(self) -> Forward | None:
        """The paged forward, compiled where it is a fused one and stays exact; the log says whether."""
        if not isinstance(self._paged, FusedForward):
            why = "only Llama-shaped networks without adapters are compiled"
            log.warning("%s runs uncompiled: %s.", self.name, "it has kernels of its own here" if self.native else why)
            return self._paged
        started = time.perf_counter()
        made = compiled(self._paged)
        wrong = self._difference(made)
        if wrong is not None:
            log.warning("%s runs uncompiled: compiled, %s.", self.name, wrong)
            return self._paged
        log.info("%s was compiled and checked in %.1f s.", self.name, time.perf_counter() - started)
        return made

    def _difference(self, forward: Forward) -> str | None:
        """What is wrong with a paged forward: prefilled, stepped, branched, rolled-back and unequally batched rows."""
        limit = context_limit(self.config)
        count = CHECK_TOKENS if limit is None else min(CHECK_TOKENS, limit)
        generator = torch.Generator().manual_seed(24)
        vocab = int(self.config.vocab_size)
        drawn = torch.randint(0, vocab, (2 * count,), generator=generator).tolist()
        first = tuple(drawn[:count])
        branched = first[: count // 3] + tuple(drawn[count : count + count // 3])
        try:
            ways = cast("list[Forward]", getattr(forward, "ways", [forward]))
            expected: dict[tuple[Ids, int], torch.Tensor] = {}
            worst = max(self._compare(way, first, branched, expected) for way in ways)
        except Exception as error:  # noqa: BLE001 - any model may refuse paged rows in its own way; it then runs plain
            said = " ".join(str(error).split())[:160].rstrip(".")
            return f"it refused a paged forward ({type(error).__name__}: {said})"
        if worst <= TOLERANCE[self.dtype]:
            return None
        return f"paged and plain forwards differ by {worst:.1e} (at most {TOLERANCE[self.dtype]:.0e})"

    def _compare(
        self, forward: Forward, first: Ids, branched: Ids, expected: dict[tuple[Ids, int], torch.Tensor]
    ) -> float:
        """Largest difference between paged and plain outputs over the self-check's six situations; see LARGE.

        Plain outputs are those `expected`, or computed and put there.
        """
        pool = Pool(4 * len(first), self.device)
        slots = pool.take(len(first))
        branch_slots = slots[: len(first) // 3] + pool.take(len(branched) - len(first) // 3)
        half = len(first) // 2
        worst = 0.0

        def check(rows: list[tuple[Ids, int, list[int]]], want: int = 1) -> None:
            nonlocal worst
            paged_rows = [PagedRow(new=ids[start:], slots=where[: len(ids)]) for ids, start, where in rows]
            got = self._outputs(forward, pool, paged_rows, want)
            for row, (ids, _, _) in zip(got, rows, strict=True):
                if (ids, want) not in expected:
                    expected[ids, want] = self.plain([ids], want)[0].to(torch.float64)
                plain = expected[ids, want]
                allowed = max(1.0, float(plain.abs().max()) / LARGE)
                self.scale = max(self.scale, allowed)
                difference = float((row.to(torch.float64) - plain).abs().max()) / allowed
                worst = max(worst, float("inf") if math.isnan(difference) else difference)

        check([(first[:half], 0, slots)])  # prefilled
        for end in range(half + 1, half + 4):  # stepped
            check([(first[:end], end - 1, slots)])
        check([(branched, len(first) // 3, branch_slots)])  # branched off, behind what was computed
        check([(first, half + 3, slots), (branched, len(branched) - 2, branch_slots)])  # batched with another length
        check([(first[: half - 2], half - 4, slots)])  # rolled back
        check([(first, 0, slots)], half)  # read anew, more at a time, and more told
        self.bytes_per_position = pool.bytes // pool.slots
        return worst


def native_forward(fused: FusedForward) -> Forward | None:
    """The fused forward on kernels of our own: for a CPU in single precision, where numba is installed."""
    if fused.device.type != "cpu" or fused.dtype != torch.float32:
        return None
    try:
        from alignstar.models.hf.native import NativeForward, best

        best(torch.zeros(1, 2), 1)  # states are read by it; the load's check compiles the others
        return NativeForward(fused)
    except Exception as error:  # noqa: BLE001 - numba loads a compiler, which may fail in its own ways; torch is there
        log.warning("Forwards on this CPU take longer than with kernels by numba, which are not to be had: %s.", error)
        return None


def out_of_memory(error: BaseException) -> bool:
    """Whether a forward failed for want of memory: an accelerator's error, or one of a CPU's allocators'."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def attention_windows(config: Any) -> dict[str, int | None] | None:
    """Layer type -> sliding window (None: full attention); None where a layer is neither (linear, chunked, ...).

    GPT-Neo's local layers are neither: they find their window from how many keys there are, which in a batch of unequal
    rows is another number than the row has.
    """
    fields = config.to_dict()
    if "local" in (fields.get("attention_layers") or ()):
        return None
    kinds = set(fields.get("layer_types") or ())
    window = fields.get("sliding_window")
    if not kinds:
        return {"full_attention": window}
    if not kinds <= {"full_attention", "sliding_attention"}:
        return None
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def context_limit(config: Any) -> int | None:
    """Most positions that the model can read: `max_position_embeddings`, or None where the config names no limit."""
    fields = config.to_dict()
    limit = fields.get("max_position_embeddings") or fields.get("n_positions")
    return int(limit) if limit else None
