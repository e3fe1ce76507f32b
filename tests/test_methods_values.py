"""The estimators of TQ* as pure maths, and the shared choice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignstar.errors import OptionError
from alignstar.methods import values
from alignstar.methods.selection import choose, weighted
from alignstar.sampling import Noise
from worlds import softmax

numbers = st.floats(-5, 5)


def pairs(n):
    return st.tuples(st.lists(numbers, min_size=n, max_size=n), st.lists(numbers, min_size=n, max_size=n))


many = st.integers(1, 8).flatmap(pairs)


@given(many)
def test_snis_stays_within_the_rewards(pair):
    rewards, weights = map(np.array, pair)
    tq = values.snis(rewards, weights).tq
    assert rewards.min() - 1e-12 <= tq <= rewards.max() + 1e-12


@given(many, numbers)
def test_snis_shifts_with_the_reward_and_ignores_a_constant_weight(pair, c):
    rewards, weights = map(np.array, pair)
    plain, moved = values.snis(rewards, weights), values.snis(rewards + c, weights + c)
    assert moved.tq == pytest.approx(plain.tq + c, abs=1e-9)
    assert moved.log_m == pytest.approx(plain.log_m + c, abs=1e-9)
    assert moved.ess == pytest.approx(plain.ess)


@given(many)
def test_equal_weights_make_every_estimator_the_mean(pair):
    rewards, zero = np.array(pair[0]), np.zeros(len(pair[0]))
    mean = values.direct(rewards).tq
    for estimate in (values.snis(rewards, zero), values.unnormalised(rewards, zero)):
        assert estimate.tq == pytest.approx(mean, abs=1e-12)
        assert estimate.log_m == pytest.approx(0.0, abs=1e-12)
        assert estimate.ess == pytest.approx(len(rewards))


def test_one_rollout_erases_the_weight():
    value = values.snis(np.array([0.7]), np.array([3.0]))
    assert (value.tq, value.log_m, value.ess) == pytest.approx((0.7, 3.0, 1.0))


def test_worked_numbers():
    rewards, weights = np.array([0.2, 1.0, 0.4]), np.log([1.0, 2.0, 5.0])
    assert values.snis(rewards, weights).tq == pytest.approx((0.2 + 2.0 + 2.0) / 8)
    assert values.snis(rewards, weights).log_m == pytest.approx(np.log(8 / 3))
    assert values.snis(rewards, weights).ess == pytest.approx(64 / 30)
    assert values.unnormalised(rewards, weights).tq == pytest.approx(4.2 / 3)
    assert values.global_normaliser(rewards, weights, log_z=np.log(2.0)).tq == pytest.approx(4.2 / 6)


def test_a_zero_weight_is_a_weight_and_an_unknown_one_is_not():
    rewards = np.array([0.2, 1.0])
    assert values.snis(rewards, np.array([0.0, -np.inf])).tq == pytest.approx(0.2)
    for bad in (np.array([0.0, np.nan]), np.array([-np.inf, -np.inf])):
        assert values.snis(rewards, bad) == values.UNUSABLE
        assert values.unnormalised(rewards, bad) == values.UNUSABLE
    assert values.snis(np.array([0.2, -np.inf]), np.zeros(2)) == values.UNUSABLE
    assert values.direct(np.array([0.2, -np.inf])).tq == -np.inf


@given(many, st.floats(0, 1))
def test_shrinking_reaches_the_floor_and_no_further(pair, floor):
    weights = np.array(pair[1])
    shrunk = values.shrunk(weights, floor)
    share = values.snis(np.zeros(len(weights)), shrunk).ess / len(weights)
    assert share >= floor - 1e-6
    if not np.array_equal(shrunk, weights):
        assert share == pytest.approx(floor, abs=1e-4)


def test_clip():
    assert values.clipped(np.array([-30.0, 1.0, 30.0]), 20.0).tolist() == [-20.0, 1.0, 20.0]
    assert values.clipped(np.array([-30.0]), None).tolist() == [-30.0]


def test_norms():
    rewards = np.array([-np.inf, -2.0, 0.0, 2.0, 800.0])
    assert values.reward_norm("none")(rewards) is rewards
    assert values.reward_norm("sigmoid")(rewards) == pytest.approx([0, 1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2), 1])
    assert values.reward_norm("standardise(1, 2)")(rewards[1:4]) == pytest.approx([-1.5, -0.5, 0.5])
    assert values.reward_norm("clip(-1,1)")(rewards) == pytest.approx([-1, -1, 0, 1, 1])
    assert values.candidate_zscore(np.array([1.0, 3.0, -np.inf])) == pytest.approx([-1, 1, -np.inf])
    assert values.candidate_zscore(np.array([2.0, 2.0])) == pytest.approx([0, 0])
    assert values.candidate_zscore(np.array([-np.inf])) == pytest.approx([-np.inf])


@pytest.mark.parametrize(
    "spec", ["nothing", "clip(1,0)", "clip(1)", "standardise(0,0)", "standardise(a,1)", "clip(0,inf)", "clip(nan,1)"]
)
def test_bad_norms_are_refused_in_one_sentence(spec):
    with pytest.raises(OptionError, match=r"reward_norm=.*must be none, sigmoid.*leave it out"):
        values.reward_norm(spec)


def chosen(scores, logps=None, ids=None, *, temperature=None, seed=0, tolerance=1e-9):
    logps = np.zeros(len(scores)) if logps is None else np.array(logps)
    return choose(
        np.array(scores),
        logps,
        range(len(scores)) if ids is None else ids,
        noise=Noise(seed=seed, purpose="select"),
        temperature=temperature,
        tolerance=tolerance,
        base_tolerance=tolerance,
    )


def test_choice():
    assert chosen([1.0, 2.0]).index == 1
    assert chosen([2.0, 2.0], [-2.0, -1.0]).index == 1
    assert chosen([2.0, 2.0], ids=(7, 3)).index == 1
    assert chosen([2.0, 2.0]).near_tie
    assert not chosen([2.0, 1.0]).near_tie
    assert chosen([-np.inf, -np.inf], [-1.0, -0.5], temperature=1.0).index == 1
    assert chosen([-np.inf, -3.0], [-1.0, -0.5], temperature=1.0).index == 1


def test_a_draw_follows_softmax_and_is_keyed_by_the_token():
    scores, n = [0.0, 1.0, -0.5], 4000
    picks = [chosen(scores, temperature=0.7, seed=seed).index for seed in range(n)]
    p = softmax(np.array(scores) / 0.7)
    assert np.abs(np.bincount(picks, minlength=3) / n - p) == pytest.approx(0, abs=4 * np.sqrt(0.25 / n))
    # Candidates that cannot win change nothing: the noise belongs to the token id.
    for seed in range(50):
        few = chosen(scores[1:], ids=(1, 2), temperature=1.0, seed=seed).index + 1
        assert chosen([-50.0, *scores[1:]], temperature=1.0, seed=seed).index == few


def test_weight_zero_keeps_what_is_unusable():
    assert weighted(np.array([2.0, -np.inf]), 0.0).tolist() == [0.0, -np.inf]
