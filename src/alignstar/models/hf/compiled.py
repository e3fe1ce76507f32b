"""The fused forward compiled: what lies between stores, gathers and attention by torch.compile, on a GPU recorded too.

Only two pure functions of one dynamic size, the number of states, are compiled, so four graphs per network serve every
forward (one state; more). Stores into the pool stay as they are, since a compiled store might copy the pool. On a GPU
the launches themselves are what small forwards wait for. There rows, queries and keys are padded up to a few sizes, and
a whole forward, stores included, is recorded as a CUDA graph for every combination of sizes that comes a second time.
Not torch.compile's own CUDA graphs (mode="reduce-overhead"): they leave out what writes to its inputs and copy weights
that come as inputs. Knows the fused forward; whether the result is right is found out by the self-check at load.
"""

from __future__ import annotations

import copy
import itertools
import logging
import os
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch

from alignstar.errors import OptionError
from alignstar.models.hf.fused import FusedForward
from alignstar.models.hf.paged import TRASH, Packed, PagedRow, Pool

MOST_TOKENS = 256
"""Tokens, padding included, of a forward that is recorded; larger ones wait for arithmetic and not for launches."""

LEAST_KEYS = 64
"""Keys that every recorded row has room for."""

MOST_RECORDED = 64
"""Recorded forwards that are kept, the last used ones."""

log = logging.getLogger("alignstar")

_copies = itertools.count()

Recorder: TypeAlias = "Callable[[Callable[[], Any]], Callable[[], Any]]"
"""Runs a function once, without effect or with it, and returns what does the same on the same memory again."""


def check_compiler(device: torch.device) -> None:
    """Raise OptionError where nothing can be compiled for the device."""
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"compile=True is for cpu and cuda, and the device is {device.type}; leave it out.")
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise OptionError(
            f"compile=True needs a C++ compiler and {compiler!r} is not there; install it, name another in the "
            "environment's CXX, or leave compile out."
        )


def compiled(forward: FusedForward) -> FusedForward | RecordedForward:
    """The same forward with its pure parts compiled, at their first calls, and on a GPU recorded."""
    made = copy.copy(forward)
    made.before, made.after = _flexible(forward.before), _flexible(forward.after)
    return RecordedForward(made, cuda_recorder(forward.device)) if forward.device.type == "cuda" else made


