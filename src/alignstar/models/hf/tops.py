"""What is kept of a state's next-token logits: the best tokens with exact log-probabilities, a few dozen numbers.

Knows logits tensors, no requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from alignstar.errors import EngineError
from alignstar.models import Top, Within
from alignstar.sampling import Array, IntArray

KEEP = 16
"""Best tokens remembered for every position computed; more when a request asks for more."""


@dataclass(slots=True)
class States:
    """Next-token distributions of several states, [B, V] logits on the device and their best tokens on the CPU."""

    logits: torch.Tensor
    log_z: Array  # [B] log-normaliser, float64
    best: list[Top]

    def full(self, row: int) -> Array:
        """All log-probabilities [V] of one state, float64."""
        return self.logits[row].to(torch.float64).cpu().numpy() - self.log_z[row]


def read_states(logits: torch.Tensor, keep: int, *, native: bool = False) -> States:
    """Normalise [B, V] logits in float64 and keep the `keep` best tokens of each row; ties go to the lower id.

    Ordering is by raw logit, so it is exactly the order that an arg-max or a top-k over the logits would see. `native`:
    by a kernel of our own, which takes float32 on a CPU.
    """
    if native:
        from alignstar.models.hf.native import best

        ranked, order, log_z = best(logits, min(keep, logits.shape[-1]))
    else:
        ranked, order, log_z = _ranked(logits, keep)
    logps = ranked - log_z[:, None]
    told = [Top(ids=order[row], logps=logps[row]) for row in range(len(order))]
    return States(logits=logits, log_z=log_z, best=told)


def _ranked(logits: torch.Tensor, keep: int) -> tuple[Array, IntArray, Array]:
    """The best logits of each row, their ids, and the log-normalisers."""
    values, ids = torch.topk(logits, min(keep, logits.shape[-1]), dim=-1)
    # float64 is emulated or missing on some devices; float32 there changes the eighth digit of a log-probability.
    wide = logits.to(torch.float64) if logits.device.type != "mps" else logits.to(torch.float32)
    log_z = torch.logsumexp(wide, dim=-1).cpu().numpy().astype(np.float64)
    wide_values = values.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    ranked, order = wide_values.cpu().numpy().astype(np.float64), ids.cpu().numpy().astype(np.int64)
    for row in np.flatnonzero((ranked[:, 1:] == ranked[:, :-1]).any(axis=1)):
        by_id = np.lexsort((order[row], -ranked[row]))
        ranked[row], order[row] = ranked[row][by_id], order[row][by_id]
    return ranked, order, log_z


def narrow(top: Top, within: Within, *, tolerance: float, vocab_size: int) -> Top | None:
    """The first k tokens, or those within a distance [nats] of the best; None if `top` holds too little to say."""
    logps = top.logps
    if isinstance(within, int):
        count = min(within, vocab_size)
    else:
        count = int(np.searchsorted(-logps, -(logps[0] - within), side="right"))
    if count >= len(logps) and len(logps) < vocab_size:
        return None
    if count and logps[count - 1] == -np.inf:
        count = int(np.count_nonzero(logps > -np.inf))  # what cannot follow is last
    near = 0 < count < len(logps) and bool(logps[count - 1] - logps[count] <= tolerance)
    return Top(ids=top.ids[:count], logps=logps[:count], near_tie=near)


def whole(logps: Array) -> Top:
    """Every token of a state with its log-probability, best first."""
    order = np.argsort(-logps, kind="stable").astype(np.int64)
    return Top(ids=order, logps=logps[order])


@dataclass(slots=True)
class Vocabulary:
    """What requests need to know of the model."""

    size: int
    eos_ids: frozenset[int]
    tolerance: float
    keep: int = KEEP


class Reader:
    """Turns a forward's logits [B, want, V], and what a value head put behind them, into States of B*want rows.

    `native`: of a network that runs on kernels of our own, by another of them.
    """

    def __init__(self, vocabulary: Vocabulary, *, native: bool = False) -> None:
        self.vocabulary = vocabulary
        self.native = native

    def __call__(self, logits: torch.Tensor) -> Read:
        """Normalised distributions, row-major."""
        want, size = logits.shape[1], self.vocabulary.size
        rows = logits.reshape(-1, logits.shape[-1])
        states = read_states(rows[:, :size], self.vocabulary.keep, native=self.native)
        if rows.shape[1] > size:
            features = rows[:, size:].to(torch.float32).cpu().numpy().astype(np.float64)
            states.best = [replace(top, features=told) for top, told in zip(states.best, features, strict=True)]
        return Read(states, want)


@dataclass(slots=True)
class Read:
    """States of a batch whose rows have `want` positions each."""

    states: States
    want: int

    def at(self, row: int, back: int = 1) -> int:
        """Index of a row's position counted from its end (1: the last)."""
        index = row * self.want + self.want - back
        if np.isnan(self.states.log_z[index]):
            raise EngineError("The model's logits are NaN; try --dtype float32.")
        return index
