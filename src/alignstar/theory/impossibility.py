"""One reward for groups that disagree: what it is, how far it is from each group's own, and what that costs.

MaxMin-RLHF, Chakraborty et al. 2024, arXiv:2402.08925, section 3, with exact statements in the place of its constants.
With unlimited votes, two groups of shares eta_1, eta_2 and preference laws p_1, p_2:

    |p - p_u| = (1 - eta_u) |p_1 - p_2| for the pooled law p of a pair, whose margin logit p therefore is at least
    4 (1 - eta_u) |p_1 - p_2| from the group's; and J_u(pi_u) - J_u(pi) = beta KL(pi || pi_u) >= 2 beta TV(pi, pi_u)^2
    for any policy pi, J_u = E[r_u] - beta KL(. || reference), pi_u the policy that maximises it.

Knows responses as numbers; prints nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.sampling import Array, log_softmax
from alignstar.theory import checks, tree
from alignstar.theory.checks import Tally

MAX_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Divided:
    """n responses, log-probabilities [n] of the `reference`, two groups' `rewards` [2, n] and `shares` [2]; `beta`."""

    reference: Array
    rewards: Array
    shares: Array
    beta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the statements are read; the defaults are right, any other value is an error that a check must catch."""

    own_share: bool = False
    slope: float = 4.0
    reverse: bool = False
    pinsker: float = 2.0


RIGHT = Reading()
MUTANTS: Mapping[str, Reading] = {
    "eta for 1 - eta": Reading(own_share=True),
    "8 for 4": Reading(slope=8.0),
    "KL the other way round": Reading(reverse=True),
    "8 TV squared": Reading(pinsker=8.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What pooling costs a group.

    `mismatch` is how far the pooled margin is from the group's, in the pair where the groups differ the most, and
    `least` what it must be; `gap` is what the policy of the pooled reward falls short of, `loss` the same as a
    divergence, beta KL, and `bound` what it must be [all in nats].
    """

    mismatch: float
    least: float
    gap: float
    loss: float
    bound: float


def laws(rewards: Array) -> Array:
    """P(i is preferred to j) under every group [U, n, n], for rewards [U, n]."""
    margins = rewards[:, :, None] - rewards[:, None, :]
    return np.exp(-np.logaddexp(0.0, -margins))


def pooled(rewards: Array, shares: Array) -> Array:
    """The one Bradley-Terry reward [n] of unlimited votes in which every pair comes equally often; its mean is 0."""
    p = np.tensordot(shares, laws(rewards), axes=1)
    n = len(p)
    r: Array = np.zeros(n)
    for _ in range(MAX_STEPS):
        told = laws(r[None])[0]
        surprise = np.sum(p - told, axis=1)
        if np.max(np.abs(surprise)) < 1e-13 * n:
            break
        ties = told * (1.0 - told)
        curvature = np.diag(np.sum(ties, axis=1)) - ties + 1.0 / n  # the last term keeps the mean at 0
        step = np.linalg.solve(curvature, surprise)
        r = r + step / max(1.0, float(np.max(np.abs(step))))
    return r


def best(world: Divided, reward: Array) -> Array:
    """Log-probabilities [n] of the policy that maximises E[reward] - beta KL to the reference."""
    return log_softmax(world.reference + reward / world.beta)


def objective(world: Divided, group: int, policy: Array) -> float:
    """J of a policy's log-probabilities [n] under a group's reward."""
    expected = float(np.exp(policy) @ world.rewards[group])
    return expected - world.beta * tree.kl(policy, world.reference)


def price(world: Divided, group: int, reading: Reading = RIGHT) -> Price:
    """What pooling costs a group, with the bounds as `reading` has them."""
    p, margins = laws(world.rewards), world.rewards[group][:, None] - world.rewards[group][None, :]
    apart = np.abs(p[0] - p[1])  # [n, n]
    i, j = np.unravel_index(int(np.argmax(apart)), apart.shape)
    together = float(world.shares @ p[:, i, j])
    share = float(world.shares[group])
    policy, own = best(world, pooled(world.rewards, world.shares)), best(world, world.rewards[group])
    variation = 0.5 * float(np.sum(np.abs(np.exp(policy) - np.exp(own))))
    divergence = tree.kl(own, policy) if reading.reverse else tree.kl(policy, own)
    return Price(
        mismatch=abs(float(np.log(together) - np.log1p(-together)) - float(margins[i, j])),
        least=reading.slope * (share if reading.own_share else 1.0 - share) * float(apart[i, j]),
        gap=objective(world, group, own) - objective(world, group, policy),
        loss=world.beta * divergence,
        bound=reading.pinsker * world.beta * variation**2,
    )


def check(world: Divided, reading: Reading = RIGHT) -> dict[str, float]:
    """Slack of every statement, the worse of the two groups; negative beyond checks.TOLERANCE is a violation."""
    p = laws(world.rewards)
    apart, together = np.abs(p[0] - p[1]), np.tensordot(world.shares, p, axes=1)  # [n, n]
    margins = world.rewards[:, :, None] - world.rewards[:, None, :]
    others = (world.shares if reading.own_share else 1.0 - world.shares)[:, None, None] * apart  # [2, n, n]
    mismatch = np.abs(np.log(together) - np.log1p(-together) - margins)
    prices = [price(world, group, reading) for group in range(2)]
    return {
        "pooled preference": -float(np.max(np.abs(np.abs(together - p) - others))),
        "reward mismatch": float(np.min(mismatch - reading.slope * others)),
        "alignment gap is beta KL": -max(abs(x.gap - x.loss) for x in prices),
        "alignment gap is large": min(x.gap - x.bound for x in prices),
    }


def draw(seed: int, index: int) -> Divided:
    """The world `index` of `checks.draw` with its two rewards as those of groups, from weak tastes to strong ones."""
    world = checks.draw(seed, index)
    rng = np.random.default_rng((seed, index, 1))
    strength, minority = float(np.exp(rng.uniform(-1.0, 2.0))), float(rng.uniform(0.005, 0.5))
    return Divided(
        reference=tree.law(world.sft),
        rewards=strength * np.stack([tree.flat(world.reward), tree.flat(world.baseline_reward)]),
        shares=np.array([1.0 - minority, minority]),
        beta=world.beta * strength,
    )


def tally(worlds: Sequence[Divided], reading: Reading = RIGHT) -> tuple[Tally, ...]:
    """Every statement checked in every world."""
    return checks.tallied([check(world, reading) for world in worlds])


SHARES = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Of the minority, in the table and the picture."""


def example(minority: float) -> Divided:
    """Three equally likely replies, thorough, brief and rude: most people like the first best, the minority the second.

    Nobody likes the last one. Rewards in nats, beta 1.
    """
    return Divided(
        reference=np.log(np.full(3, 1.0 / 3.0)),
        rewards=np.array([[2.0, 0.0, -2.0], [0.0, 2.0, -2.0]]),
        shares=np.array([1.0 - minority, minority]),
        beta=1.0,
    )
