"""One pass over a run's units: every reply's figures, kept by method and averaged within each prompt.

Texts are read and forgotten, so that a run of any size fits. Knows units and what is measured on one; no statistics but
the mean over a prompt's seeds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from alignstar.errors import OptionError
from alignstar.evaluate.metrics import measured
from alignstar.evaluate.statistics import by_prompt
from alignstar.evaluate.text_metrics import Coherence, SentenceEncoder
from alignstar.evaluate.units import Run, Unit
from alignstar.sampling import Array

ROUNDING = 0.05
"""Scores of one reply that are no further apart differ by what the coarsest number type (bfloat16) rounds."""

_AT_ONCE = 64
"""Replies whose coherence is measured together."""


@dataclass(slots=True, kw_only=True)
class Measurements:
    """A run's figures. Rows are the prompts that any unit has, in the order of their numbers.

    `labels` are the methods in the recipe's order, `values[label, metric]` one figure per reply, `places[label]` its
    (row, seed's place); `failed` and `finished` count units by method.
    """

    labels: list[str]
    prompts: dict[int, int] = field(default_factory=dict[int, int])
    seeds: dict[int, int] = field(default_factory=dict[int, int])
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])
    places: dict[str, list[tuple[int, int]]] = field(default_factory=dict[str, list[tuple[int, int]]])
    failed: Counter[str] = field(default_factory=Counter[str])
    finished: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    _scored: dict[bytes, dict[str, float]] = field(default_factory=dict[bytes, dict[str, float]])

    def scored_alike(self, unit: Unit, figures: dict[str, float]) -> dict[str, float]:
        """The figures, with the rewards that the same reply to the same prompt had before.

        Forwards of other shapes round otherwise; who wins between equal replies is not for that to decide.
        """
        reply = f"{unit.prompt_index}|{unit.seed}|{unit.finish_reason}|{unit.response}"
        key = blake2b(reply.encode(), digest_size=16).digest()
        own = {name: value for name, value in figures.items() if name.startswith("reward:")}
        before = self._scored.setdefault(key, own)
        alike = {name: value for name, value in before.items() if abs(own[name] - value) <= ROUNDING}
        return figures | alike

    def known(self, label: str) -> str:
        """`label`. Raises OptionError for a method that the run has not."""
        if label not in self.labels:
            raise OptionError(f"No method of this run is called {label!r}; known: {', '.join(self.labels)}.")
        return label

    def having(self, metric: str) -> list[str]:
        """The methods of which at least one reply has the figure."""
        return [label for label in self.labels if not np.isnan(self.values.get((label, metric), [np.nan])).all()]

    def by_prompt(self, label: str, metric: str) -> Array:
        """A figure per prompt [prompts], the mean of its seeds; NaN where there is none."""
        values = self.values.get((label, metric), [])
        rows = [row for row, _ in self.places.get(label, [])]
        return by_prompt(values, rows[: len(values)], n_prompts=len(self.prompts))

    def by_seed(self, label: str, metric: str) -> Array:
        """A figure [prompts, seeds]; NaN where there is none."""
        grid = np.full((len(self.prompts), len(self.seeds)), np.nan)
        for place, value in zip(self.places.get(label, []), self.values.get((label, metric), []), strict=True):
            grid[place] = value
        return grid

    def difference(self, first: str, second: str, metric: str) -> Array:
        """First minus second per prompt [prompts], the mean over the seeds that both have."""
        both = self.by_seed(first, metric) - self.by_seed(second, metric)
        prompts, seeds = both.shape
        return by_prompt(both.ravel().tolist(), np.repeat(np.arange(prompts), seeds).tolist(), n_prompts=prompts)


def collect(run: Run, *, plus_one: bool, encoder: SentenceEncoder) -> Measurements:
    """Measure every unit of a run. Raises OptionError where there is none yet."""
    table = Measurements(labels=[entry["label"] for entry in run.recipe["methods"]])
    coherence, waiting = Coherence(encoder), list[Unit]()
    for unit in run.units:
        _take(unit, table, plus_one=plus_one)
        if unit.error is None:
            waiting.append(unit)
        if len(waiting) == _AT_ONCE:
            _embed(waiting, table, coherence)
    _embed(waiting, table, coherence)
    if not table.prompts:
        raise OptionError("The run has no unit yet, so there is nothing to summarise; run it first.")
    _sort(table)
    return table


def _take(unit: Unit, table: Measurements, *, plus_one: bool) -> None:
    row = table.prompts.setdefault(unit.prompt_index, len(table.prompts))
    seed = table.seeds.setdefault(unit.seed, len(table.seeds))
    if unit.error is not None:
        table.failed[unit.method] += 1
        return
    table.places.setdefault(unit.method, []).append((row, seed))
    table.finished.setdefault(unit.method, Counter())[unit.finish_reason] += 1
    for name, value in table.scored_alike(unit, measured(unit, plus_one=plus_one)).items():
        table.values.setdefault((unit.method, name), []).append(value)


def _sort(table: Measurements) -> None:
    """Put prompts and seeds in the order of their numbers, whatever the units came in: resamples draw rows by place."""
    rows, columns = ({number: at for at, number in enumerate(sorted(known))} for known in (table.prompts, table.seeds))
    row_of = {before: rows[number] for number, before in table.prompts.items()}
    column_of = {before: columns[number] for number, before in table.seeds.items()}
    table.places = {
        label: [(row_of[row], column_of[column]) for row, column in own] for label, own in table.places.items()
    }
    table.prompts, table.seeds = rows, columns


def _embed(waiting: list[Unit], table: Measurements, coherence: Coherence) -> None:
    """Measure the coherence of the units that wait."""
    cosines = coherence([unit.prompt for unit in waiting], [unit.response for unit in waiting])
    for unit, cosine in zip(waiting, cosines.tolist(), strict=True):
        table.values.setdefault((unit.method, "coherence"), []).append(cosine)
    waiting.clear()
