"""The game of groups: a policy against the weighting of the groups that makes it look worst. Pure maths on arrays.

max over policies of min over w of sum_u w_u E[r_u] - beta KL(policy || base) is, the other way round, the minimum over
the simplex of the convex F(w) = beta log E_base[exp(sum_u w_u r_u / beta)] (Sion's theorem; Son et al. 2025,
arXiv:2503.08796, derive it for one step). Knows neither models nor rewards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignstar.sampling import Array, logsumexp

PRECISION = 1e-12
"""The duality gap at which the search stops, as a share of the rewards' range."""
MAX_STEPS = 200
CENTRING = 0.1
TO_THE_BOUNDARY = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """A weighting [U] and how good it is.

    `dual` is F(weights), `expected` [U] the groups' expected rewards under the policy that answers it.
    """

    weights: Array
    dual: float
    expected: Array

    @property
    def gap(self) -> float:
        """F(weights) less the value of the policy that answers them, in the rewards' unit; 0 at the solution."""
        return float(self.weights @ self.expected - np.min(self.expected))


def play(log_base: Array, rewards: Array, weights: Array, beta: float) -> Play:
    """Answer a weighting [U]: `rewards` [n, U] and `log_base` [n] (nats, normalised or not) of n outcomes."""
    answer, total = _answer(log_base, rewards, weights, beta)
    return Play(weights=weights, dual=beta * (total - logsumexp(log_base)), expected=answer @ rewards)


def worst_weights(log_base: Array, rewards: Array, beta: float) -> Play:
    """The weighting that minimises F; `rewards` [n, U] must be finite. Groups with equal rewards get equal weights.

    Newton's method on the optimality conditions with the products of weights and multipliers driven to 0 (primal-dual
    interior point, Boyd and Vandenberghe 2004, 11.7).
    """
    groups = rewards.shape[1]
    scale = float(np.ptp(rewards)) or 1.0
    scaled, beta_scaled = (rewards - np.min(rewards)) / scale, beta / scale
    w: Array = np.full(groups, 1.0 / groups)
    multipliers: Array = np.ones(groups)
    nu = 0.0
    if groups == 1:
        return play(log_base, rewards, w, beta)

    def residual(w: Array, multipliers: Array, nu: float, mu: float) -> Array:
        answer, _ = _answer(log_base, scaled, w, beta_scaled)
        return np.concatenate([answer @ scaled - multipliers + nu, multipliers * w - mu])

    for _ in range(MAX_STEPS):
        answer, _ = _answer(log_base, scaled, w, beta_scaled)
        gradient = answer @ scaled
        if gradient @ w - np.min(gradient) <= PRECISION:
            break
        mu = CENTRING * float(multipliers @ w) / groups
        curvature = (scaled - gradient).T @ ((scaled - gradient) * answer[:, None]) / beta_scaled
        system = np.ones((groups + 1, groups + 1))
        system[:groups, :groups] = curvature + np.diag(multipliers / w)
        system[groups, groups] = 0.0
        solved = np.asarray(np.linalg.solve(system, np.append(mu / w - gradient, 0.0)), dtype=np.float64)
        dw, dnu = solved[:groups], float(solved[groups]) - nu
        dm = mu / w - multipliers - multipliers / w * dw
        step = min(1.0, TO_THE_BOUNDARY * _room(w, dw), TO_THE_BOUNDARY * _room(multipliers, dm))
        before = float(np.linalg.norm(residual(w, multipliers, nu, mu)))
        while step > 1e-12:
            after = residual(w + step * dw, multipliers + step * dm, nu + step * dnu, mu)
            if float(np.linalg.norm(after)) <= (1.0 - 0.01 * step) * before:
                break
            step /= 2.0
        w, multipliers, nu = w + step * dw, multipliers + step * dm, nu + step * dnu
    return play(log_base, rewards, w / np.sum(w), beta)


def _answer(log_base: Array, rewards: Array, weights: Array, beta: float) -> tuple[Array, float]:
    """The policy [n] proportional to base exp(sum_u w_u r_u / beta), and the log of its normaliser [nats]."""
    log_weights = log_base + rewards @ weights / beta
    total = logsumexp(log_weights)
    return np.exp(log_weights - total), total


def _room(at: Array, direction: Array) -> float:
    """How far one may go before an entry is 0."""
    falling = direction < 0.0
    return float(np.min(-at[falling] / direction[falling], initial=np.inf))
