"""What the points of a frontier say about four claims, each with an interval. Knows runs; decodes nothing.

Intervals are percentile bootstraps over prompts of the figure itself: prompts are drawn anew, everything that is made
from them (a curve, the group that is worst off, a quotient) is made anew with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from alignstar.bench.frontier import Draw, Point, Run, interval_json
from alignstar.evaluate.statistics import Interval, mean_interval
from alignstar.sampling import Array, IntArray

RESAMPLES = 2_000

SAVING, WIN_RATE, KEPT, PLAIN_TOKENS = 16.0, 0.65, 0.9, 1.3
"""What is claimed: tokens saved (times), the published win rate, the gain kept and what this may cost (times)."""

CLAIMS: Mapping[str, str] = {
    "speculative-rejection": f"Speculative Rejection against best-of-n: claimed {SAVING:g} x fewer tokens for the same "
    "reward",
    "tree-bon": f"TreeBoN against best-of-n with as many drawn tokens: published win rate {WIN_RATE:.0%}",
    "value": f"Transfer Q* from a value head: claimed {KEPT:.0%} of its gain over greedy decoding, for at most "
    f"{PLAIN_TOKENS:g} x the tokens of plain decoding",
    "maxmin": "Fair rewards against pooled ones: claimed a higher true reward of the group that is worst off",
}
"""Claim -> what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line under a claim. `reached`: by the mean; `certain`: by the whole interval of the figure that decides."""

    claim: str
    what: str
    figures: Mapping[str, Interval | float]
    reached: bool
    certain: bool

    def as_json(self) -> dict[str, Any]:
        """Intervals as mean, low and high; null for a quotient that is not defined."""
        figures = {name: _plain(figure) for name, figure in self.figures.items()}
        return {
            "claim": self.claim, "what": self.what, **figures, "reached": self.reached, "certain": self.certain,
        }  # fmt: skip


def _plain(figure: Interval | float) -> dict[str, float] | float | None:
    if isinstance(figure, Interval):
        return interval_json(figure)
    return None if math.isnan(figure) else figure


def findings(points: Sequence[Point]) -> list[Finding]:
    """All that the points allow to be said; a claim whose points are not there has none."""
    return [*savings(points), *win_rates(points), *kept_gains(points), *fairness(points)]


def bootstrap(statistic: Callable[[Array], float], n: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """A figure of `n` prompts with its 95 % interval; `statistic` is called with the prompts' weights [n]."""
    counts = np.random.Generator(np.random.Philox(seed)).multinomial(n, np.full(n, 1 / n), resamples)
    low, high = np.quantile([statistic(row / n) for row in counts], [0.025, 0.975])
    return Interval(mean=statistic(np.full(n, 1 / n)), low=float(low), high=float(high), n=n)


def expected_best(values: Sequence[float]) -> Array:
    """E[max of m of these values, drawn without replacement], for m = 1..len(values).

    Unbiased for best-of-m where the values are independent draws.
    """
    return _chances(len(values)) @ np.sort(np.asarray(values, dtype=np.float64))


@cache
def _chances(total: int) -> Array:
    """[m - 1, i]: how often the i-th smallest (from 0) is the best of m: the others are among the i below it."""
    sizes = range(1, total + 1)
    return np.asarray([[math.comb(i, m - 1) / math.comb(total, m) for i in range(total)] for m in sizes])


def savings(points: Sequence[Point]) -> list[Finding]:
    """Every Speculative Rejection point against the curve of best-of-n: tokens for the same mean learned reward."""
    curve = _most_draws(points)
    ours = [p for p in points if p.plan.method == "speculative-rejection"]
    if curve is None or not ours:
        return []
    rewards, costs, lm_costs = _curve(curve)
    return [_saving(point, rewards, costs, lm_costs) for point in ours]


def _curve(point: Point) -> tuple[Array, Array, Array]:
    """Of best-of-m [prompts, m]: mean learned reward, tokens, LM tokens.

    A draw's share of the reward tokens is that among all draws, where texts share most: best-of-m costs rather more.
    """
    size = len(point.runs[0].draws)
    m = np.arange(1, size + 1)

    def cost(run: Run, *, rm_weight: float) -> Array:
        prompt = run.prompt_tokens * (1.0 + rm_weight)
        total = run.lm_tokens + rm_weight * run.rm_tokens
        return prompt + m * (total - prompt) / size

    return (
        _by_prompt(point, lambda run: expected_best([draw.learned for draw in run.draws])),
        _by_prompt(point, lambda run: cost(run, rm_weight=point.rm_weight)),
        _by_prompt(point, lambda run: cost(run, rm_weight=0.0)),
    )


