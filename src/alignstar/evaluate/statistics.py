"""Means with intervals, paired tests and effect sizes. Knows numbers only: one value per prompt, in the prompts' order.

Percentile bootstrap (Efron 1979) over prompts, never over single replies: several seeds of a prompt are first averaged
(`by_prompt`), for they are not independent. NaN is a value that is missing; every figure says how many there were.
Seeded: equal values give equal figures, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from alignstar.errors import OptionError
from alignstar.sampling import Array, IntArray

EXACT_UP_TO = 16
"""So many differences that are not zero have all their 2^n signs tried."""

_AT_ONCE = 4_000_000
"""Entries of a table of resamples held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with a two-sided interval and the number of prompts behind it; one value is its own interval.

    `mean` is the estimate where a figure is no mean (a share, a ratio). All NaN where nothing can be said.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


class Bootstrap:
    """The means of a table's columns, in the sample and in every resample of its rows.

    All figures of one table come from the same resamples, so that a statistic of several means has its interval from
    what happens to them together. NaN is left out of its column's mean. Raises OptionError on no rows or unequal
    columns.
    """

    def __init__(
        self,
        columns: Mapping[Hashable, Sequence[float] | Array],
        *,
        level: float = 0.95,
        resamples: int = 10_000,
        seed: int = 0,
    ) -> None:
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise OptionError(f"Columns of {sorted(lengths)} values make no table; give one value per prompt in each.")
        if lengths <= {0}:
            raise OptionError("0 values have no mean: at least one prompt is needed, give more prompts.")
        self.level = level
        table = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns.values()])
        self._counts = dict(zip(columns, np.sum(~np.isnan(table), axis=0).tolist(), strict=True))
        self._at = {name: at for at, name in enumerate(columns)}
        # About the mean, so that equal values have an interval of no width, whatever their sum is rounded to.
        mean = _mean_where_known(table)
        self._means = np.vstack([mean, mean + _resampled(table - mean, resamples, seed)])

    def n(self, name: Hashable) -> int:
        """How many values the column has; 0 for one that is not there."""
        return self._counts.get(name, 0)

    def means(self, name: Hashable) -> Array:
        """The column's mean in the sample, then in every resample, [1 + resamples]."""
        return self._means[:, self._at[name]]

    def interval(self, name: Hashable) -> Interval:
        """The column's mean."""
        return self.of(self.means(name), n=self.n(name))

    def of(self, statistic: Array, *, n: int) -> Interval:
        """A statistic [1 + resamples] computed from `means`; resamples in which it is undefined are left out."""
        drawn = statistic[1:][np.isfinite(statistic[1:])]
        if not np.isfinite(statistic[0]) or len(drawn) == 0:
            return Interval(mean=math.nan, low=math.nan, high=math.nan, n=n)
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(mean=float(statistic[0]), low=float(low), high=float(high), n=n)


def _mean_where_known(table: Array) -> Array:
    known = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        return np.where(known, table, 0.0).sum(axis=0) / known.sum(axis=0)


