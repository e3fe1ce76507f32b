"""Means with bootstrap intervals, alone and paired. Knows numbers only: one value per prompt, in the prompts' order.

Percentile bootstrap (Efron 1979) over prompts. Seeded: equal values give equal intervals, on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with a two-sided interval; with one value the interval is that value."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` with its percentile bootstrap interval. Raises OptionError on no values."""
    if len(values) == 0:
        raise OptionError("0 values have no mean: at least one prompt is needed, give more prompts.")
    x = np.asarray(values, dtype=np.float64)
    counts = np.random.Generator(np.random.Philox(seed)).multinomial(len(x), np.full(len(x), 1 / len(x)), resamples)
    means = counts @ x / len(x)  # [resamples]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(x.mean()), low=float(low), high=float(high), n=len(x))


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of `first - second`, prompt by prompt, with its interval: what both have in common cancels.

    Raises OptionError on no values or on two lengths.
    """
    if len(first) != len(second):
        raise OptionError(f"{len(first)} and {len(second)} values cannot be paired: give one of each per prompt.")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean_interval(differences, level=level, resamples=resamples, seed=seed)
