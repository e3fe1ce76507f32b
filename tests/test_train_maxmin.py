"""Which group's reward a policy is trained on, and that this finds the max-min optimum; no model is trained here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignstar.errors import FailedError, OptionError
from alignstar.sampling import Array, log_softmax
from alignstar.theory import maxmin as exact
from alignstar.theory import transfer
from alignstar.train.maxmin import OBJECTIVES, Objective, Scale, Standing, combine, worst_group

BETA = 0.3
NAN = float("nan")


def once(rewards: Any, objective: Objective = "maxmin", **options: Any) -> tuple[Array, Standing]:
    return combine(np.array(rewards, dtype=float), **{"objective": objective, "standing": Standing(), **options})


# Which group


@pytest.mark.parametrize(
    ("means", "group"), [([2.0, 1.0, 3.0], 1), ([1.0, 1.0], 0), ([2.0, 1.0, 1.0], 1), ([-np.inf, 0.0], 0), ([5.0], 0)]
)
def test_the_group_with_the_smallest_expected_reward_is_chosen_and_the_first_of_equal_ones(
    means: list[float], group: int
) -> None:
    assert worst_group(np.array(means)) == group


def test_no_group_is_chosen_by_a_number_that_is_none() -> None:
    with pytest.raises(FailedError, match="hold NaN"):
        worst_group(np.array([1.0, NAN]))


REWARDS = [[1.0, 0.0], [0.0, 2.0], [4.0, 1.0]]  # means 5/3 and 1: the second group is worse off


@pytest.mark.parametrize(
    ("objective", "combined", "weights"),
    [
        ("maxmin", [0.0, 2.0, 1.0], (0.0, 1.0)),
        ("pointwise", [0.0, 0.0, 1.0], (1 / 3, 2 / 3)),
        ("pooled", [0.75, 0.5, 3.25], (0.75, 0.25)),
    ],
)
def test_what_a_step_is_taken_on(objective: Objective, combined: list[float], weights: tuple[float, ...]) -> None:
    rewards, standing = once(REWARDS, objective, prior=(3.0, 1.0))
    assert rewards.tolist() == combined
    assert standing == Standing(means=(5 / 3, 1.0), weights=pytest.approx(weights), steps=1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_group_is_plain_rlhf(objective: Objective) -> None:
    rewards, standing = once([[0.3], [-2.0], [0.1]], objective)
    assert rewards.tolist() == [0.3, -2.0, 0.1]
    assert standing.weights == (1.0,)


def test_the_expected_smallest_is_at_most_the_smallest_expected_and_that_at_most_the_pooled() -> None:
    for seed in range(50):
        rewards = np.random.default_rng(seed).normal(size=(8, 3))
        pointwise, worst, pooled = (float(np.mean(once(rewards, o)[0])) for o in ("pointwise", "maxmin", "pooled"))
        assert pointwise <= worst + 1e-12
        assert worst <= pooled + 1e-12
        assert worst == pytest.approx(np.min(np.mean(rewards, axis=0)))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_response_without_a_reward_of_every_group_is_left_out(objective: Objective) -> None:
    rewards, standing = once([*REWARDS, [NAN, -50.0], [-50.0, np.inf]], objective)
    kept, alone = once(REWARDS, objective)
    assert rewards[:3].tolist() == kept.tolist()
    assert np.isnan(rewards[3:]).all()
    assert standing == alone


def test_a_batch_without_any_usable_response_is_refused() -> None:
    with pytest.raises(FailedError, match="None of 2 responses has a finite reward of every group"):
        once([[NAN, 1.0], [1.0, NAN]])
    with pytest.raises(FailedError, match="No response has a finite reward"):
        Scale.of(np.array([[NAN, 1.0]]))


def test_means_run_over_batches_with_momentum_alone() -> None:
    _, first = once([[0.0, 1.0]], momentum=0.75)
    assert first.means == (0.0, 1.0)
    kept, second = once([[4.0, 1.0]], standing=first, momentum=0.75)
    assert (second.means, kept.tolist()) == ((1.0, 1.0), [4.0])  # a tie: the first group
    _, forgetful = once([[4.0, 1.0]], standing=first)
    assert forgetful.means == (4.0, 1.0)
    assert (second.weights, forgetful.weights) == ((1.0, 0.0), (0.5, 0.5))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, NAN])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(OptionError, match="must lie in"):
        once(REWARDS, momentum=momentum)


@pytest.mark.parametrize("prior", [(1.0,), (1.0, 0.0), (1.0, NAN)])
def test_a_pool_needs_a_weight_for_every_group(prior: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="one finite number above 0 for each of 2 groups"):
        once(REWARDS, "pooled", prior=prior)


def test_a_group_s_unit_and_zero_do_not_matter_once_it_is_standardised() -> None:
    rewards = np.random.default_rng(0).normal(size=(40, 2))
    other = rewards * [3.0, 0.1] + [-7.0, 100.0]
    assert Scale.of(other)(other) == pytest.approx(Scale.of(rewards)(rewards))
    assert Scale.of(np.array([[2.0], [2.0]]))(np.array([[2.0], [3.0]])).tolist() == [[0.0], [1.0]]


# The loop finds the optimum, with expectations that are exact


def game(seed: int, groups: int, responses: int = 6) -> tuple[Array, Array, exact.Fair]:
    """log rho [n], rewards [n, U], and the solution of max min E r_u - beta KL."""
    rng = np.random.default_rng(seed)
    sft, rewards = log_softmax(rng.normal(size=(1, responses))), rng.uniform(size=(responses, groups))
    return sft[0], rewards, exact.game((sft,), [(rewards[None, :, u],) for u in range(groups)], BETA)


def reached(log_policy: Array, sft: Array, rewards: Array) -> float:
    trees = [(rewards[None, :, u],) for u in range(rewards.shape[1])]
    return exact.objective((log_policy[None],), (sft[None],), trees, BETA)


@pytest.mark.parametrize("seed", range(4))
def test_steps_on_the_worst_group_reach_the_max_min_optimum_and_their_shares_its_weights(seed: int) -> None:
    """Natural-gradient steps of size 1 / (beta (t + 1)): the policy answers the average weighting so far."""
    sft, rewards, solved = game(seed, groups=2 + seed % 3)
    logits, shares = sft.copy(), np.zeros(rewards.shape[1])
    steps = 20_000
    for t in range(steps):
        policy = np.exp(log_softmax(logits))
        worst = worst_group(policy @ rewards)
        shares[worst] += 1 / steps
        gradient = rewards[:, worst] - BETA * (logits - sft)  # of E[r] - beta KL, up to a constant
        logits = logits + gradient / (BETA * (t + 1))
    value = reached(log_softmax(logits), sft, rewards)
    assert solved.value == pytest.approx(solved.bound, abs=1e-6)
    assert value == pytest.approx(solved.value, abs=1e-3)
    expected = np.exp(solved.policy[0][0]) @ rewards
    assert shares @ expected == pytest.approx(np.min(expected), abs=1e-3)  # only the worst off have a share


@pytest.mark.parametrize("seed", range(2))
def test_plain_policy_gradient_gets_there_too(seed: int) -> None:
    """What the trainer estimates: pi (A - E A), A = r_worst - beta log(pi / rho)."""
    sft, rewards, solved = game(seed, groups=2)
    logits = sft.copy()
    best = -np.inf
    for t in range(20_000):
        policy = np.exp(log_softmax(logits))
        advantage = rewards[:, worst_group(policy @ rewards)] - BETA * (log_softmax(logits) - sft)
        logits = logits + 2.0 / np.sqrt(t + 1) * policy * (advantage - policy @ advantage)
        best = max(best, reached(log_softmax(logits), sft, rewards))
    assert best == pytest.approx(solved.value, abs=2e-3)
    assert best <= solved.bound + 1e-9


def test_the_pointwise_and_the_pooled_optimum_are_never_fairer() -> None:
    gains = []
    for seed in range(20):
        sft, rewards, solved = game(seed, groups=3)
        for objective in ("pointwise", "pooled"):
            combined, _ = once(rewards, objective)
            policy = transfer.gibbs((sft[None],), (combined[None],), BETA)
            assert reached(policy[0][0], sft, rewards) <= solved.bound + 1e-9
            gains.append(solved.value - reached(policy[0][0], sft, rewards))
    assert max(gains) > 0.01


def test_the_choice_from_samples_is_the_exact_one_where_every_response_is_drawn_as_often_as_is_likely() -> None:
    counts = np.array([1, 4, 2, 3, 6])
    for seed in range(20):
        rewards = np.random.default_rng(seed).uniform(size=(5, 3))
        drawn = np.repeat(rewards, counts, axis=0)
        combined, standing = once(drawn)
        exactly = counts / 16 @ rewards
        assert standing.means == pytest.approx(exactly)
        assert combined.tolist() == drawn[:, worst_group(exactly)].tolist()
