"""One pass over a run: what the page needs of every unit, small enough to keep, and how much each prompt weighs.

Texts and traces are dropped as they go by; a second pass takes those of the chosen prompts.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignstar.evaluate.judgements import Judgements
from alignstar.evaluate.units import Run, Unit
from alignstar.report import browser
from alignstar.report.sample import spread, stratified

TEXT_BUDGET, TRACE_BUDGET = 5_500_000, 2_000_000
"""Bytes of the browser's texts and of its traces; with tables and charts the page stays under 10 MB."""

FAILURES_SHOWN = 100
_SWEPT = re.compile(r"( \w+=\S+)+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method's entry: its number on the page (from 1) and its family, which the entries of one sweep share.

    A reward that is compared with others has a letter for a number.
    """

    label: str
    number: int | str
    family: int

    @property
    def colour(self) -> int:
        """The style sheet's colour."""
        return self.family % 8


@dataclass(slots=True, kw_only=True)
class Prompt:
    """What is kept of a prompt: bytes on the page, the sum and number of its rewards, whether it is of interest."""

    weight: int = 0
    trace_weight: int = 0
    reward: float = 0.0
    rewarded: int = 0
    failed: bool = False

    @property
    def mean(self) -> float:
        """Mean reward of its replies; the lowest of all where none has one."""
        return self.reward / self.rewarded if self.rewarded else -math.inf


@dataclass(slots=True, kw_only=True)
class Survey:
    """A run, counted. `scores` has the finite scores by (method, reward), `failures` the first failed units' errors."""

    methods: tuple[Method, ...]
    rewards: tuple[str, ...]
    main: str | None
    prompts: dict[int, Prompt] = field(default_factory=dict)
    seeds: set[int] = field(default_factory=set)
    done: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[str, int, int, str]] = field(default_factory=list)
    _scores: dict[tuple[str, str], array[float]] = field(default_factory=dict)

    def scores(self, method: str, reward: str) -> NDArray[np.float64]:
        """Finite scores of a method's responses; a failed unit has none."""
        return np.frombuffer(self._scores.get((method, reward), array("d")), dtype=np.float64)

    def add(self, unit: Unit, place: int) -> None:
        """Count a unit; `place` is its method's among the methods."""
        prompt = self.prompts.get(unit.prompt_index)
        if prompt is None:
            prompt = self.prompts[unit.prompt_index] = Prompt(weight=browser.weight(unit.prompt) + 50)
        self.seeds.add(unit.seed)
        prompt.weight += browser.weight(browser.reply(unit, method=place, rewards=self.rewards)) + 10
        if unit.error is not None:
            self.failed[unit.method] = self.failed.get(unit.method, 0) + 1
            prompt.failed = True
            if len(self.failures) < FAILURES_SHOWN:
                self.failures.append((unit.method, unit.prompt_index, unit.seed, unit.error))
            return
        self.done[unit.method] = self.done.get(unit.method, 0) + 1
        if unit.steps:
            prompt.trace_weight += browser.weight(browser.trace(unit)) + 10
        for name, score in unit.rewards.items():
            if score is not None and math.isfinite(score):
                self._scores.setdefault((unit.method, name), array("d")).append(score)
                if name == self.main:
                    prompt.reward += score
                    prompt.rewarded += 1


def begun(run: Run) -> Survey:
    """A survey of a run that has counted no unit yet."""
    rewards: Mapping[str, Any] = run.recipe["rewards"]
    optimised = [name for name, about in rewards.items() if about["role"] == "reward"]
    names = tuple([*optimised, *(name for name in rewards if name not in optimised)])
    return Survey(methods=_methods(run), rewards=names, main=names[0] if names else None)


def counting(units: Iterable[Unit], counted: Survey) -> Iterator[Unit]:
    """The units, each counted as it goes by."""
    places = {method.label: place for place, method in enumerate(counted.methods)}
    for unit in units:
        counted.add(unit, places[unit.method])
        yield unit


def survey(run: Run) -> Survey:
    """Count every unit of a run."""
    counted = begun(run)
    deque(counting(run.units, counted), maxlen=0)
    return counted


def _methods(run: Run) -> tuple[Method, ...]:
    labels: list[str] = [entry["label"] for entry in run.recipe["methods"]]
    families = list(dict.fromkeys(_SWEPT.sub("", label) for label in labels))
    return tuple(
        Method(label=label, number=place + 1, family=families.index(_SWEPT.sub("", label)))
        for place, label in enumerate(labels)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The prompts that the page holds, and those of them with their traces."""

    prompts: Sequence[int]
    traced: frozenset[int]


def choose(counted: Survey, *, text_budget: int = TEXT_BUDGET, trace_budget: int = TRACE_BUDGET) -> Chosen:
    """All prompts if they fit; else a sample stratified by mean reward, failed and traced prompts first."""
    prompts = counted.prompts
    ranked = sorted(prompts, key=lambda index: (prompts[index].mean, index))
    weights = {index: prompt.weight for index, prompt in prompts.items()}
    of_interest = {index for index, prompt in prompts.items() if prompt.failed or prompt.trace_weight}
    held = stratified(ranked, weights, text_budget, first=of_interest)
    traced = [index for index in held if prompts[index].trace_weight]
    trace_weights = {index: prompts[index].trace_weight for index in traced}
    return Chosen(prompts=held, traced=frozenset(spread(traced, trace_weights, trace_budget)))


def payload(units: Iterable[Unit], counted: Survey, chosen: Chosen, judged: Judgements | None = None) -> dict[str, Any]:
    """What page.js reads: the chosen prompts with all their replies, in the prompts' order."""
    said = {} if judged is None else judged.scores()
    places = {method.label: place for place, method in enumerate(counted.methods)}
    held: dict[int, dict[str, Any]] = {index: {} for index in chosen.prompts}
    for unit in units:
        if unit.prompt_index in held:
            prompt = held[unit.prompt_index]
            if not prompt:
                prompt |= {"index": unit.prompt_index, "prompt": unit.prompt, "replies": []}
            row = browser.reply(unit, method=places[unit.method], rewards=counted.rewards)
            if unit.steps and unit.prompt_index in chosen.traced:
                row["trace"] = browser.trace(unit)
            if (unit.method, unit.prompt_index, unit.seed) in said:
                row["judged"] = said[unit.method, unit.prompt_index, unit.seed]
            prompt["replies"].append(row)
    return {
        "rewards": list(counted.rewards),
        "judge": None if judged is None else {"name": judged.model, "rival": judged.judgements[0].second},
        "methods": [
            {"index": place, "number": m.number, "family": m.colour, "label": m.label}
            for place, m in enumerate(counted.methods)
        ],
        "seeds": sorted(counted.seeds),
        "prompts": list(held.values()),
    }
