"""The game of groups: a policy against the weighting of the groups that makes it look worst. Pure maths on arrays.

max over policies of min over w of sum_u w_u E[r_u] - beta KL(policy || base) is, the other way round, the minimum over
the simplex of the convex F(w) = beta log E_base[exp(sum_u w_u r_u / beta)] (Sion's theorem; Son et al. 2025,
arXiv:2503.08796, derive it for one step). Played over several prompts at once, E is over them too and the groups have
one weighting for all: the objective of MaxMin-RLHF (Chakraborty et al. 2024, arXiv:2402.08925), under which a group may
lose on one prompt what it gains on another. Knows neither models nor rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.errors import OptionError
from alignstar.sampling import Array

PRECISION = 1e-12
"""The duality gap at which the search stops, as a share of the rewards' range."""
MAX_STEPS = 200
CENTRING = 0.1
TO_THE_BOUNDARY = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """A weighting [U] and how good it is.

    `dual` is F(weights), `expected` [U] the groups' expected rewards under the policy that answers it; of several
    prompts both are means.
    """

    weights: Array
    dual: float
    expected: Array

    @property
    def gap(self) -> float:
        """F(weights) less the value of the policy that answers them, in the rewards' unit; 0 at the solution."""
        return float(self.weights @ self.expected - np.min(self.expected))


def play(log_base: Array, rewards: Array, weights: Array, beta: float) -> Play:
    """Answer a weighting [U]: `rewards` [n, U] and `log_base` [n] (nats, normalised or not) of n outcomes.

    Of several prompts they are [prompts, n, U] and [prompts, n]; a `log_base` of -inf is no outcome.
    """
    log_base, rewards = _by_prompt(log_base, rewards)
    answer, total = _answer(log_base, rewards, weights, beta)
    _, before = _answer(log_base, rewards, np.zeros_like(weights), beta)
    return Play(weights=weights, dual=beta * float(np.mean(total - before)), expected=_expected(answer, rewards))


def weights_over_prompts(drawn: Sequence[Array], beta: float) -> Array:
    """One weighting [U] for all prompts, from the groups' rewards [draws, U] of responses drawn for each of them.

    A draw that a group cannot judge (no finite reward) is left out, and so is a prompt without any other. Raises
    OptionError where nothing is left.
    """
    usable = [rows[np.all(np.isfinite(rows), axis=1)] for rows in drawn]
    kept = [rows for rows in usable if len(rows)]
    if not kept:
        raise OptionError(f"None of {len(drawn)} prompts has a response that every group can judge; draw more.")
    log_base = np.full((len(kept), max(map(len, kept))), -np.inf)
    rewards = np.zeros((*log_base.shape, kept[0].shape[1]))
    for place, rows in enumerate(kept):
        log_base[place, : len(rows)] = 0.0
        rewards[place, : len(rows)] = rows
    return worst_weights(log_base, rewards, beta).weights


def worst_weights(log_base: Array, rewards: Array, beta: float) -> Play:
    """The weighting that minimises F; shapes as for `play`. Groups with equal rewards get equal weights.

    All rewards must be finite, and every prompt must have an outcome.
    Newton's method on the optimality conditions with the products of weights and multipliers driven to 0 (primal-dual
    interior point, Boyd and Vandenberghe 2004, 11.7).
    """
    log_base, rewards = _by_prompt(log_base, rewards)
    groups = rewards.shape[2]
    scale = float(np.ptp(rewards)) or 1.0
    scaled, beta_scaled = (rewards - np.min(rewards)) / scale, beta / scale
    w: Array = np.full(groups, 1.0 / groups)
    multipliers: Array = np.ones(groups)
    nu = 0.0
    if groups == 1:
        return play(log_base, rewards, w, beta)

    def residual(w: Array, multipliers: Array, nu: float, mu: float) -> Array:
        answer, _ = _answer(log_base, scaled, w, beta_scaled)
        return np.concatenate([_expected(answer, scaled) - multipliers + nu, multipliers * w - mu])

    for _ in range(MAX_STEPS):
        answer, _ = _answer(log_base, scaled, w, beta_scaled)
        gradient = _expected(answer, scaled)
        if gradient @ w - np.min(gradient) <= PRECISION:
            break
        mu = CENTRING * float(multipliers @ w) / groups
        apart = scaled - np.einsum("pn,pnu->pu", answer, scaled)[:, None, :]
        curvature = np.einsum("pn,pnu,pnv->uv", answer, apart, apart) / len(apart) / beta_scaled
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


def _by_prompt(log_base: Array, rewards: Array) -> tuple[Array, Array]:
    """With an axis for the prompts, also where there is one."""
    return log_base.reshape(-1, log_base.shape[-1]), rewards.reshape(-1, *rewards.shape[-2:])


def _answer(log_base: Array, rewards: Array, weights: Array, beta: float) -> tuple[Array, Array]:
    """By prompt, the policy [p, n] proportional to base exp(sum_u w_u r_u / beta); the log of its normaliser [p]."""
    log_weights = log_base + rewards @ weights / beta
    top = np.max(log_weights, axis=1, keepdims=True)
    shares = np.exp(log_weights - top)
    total = np.sum(shares, axis=1, keepdims=True)
    return shares / total, (top + np.log(total))[:, 0]


def _expected(answer: Array, rewards: Array) -> Array:
    """The groups' expected rewards [U], mean over prompts."""
    return np.einsum("pn,pnu->u", answer, rewards) / len(rewards)


def _room(at: Array, direction: Array) -> float:
    """How far one may go before an entry is 0."""
    falling = direction < 0.0
    return float(np.min(-at[falling] / direction[falling], initial=np.inf))
