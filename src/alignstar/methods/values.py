"""Estimators of TQ*(s, z) from the rewards of rollouts (Transfer Q*, Eq. 10 and 16, App. F). Pure maths on arrays.

Knows nothing of models. Rewards in their own unit, log-weights in nats. A candidate with a reward of -inf (a NaN) among
its rollouts has the value -inf under every estimator.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignstar.errors import OptionError
from alignstar.sampling import Array, logsumexp


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """An estimate: `tq` of TQ*(s, z), `log_m` of log M(s, z) [nats] (0 for direct transfer), `ess` of n draws."""

    tq: float
    log_m: float = 0.0
    ess: float | None = None


UNUSABLE = Value(tq=-np.inf)


def direct(rewards: Array) -> Value:
    """Eq. 10: the mean reward of rollouts tau ~ rho_BL(.|s, z)."""
    return Value(tq=float(np.mean(rewards)))


def mean_bounds(first: Array, n: int, bounds: tuple[float, float], risk: float) -> tuple[float, float]:
    """Lowest and highest mean that n rewards may have, the `first` [m] of which are known; all lie within `bounds`.

    Where the first are a random choice of all, each side fails with a probability of at most `risk` (Serfling 1974,
    Corollary 1.1: Hoeffding's bound for draws without replacement). What the others are at least and at most holds
    always, and is the closer bound for few rewards.
    """
    m, mean, (low, high) = len(first), float(np.mean(first)), bounds
    error = (high - low) * float(np.sqrt((1 - (m - 1) / n) * np.log(1 / risk) / (2 * m)))
    least, most = ((m * mean + (n - m) * other) / n for other in bounds)
    return max(mean - error, least), min(mean + error, most)


def snis(rewards: Array, log_weights: Array) -> Value:
    """Eq. 16 with the conditional normaliser M(s, z): self-normalised importance sampling."""
    if not _usable(rewards, log_weights):
        return UNUSABLE
    total = logsumexp(log_weights)
    shares = np.exp(log_weights - total)  # [n], sum to 1
    return Value(
        tq=float(shares @ rewards),
        log_m=total - float(np.log(len(rewards))),
        ess=float(1.0 / np.sum(shares**2)),
    )


def unnormalised(rewards: Array, log_weights: Array) -> Value:
    """The published code's form: mean of exp(Delta / beta) r. Not a value: it leaves the rewards' range."""
    return global_normaliser(rewards, log_weights, log_z=0.0)


def global_normaliser(rewards: Array, log_weights: Array, *, log_z: float) -> Value:
    """Eq. 16 as printed: weights divided by one Z = exp(log_z) of the prompt."""
    if not _usable(rewards, log_weights):
        return UNUSABLE
    weighted = snis(rewards, log_weights)
    # A weight of e^600 wins whatever it meets; more would overflow.
    tq = float(np.mean(np.exp(np.minimum(log_weights - log_z, 600.0)) * rewards))
    return Value(tq=tq, log_m=weighted.log_m, ess=weighted.ess)


def shrunk(log_weights: Array, ess_floor: float) -> Array:
    """Flattened weights: gamma x log_weights with the largest gamma in [0, 1] for which ESS / n reaches `ess_floor`."""
    if not np.all(np.isfinite(log_weights)) or _relative_ess(log_weights) >= ess_floor:
        return log_weights
    low, high = 0.0, 1.0  # ESS falls as gamma grows
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _relative_ess(middle * log_weights) >= ess_floor else (low, middle)
    return low * log_weights


def clipped(log_weights: Array, bound: float | None) -> Array:
    """Log-weights within +-bound; None leaves them."""
    return log_weights if bound is None else np.clip(log_weights, -bound, bound)


def _usable(rewards: Array, log_weights: Array) -> bool:
    # A weight of 0 (-inf) is a fact about a rollout; NaN marks one whose reward could not be told.
    return bool(np.all(np.isfinite(rewards)) and np.all(log_weights < np.inf) and np.any(np.isfinite(log_weights)))


def _relative_ess(log_weights: Array) -> float:
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))) / len(log_weights)


def candidate_zscore(values: Array) -> Array:
    """Values of one step's candidates in standard deviations from their mean; all 0 where they are equal."""
    usable = np.isfinite(values)
    if not usable.any():
        return values
    spread = float(np.std(values[usable])) or 1.0
    return np.where(usable, (np.where(usable, values, 0.0) - np.mean(values[usable])) / spread, -np.inf)


_CALL = re.compile(r"(standardise|clip)\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")


def reward_norm(spec: str) -> Callable[[Array], Array]:
    """The map that `reward_norm` names, applied to every reward. "candidate_zscore" leaves single rewards alone.

    Raises OptionError for anything that is not none, sigmoid, candidate_zscore, standardise(mean,std), clip(low,high).
    """
    if spec in ("none", "candidate_zscore"):
        return lambda r: r
    if spec == "sigmoid":
        # exp of a non-positive number only: no overflow at either end
        return lambda r: np.where(r >= 0, 1.0, np.exp(np.minimum(r, 0.0))) / (1.0 + np.exp(-np.abs(r)))
    call = _CALL.fullmatch(spec)
    numbers = _numbers(call.group(2), call.group(3)) if call else None
    if call is not None and numbers is not None:
        first, second = numbers
        if call.group(1) == "standardise" and second > 0:
            return lambda r: (r - first) / second
        if call.group(1) == "clip" and first < second:
            return lambda r: np.clip(r, first, second)
    raise OptionError(
        f"reward_norm={spec!r} must be none, sigmoid, candidate_zscore, standardise(mean,std) with std > 0 or "
        "clip(low,high) with low < high; leave it out for none."
    )


def norm_range(spec: str, bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Bounds of every reward after `reward_norm(spec)`, from its bounds before (None: unknown); None without any."""
    low, high = (-np.inf, np.inf) if bounds is None else bounds
    image = reward_norm(spec)(np.array([low, high]))  # every norm of single rewards is non-decreasing
    return (float(image[0]), float(image[1])) if np.isfinite(image).all() else None


def _numbers(first: str, second: str) -> tuple[float, float] | None:
    try:
        numbers = float(first), float(second)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None
