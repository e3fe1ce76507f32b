"""The fused forward on a CPU in single precision, on kernels of our own (`kernels.py`).

Small forwards wait between torch's operations as long as within them, and attention over gathered slots reads and
writes every key twice. Here all layers are one call, or where threads share the work three calls each; keys and values
are read where they lie, so that rows are neither gathered nor packed nor padded to each other. What torch's products
are faster for is left to them: by oneDNN, which is in it. Knows what `fused.py` knows; importing it needs numba.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from alignstar.models.hf import kernels, largest, tiles
from alignstar.models.hf.attention import attention
from alignstar.models.hf.fused import FusedForward, Layer, Norm, Projection
from alignstar.models.hf.kernels import Kernel
from alignstar.models.hf.paged import Ints, PagedRow, Pool, Table
from alignstar.models.hf.stack import Stack, laid_out

log = logging.getLogger("alignstar")

FIXED_ANGLES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings whose angles depend on nothing but the position; those of others on the longest text too."""

FEW = 8
"""Positions up to which reading out by our kernel is faster than oneDNN's product."""

FEW_BY_MKL = 16
"""Positions up to which it is faster than MKL's, and our products than others on a processor that may have better."""

EACH = 24
"""Positions of each thread from which our products are faster than torch's, whose threads share the weights."""

WORTH_A_THREAD = 1 << 22
"""Multiplications that are worth another thread in a kernel, and weights in a product: half a millisecond of either."""

WORTH_SHARING = 1 << 26
"""Multiplications of a layer that are worth leaving the one call for all of them: threads wait for each other in it."""

Floats = NDArray[np.float32]

Linear: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Of values [N, in], a weight [out, in] and a bias [out] the products [N, out]."""


class ArrayNorm(NamedTuple):
    """A norm's weight as the kernels take it, and what keeps it from dividing by zero."""

    weight: Floats
    eps: np.float32


class ArrayProjection(NamedTuple):
    """A linear layer's weight [in, out] and bias [out], [0] without one."""

    weight: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class NativeLayer:
    """A layer's weights as the kernels take them; `heads` are the norms of queries and of keys [0 or 2, dim]."""

    fused: Layer
    attention_norm: ArrayNorm
    qkv: ArrayProjection
    heads: ArrayNorm
    out: ArrayProjection
    mlp_norm: ArrayNorm
    gate_up: ArrayProjection
    down: ArrayProjection
    window: int
    scaling: np.float32


