"""A reward's accuracy, calibration and length bias against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from alignstar.evaluate.statistics import share_interval
from alignstar.train.quality import BINS, quality, reliability

LOGIT = {p: math.log(p / (1 - p)) for p in (0.57, 0.72, 0.93)}


def test_accuracy_counts_ties_half_and_its_interval_is_over_prompts():
    told = quality(
        [1.0, 2.0, 0.0, 5.0], [0.0, 3.0, 0.0, 4.0], chosen_lengths=[1] * 4, rejected_lengths=[1] * 4,
        prompts=["a", "a", "b", "c"],
    )  # fmt: skip
    assert (told.pairs, told.prompts) == (4, 3)
    assert told.accuracy == share_interval(2.5 / 4 * 3, 3)
    assert told.accuracy.mean == 0.625


def test_calibration_by_hand():
    # Twice 72 % sure, right once; three times 93 % sure, always right; once 57 % sure and wrong.
    margins = np.array([LOGIT[0.72], -LOGIT[0.72], LOGIT[0.93], LOGIT[0.93], LOGIT[0.93], -LOGIT[0.57]])
    table = reliability(margins)
    assert [(b.n, round(b.confidence, 6), b.accuracy) for b in table] == [
        (1, 0.57, 0.0),
        (2, 0.72, 0.5),
        (3, 0.93, 1.0),
    ]
    assert [(round(b.low, 6), round(b.high, 6)) for b in table] == [(0.55, 0.6), (0.7, 0.75), (0.9, 0.95)]
    told = quality(margins, np.zeros(6), chosen_lengths=[1] * 6, rejected_lengths=[1] * 6)
    assert told.calibration_error == pytest.approx((1 * 0.57 + 2 * 0.22 + 3 * 0.07) / 6)
    assert told.brier == pytest.approx((0.28**2 + 0.72**2 + 3 * 0.07**2 + 0.57**2) / 6)
    assert told.log_loss == pytest.approx(-(math.log(0.72) + math.log(0.28) + 3 * math.log(0.93) + math.log(0.43)) / 6)


def test_a_reward_that_tells_the_truth_is_calibrated_and_one_that_shouts_is_not():
    rng = np.random.Generator(np.random.Philox(7))
    n = 20_000
    size = rng.uniform(0.0, 3.0, n)
    right = rng.uniform(size=n) < 1 / (1 + np.exp(-size))
    margins = np.where(right, size, -size)
    told = {
        scale: quality(scale * margins, np.zeros(n), chosen_lengths=[1] * n, rejected_lengths=[1] * n)
        for scale in (1.0, 3.0, 0.2)
    }
    # Each of ten bins is off by its noise: 4 standard errors of a mean of absolute deviations stay below this.
    assert told[1.0].calibration_error < 4 * 0.5 * math.sqrt(BINS / n)
    assert told[3.0].calibration_error > 0.1
    assert told[0.2].calibration_error > 0.1
    assert told[1.0].accuracy == told[3.0].accuracy
    assert told[1.0].log_loss < min(told[3.0].log_loss, told[0.2].log_loss)


def test_the_table_does_not_depend_on_who_is_called_chosen_and_knows_its_ends():
    margins = np.array([0.0, 0.3, 4.0, 800.0, -0.3, -800.0])
    assert sum(b.n for b in reliability(margins)) == 6
    flipped = reliability(-margins)
    assert [(b.n, b.confidence) for b in flipped] == [(b.n, b.confidence) for b in reliability(margins)]
    assert [b.accuracy for b in flipped] == pytest.approx([1 - b.accuracy for b in reliability(margins)])
    assert (reliability(margins)[0].low, reliability(margins)[-1].high) == (0.5, 1.0)
    silent = quality(np.zeros(3), np.zeros(3), chosen_lengths=[1, 2, 3], rejected_lengths=[3, 2, 1])
    assert (silent.accuracy.mean, silent.brier, silent.calibration_error) == (0.5, 0.25, 0.0)
    assert silent.log_loss == pytest.approx(math.log(2))
    assert math.isnan(silent.length.score_correlation)


def test_length_bias_by_hand():
    # Lengths 5>3, 2<4, 1<9, 7=7: the model prefers the longer in the first and the third.
    told = quality(
        [2.0, 1.0, 0.0, 9.0], [1.0, 0.5, 3.0, 8.0], chosen_lengths=[5, 2, 1, 7], rejected_lengths=[3, 4, 9, 7]
    ).length
    assert told.model_longer == share_interval(2, 3)
    assert told.label_longer == share_interval(1, 3)
    assert told.accuracy_shorter == share_interval(1, 2)
    assert told.accuracy_longer == share_interval(1, 1)
    margins, lengths = np.array([1.0, 0.5, -3.0, 1.0]), np.array([2.0, -2.0, -8.0, 0.0])
    expected = (margins @ lengths) / math.sqrt((margins @ margins) * (lengths @ lengths))
    assert told.margin_correlation == pytest.approx(expected)
    scores, sizes = np.array([2.0, 1, 0, 9, 1, 0.5, 3, 8]), np.array([5, 2, 1, 7, 3, 4, 9, 7])
    assert told.score_correlation == pytest.approx(np.corrcoef(scores, sizes)[0, 1])


def test_margins_are_blind_to_what_prompts_do_to_length():
    # Long prompts' replies are long and score high; within a pair length plays no part.
    level = np.arange(50.0)
    told = quality(
        level + 0.1, level, chosen_lengths=(10 * level + 5).astype(int).tolist(),
        rejected_lengths=(10 * level + np.where(level % 2 == 0, 4, 6)).astype(int).tolist(),
    ).length  # fmt: skip
    assert told.score_correlation > 0.99
    assert told.margin_correlation == pytest.approx(0.0, abs=1e-9)
    assert asdict(told.model_longer) == asdict(share_interval(25, 50))
