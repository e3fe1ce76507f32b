"""MaxMin-RLHF (Chakraborty et al. 2024, arXiv:2402.08925) with exact expectations, on the tree of all responses.

The policy of max over pi of min_u E_pi[r_u] - beta KL(rho_pi || rho_sft), by its dual: the groups' worst weighting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.rewards.game import worst_weights
from alignstar.sampling import Array
from alignstar.theory import transfer, tree
from alignstar.theory.tree import Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Fair:
    """The `policy` of a game, the `weights` [U] that it answers, and what certifies both.

    `value` is the objective that the policy reaches, `bound` one that no policy exceeds; they meet at the solution.
    """

    policy: Levels
    weights: Array
    value: float
    bound: float


def objective(policy: Levels, sft: Levels, rewards: Sequence[Levels], beta: float) -> float:
    """min_u E[r_u] - beta KL of a policy, by enumeration."""
    law = tree.law(policy)
    worst = min(float(np.exp(law) @ tree.flat(reward)) for reward in rewards)
    return worst - beta * tree.kl(law, tree.law(sft))


def weighted(rewards: Sequence[Levels], weights: Array) -> Levels:
    """sum_u w_u r_u of every complete response."""
    return tuple(np.tensordot(weights, np.stack(levels), axes=1) for levels in zip(*rewards, strict=True))


def game(sft: Levels, rewards: Sequence[Levels], beta: float) -> Fair:
    """The solution: rewards by their leaves, one tree per group."""
    solved = worst_weights(tree.law(sft), np.stack([tree.flat(r) for r in rewards], axis=1), beta)
    policy = transfer.gibbs(sft, weighted(rewards, solved.weights), beta)
    return Fair(
        policy=policy,
        weights=solved.weights,
        value=objective(policy, sft, rewards, beta),
        bound=solved.dual,
    )
