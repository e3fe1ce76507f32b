"""Pure array maths of decoding: log-softmax, top-k, stable arg-max, near ties, counter-based noise.

Knows numpy only. Nobody here holds state: noise is a function of coordinates (Salmon et al. 2011, Philox).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]


def log_softmax(logits: NDArray[np.floating]) -> Array:
    """Log-probabilities [..., V] in float64; -inf stays -inf."""
    x = np.asarray(logits, dtype=np.float64)
    shifted = x - np.max(x, axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def logsumexp(x: NDArray[np.floating]) -> float:
    """Log of the sum of exponentials of a vector; -inf for an empty or all -inf one."""
    top = float(np.max(x, initial=-np.inf))
    if not np.isfinite(top):
        return top
    return top + float(np.log(np.sum(np.exp(np.asarray(x, dtype=np.float64) - top))))


def top_ids(logps: NDArray[np.floating], k: int) -> IntArray:
    """Indices [min(k, V)] of the largest values, largest first, ties to the lower index."""
    return np.argsort(-np.asarray(logps), kind="stable")[:k].astype(np.int64)


def stable_argmax(scores: Sequence[float] | Array, logps: Sequence[float] | Array, ids: Sequence[int]) -> int:
    """Index of the largest score; ties go to the higher `logps`, then to the lower id. NaN is not allowed."""
    return min(range(len(ids)), key=lambda i: (-float(scores[i]), -float(logps[i]), ids[i]))


def near_tie(values: Sequence[float] | Array, tolerance: float) -> bool:
    """Whether the two largest values lie within `tolerance` of each other (exact ties count)."""
    if len(values) < 2:
        return False
    first, second = sorted((float(v) for v in values), reverse=True)[:2]
    return bool(np.isfinite(second)) and first - second <= tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn. `temperature` 0 is greedy; then `top_k` and `top_p` change nothing.

    Order as in transformers: temperature, then `top_k` (None: off), then `top_p` (1.0: off).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether no noise is used."""
        return self.temperature == 0.0


GREEDY = Sampling(temperature=0.0)


def tempered(logps: Array, sampling: Sampling) -> Array:
    """Log-weights [V] of the sampling law (not normalised; -inf where it cannot draw). Not for greedy sampling."""
    weights = logps / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(weights):
        kept = top_ids(weights, sampling.top_k)
        masked = np.full_like(weights, -np.inf)
        masked[kept] = weights[kept]
        weights = masked
    if sampling.top_p < 1.0:
        order = top_ids(weights, len(weights))
        p = np.exp(log_softmax(weights))[order]
        # A token stays while the mass before it is below top_p: the first one always does.
        kept = order[np.cumsum(p) - p < sampling.top_p]
        masked = np.full_like(weights, -np.inf)
        masked[kept] = weights[kept]
        weights = masked
    return weights


class _Key(np.random.SeedSequence):
    """A key for Philox in the place of a seed: given as `key`, numpy would first ask the system for a seed."""

    def __init__(self, key: NDArray[np.uint64]) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: object = np.uint64) -> NDArray[np.uint64]:
        """The key: the two words that Philox asks for."""
        return self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Coordinates of a stream of random numbers; equal coordinates give equal numbers, on any machine, in any order.

    `purpose` separates uses ("rollout", "select", "sample"); `step` is the method's step, `candidate` the candidate's
    token id (-1: none), `rollout` the index among several draws.
    """

    seed: int
    purpose: str
    step: int = 0
    candidate: int = -1
    rollout: int = 0

    def uniform(self, position: int, size: int) -> Array:
        """Numbers in (0, 1), [size]; a shorter draw is the beginning of a longer one."""
        coordinates = f"{self.seed}|{self.purpose}|{self.step}|{self.candidate}|{self.rollout}"
        digest = hashlib.blake2b(coordinates.encode(), digest_size=16).digest()
        philox = np.random.Philox(_Key(np.frombuffer(digest, dtype=np.uint64)), counter=[0, 0, position, 0])
        u = np.random.Generator(philox).random(size)
        return np.maximum(u, np.finfo(np.float64).tiny)

    def gumbel(self, position: int, size: int) -> Array:
        """Standard Gumbel numbers [size] for absolute `position` in the sequence."""
        return -np.log(-np.log(self.uniform(position, size)))


def drawn_scores(logps: Array, sampling: Sampling, noise: Noise, position: int) -> Array:
    """Scores [V] the largest of which stands at the token drawn for absolute `position`. Not for greedy sampling.

    Gumbel-max: the arg-max of log-weights plus Gumbel noise is a draw from their law.
    """
    return tempered(logps, sampling) + noise.gumbel(position, len(logps))