def _flexible(function: Any) -> Any:
    """The function compiled for any length of its tensors' first dimension."""
    # torch keeps graphs and what it knows of sizes by code object and name, and gives up after eight graphs: a network
    # must not use up another's.
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_copies)}")
    made: Any = torch.compile(types.FunctionType(code, function.__globals__), fullgraph=True)

    def call(*arguments: Any) -> Any:
        for given in arguments:
            if isinstance(given, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(given, 0)  # pyright: ignore[reportPrivateUsage]
        return made(*arguments)

    return call


def cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs. They share their memory: a replay may write over what another one gave."""
    shared: Any = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Any]) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
            told = run()

        def again() -> Any:
            graph.replay()
            return told

        return again

    return record


def size_for(count: int, least: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, ... that is neither below `count` nor below `least`."""
    needed = max(count, least)
    power = 1 << (needed - 1).bit_length()
    return power * 3 // 4 if power >= 4 and needed <= power * 3 // 4 else power


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a padded forward: [batch, queries] tokens and `keys`; of what is read of it: [rows, longest] and `kept`."""

    batch: int
    queries: int
    keys: int
    rows: int
    longest: int
    kept: int


def sizes(packed: Packed, kept: int) -> Sizes:
    """What a forward is padded to."""
    batch, queries = packed.tokens.shape
    rows, longest = packed.tokens.shape if packed.rows is None else packed.rows.shape
    return Sizes(
        size_for(batch), size_for(queries), size_for(packed.read.shape[1], LEAST_KEYS),
        size_for(rows), size_for(longest), size_for(kept) if kept else 0,
    )  # fmt: skip


def blank(sizes: Sizes, kinds: Sequence[str], *, dtype: torch.dtype, device: torch.device) -> Packed:
    """Memory for forwards of these sizes."""

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device=device)

    shape = (sizes.batch, 1, sizes.queries, sizes.keys)
    return Packed(
        tokens=zeros(sizes.batch, sizes.queries),
        positions=zeros(sizes.batch, sizes.queries),
        written=zeros(sizes.batch * sizes.queries),
        read=zeros(sizes.batch, sizes.keys),
        mask={kind: torch.zeros(shape, dtype=dtype, device=device) for kind in kinds},
        rows=zeros(sizes.rows, sizes.longest),
    )


def fill(into: Packed, packed: Packed) -> None:
    """Write a forward over another, in memory that is at least as large; padding is stored in no slot, seen by none."""
    assert isinstance(into.mask, dict)
    assert into.rows is not None
    batch, queries = packed.tokens.shape
    wide = into.tokens.shape[1]
    for whole, part in (
        (into.tokens, packed.tokens),
        (into.positions, packed.positions),
        (into.written.view(-1, wide), packed.written.view(batch, queries)),
        (into.read, packed.read),
    ):
        whole.fill_(TRASH)  # the least token and position too
        whole[:batch, : part.shape[1]] = part
    for kind, whole in into.mask.items():
        given = packed.mask[kind] if isinstance(packed.mask, dict) else packed.mask
        whole.fill_(torch.finfo(whole.dtype).min)
        whole[..., 0] = 0  # padding must see something, or it is NaN
        whole[:batch, :, :queries, : packed.read.shape[1]] = 0 if given is None else given
    found = packed.rows
    if found is None:
        found = torch.arange(batch * queries, device=into.rows.device).view(batch, queries)
    into.rows.zero_()
    into.rows[: found.shape[0], into.rows.shape[1] - found.shape[1] :] = found // queries * wide + found % queries


@dataclass(frozen=True, slots=True)
class Recording:
    """A forward's inputs in memory, and what runs it on them."""

    inputs: Packed
    again: Callable[[], Any]


class RecordedForward:
    """Small forwards padded to a few sizes, recorded when their sizes come a second time and replayed from then on."""

    def __init__(self, forward: FusedForward, record: Recorder) -> None:
        self.forward = forward
        self.record: Recorder | None = record
        self.met: set[Sizes] = set()
        self.recordings: dict[Sizes, Recording] = {}
        self._where: tuple[int, ...] = ()

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], *, keep: int = 0, logits_to_keep: int = 0) -> Any:
        """See FusedForward; what is recorded tells all positions."""
        how = self.forward
        packed = how.layout(rows, windows=how.windows, dtype=how.dtype, device=how.device)
        padded = sizes(packed, logits_to_keep)
        where = tuple(buffer.data_ptr() for buffer in pool.buffers)
        if where != self._where:  # another pool, or it grew: what was recorded writes to memory that is no longer its
            self.recordings.clear()
            self._where = where
        small = padded.batch * padded.queries <= MOST_TOKENS
        recording = None
        if small and pool.complete and padded in self.met:
            recording = self.recordings.pop(padded, None) or self._recorded(pool, padded)
        if recording is None:
            self.met.add(padded)  # the first run also makes ready whatever must not happen while it is recorded
            return how.run(pool, packed, keep=keep, logits_to_keep=logits_to_keep)
        self.recordings[padded] = recording
        if len(self.recordings) > MOST_RECORDED:
            del self.recordings[next(iter(self.recordings))]
        fill(recording.inputs, packed)
        told, count = recording.again(), len(rows)
        # Copies, since the next forward writes over what this one gave.
        longest = packed.tokens.shape[1] if packed.rows is None else packed.rows.shape[1]
        hidden = told.last_hidden_state[:count, -longest:].clone()
        logits = None if told.logits is None else told.logits[:count, -logits_to_keep:].clone()
        return SimpleNamespace(last_hidden_state=hidden, logits=logits)

    def _recorded(self, pool: Pool, padded: Sizes) -> Recording | None:
        """What was recorded; None where the device refuses, which the log says once: nothing is recorded after that."""
        if self.record is None:
            return None
        how = self.forward
        inputs = blank(padded, sorted(how.windows), dtype=how.dtype, device=how.device)
        try:
            return Recording(inputs, self.record(lambda: how.run(_Still(pool), inputs, logits_to_keep=padded.kept)))
        except RuntimeError as error:
            log.warning("Forwards are compiled but not recorded: %s", " ".join(str(error).split())[:160])
            self.record = None
            return None


class _Still:
    """A pool of which every buffer is there; gathers have memory of their own, since the pool's is replaced by more."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def buffer(self, index: int, example: torch.Tensor) -> torch.Tensor:
        """See Pool."""
        return self.pool.buffers[index]

    def gather(self, buffer: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """See Pool."""
        return buffer.index_select(0, slots)
