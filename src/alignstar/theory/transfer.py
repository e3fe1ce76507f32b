"""Transfer Q* with exact expectations (Chakraborty et al. 2024, Eq. 5-17 and App. F), on the tree of all responses.

Knows the tree's arithmetic only. All log-probabilities and log-normalisers are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignstar.sampling import Array
from alignstar.theory import tree
from alignstar.theory.tree import Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """pi_Alg: the decoded `policy`, the values `tq` it is made of, and log C(s) of every state, [n_t] per depth."""

    policy: Levels
    tq: Levels
    log_c: tuple[Array, ...]


def over(levels: Levels, divisor: float) -> Levels:
    """Every number divided."""
    return tuple(level / divisor for level in levels)


def plus(*terms: Levels) -> Levels:
    """The sum, depth by depth."""
    return tuple(np.sum(levels, axis=0) for levels in zip(*terms, strict=True))


def minus(a: Levels, b: Levels) -> Levels:
    """The difference, depth by depth."""
    return tuple(x - y for x, y in zip(a, b, strict=True))


def gibbs(sft: Levels, reward: Levels, beta: float) -> Levels:
    """The token policy of rho(y) proportional to rho_sft(y) exp(r(y) / beta) (Eq. 7), by one backward pass."""
    return tree.normalise(plus(sft, tree.log_mean_exp(sft, over(reward, beta))))


def decode(base: Levels, tq: Levels, alpha: float) -> Aligned:
    """pi_Alg(z|s) = base(z|s) exp(TQ(s,z) / alpha) / C(s): Eq. 12."""
    weights = plus(base, over(tq, alpha))
    return Aligned(policy=tree.normalise(weights), tq=tq, log_c=tuple(tree.log_sum_exp(w) for w in weights))


def direct(baseline: Levels, reward: Levels, alpha: float) -> Aligned:
    """Direct transfer: TQ by the baseline's own futures (Eq. 10), the baseline as base policy (Eq. 12)."""
    return decode(baseline, tree.mean(baseline, reward), alpha)


def log_m(baseline: Levels, reward: Levels, baseline_reward: Levels, beta: float) -> Levels:
    """The conditional normaliser: log M(s,z), M(s,z) = E[exp((r - r_BL) / beta)] over the baseline's futures."""
    return tree.log_mean_exp(baseline, over(minus(reward, baseline_reward), beta))


def weighted(baseline: Levels, reward: Levels, baseline_reward: Levels, beta: float) -> Levels:
    """E[exp((r - r_BL) / beta) r] over the baseline's futures: Eq. 16 before it is normalised."""
    delta = over(minus(reward, baseline_reward), beta)
    return tree.mean(baseline, tuple(np.exp(d) * r for d, r in zip(delta, reward, strict=True)))


def indirect(baseline: Levels, reward: Levels, baseline_reward: Levels, beta: float, alpha: float) -> Aligned:
    """Indirect transfer: TQ by the conditional ratio (Eq. 16), pi_r proportional to pi_BL M as base policy (Eq. 17)."""
    m = log_m(baseline, reward, baseline_reward, beta)
    total = weighted(baseline, reward, baseline_reward, beta)
    tq = tuple(w * np.exp(-logs) for w, logs in zip(total, m, strict=True))
    return decode(tree.normalise(plus(baseline, m)), tq, alpha)
