"""How far another reward is from the one that the baseline was aligned to, on the replies of a run.

Transfer Q* (arXiv:2405.20495, section 4.2) shows the shift as two distributions; here it is three figures beside them:
the mean difference, the ratio of the spreads, and the correlation, which alone says whether replies change places.
Knows a run's measurements; draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignstar.evaluate.measurements import Measurements
from alignstar.evaluate.statistics import Bootstrap, Interval, by_prompt
from alignstar.rewards.spec import parse_reward
from alignstar.sampling import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A reward against the source, over all replies of all methods, every prompt weighing the same.

    `difference`: mean of reward minus source. `spread`: its standard deviation over the source's. `correlation`:
    Pearson's. `sparsity`: the share of the source's last layer that is zero in it (the source: 0), None where it is
    another reward altogether.
    """

    reward: str
    source: str
    sparsity: float | None
    difference: Interval
    spread: Interval
    correlation: Interval


def shifts(
    recipe: Mapping[str, Any], table: Measurements, *, level: float, resamples: int, seed: int
) -> tuple[Shift, ...]:
    """Of every reward, the source first; nothing without a source or without scores by it."""
    rewards: Mapping[str, Any] = recipe.get("rewards", {})
    source = next((name for name, reward in rewards.items() if reward["role"] == "baseline_reward"), None)
    if source is None or not table.having(f"reward:{source}"):
        return ()
    order = [source, *(name for name in rewards if name != source)]
    columns = {key: column for name in order for key, column in _moments(table, source, name)}
    means = Bootstrap(columns, level=level, resamples=resamples, seed=seed)
    return tuple(
        _shift(means, name, source, _sparsity(rewards, source, name)) for name in order if means.n((name, "both"))
    )


def _moments(table: Measurements, source: str, name: str) -> Iterator[tuple[Any, Array]]:
    """Of each prompt the mean scores of its replies that have both, and of their squares and products."""
    at = [row for label in table.labels for row, _ in table.places.get(label, [])]
    s, r = (
        np.concatenate([table.values.get((m, f"reward:{one}"), []) for m in table.labels]) for one in (source, name)
    )
    missing = np.isnan(s + r)
    s[missing] = r[missing] = np.nan
    difference = r - s
    # About their means, so that what is left of large sums is exact.
    if not missing.all():
        s, r = s - np.nanmean(s), r - np.nanmean(r)
    moments = {"d": difference, "s": s, "r": r, "ss": s * s, "rr": r * r, "both": s * r}
    for what, values in moments.items():
        yield (name, what), by_prompt(values.tolist(), at, n_prompts=len(table.prompts))


def _shift(means: Bootstrap, name: str, source: str, sparsity: float | None) -> Shift:
    n = means.n((name, "both"))
    s, r, ss, rr, both = (means.means((name, what)) for what in ("s", "r", "ss", "rr", "both"))
    of_source, own = ss - s * s, rr - r * r
    with np.errstate(invalid="ignore", divide="ignore"):
        spread, correlation = np.sqrt(own / of_source), (both - s * r) / np.sqrt(of_source * own)
    return Shift(
        reward=name,
        source=source,
        sparsity=sparsity,
        difference=means.interval((name, "d")),
        spread=means.of(spread, n=n),
        correlation=means.of(np.clip(correlation, -1.0, 1.0), n=n),
    )


def _sparsity(rewards: Mapping[str, Any], source: str, name: str) -> float | None:
    """The share, where a reward is one classifier and the source the same one whole."""
    own, whole = (rewards[reward]["source"] or [] for reward in (name, source))
    if len(own) != 1 or len(whole) != 1:
        return None
    one, other = parse_reward(own[0]), parse_reward(whole[0])
    same = one.kind == other.kind == "classifier" and one.target == other.target
    return one.options.get("sparsify", 0.0) if same and "sparsify" not in other.options else None