class NativeForward:
    """Runs paged rows through a Llama-shaped model; see FusedForward, whose weights it uses."""

    def __init__(self, fused: FusedForward) -> None:
        self.fused = fused
        self.layers = [_layer(layer, fused.windows[layer.kind]) for layer in fused.layers]
        self.norm = _norm(fused.norm)
        self.branch_norm = None if fused.branch_norm is None else _norm(fused.branch_norm)
        self.head = _plain(fused.head)
        self.largest = max(w.size for each in self.layers for w in (each.qkv.weight, each.gate_up.weight))
        self.embedding = fused.backbone.embed_tokens.weight.detach().numpy()
        self.stack = _stack(self.layers, self.norm, self.embedding) if self.branch_norm is None else None
        self.angles = Angles(fused.backbone.rotary_emb)
        self.linear = one_dnn() or F.linear
        self.few = FEW_BY_MKL if self.linear is F.linear else FEW

    @property
    def ways(self) -> list[Callable[..., Any]]:
        """This in each of its ways, of which a call takes one; see `_way`."""
        return [
            partial(self, way=way) for way in ("stack", "layers", "torch") if self.stack is not None or way != "stack"
        ]

    def __call__(
        self, pool: Pool, rows: Sequence[PagedRow], *, keep: int = 0, logits_to_keep: int = 0, way: str = ""
    ) -> Any:
        """See FusedForward."""
        table = laid_out(rows)
        wrong = [token for token in (table.tokens.min(), table.tokens.max()) if not 0 <= token < len(self.embedding)]
        if wrong:
            raise IndexError(f"token {wrong[0]} is none of a vocabulary of {len(self.embedding)}")
        if table.new.min() < 1 or (table.new > table.lengths).any():
            raise IndexError("a row has no new tokens, or fewer slots than those")
        places, way = _places(table, keep), way or self._way(len(table.tokens), int(table.positions.sum()))
        if self.stack is not None and way == "stack":
            told = self.stack(pool, table, self.angles.looked_up(table.positions), places.reshape(-1))
            return self._read(torch.from_numpy(told).view(*places.shape, -1), logits_to_keep)
        return self._told(*self._layered(pool, table, places, ours=way != "torch"), places, logits_to_keep)

    def _way(self, count: int, keys: int) -> str:
        """How `count` positions that read `keys` are fastest: all layers in one call, one kernel at a time, or torch's.

        Of few positions and many weights torch's threads share the weights; ours share positions.
        """
        if count > self.few and not tiles.X86:
            return "torch"
        threads = torch.get_num_threads()
        many, work = count >= EACH * threads, count * self.largest + 2 * keys * len(self.layers[0].out.weight)
        if threads == 1 or (work < WORTH_SHARING and (many or self.largest < WORTH_A_THREAD)):
            return "layers" if self.stack is None else "stack"
        return "layers" if many else "torch"

    def _layered(self, pool: Pool, table: Table, places: Ints, *, ours: bool) -> tuple[Floats, Floats]:
        """States after the last layer, and those that a branch has reached, one layer after the other."""
        how = self.fused
        reading = Reading(table.slots, table.row, table.positions, int(table.positions.sum()))
        hidden = self.embedding.take(table.tokens, axis=0)
        cos, sin = self.angles(table.positions)
        dim = cos.shape[1]
        if any(layer.out.weight.shape[0] % dim or layer.qkv.weight.shape[1] % dim for layer in self.layers):
            raise ValueError(f"rotations of {dim} numbers do not make up the heads")  # kernels would write beyond
        left = reached = hidden
        for index, layer in enumerate(self.layers):
            if index == how.leaves:
                left = hidden.copy()
            if index == how.returns:
                reached, hidden = hidden, left
            n_q = layer.out.weight.shape[0] // dim
            stores = layer.qkv.weight.shape[1] // dim - n_q
            buffer = pool.buffer(index, torch.empty(0, stores, dim, dtype=torch.float32, device="cpu")).numpy()
            qkv = self._before(hidden, layer, cos, sin, table.written, buffer, ours=ours)
            if index + 1 == len(self.layers) and self.branch_norm is None:  # it ends for what is told
                chosen = places.reshape(-1)
                hidden, qkv, reading = hidden[chosen], qkv[chosen], reading.of(chosen)
            self._after(hidden, reading.attended(qkv, buffer, n_q, layer), layer, ours=ours)
        if how.returns == len(self.layers):
            reached, hidden = hidden, left
        return hidden, reached

    def _before(
        self, hidden: Floats, layer: NativeLayer, cos: Floats, sin: Floats, written: Ints, buffer: Floats, *, ours: bool
    ) -> Floats:
        """Queries, keys and values [N, heads, dim] of states [N, H]; the latter two are put into the pool too."""
        shape = (len(hidden), -1, cos.shape[1])
        if ours:
            qkv = np.empty((len(hidden), layer.qkv.weight.shape[1]), dtype=np.float32).reshape(shape)
            arrays = (hidden, *layer.attention_norm, *layer.qkv, cos, sin, *layer.heads, written, buffer, qkv)
            _shared(kernels.before_attention, layer.qkv.weight.size * len(hidden), *arrays)
            return qkv
        qkv = self._product(_normed(hidden, layer.attention_norm), layer.fused.qkv)[: len(hidden)].reshape(shape)
        _shared(kernels.stored, qkv.size, qkv, cos, sin, *layer.heads, written, buffer)
        return qkv

    def _after(self, hidden: Floats, attended: Floats, layer: NativeLayer, *, ours: bool) -> None:
        """The layer's outcome in the place of its states [N, H], of what attention gave for them."""
        if ours:
            arrays = (hidden, attended, *layer.out, *layer.mlp_norm, *layer.gate_up, *layer.down)
            _shared(kernels.after_attention, layer.gate_up.weight.size * len(hidden), *arrays)
            return
        count = len(hidden)
        hidden += self._product(attended, layer.fused.out)[:count]
        gate_up = self._product(_normed(hidden, layer.mlp_norm), layer.fused.gate_up)[:count]
        gate = _room(count, layer.down.weight.shape[0])
        _shared(kernels.gated, 8 * gate_up.size, gate_up, gate)
        hidden += self._product(gate, layer.fused.down)[:count]

    def _product(self, values: Floats, by: Projection) -> Floats:
        """Of `values` [N, in] the products [N, out]; N as `_room` has it."""
        linear = F.linear if len(values) == 1 else self.linear  # of a vector MKL's is faster
        return linear(torch.from_numpy(values), *by).numpy()

    def _told(self, hidden: Floats, reached: Floats, places: Ints, kept: int) -> Any:
        """What is read of the last layer's states: of all, or at `places` where there is a branch."""
        if self.branch_norm is not None:
            hidden = hidden[places.reshape(-1)]
        told = torch.from_numpy(_normed(hidden, self.norm)[: places.size]).view(*places.shape, -1)
        read = self._read(told, kept)
        if self.branch_norm is not None:
            side = torch.from_numpy(_normed(reached[places.reshape(-1)], self.branch_norm)[: places.size])
            read.last_hidden_state = torch.cat((told, side.view(*places.shape, -1)), dim=-1)
        return read

    def _read(self, told: torch.Tensor, kept: int) -> Any:
        """Of the normed states [rows, kept, H] that are told, as a module tells them."""
        logits = None if self.fused.head is None else self._logits(told[:, -kept:])
        return SimpleNamespace(last_hidden_state=told, logits=logits)

    def _logits(self, told: torch.Tensor) -> torch.Tensor:
        """Next-token logits [rows, kept, V] of states [rows, kept, H]."""
        values, weight = told.reshape(-1, told.shape[-1]), self.head
        if weight is None:
            return self.fused.head(told)
        if len(values) > self.few or not _alone(len(values) * weight.size):
            room = _room(*values.shape)
            room[: len(values)] = values.numpy()
            logits = torch.from_numpy(self._product(room, Projection(torch.from_numpy(weight), None)))
            return logits[: len(values)].view(*told.shape[:-1], -1)
        out = np.empty((len(values), len(weight)), dtype=np.float32)
        kernels.read_out(values.numpy(), weight, out, 0, len(values))
        return torch.from_numpy(out).view(*told.shape[:-1], -1)