def _by_prompt(point: Point, value: Callable[[Run], Array]) -> Array:
    """Means over repeats [prompts, m]."""
    found: dict[int, list[Array]] = {}
    for run in point.runs:
        found.setdefault(run.prompt, []).append(value(run))
    return np.stack([np.mean(rows, axis=0) for _, rows in sorted(found.items())])


def _saving(point: Point, rewards: Array, costs: Array, lm_costs: Array) -> Finding:
    reward = np.asarray(point.per_prompt(lambda run: run.learned))
    cost = np.asarray(point.per_prompt(point.cost))
    lm_cost = np.asarray(point.per_prompt(lambda run: run.lm_tokens))

    def equal_n(weights: Array) -> float:
        return float(np.exp(np.interp(weights @ reward, weights @ rewards, np.log(np.arange(1, rewards.shape[1] + 1)))))

    def times(theirs: Array, own: Array) -> Callable[[Array], float]:
        def at(weights: Array) -> float:
            log_cost = np.interp(weights @ reward, weights @ rewards, np.log(weights @ theirs))
            return float(np.exp(log_cost) / (weights @ own))

        return at

    saved = bootstrap(times(costs, cost), len(reward))
    slope = (costs[:, -1] - costs[:, 0]) / (costs.shape[1] - 1)
    first_rows = np.asarray(point.per_prompt(lambda run: point.plan.first_rows(run.prompt_tokens)))
    ceiling = float((costs[:, 0] + (first_rows - 1) * slope).mean() / cost.mean())
    return Finding(
        claim="speculative-rejection",
        what=point.plan.at,
        figures={
            "learned reward": point.learned(),
            "tokens": float(cost.mean()),
            "equals best of": bootstrap(equal_n, len(reward)),
            "tokens saved x": saved,
            "at most x": ceiling,
            "LM saved x": bootstrap(times(lm_costs, lm_cost), len(reward)),
        },
        reached=saved.mean >= SAVING,
        certain=saved.low >= SAVING,
    )


def win_rates(points: Sequence[Point]) -> list[Finding]:
    """Every TreeBoN point against best-of-m with the same seed, m such that the drawn tokens are nearest to equal.

    Both keep their best by learned reward; the true reward judges, a tie counts half.
    """
    theirs = _most_draws(points)
    ours = [p for p in points if p.plan.method == "tree-bon"]
    if theirs is None:
        return []
    by_pair = {(run.repeat, run.prompt): run for run in theirs.runs}
    return [_win_rate(point, by_pair) for point in ours]


def _win_rate(point: Point, rivals: Mapping[tuple[int, int], Run]) -> Finding:
    taste = point.tastes[0]

    def kept(run: Run) -> Sequence[Draw]:
        draws = rivals[run.repeat, run.prompt].draws
        return draws[: draws_for(run.generated, [draw.tokens for draw in draws])]

    def best(run: Run) -> Draw:
        return max(kept(run), key=lambda draw: draw.learned)  # the first one on ties, as best-of-n

    won = point.per_prompt(lambda run: _won(run.true[taste], best(run).true[taste]))
    rate = mean_interval(won)
    return Finding(
        claim="tree-bon",
        what=f"{point.plan.label} {point.plan.at}",
        figures={
            "win rate": rate,
            "by learned reward": mean_interval(point.per_prompt(lambda run: _won(run.learned, best(run).learned))),
            "ties": point.mean(lambda run: float(run.true[taste] == best(run).true[taste])),
            "drawn tokens": point.mean(lambda run: run.generated),
            "best-of-n's": point.mean(lambda run: sum(draw.tokens for draw in kept(run))),
            "its n": point.mean(lambda run: len(kept(run))),
        },
        reached=rate.mean >= WIN_RATE,
        certain=rate.low >= WIN_RATE,
    )


def draws_for(tokens: int, lengths: Sequence[int]) -> int:
    """How many draws, at least one, come nearest to so many tokens; the fewer of two as near."""
    apart: IntArray = np.abs(np.cumsum(lengths) - tokens)
    return int(np.argmin(apart)) + 1


