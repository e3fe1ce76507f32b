"""Arithmetic on the tree of all responses over a small vocabulary, one array per depth. Knows no reward and no method.

Responses end with EOS (the last token of the vocabulary) or at the horizon. Depth t has (V-1)^t states, the responses
of t letters in lexicographic order; a complete response is a state and a last token.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from alignstar.sampling import Array, log_softmax
from alignstar.types import Ids

Levels: TypeAlias = tuple[Array, ...]
"""A number per state and next token: one array [n_t, V] per depth t. Policies are log-probabilities (nats)."""


def tabulate(row: Callable[[Ids], Sequence[float] | Array], *, vocab_size: int, horizon: int) -> Levels:
    """Levels whose row for the state that is reached by response tokens `ids` is `row(ids)`, [V]."""
    return tuple(
        np.array([row(ids) for ids in itertools.product(range(vocab_size - 1), repeat=depth)], dtype=np.float64)
        for depth in range(horizon)
    )


def leaves(value: Callable[[Ids], float], *, vocab_size: int, horizon: int) -> Levels:
    """Levels that hold `value(response)` at every complete response, and 0 where a response goes on."""

    def row(ids: Ids) -> list[float]:
        last = len(ids) == horizon - 1
        return [value((*ids, z)) if last or z == vocab_size - 1 else 0.0 for z in range(vocab_size)]

    return tabulate(row, vocab_size=vocab_size, horizon=horizon)


def row(levels: Levels, ids: Ids) -> Array:
    """The numbers [V] of the state that is reached by response tokens `ids` (letters only)."""
    at = 0
    for z in ids:
        at = at * (levels[0].shape[1] - 1) + z
    return levels[len(ids)][at]


def backward(leaf: Levels, value: Callable[[int, Array], Array]) -> Levels:
    """One backward pass: a complete response has its number in `leaf`, another child its state's value.

    `value(depth, children)` turns the numbers [n, V] below the states of a depth into the states' values [n].
    """
    children = [leaf[-1]]
    for depth in range(len(leaf) - 2, -1, -1):
        below = value(depth + 1, children[0]).reshape(leaf[depth].shape[0], -1)
        children.insert(0, np.concatenate([below, leaf[depth][:, -1:]], axis=1))
    return tuple(children)


def mean(policy: Levels, leaf: Levels) -> Levels:
    """Expected leaf value after every state and token when `policy` goes on: Q of Eq. 2."""
    return backward(leaf, lambda depth, children: np.sum(np.exp(policy[depth]) * children, axis=1))


def best(leaf: Levels) -> Levels:
    """Greatest leaf value below every state and token: Q* of Eq. 3."""
    return backward(leaf, lambda _, children: np.max(children, axis=1))


def log_sum_exp(levels: Array) -> Array:
    """The log of the sum of exponentials of every row of [n, V]; rows must have a finite entry."""
    top = np.max(levels, axis=1)
    return top + np.log(np.sum(np.exp(levels - top[:, None]), axis=1))


def log_mean_exp(policy: Levels, leaf: Levels) -> Levels:
    """The log of E[exp(leaf value)] after every state and token when `policy` goes on."""
    return backward(leaf, lambda depth, children: log_sum_exp(policy[depth] + children))


def normalise(weights: Levels) -> Levels:
    """The policy whose odds in every state are exp(weights)."""
    return tuple(log_softmax(w) for w in weights)


def reach(policy: Levels) -> tuple[Array, ...]:
    """Log-probability [n_t] of passing through every state of every depth."""
    reached = [np.zeros(1)]
    for depth in range(len(policy) - 1):
        reached.append((reached[-1][:, None] + policy[depth][:, :-1]).ravel())
    return tuple(reached)


def flat(levels: Levels) -> Array:
    """The numbers of the complete responses: those that end with EOS at depth 0, 1, ..., then all of the last depth."""
    return np.concatenate([*(level[:, -1] for level in levels[:-1]), levels[-1].ravel()])


def law(policy: Levels) -> Array:
    """Log-probability of every complete response, in the order of `flat`: rho of a token policy."""
    return flat(tuple(r[:, None] + p for r, p in zip(reach(policy), policy, strict=True)))


def kl(p: Array, q: Array) -> float:
    """KL divergence [nats] of two vectors of log-probabilities; inf where q excludes what p allows."""
    possible = np.isfinite(p)
    return float(np.sum(np.exp(p[possible]) * (p[possible] - q[possible])))


def along(policy: Levels, numbers: Sequence[Array]) -> float:
    """Sum over t of the expectation of `numbers[t]` [n_t] at the state that `policy` visits at step t."""
    return float(sum(np.sum(np.exp(r) * x) for r, x in zip(reach(policy), numbers, strict=True)))


def divergences(p: Levels, q: Levels) -> tuple[Array, ...]:
    """KL(p || q) [nats] of the next-token laws in every state; p may exclude tokens."""
    return tuple(np.sum(np.exp(a) * np.where(np.isfinite(a), a - b, 0.0), axis=1) for a, b in zip(p, q, strict=True))