class Angles:
    """Cosines and sines [N, dim] of positions [N]; looked up where they depend on nothing but the position."""

    def __init__(self, rotary: Any) -> None:
        self.rotary = rotary
        self.fixed = rotary.rope_type in FIXED_ANGLES
        self.limit: int = rotary.max_seq_len_cached
        none = np.empty((0, 0), dtype=np.float32)
        self.known = none, none  # of the positions from 0 on that were needed so far

    def __call__(self, positions: Ints) -> tuple[Floats, Floats]:
        """As the module gives them."""
        cos, sin, where = self.looked_up(positions)
        return cos.take(where, axis=0), sin.take(where, axis=0)

    def looked_up(self, positions: Ints) -> tuple[Floats, Floats, Ints]:
        """Those of more positions [any, dim], and where in them the given ones are [N]."""
        if not self.fixed:
            cos, sin = self._computed(positions)
            return cos, sin, np.arange(len(positions))
        last, known = int(positions.max()), self.known
        if last >= len(known[0]):
            known = self.known = self._computed(np.arange(max(last + 1, min(2 * last + 1, self.limit))))
        return known[0], known[1], positions

    def _computed(self, positions: Ints) -> tuple[Floats, Floats]:
        like = torch.empty(1, dtype=torch.float32, device="cpu")  # whatever the process's default is
        cos, sin = self.rotary(like, position_ids=torch.from_numpy(positions)[None])
        return cos[0].numpy(), sin[0].numpy()


class Reading(NamedTuple):
    """What positions [N] read: of the slots [rows, keys] those of their `row` up to `position`, which is their own.

    `keys` counts them all.
    """

    slots: Ints
    row: Ints
    position: Ints
    keys: int

    def of(self, chosen: Ints) -> Reading:
        """What some of the positions read."""
        position = self.position[chosen]
        return Reading(self.slots, self.row[chosen], position, int(position.sum()))

    def attended(self, qkv: Floats, buffer: Floats, n_q: int, layer: NativeLayer) -> Floats:
        """Attention of the first `n_q` heads of `qkv` [N, heads, dim] over a layer's buffer: `_room` [N, n_q * dim]."""
        dim = qkv.shape[2]
        out = _room(len(qkv), n_q * dim)
        arrays = (qkv, buffer, self.slots, self.row, self.position, layer.window, layer.scaling, out)
        _shared(attention(dim), 2 * n_q * dim * self.keys, *arrays, pieces=4)  # later positions of a text read more
        return out