def _won(own: float, other: float) -> float:
    return 1.0 if own > other else 0.5 if own == other else 0.0


TAUGHT_BY: Mapping[str, str] = {"direct": "transfer-q", "indirect": "transfer-q direct"}
"""Setting -> the label of direct Transfer Q* there."""


def kept_gains(points: Sequence[Point]) -> list[Finding]:
    """Transfer Q* from a value head beside what taught it, direct Transfer Q* with rollouts, at each strength."""
    found = {(p.plan.work, p.plan.label, p.plan.at): p for p in points}
    return [
        _kept(found[work, "baseline greedy", ""], found[work, taught_by, at], point)
        for (work, label, at), point in found.items()
        if label == "transfer-q value" and (taught_by := TAUGHT_BY.get(work))
        if (work, "baseline greedy", "") in found and (work, taught_by, at) in found
    ]


def _kept(plain: Point, full: Point, distilled: Point) -> Finding:
    taste = distilled.tastes[0]
    start, top, own = (np.asarray(p.per_prompt(lambda run: run.true[taste])) for p in (plain, full, distilled))
    spent = np.asarray(distilled.per_prompt(distilled.cost))
    needed = np.asarray(distilled.per_prompt(lambda run: run.prompt_tokens + run.tokens - 1))
    margin = bootstrap(lambda w: float(w @ (own - start - KEPT * (top - start))), len(own))
    times = bootstrap(lambda w: float(w @ spent) / float(w @ needed), len(own))
    whole = float((top - start).mean())
    return Finding(
        claim="value",
        what=f"{distilled.plan.work}, {distilled.plan.at}",
        figures={
            "gain": mean_interval((own - start).tolist()),
            "with rollouts": mean_interval((top - start).tolist()),
            "gain kept": math.nan if whole == 0.0 else float((own - start).mean()) / whole,
            f"above {KEPT:.0%} of it": margin,
            "x plain tokens": times,
            "with rollouts x": full.mean(full.cost) / full.mean(lambda run: run.prompt_tokens + run.tokens - 1),
        },
        reached=whole > 0.0 and margin.mean >= 0.0 and times.mean <= PLAIN_TOKENS,  # without a gain none is kept
        certain=margin.low >= 0.0 and times.high <= PLAIN_TOKENS,
    )


FAMILIES: Mapping[str, tuple[str, ...]] = {
    "cd-minus": ("cd-minus, maxmin weights", "cd-minus, min", "maxmin game"),
    "best-of-n": (
        "best-of-n, maxmin weights",
        "best-of-n, game",
        "best-of-n, min",
        "best-of-n, min standardised",
    ),
}
"""How pooled rewards are decoded -> the labels of what is fair and decodes in the same way."""


def fairness(points: Sequence[Point]) -> list[Finding]:
    """Every fair point beside the pooled ones of its family: true rewards of the groups, and of the worst one."""
    found = {p.plan.label: p for p in points if p.plan.work == "groups"}
    pairs = [
        (pooled, found[fair])
        for family, fairs in FAMILIES.items()
        for (label, pooled), fair in itertools.product(found.items(), fairs)
        if label.startswith(f"{family}, pooled") and fair in found
    ]
    return [_fairer(pooled, fair) for pooled, fair in pairs]


def _fairer(pooled: Point, fair: Point) -> Finding:
    def by_group(point: Point) -> Array:  # [prompts, groups]
        return np.asarray([point.per_prompt(lambda run, t=taste: run.true[t]) for taste in point.tastes]).T

    before, after = by_group(pooled), by_group(fair)
    gain = bootstrap(lambda w: float(np.min(w @ after) - np.min(w @ before)), len(before))
    return Finding(
        claim="maxmin",
        what=f"{fair.plan.label} / {pooled.plan.label}",
        figures={
            **{f"fair: {taste}": fair.true(taste).mean for taste in fair.tastes},
            **{f"pooled: {taste}": pooled.true(taste).mean for taste in fair.tastes},
            "worst group gains": gain,
        },
        reached=gain.mean > 0.0,
        certain=gain.low > 0.0,
    )


def _most_draws(points: Sequence[Point]) -> Point | None:
    """Best-of-n of the largest n; its draws are those of every smaller one too."""
    drawn = [p for p in points if p.plan.work == "direct" and p.plan.label == "best-of-n"]
    return max(drawn, key=lambda p: len(p.runs[0].draws), default=None)
