"""The fused forward on a CPU in single precision, on kernels of our own (`kernels.py`).

Small forwards wait between torch's operations as long as within them, and attention over gathered slots reads and
writes every key twice. Here few positions take three calls a layer, many take products by torch and four kernels; keys
and values are read where they lie, so that rows are neither gathered nor packed nor padded to each other. Knows what
`fused.py` knows; importing it needs numba.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from alignstar.models.hf import kernels
from alignstar.models.hf.fused import FusedForward, Layer, Norm, Projection
from alignstar.models.hf.kernels import Kernel
from alignstar.models.hf.paged import Ints, PagedRow, Pool, Table

FEW = 16
"""Positions up to which our product is faster than torch's: it reads weights as fast as memory gives them."""

WORTH_A_THREAD = 1 << 22
"""Multiplications that are worth another thread: about half a millisecond."""

Floats = NDArray[np.float32]


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
        self.vocabulary = np.arange(0 if self.head is None else len(self.head))
        self.largest = max(w.size for each in self.layers for w in (each.qkv.weight, each.gate_up.weight))

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], *, keep: int = 0, logits_to_keep: int = 0) -> Any:
        """See FusedForward."""
        how, table = self.fused, Table(rows)
        reading = Reading(table.slots, table.row, table.positions, int(table.positions.sum()))
        places = _places(table, keep)
        embedded = F.embedding(torch.from_numpy(table.tokens), how.backbone.embed_tokens.weight)
        angles = how.backbone.rotary_emb(embedded, position_ids=torch.from_numpy(table.positions)[None])
        hidden, cos, sin = embedded.numpy(), angles[0][0].numpy(), angles[1][0].numpy()
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
            qkv = np.empty((len(hidden), layer.qkv.weight.shape[1] // dim, dim), dtype=np.float32)
            buffer = pool.buffer(index, torch.from_numpy(qkv[:, n_q:])).numpy()
            self._before(hidden, layer, cos, sin, table.written, buffer, qkv)
            if index + 1 == len(self.layers) and self.branch_norm is None:  # it ends for what is told
                chosen = places.reshape(-1)
                hidden, qkv, reading = hidden[chosen], qkv[chosen], reading.of(chosen)
            self._after(hidden, reading.attended(qkv, buffer, n_q, layer), layer)
        if how.returns == len(self.layers):
            reached, hidden = hidden, left
        return self._told(hidden, reached, places, logits_to_keep)

    def _few(self, count: int, size: int) -> bool:
        """Whether our products with weights of this size are faster for so many positions: torch's share large ones."""
        return count <= FEW and (torch.get_num_threads() == 1 or count * size < WORTH_A_THREAD)

    def _before(
        self, hidden: Floats, layer: NativeLayer, cos: Floats, sin: Floats, written: Ints, buffer: Floats, qkv: Floats
    ) -> None:
        """Queries, keys and values of states [N, H], into `qkv` [N, heads, dim]; the latter two into the pool too."""
        if self._few(len(hidden), self.largest):
            kernels.before_attention(
                hidden, *layer.attention_norm, *layer.qkv, cos, sin, *layer.heads, written, buffer, qkv, 0, len(hidden)
            )
            return
        _product(_normed(hidden, layer.attention_norm), layer.qkv, qkv.reshape(len(qkv), -1))
        _shared(kernels.stored, qkv.size, qkv, cos, sin, *layer.heads, written, buffer)

    def _after(self, hidden: Floats, attended: Floats, layer: NativeLayer) -> None:
        """The layer's outcome in the place of its states [N, H], of what attention gave for them."""
        if self._few(len(hidden), self.largest):
            kernels.after_attention(
                hidden, attended, *layer.out, *layer.mlp_norm, *layer.gate_up, *layer.down, 0, len(hidden)
            )
            return
        more = np.empty_like(hidden)
        hidden += _product(attended, layer.out, more)
        gate_up = np.empty((len(hidden), layer.gate_up.weight.shape[1]), dtype=np.float32)
        _product(_normed(hidden, layer.mlp_norm), layer.gate_up, gate_up)
        gate = np.empty((len(hidden), layer.down.weight.shape[0]), dtype=np.float32)
        _shared(kernels.gated, 8 * gate_up.size, gate_up, gate)
        hidden += _product(gate, layer.down, more)

    def _told(self, hidden: Floats, reached: Floats, places: Ints, kept: int) -> Any:
        """What is read of the last layer's states: of all, or at `places` where there is a branch."""
        if self.branch_norm is not None:
            hidden = hidden[places.reshape(-1)]
        told = torch.from_numpy(_normed(hidden, self.norm)).view(*places.shape, -1)
        logits = None if self.fused.head is None else self._logits(told[:, -kept:])
        if self.branch_norm is not None:
            side = torch.from_numpy(_normed(reached[places.reshape(-1)], self.branch_norm))
            told = torch.cat((told, side.view(*places.shape, -1)), dim=-1)
        return SimpleNamespace(last_hidden_state=told, logits=logits)

    def _logits(self, told: torch.Tensor) -> torch.Tensor:
        """Next-token logits [rows, kept, V] of states [rows, kept, H]."""
        values, weight = told.reshape(-1, told.shape[-1]), self.head
        if weight is None or not self._few(len(values), weight.size):
            return self.fused.head(told)
        out = np.empty((len(values), len(weight)), dtype=np.float32)
        kernels.read_out(values.numpy(), weight, self.vocabulary, out, 0, len(values))
        return torch.from_numpy(out).view(*told.shape[:-1], -1)


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
        """Attention [N, n_q * dim] of the first `n_q` heads of `qkv` [N, heads, dim] over a layer's buffer."""
        dim = qkv.shape[2]
        out = np.empty((len(qkv), n_q * dim), dtype=np.float32)
        arrays = (qkv, buffer, self.slots, self.row, self.position, layer.window, layer.scaling, out)
        _shared(kernels.attention(dim), 2 * n_q * dim * self.keys, *arrays)
        return out


def best(logits: torch.Tensor, keep: int) -> tuple[NDArray[np.float64], Ints, NDArray[np.float64]]:
    """Of logits [N, V] the `keep` largest and their ids [N, keep], ties by the lower id, and log-normalisers [N]."""
    told = np.ascontiguousarray(logits.numpy())
    values, ids = np.empty((len(told), keep), dtype=np.float32), np.empty((len(told), keep), dtype=np.int64)
    log_z = np.empty(len(told))
    _shared(kernels.best, 8 * told.size, told, values, ids, log_z)
    return values.astype(np.float64), ids, log_z


def _plain(head: Any) -> Floats | None:
    """A head's weight [out, in], if that is all there is to it."""
    plain = type(head) is torch.nn.Linear and getattr(head, "bias", None) is None and head.weight.is_contiguous()
    return head.weight.detach().numpy() if plain else None


def _layer(layer: Layer, window: int | None) -> NativeLayer:
    return NativeLayer(
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


def _product(values: Floats, by: ArrayProjection, out: Floats) -> Floats:
    """By torch, of `values` [N, in] into `out` [N, out]."""
    told = torch.from_numpy(out)
    torch.mm(torch.from_numpy(values), torch.from_numpy(by.weight), out=told)
    if len(by.bias):
        told += torch.from_numpy(by.bias)
    return out


def _normed(hidden: Floats, norm: ArrayNorm) -> Floats:
    out = np.empty_like(hidden)
    _shared(kernels.normed, hidden.size, hidden, *norm, out)
    return out


def _shared(kernel: Kernel, work: int, *arrays: Any) -> None:
    """Run a kernel on all positions, of which the first array has one each; in threads where the work is worth it.

    `work` is in multiplications.
    """
    count = len(arrays[0])
    parts = min(torch.get_num_threads(), count, 1 + work // WORTH_A_THREAD)
    if parts == 1:
        kernel(*arrays, 0, count)
        return
    # Later positions of a text read more: a thread takes every so many-th piece.
    pieces = min(count, 4 * parts)
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
