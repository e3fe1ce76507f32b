"""Bootstrap intervals against closed forms: the normal approximation, exact invariances, degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest

from alignstar.errors import OptionError
from alignstar.evaluate.statistics import mean_interval, paired_difference


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
