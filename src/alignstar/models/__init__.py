"""What a language model can be asked: the two Protocols, least demand first, and the values they answer with.

A method asks one thing at a time and starts concurrent questions with `alignstar.meter.together`; batching, prefix
reuse and devices are the backend's business. Every log-probability is in nats, of the unmodified model. Ties are broken
by the lower token id.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from alignstar.sampling import GREEDY, Array, IntArray, Noise, Sampling
from alignstar.types import Ids

Within: TypeAlias = int | float
"""How many best tokens to tell per position: an int is a count, a float a distance in nats from the best one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """The best next tokens of one state: `ids` [k] and `logps` [k], best first.

    `near_tie`: the k-th and the next one lie within the backend's tolerance (the set itself is in doubt). `mass` is the
    probability that the k tokens cover; below 1 for every truncated answer. `features` are a backend's own: what a
    value head on the same forward made of the state.
    """

    ids: IntArray
    logps: Array
    near_tie: bool = False
    features: Array | None = None

    @property
    def mass(self) -> float:
        """Probability covered, in [0, 1]."""
        return float(np.exp(self.logps).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One drawn or greedy continuation of a prefix.

    `logps` [len(ids)] are the emitted tokens' log-probabilities; `ended` says that the last id is an end-of-sequence
    token. `near_ties` counts the tokens that were nearly tied, and what streams tells at which places of `ids`, in
    `near`. `tops` (where asked for) has one entry per state visited: before ids[0], before ids[1], ...
    """

    ids: Ids
    logps: Array
    ended: bool
    near_ties: int = 0
    near: tuple[int, ...] = ()
    tops: tuple[Top, ...] = ()


class Sampler(Protocol):
    """Draws continuations: enough for best-of-n, rejection and search by segments."""

    @property
    def name(self) -> str:
        """What to call it in messages: a path, an id."""
        ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Every token that ends a response."""
        ...

    @property
    def max_context(self) -> int | None:
        """Most positions (prompt and response) that the model can read; None where there is no limit."""
        ...

    @property
    def tie_tolerance(self) -> float:
        """Two log-probabilities closer than this may change places with the shape of a batch [nats]."""
        ...

    @property
    def default_sampling(self) -> Sampling:
        """How the checkpoint asks to be decoded: GREEDY unless its generation config samples."""
        ...

    async def continue_(
        self,
        prefix: Ids,
        *,
        max_new_tokens: int,
        n: int = 1,
        sampling: Sampling = GREEDY,
        noise: Noise | None = None,
        stop_at_eos: bool = True,
        top: Within | None = None,
    ) -> list[Continuation]:
        """`n` continuations of `prefix`, each of at most `max_new_tokens` tokens; one that meets EOS ends with it.

        Row i uses `noise` with its `rollout` raised by i; a drawn token is the arg-max of tempered log-probability plus
        Gumbel noise at its absolute position, so results do not depend on company. Greedy sampling needs no noise.
        With `stop_at_eos` false EOS is a token like any other. Raises EngineError if a forward fails.
        """
        ...


@runtime_checkable
class TokenModel(Sampler, Protocol):
    """A Sampler that also tells next-token log-probabilities: what token-level methods need."""

    @property
    def vocab_size(self) -> int:
        """Length of the next-token distribution."""
        ...

    async def top_next(self, prefix: Ids, k: int | None = None) -> Top:
        """The k most probable next tokens (None: all of them); tokens of probability 0 are left out."""
        ...

    async def next_logprobs(self, prefix: Ids, ids: IntArray) -> Array:
        """Log-probabilities [len(ids)] of these next tokens; -inf for a token the model does not have."""
        ...

    async def logprobs(self, prefix: Ids, continuation: Ids) -> Array:
        """Log-probabilities [len(continuation)] of given tokens after `prefix` (teacher forcing)."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A Sampler that tells a continuation while it is made; its `continue_` tells where near ties are."""

    def stream(
        self, prefix: Ids, *, max_new_tokens: int, sampling: Sampling = GREEDY, noise: Noise | None = None
    ) -> AsyncGenerator[Continuation, None]:
        """The tokens of one continuation, each as a Continuation of its own, as `continue_` would give them one by one.

        Only tokens that were taken are charged; closing the generator ends the continuation.
        """
        ...


@runtime_checkable
class Pooled(Protocol):
    """A backend that may hold keys and values for reuse, in a pool of fixed size."""

    @property
    def kv_positions(self) -> int | None:
        """Positions that the pool holds at most; None where nothing is held."""
        ...
