"""A run in figures: one row per method with every metric, paired comparisons with a baseline, who beats whom.

Every figure is an Interval: estimate, interval, number of prompts. Replies of several seeds are averaged within their
prompt first. Failed units and scores that are no numbers are left out and counted. Says nothing of how it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np

from alignstar.errors import OptionError
from alignstar.evaluate import kl, metrics
from alignstar.evaluate.measurements import Measurements, collect
from alignstar.evaluate.metrics import Metric, Normalisation
from alignstar.evaluate.shift import Shift, shifts
from alignstar.evaluate.statistics import (
    Bootstrap,
    Interval,
    effect_size,
    holm,
    share_interval,
    sign_flip_tests,
    superiority,
)
from alignstar.evaluate.text_metrics import SentenceEncoder, sentence_encoder
from alignstar.evaluate.units import Run
from alignstar.sampling import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One method: what came of its units, and its figures by the metric's name.

    `prompts` counts those with a reply, `skipped`, by reward, the replies without a usable score, `finished` the
    replies by finish reason; `kl_law` says what the method's law was taken to be (`alignstar.evaluate.kl`).
    """

    label: str
    method: str
    options: Mapping[str, Any]
    prompts: int
    replies: int
    failed: int
    skipped: Mapping[str, int]
    finished: Mapping[str, int]
    kl_law: str
    figures: Mapping[str, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A method against the baseline by one reward, prompt by prompt.

    `p` is of the two-sided sign-flip test of the mean difference (`exact`: all signs tried), `p_adjusted` by Holm over
    the methods compared by this reward. `effect` is Cohen's d of the differences, `superiority` the share of prompts
    won, ties counted half.
    """

    reward: str
    method: str
    baseline: str
    difference: Interval
    p: float
    p_adjusted: float
    exact: bool
    effect: Interval
    superiority: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class WinTie:
    """`first` against `second`: prompts won, tied and lost (of several seeds the mean), and the share won or tied."""

    first: str
    second: str
    wins: float
    ties: float
    losses: float
    win_tie: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a report shows. `metrics` are those that some method has, in order; `win_ties` is by `win_tie_reward`.

    `shifts` are the rewards against the one that the baseline was aligned to.
    """

    baseline: str
    prompts: int
    seeds: tuple[int, ...]
    level: float
    resamples: int
    metrics: tuple[Metric, ...]
    methods: tuple[MethodSummary, ...]
    comparisons: tuple[Comparison, ...]
    win_tie_reward: str | None
    win_tie_tolerance: float
    win_ties: tuple[WinTie, ...]
    shifts: tuple[Shift, ...]

    def as_json(self) -> dict[str, Any]:
        """The whole as JSON values: NaN, which JSON has not, becomes null."""
        return jsonable(asdict(self))


def jsonable(value: Any) -> Any:
    """`value`, of mappings, sequences and plain values, as JSON can hold it."""
    match value:
        case dict():
            return {name: jsonable(item) for name, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


Figures: TypeAlias = tuple[Metric, Mapping[str, Interval]]
"""A metric, and its figure by method."""


class Resampling(TypedDict):
    """How intervals are made."""

    level: float
    resamples: int
    seed: int


def summarise(
    run: Run,
    *,
    baseline: str | None = None,
    win_tie_reward: str | None = None,
    win_tie_tolerance: float = 0.0,
    normalisation: Normalisation = "range",
    encoder: SentenceEncoder | None = None,
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Summary:
    """All figures of a run, finished or not.

    Args:
        run: the run's units and recipe.
        baseline: the method that others are compared with (None: the recipe's).
        win_tie_reward: the reward that decides who wins (None: the first held-out one, else the optimised one).
        win_tie_tolerance: rewards that differ by no more than this tie.
        normalisation: how mean rewards are normalised: `alignstar.evaluate.metrics.normalised`.
        encoder: embeds prompts and replies for the coherence (None: the recipe's, else hashed words).
        level: of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap and of the tests that are not exact.

    Raises OptionError for a method or reward that the run has not, ModelError for an encoder that is not here.
    """
    recipe, wanted = run.recipe, run.recipe.get("metrics", {})
    encoder = encoder or sentence_encoder(wanted.get("coherence"))
    plus_one: bool = wanted.get("diversity_plus_one", True)
    table = collect(run, plus_one=plus_one, encoder=encoder)
    baseline = table.known(baseline or recipe["baseline"])
    rewards = list(recipe.get("rewards", {}))
    if win_tie_reward not in (None, *rewards):
        raise OptionError(f"{win_tie_reward!r} is no reward of this run; known: {', '.join(rewards)}.")
    decisive = win_tie_reward or _decisive(recipe)
    resampling = Resampling(level=level, resamples=resamples, seed=seed)
    means = Bootstrap(_columns(table, recipe, baseline), **resampling)
    figures = [
        *_reward_figures(table, means, recipe, baseline, normalisation, resampling),
        *_reply_figures(table, means, metrics.reply_metrics(plus_one=plus_one, encoder=encoder.name), recipe),
        *_cost_figures(table, means, metrics.reward_weight(recipe)),
    ]
    return Summary(
        baseline=baseline,
        prompts=len(table.prompts),
        seeds=tuple(table.seeds),
        level=level,
        resamples=resamples,
        metrics=tuple(metric for metric, by_method in figures if by_method),
        methods=tuple(_row(entry, table, figures, rewards) for entry in recipe["methods"]),
        comparisons=tuple(c for name in rewards for c in _comparisons(table, means, name, baseline, level, seed)),
        win_tie_reward=decisive,
        win_tie_tolerance=win_tie_tolerance,
        win_ties=() if decisive is None else tuple(_win_ties(table, decisive, win_tie_tolerance, level)),
        shifts=shifts(recipe, table, **resampling),
    )


def _decisive(recipe: Mapping[str, Any]) -> str | None:
    """The first held-out reward, else the optimised one, else any."""
    roles: dict[str, str] = {}
    for name, reward in recipe.get("rewards", {}).items():
        roles.setdefault(reward["role"], name)
    return roles.get("gold") or roles.get("reward") or next(iter(roles.values()), None)


def _columns(table: Measurements, recipe: Mapping[str, Any], baseline: str) -> dict[Any, Array]:
    """Everything whose mean is needed, per prompt: figures, gaps, differences to the baseline and their squares."""
    names = {metric for _, metric in table.values}
    columns: dict[Any, Array] = {(m, label): table.by_prompt(label, m) for m in names for label in table.having(m)}
    for gold in _gold(recipe):
        columns |= _gaps(table, _learned(recipe), gold, baseline)
    for name in recipe.get("rewards", {}):
        for label in table.labels:
            if label != baseline:
                difference = table.difference(label, baseline, f"reward:{name}")
                known = difference[~np.isnan(difference)]
                columns["difference", name, label] = difference
                columns["square", name, label] = (difference - (known.mean() if len(known) else 0.0)) ** 2
    return columns


def _learned(recipe: Mapping[str, Any]) -> str | None:
    return next((name for name, reward in recipe.get("rewards", {}).items() if reward["role"] == "reward"), None)


def _gold(recipe: Mapping[str, Any]) -> list[str]:
    return [name for name, reward in recipe.get("rewards", {}).items() if reward["role"] == "gold"]


def _gaps(table: Measurements, learned: str | None, gold: str, baseline: str) -> dict[Any, Array]:
    if learned is None:
        return {}
    of = {label: [table.by_prompt(label, f"reward:{name}") for name in (learned, gold)] for label in table.labels}
    gaps = {
        label: metrics.over_optimisation(*both, reference_learned=of[baseline][0], reference_gold=of[baseline][1])
        for label, both in of.items()
    }
    return {(f"gap:{gold}", label): gap for label, gap in gaps.items() if not np.isnan(gap).all()}


def _reply_figures(
    table: Measurements, means: Bootstrap, wanted: Sequence[Metric], recipe: Mapping[str, Any]
) -> Iterator[Figures]:
    for metric in wanted:
        own = {label: means.interval((metric.name, label)) for label in table.having(metric.name)}
        if metric.name == "kl":
            own |= {label: bound for label, bound in _bounds(table, recipe).items() if label not in own}
        yield metric, own


def _bounds(table: Measurements, recipe: Mapping[str, Any]) -> dict[str, Interval]:
    """What bounds the KL of best-of-N, of methods that draw from the SFT model."""
    found: dict[str, Interval] = {}
    for entry in recipe["methods"]:
        model = entry["options"].get("model") or ("sft" if recipe.get("models", {}).get("sft") else "baseline")
        n = len({row for row, _ in table.places.get(entry["label"], [])})
        if n and model == "sft" and kl.law_of(entry["method"], entry["options"]) == kl.BOUND:
            bound = kl.best_of_n_bound(entry["options"]["n"])
            found[entry["label"]] = Interval(mean=bound, low=bound, high=bound, n=n)
    return found


def _reward_figures(
    table: Measurements,
    means: Bootstrap,
    recipe: Mapping[str, Any],
    baseline: str,
    normalisation: Normalisation,
    resampling: Resampling,
) -> Iterator[Figures]:
    asked: Mapping[str, Any] = recipe.get("metrics", {}).get("normalised", {})
    for name, about in recipe.get("rewards", {}).items():
        metric = f"reward:{name}"
        columns = {label: (metric, label) for label in table.having(metric)}
        # A run that is not finished may not have come to them yet.
        there = all(label is None or (label in columns and means.n(columns[label])) for label in asked.values())
        shares, convention = (
            metrics.normalised(means, columns, convention=normalisation, **asked) if there else ({}, "undefined")
        )
        controlled, slope = metrics.length_controlled(
            {label: table.by_prompt(label, metric) for label in columns},
            {label: table.by_prompt(label, "words") for label in columns},
            **resampling,
        )
        described = metrics.reward_metrics(name, about["role"], convention, slope, baseline)
        yield described["reward"], {label: means.interval(column) for label, column in columns.items()}
        yield described["normalised"], shares
        yield described["length_controlled"], controlled
        if about["role"] == "gold" and _learned(recipe) is not None:
            gap = {label: (f"gap:{name}", label) for label in table.labels}
            yield described["gap"], {label: means.interval(at) for label, at in gap.items() if means.n(at)}


def _cost_figures(table: Measurements, means: Bootstrap, weight: float | None) -> Iterator[Figures]:
    for cost in metrics.cost_metrics(weight):
        yield cost.metric, {label: metrics.cost_of(cost, means, label) for label in table.having("lm_tokens")}


def _row(
    entry: Mapping[str, Any], table: Measurements, figures: Sequence[Figures], rewards: Sequence[str]
) -> MethodSummary:
    label: str = entry["label"]
    places = table.places.get(label, [])
    return MethodSummary(
        label=label,
        method=entry["method"],
        options=entry["options"],
        prompts=len({row for row, _ in places}),
        replies=len(places),
        failed=table.failed[label],
        skipped={name: int(np.isnan(table.values.get((label, f"reward:{name}"), [])).sum()) for name in rewards},
        finished=dict(table.finished.get(label, {})),
        kl_law=kl.law_of(entry["method"], entry["options"]),
        figures={metric.name: own[label] for metric, own in figures if label in own},
    )


def _comparisons(
    table: Measurements, means: Bootstrap, reward: str, baseline: str, level: float, seed: int
) -> list[Comparison]:
    """The other methods against the baseline by one reward; one without a prompt in common with it is left out."""
    compared = [label for label in table.labels if label != baseline and means.n(("difference", reward, label))]
    if not compared:
        return []
    differences = np.column_stack([table.difference(label, baseline, f"reward:{reward}") for label in compared])
    tests = sign_flip_tests(differences, seed=seed)
    adjusted = holm([test.p for test in tests])
    return [
        Comparison(
            reward=reward,
            method=label,
            baseline=baseline,
            difference=means.interval(("difference", reward, label)),
            p=test.p,
            p_adjusted=p_adjusted,
            exact=test.exact,
            effect=effect_size(means, ("difference", reward, label), ("square", reward, label)),
            superiority=superiority(column, level=level),
        )
        for label, test, p_adjusted, column in zip(compared, tests, adjusted, differences.T, strict=True)
    ]


def _win_ties(table: Measurements, reward: str, tolerance: float, level: float) -> Iterator[WinTie]:
    scores = {label: table.by_seed(label, f"reward:{reward}") for label in table.having(f"reward:{reward}")}
    for first in scores:
        for second in scores:
            if first == second:
                continue
            d = scores[first] - scores[second]
            known = (~np.isnan(d)).sum(axis=1)
            n = int((known > 0).sum())
            if n:
                seeds = np.maximum(known, 1)
                wins = float(((d > tolerance).sum(axis=1) / seeds).sum())
                ties = float(((np.abs(d) <= tolerance).sum(axis=1) / seeds).sum())
                yield WinTie(
                    first=first,
                    second=second,
                    wins=wins,
                    ties=ties,
                    losses=n - wins - ties,
                    win_tie=share_interval(wins + ties, n, level=level),
                )
