"""Intervals, tests and effect sizes against closed forms, enumeration and, where it is installed, scipy."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignstar.errors import OptionError
from alignstar.evaluate.statistics import (
    Bootstrap,
    by_prompt,
    effect_size,
    holm,
    mean_interval,
    paired_difference,
    share_interval,
    sign_flip_tests,
    superiority,
)


def test_interval_is_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(2.0, 3.0, size=2000)
    interval = mean_interval(values)
    standard_error = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    # A quantile of 10,000 resamples has a standard error of about 0.027 standard errors of the mean.
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.11 * standard_error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.11 * standard_error)


def test_interval_of_two_values_is_the_binomial_law():
    # Means of resamples of (0, 1) are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    interval = mean_interval([0.0, 1.0], level=0.4)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)
    assert mean_interval([0.0, 1.0], level=0.95).low == 0.0


def test_shift_and_scale_act_exactly():
    values = [0.1, 0.4, -0.3, 1.5]
    plain, moved = mean_interval(values), mean_interval([2 * v + 1 for v in values])
    assert moved.low == pytest.approx(2 * plain.low + 1)
    assert moved.high == pytest.approx(2 * plain.high + 1)


def test_equal_seeds_give_equal_intervals_and_others_do_not():
    values = list(np.linspace(0, 1, 17))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_one_value_is_its_own_interval():
    interval = mean_interval([0.7])
    assert (interval.low, interval.mean, interval.high, interval.n) == pytest.approx((0.7, 0.7, 0.7, 1))


def test_pairing_removes_what_both_share():
    common = np.random.default_rng(2).normal(size=50) * 100
    better = paired_difference(common + 1.0, common)
    assert (better.low, better.mean, better.high) == pytest.approx((1.0, 1.0, 1.0))
    assert better.excludes_zero
    assert not paired_difference([1.0, -1.0], [0.0, 0.0]).excludes_zero
    assert paired_difference(common, common + 1.0).mean == pytest.approx(-1.0)


def test_coverage_is_about_the_level():
    rng = np.random.default_rng(5)
    trials = 300
    hits = sum(
        (i := mean_interval(rng.exponential(size=60), resamples=800, seed=t)).low <= 1.0 <= i.high
        for t in range(trials)
    )
    # 95 % nominal; the percentile interval is a little short for 60 skewed values (about 93 %).
    assert abs(hits / trials - 0.93) < 4 * np.sqrt(0.93 * 0.07 / trials)


def test_nothing_and_unequal_lengths_are_refused():
    with pytest.raises(OptionError, match="at least one"):
        mean_interval([])
    with pytest.raises(OptionError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 2.0])


# Tables of columns


def test_columns_of_a_table_share_their_resamples():
    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    means = Bootstrap({"x": x, "shifted": x + 2.0, "twice": 2 * x})
    np.testing.assert_allclose(means.means("shifted"), means.means("x") + 2.0)
    difference = means.of(means.means("twice") - 2 * means.means("x"), n=40)
    assert (difference.low, difference.high) == pytest.approx((0.0, 0.0), abs=1e-12)


def test_a_missing_value_is_left_out_and_counted():
    means = Bootstrap({"x": [1.0, np.nan, 3.0], "none": [np.nan] * 3})
    whole = means.interval("x")
    assert (whole.mean, whole.n) == (2.0, 2)
    assert whole.low == 1.0
    assert whole.high == 3.0
    nothing = means.interval("none")
    assert nothing.n == 0
    assert all(np.isnan([nothing.mean, nothing.low, nothing.high]))


def test_missing_values_do_not_narrow_the_interval():
    values = np.random.default_rng(13).normal(size=100)
    thinned = np.full(400, np.nan)
    thinned[::4] = values
    plain, sparse = mean_interval(values), Bootstrap({"x": thinned}).interval("x")
    assert sparse.mean == pytest.approx(plain.mean)
    assert sparse.high - sparse.low == pytest.approx(plain.high - plain.low, rel=0.1)


def test_equal_values_have_an_interval_of_no_width():
    interval = mean_interval([0.1] * 37)
    assert interval.low == interval.high == pytest.approx(0.1)


def test_large_tables_are_resampled_by_the_same_law():
    # More rows than are held in memory at a time for all resamples: the chunks must not show.
    values = np.random.default_rng(4).normal(size=30_000)
    interval = mean_interval(values, resamples=400)
    error = values.std() / np.sqrt(len(values))
    # A 2.5 % quantile of 400 draws has a standard error of about 0.13.
    assert interval.high - interval.mean == pytest.approx(1.96 * error, abs=4 * 0.13 * error)


def test_columns_of_two_lengths_are_refused():
    with pytest.raises(OptionError, match="make no table"):
        Bootstrap({"a": [1.0], "b": [1.0, 2.0]})


# Several seeds of a prompt


def test_seeds_of_a_prompt_are_one_value():
    assert by_prompt([1.0, 3.0, 5.0], [0, 0, 1], n_prompts=3).tolist()[:2] == [2.0, 5.0]
    assert np.isnan(by_prompt([1.0], [0], n_prompts=2)[1])
    assert by_prompt([np.nan, 4.0], [0, 0], n_prompts=1).tolist() == [4.0]


def test_repeating_every_reply_does_not_narrow_the_interval():
    values = np.random.default_rng(6).normal(size=30)
    prompts = list(range(30))
    many = by_prompt([*values] * 10, prompts * 10, n_prompts=30)
    repeated, once = mean_interval(many), mean_interval(values)
    assert (repeated.low, repeated.high, repeated.n) == pytest.approx((once.low, once.high, 30))


# Shares


def test_wilson_is_the_closed_form():
    # The score equation: |p - share| = z sqrt(p (1 - p) / n) at both ends.
    for successes, n in ((3, 10), (0, 12), (12, 12), (67, 100)):
        interval = share_interval(successes, n)
        for end in (interval.low, interval.high):
            if 0 < end < 1:
                assert abs(end - successes / n) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / n), rel=1e-5)
    assert share_interval(0, 12).low == 0.0
    assert share_interval(0, 12).high == pytest.approx(1.959964**2 / (12 + 1.959964**2), rel=1e-6)
    assert np.isnan(share_interval(0, 0).mean)


def test_superiority_counts_ties_half():
    share = superiority([1.0, 2.0, 0.0, -1.0, np.nan])
    assert (share.mean, share.n) == (2.5 / 4, 4)
    assert superiority([-1.0, -2.0, 0.0]).mean == pytest.approx(1 - superiority([1.0, 2.0, 0.0]).mean)


# Tests of differences


def signs_enumerated(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return np.mean([total >= observed - 1e-12 for total in sums])


@pytest.mark.parametrize("seed", range(5))
def test_small_samples_have_the_exact_p_value(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1.0, size=3 + seed)
    (test,) = sign_flip_tests(differences[:, None])
    assert test.exact
    assert test.p == pytest.approx(signs_enumerated(differences))


def test_the_exact_p_value_of_one_sign_is_a_power_of_two():
    assert sign_flip_tests(np.ones((5, 1)))[0].p == 2 / 2**5
    assert sign_flip_tests(np.array([[0.1], [0.2], [-0.3]]))[0].p == 1.0  # 0.1 + 0.2 - 0.3 is not 0 in binary


def test_zeros_and_missing_values_change_no_p_value():
    d = np.array([0.4, 1.0, -0.2, 0.9])
    padded = np.array([0.4, 0.0, 1.0, np.nan, -0.2, 0.9, 0.0])
    plain, longer = sign_flip_tests(d[:, None])[0], sign_flip_tests(padded[:, None])[0]
    assert (plain.p, plain.n, longer.n) == (longer.p, 4, 6)
    assert sign_flip_tests(np.zeros((4, 1)))[0].p == 1.0


def test_drawn_signs_agree_with_the_normal_law():
    rng = np.random.default_rng(8)
    d = rng.normal(0.1, 1.0, size=(400, 3))
    for test, column in zip(sign_flip_tests(d), d.T, strict=True):
        z = abs(column.sum()) / np.sqrt((column**2).sum())
        p = 2 * (1 - NormalDist().cdf(z))
        assert not test.exact
        assert abs(test.p - p) < 4 * np.sqrt(p * (1 - p) / 9999) + 0.005
    assert sign_flip_tests(d + 5.0)[0].p == 1 / 10_000  # never 0


def test_p_values_are_uniform_without_a_difference():
    rng = np.random.default_rng(9)
    p = np.array([t.p for t in sign_flip_tests(rng.exponential(size=(40, 300)) * rng.choice([-1, 1], size=(40, 300)))])
    for level in (0.05, 0.2, 0.5):
        assert abs((p <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 300)


def test_holm_is_the_worked_example():
    # 4 x 0.01, 3 x 0.01333, 2 x 0.03, 1 x 0.04, made monotone.
    adjusted = holm([0.03, 0.01, 0.04, 0.04 / 3])
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_plain_value_and_bonferroni(p):
    adjusted = holm(p)
    for own, plain in zip(adjusted, p, strict=True):
        assert plain <= own <= min(1.0, len(p) * plain)
    assert sorted(range(len(p)), key=lambda i: (p[i], i)) == sorted(range(len(p)), key=lambda i: (adjusted[i], p[i], i))


def effect(d):
    d = np.asarray(d, dtype=float)
    return effect_size(Bootstrap({"d": d, "s": (d - d.mean()) ** 2}), "d", "s")


def test_effect_size_is_mean_over_deviation():
    d = np.random.default_rng(10).normal(0.5, 2.0, size=300)
    size = effect(d)
    assert size.mean == pytest.approx(d.mean() / d.std(ddof=1))
    # Its standard error for paired values is about sqrt(1/n + d^2 / 2n).
    error = np.sqrt(1 / 300 + size.mean**2 / 600)
    assert size.low == pytest.approx(size.mean - 1.96 * error, abs=0.25 * error)
    assert size.high == pytest.approx(size.mean + 1.96 * error, abs=0.25 * error)
    assert np.isnan(effect([0.1] * 30).mean)
    assert np.isnan(effect([1.0, 2.0, 4.0]).mean)  # one resample in nine has no spread
    assert effect([1.0, 2.0, 4.0, 5.0]).n == 4


def test_effect_size_of_every_resample_is_its_own():
    d = np.array([0.0, 1.0, 5.0, 7.0])
    means = Bootstrap({"d": d, "s": (d - d.mean()) ** 2, "plain": d**2})
    of_resamples = (means.means("plain") - means.means("d") ** 2)[1:]
    spread = (means.means("s") - (means.means("d") - means.means("d")[0]) ** 2)[1:]
    np.testing.assert_allclose(spread, of_resamples, atol=1e-9)


def test_scipy_says_the_same():
    stats = pytest.importorskip("scipy.stats")
    d = np.random.default_rng(11).normal(0.4, 1.0, size=11)
    exact = stats.permutation_test(
        (d,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_tests(d[:, None])[0].p == pytest.approx(exact.pvalue)
    values = np.random.default_rng(12).normal(size=200)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(0))
    ours, error = mean_interval(values), values.std() / np.sqrt(200)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.15 * error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.15 * error)
    wilson = stats.binomtest(17, 40).proportion_ci(method="wilson")
    assert (share_interval(17, 40).low, share_interval(17, 40).high) == pytest.approx((wilson.low, wilson.high))