@cache
def one_dnn() -> Linear | None:
    """The product of oneDNN, which takes weights as they lie; None where torch is built without it, and off x86.

    torch gives single precision to MKL, which on AMD's processors leaves half of their arithmetic idle.
    """
    try:
        if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
            raise NotImplementedError("not for this processor, or not in this torch")
        taken = torch.ops.mkldnn._linear_pointwise.default
        some = torch.zeros(FEW + 1, FEW + 1, dtype=torch.float32, device="cpu")
        taken(some, some.t(), None, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        log.info("Products on this CPU are not oneDNN's, which can take half the time: %s.", error)
        return None
    return lambda values, weight, bias: taken(values, weight, bias, "none", [], "")


def best(logits: torch.Tensor, keep: int) -> tuple[NDArray[np.float64], Ints, NDArray[np.float64]]:
    """Of logits [N, V] the `keep` largest and their ids [N, keep], ties by the lower id, and log-normalisers [N]."""
    told = np.ascontiguousarray(logits.numpy())
    values, ids = np.empty((len(told), keep), dtype=np.float32), np.empty((len(told), keep), dtype=np.int64)
    log_z = np.empty(len(told))
    _shared(largest.best, 8 * told.size, told, values, ids, log_z)
    return values.astype(np.float64), ids, log_z


def _plain(head: Any) -> Floats | None:
    """A head's weight [out, in], if that is all there is to it."""
    plain = type(head) is torch.nn.Linear and getattr(head, "bias", None) is None and head.weight.is_contiguous()
    return head.weight.detach().numpy() if plain else None


def _layer(layer: Layer, window: int | None) -> NativeLayer:
    return NativeLayer(
        fused=layer,
        attention_norm=_norm(layer.attention_norm),
        qkv=_projection(layer.qkv),
        heads=_heads(layer.q_norm, layer.k_norm),
        out=_projection(layer.out),
        mlp_norm=_norm(layer.mlp_norm),
        gate_up=_projection(layer.gate_up),
        down=_projection(layer.down),
        window=window or 0,
        scaling=np.float32(layer.scaling),
    )


def _stack(layers: Sequence[NativeLayer], norm: ArrayNorm, embedding: Floats) -> Stack | None:
    """All of a model's layers in one call; None where they are not alike, or do not lie as it reads them."""
    arrays = [
        (each.attention_norm.weight, *each.qkv, each.heads.weight, *each.out, each.mlp_norm.weight, *each.gate_up,
         *each.down)
        for each in layers
    ]  # fmt: skip
    whole = all(array.dtype == np.float32 and array.flags.c_contiguous for of in arrays for array in of)
    if not whole or len({tuple(array.shape for array in of) for of in arrays}) > 1:
        return None
    least = [(each.attention_norm.eps, each.heads.eps, each.mlp_norm.eps, each.scaling) for each in layers]
    return Stack(arrays, np.array(least), np.array([each.window for each in layers]), norm, embedding)


def _norm(norm: Norm) -> ArrayNorm:
    return ArrayNorm(norm.weight.detach().numpy(), np.float32(norm.eps))


def _heads(query: Norm | None, key: Norm | None) -> ArrayNorm:
    if query is None or key is None:
        return ArrayNorm(np.zeros((0, 0), dtype=np.float32), np.float32(0))
    return ArrayNorm(torch.stack((query.weight, key.weight)).detach().numpy(), np.float32(query.eps))


def _projection(by: Projection) -> ArrayProjection:
    bias = np.zeros(0, dtype=np.float32) if by.bias is None else by.bias.detach().numpy()
    return ArrayProjection(by.weight.detach().t().numpy(), bias)


def _places(table: Table, keep: int) -> Ints:
    """Where in [N] each row's last `keep` positions are (0: all) [rows, kept]; before a row's first one stands that."""
    ends = np.cumsum(table.new)
    kept = min(keep or len(table.tokens), int(table.new.max()))
    return np.maximum(ends[:, None] - kept + np.arange(kept), (ends - table.new)[:, None])


def _room(count: int, size: int) -> Floats:
    """Memory for `count` positions, and for some more that mean nothing: oneDNN compiles a product for each count.

    It keeps about a megabyte for each. There are eight counts, then, from one power of two to the next.
    """
    step = 1 << max(0, count.bit_length() - 4)
    return np.empty((-(-count // step) * step, size), dtype=np.float32)


def _normed(hidden: Floats, norm: ArrayNorm) -> Floats:
    """Of `hidden` [N, H], in `_room` for it."""
    out = _room(*hidden.shape)
    _shared(kernels.normed, hidden.size, hidden, *norm, out)
    return out


def _alone(work: int) -> bool:
    """Whether one thread does so many multiplications."""
    return torch.get_num_threads() == 1 or work < WORTH_A_THREAD


def _shared(kernel: Kernel, work: int, *arrays: Any, pieces: int = 1) -> None:
    """Run a kernel on all positions, of which the first array has one each; in threads where the work is worth it.

    `work` is in multiplications. Of `pieces` to a thread, which are not the same work, each takes every so many-th.
    """
    count = len(arrays[0])
    parts = 1 if _alone(work) else min(torch.get_num_threads(), count, 1 + work // WORTH_A_THREAD)
    if parts == 1:
        kernel(*arrays, 0, count)
        return
    pieces = min(count, pieces * parts)
    cuts = [count * i // pieces for i in range(pieces + 1)]

    def some(thread: int) -> None:
        for i in range(thread, pieces, parts):
            kernel(*arrays, cuts[i], cuts[i + 1])

    helpers = [_threads().submit(some, thread) for thread in range(1, parts)]
    some(0)
    for helper in helpers:
        helper.result()


@cache
def _threads() -> ThreadPoolExecutor:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not live on in it
    return ThreadPoolExecutor(thread_name_prefix="alignstar-kernels")