def _resampled(table: Array, resamples: int, seed: int) -> Array:
    """Means [resamples, columns] of as many rows as there are, drawn with replacement."""
    rows = len(table)
    generator = np.random.Generator(np.random.Philox(seed))
    known = ~np.isnan(table)
    values, complete = np.where(known, table, 0.0), bool(known.all())
    means: list[Array] = []
    done = 0
    while done < resamples:
        size = min(resamples - done, max(1, _AT_ONCE // rows))
        drawn = generator.integers(0, rows, size=(size, rows)) + rows * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        totals = counts.sum(axis=1, keepdims=True) if complete else counts @ known.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append(counts @ values / totals)
        done += size
    return np.vstack(means)


def mean_interval(values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` with its percentile bootstrap interval. Raises OptionError on no values."""
    return Bootstrap({"": values}, level=level, resamples=resamples, seed=seed).interval("")


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


def by_prompt(values: Sequence[float], prompts: Sequence[int], *, n_prompts: int) -> Array:
    """Mean value of each prompt [n_prompts] over its replies; NaN values are left out, a prompt without any is NaN.

    `prompts` tells which of the `n_prompts` a value belongs to. Every prompt then weighs the same, and a bootstrap over
    prompts is the cluster bootstrap over replies.
    """
    x, at = np.asarray(values, dtype=np.float64), np.asarray(prompts, dtype=np.int64)
    known = ~np.isnan(x)
    sums = np.bincount(at[known], weights=x[known], minlength=n_prompts)
    counts = np.bincount(at[known], minlength=n_prompts)
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / counts, np.nan)


def share_interval(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """A share of `n` with Wilson's score interval (Wilson 1927), which is never empty, at 0 and n neither.

    `successes` may be fractional: a mean of shares of `n` prompts varies no more than that of yes-or-no answers, so the
    interval is then on the safe side. NaN on n = 0.
    """
    if n == 0:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, n=0)
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(mean=p, low=min(p, max(0.0, centre - half)), high=max(p, min(1.0, centre + half)), n=n)


def superiority(differences: Sequence[float] | Array, *, level: float = 0.95) -> Interval:
    """Probability of superiority: the share of prompts won, ties counted half. NaN differences are left out."""
    d = np.asarray(differences, dtype=np.float64)
    d = d[~np.isnan(d)]
    return share_interval(float(np.sum(d > 0) + 0.5 * np.sum(d == 0)), len(d), level=level)


def effect_size(means: Bootstrap, difference: Hashable, square: Hashable) -> Interval:
    """Cohen's d of paired values: mean difference over its standard deviation (of n - 1).

    Columns: the differences, and the squares of what is left of them after their mean. NaN without spread, and where
    more than one resample in twenty has none, as with fewer than four prompts.
    """
    n, centre = means.n(difference), means.means(difference)
    # Second moment about the sample's mean, moved to the resample's own.
    spread = means.means(square) - (centre - centre[0]) ** 2
    rounding = 1e-12 * means.means(square) + 1e-24 * centre**2
    with np.errstate(invalid="ignore", divide="ignore"):
        d = np.where(spread > rounding, centre / np.sqrt(spread * n / (n - 1)), np.nan)
    if np.mean(np.isnan(d[1:])) > 0.05:
        d = np.full(len(d), np.nan)
    return means.of(d, n=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignFlip:
    """A two-sided test that differences are as likely positive as negative: p, whether exact, how many there are."""

    p: float
    exact: bool
    n: int


def sign_flip_tests(differences: Array, *, draws: int = 9_999, seed: int = 0) -> list[SignFlip]:
    """Sign-flip permutation tests (Fisher 1935) of the columns' mean differences [prompts, columns]; NaN is missing.

    Exact where at most EXACT_UP_TO differences are not zero; else (1 + as extreme)/(1 + draws), which is never too
    small (Phipson and Smyth 2010). Without any difference p is 1.
    """
    known = np.where(np.isnan(differences), 0.0, differences)
    counts = np.sum(~np.isnan(differences), axis=0)
    many = np.sum(known != 0, axis=0) > EXACT_UP_TO
    extremes = iter(_extreme_draws(known[:, many], draws, seed).tolist() if many.any() else ())
    return [
        SignFlip(p=(1 + next(extremes)) / (1 + draws), exact=False, n=int(n))
        if drawn
        else SignFlip(p=_exact(column[column != 0]), exact=True, n=int(n))
        for column, drawn, n in zip(known.T, many, counts, strict=True)
    ]


def _slack(differences: Array) -> Array:
    """What rounding may do to a sum: sums that are equal on paper must count as equally extreme."""
    return 1e-12 * np.abs(differences).sum(axis=0)


def _exact(differences: Array) -> float:
    sums = np.zeros(1)
    for d in differences:
        sums = np.concatenate([sums + d, sums - d])
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - _slack(differences)))


def _extreme_draws(table: Array, draws: int, seed: int) -> IntArray:
    """How many draws of signs [columns] give a sum at least as far from zero as the sample's."""
    rows = len(table)
    generator = np.random.Generator(np.random.Philox(seed))
    bound = np.abs(table.sum(axis=0)) - _slack(table)
    width = (rows + 7) // 8
    extreme = np.zeros(table.shape[1], dtype=np.int64)
    done = 0
    while done < draws:
        size = min(draws - done, max(1, _AT_ONCE // rows))
        random = np.frombuffer(generator.bytes(size * width), dtype=np.uint8).reshape(size, width)
        signs = 2.0 * np.unpackbits(random, axis=1, count=rows) - 1.0
        extreme += np.sum(np.abs(signs @ table) >= bound, axis=0)
        done += size
    return extreme


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979), in the order given: below a level, with all errors together at most it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
