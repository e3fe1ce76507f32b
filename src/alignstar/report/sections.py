"""The page's sections of numbers: who is where, at what price, how spread out. Knows methods, intervals and scores."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alignstar.evaluate.statistics import Interval
from alignstar.report.charts import Mark, Spread, distributions, scatter
from alignstar.report.page import Chart, Section
from alignstar.report.survey import Method, Survey
from alignstar.report.tables import Cell, Row, Table, interval_cell, number, words

ByMethod = Mapping[str, Interval | None]
"""A figure of every method, by label."""

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def metrics_table(
    methods: Sequence[Method],
    columns: Mapping[str, ByMethod],
    *,
    title: str,
    bounds: Mapping[str, Collection[str]] | None = None,
    of: str = "method",
) -> Table:
    """One row per method, one column per figure; `bounds`: by column the methods that have an upper bound only.

    `of` is what the rows are, if they are no methods.
    """
    rows = [
        Row(
            cells=[
                Cell(text=m.label),
                *(
                    interval_cell(column[m.label], bound=m.label in (bounds or {}).get(head, ()))
                    for head, column in columns.items()
                ),
            ],
            method=m,
        )
        for m in methods
    ]
    return Table(title=title, head=[of, *columns], rows=rows)


def reward_against(
    methods: Sequence[Method],
    x: ByMethod,
    y: ByMethod,
    *,
    title: str,
    x_title: str,
    y_title: str,
    log_x: bool = False,
    bounded: Collection[str] = (),
    lines: Mapping[str, str] | None = None,
    of: str = "method",
) -> Chart | None:
    """A scatter with its table; None where no method has both figures. Says which are left out.

    `bounded` are the methods whose `x` is an upper bound. `lines`: `x` is what was set, and methods of a family are
    joined where they have the same line.
    """
    marks: list[Mark] = []
    missing: list[str] = []
    for m in methods:
        at, value = x[m.label], y[m.label]
        if at is None or value is None or not _drawable(at, log_x) or not _drawable(value, False):
            missing.append(m.label)
            continue
        bound = m.label in bounded
        line = (lines or {}).get(m.label, "")
        marks.append(Mark(number=m.number, family=m.family, label=m.label, x=at, y=value, bound=bound, line=line))
    if not marks:
        return None
    shown = {mark.label for mark in marks}
    notes = ["Means with their intervals; entries of one sweep are joined."]
    if any(mark.bound for mark in marks):
        notes.append("Dashed to the left: an upper bound, the value lies there or further left.")
    if missing:
        zero = " above zero" if log_x else ""
        notes.append(f"Without a figure{zero} and so not drawn: {', '.join(missing)}.")
    return Chart(
        title=title,
        note=" ".join(notes),
        svg=scatter(marks, name=title, x_title=x_title, y_title=y_title, log_x=log_x),
        table=metrics_table(
            [m for m in methods if m.label in shown],
            {y_title: y} if lines is not None else {x_title: x, y_title: y},
            title=title,
            bounds={x_title: bounded},
            of=of,
        ),
    )


def _drawable(interval: Interval, log: bool) -> bool:
    return math.isfinite(interval.mean) and (interval.low > 0 or not log)


def distribution(counted: Survey, reward: str) -> Chart | None:
    """The scores of one reward, response by response; None where there are none."""
    scored = [(m, counted.scores(m.label, reward)) for m in counted.methods]
    return distribution_of(scored, title=f"Distribution of {reward}", x_title=reward, of="method")


def distribution_of(
    scores: Sequence[tuple[Method, NDArray[np.float64]]], *, title: str, x_title: str, of: str
) -> Chart | None:
    """The distributions of several lists of scores; None where all are empty. `of` is what the lists belong to."""
    scored = [(m, values) for m, values in scores if len(values)]
    if not scored:
        return None
    spreads = [Spread(number=m.number, family=m.family, label=m.label, values=values) for m, values in scored]
    rows = [Row(cells=[Cell(text=m.label), *_quantiles(values)], method=m) for m, values in scored]
    head = [of, "n", "lowest", "quartile", "median", "quartile", "highest", "std. dev."]
    return Chart(
        title=title,
        note="Scores of single replies. Below each histogram the middle half, the median as a line.",
        svg=distributions(spreads, name=f"{title} by {of}", x_title=x_title),
        table=Table(title=title, head=head, rows=rows),
    )


def _quantiles(values: NDArray[np.float64]) -> list[Cell]:
    quantiles: list[float] = np.quantile(values, QUANTILES).tolist()
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return words(f"{len(values):,}", *(number(q) for q in quantiles), number(spread))


def failures(counted: Survey) -> Section | None:
    """Which units failed; None where none did."""
    total = sum(counted.failed.values())
    if not total:
        return None
    by_method = [
        Row(cells=words(m.label, f"{counted.failed[m.label]:,}", f"{counted.done.get(m.label, 0):,}"), method=m)
        for m in counted.methods
        if m.label in counted.failed
    ]
    single = [
        Row(cells=words(method, str(prompt), str(seed), error)) for method, prompt, seed, error in counted.failures
    ]
    first = "" if len(single) == total else f" (the first {len(single)} of {total:,})"
    return Section(
        id="failures",
        title="Failed units",
        notes=["A failed unit has no reply: it enters no mean, interval, comparison or chart, and is counted here."],
        tables=[
            Table(title="By method", head=["method", "failed", "finished"], rows=by_method),
            Table(
                title=f"One by one{first}",
                head=["method", "prompt", "seed", "what happened"],
                rows=single,
                texts=frozenset({0, 3}),
            ),
        ],
    )


def chart_section(id: str, title: str, charts: Sequence[Chart | None], notes: Sequence[str] = ()) -> Section | None:
    """A section of charts; None where none can be drawn."""
    drawn = [chart for chart in charts if chart is not None]
    return Section(id=id, title=title, notes=notes, charts=drawn) if drawn else None
