"""How good a reward model is on pairs that it has not seen: accuracy, calibration, length bias. Pure numbers.

The Bradley-Terry model says that the first of two replies is preferred with probability sigmoid(margin), the margin
being the difference of their scores in nats. Calibration asks whether that is so: of the pairs on which it is 80 %
sure it should order 80 % as people did (expected calibration error: Guo et al. 2017, arXiv:1706.04599, on the more
probable of the two orders, so that the table does not depend on who is called chosen).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from alignstar.evaluate.statistics import Interval, share_interval
from alignstar.sampling import Array

BINS = 10
"""Bins of equal width over confidences from 0.5 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The pairs whose confidence lies in (low, high], of the lowest bin also at `low`."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBias:
    """How far length decides, in the model and in the labels. Pairs of equal lengths are left out of the shares.

    `score_correlation`: of scores with lengths, over all replies. `margin_correlation`: of differences of score with
    differences of length, over pairs in both orders: what is left where prompts cannot play a part. `model_longer`,
    `label_longer`: share of pairs in which the longer reply wins. `accuracy_shorter`, `accuracy_longer`: where the
    chosen reply is the shorter, the longer one.
    """

    score_correlation: float
    margin_correlation: float
    model_longer: Interval
    label_longer: Interval
    accuracy_shorter: Interval
    accuracy_longer: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A reward on preference pairs; knowing nothing, `log_loss` is 0.693 nats and `brier` 0.25."""

    pairs: int
    prompts: int
    accuracy: Interval
    log_loss: float
    brier: float
    calibration_error: float
    reliability: tuple[Bin, ...]
    length: LengthBias


def quality(
    chosen: Sequence[float] | Array,
    rejected: Sequence[float] | Array,
    *,
    chosen_lengths: Sequence[int],
    rejected_lengths: Sequence[int],
    prompts: Sequence[Hashable] | None = None,
) -> Quality:
    """Scores and lengths [pairs] of the preferred and the other replies; `prompts` says which pairs share a prompt.

    A tie of scores counts as half right. Intervals are Wilson's, with as many cases as there are prompts: pairs of one
    prompt are not independent.
    """
    good, bad = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    margins = good - bad
    right = 0.5 * (1.0 + np.sign(margins))
    keys: Sequence[Hashable] = range(len(margins)) if prompts is None else prompts
    p = _sigmoid(margins)
    table = reliability(margins)
    return Quality(
        pairs=len(margins),
        prompts=len(set(keys)),
        accuracy=_share(right, keys),
        log_loss=float(np.mean(np.logaddexp(0.0, -margins))),
        brier=float(np.mean((1.0 - p) ** 2)),
        calibration_error=sum(b.n * abs(b.accuracy - b.confidence) for b in table) / len(margins),
        reliability=table,
        length=_length_bias(good, bad, np.asarray(chosen_lengths), np.asarray(rejected_lengths), keys),
    )


def reliability(margins: Array) -> tuple[Bin, ...]:
    """The bins that hold pairs, of margins [pairs] of the preferred replies over the others."""
    confidence = _sigmoid(np.abs(margins))
    right = 0.5 * (1.0 + np.sign(margins))
    at = np.clip(np.ceil((confidence - 0.5) * 2 * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return tuple(
        Bin(
            low=0.5 + 0.5 * i / BINS,
            high=0.5 + 0.5 * (i + 1) / BINS,
            n=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for i in range(BINS)
        if (inside := at == i).any()
    )


def _length_bias(good: Array, bad: Array, long_good: Array, long_bad: Array, keys: Sequence[Hashable]) -> LengthBias:
    margins, differences = good - bad, (long_good - long_bad).astype(np.float64)
    right = 0.5 * (1.0 + np.sign(margins))
    shorter, longer = differences < 0, differences > 0
    longer_wins = np.where(longer, right, 1.0 - right)

    def share(values: Array, where: NDArray[np.bool_]) -> Interval:
        return _share(values[where], [key for key, inside in zip(keys, where.tolist(), strict=True) if inside])

    return LengthBias(
        score_correlation=_correlation(np.concatenate([good, bad]), np.concatenate([long_good, long_bad])),
        margin_correlation=_correlation(
            np.concatenate([margins, -margins]), np.concatenate([differences, -differences])
        ),
        model_longer=share(longer_wins, shorter | longer),
        label_longer=share(longer.astype(np.float64), shorter | longer),
        accuracy_shorter=share(right, shorter),
        accuracy_longer=share(right, longer),
    )


def _share(values: Array, keys: Sequence[Hashable]) -> Interval:
    n = len(set(keys))
    return share_interval(float(values.mean()) * n if n else 0.0, n)


def _correlation(x: Array, y: Array) -> float:
    """Pearson's; NaN where one of them does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(dx @ dx) * float(dy @ dy))
    return float(dx @ dy) / scale if scale > 0 else math.nan


def _sigmoid(x: Array) -> Array:
    return cast("Array", np.exp(-np.logaddexp(0.0, -x)))
