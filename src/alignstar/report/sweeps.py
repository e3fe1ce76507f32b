"""Figures against the value of an option that a recipe sweeps. Knows labels, options and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from alignstar.evaluate.statistics import Interval
from alignstar.evaluate.summary import MethodSummary, Summary
from alignstar.report.page import Chart, Section
from alignstar.report.sections import chart_section, reward_against
from alignstar.report.survey import Method

FEWEST = 3
"""Values of an option that make a line; two are a comparison, which the tables show."""

WIDE = 8.0
"""From this ratio of the largest to the smallest value on, the scale is logarithmic."""

TEXTS = ("diversity", "coherence")


def sweep_section(summary: Summary, methods: Sequence[Method], rewards: Sequence[str]) -> Section | None:
    """One chart for each option that is swept over enough numbers and each reward, diversity and coherence."""
    rows = {row.label: row for row in summary.methods}
    options = list(dict.fromkeys(name for family in _families(methods) for name in _swept(family, rows)))
    names = {f"reward:{name}": name for name in rewards} | {name: name for name in TEXTS}
    charts = [_chart(option, metric, title, methods, rows) for option in options for metric, title in names.items()]
    notes = ["Entries that differ in nothing but the option are joined; what the others have stands at a line's end."]
    return chart_section("sweeps", "Against the swept value", charts, notes)


def _families(methods: Sequence[Method]) -> list[list[str]]:
    """The labels of each sweep."""
    found: dict[int, list[str]] = {}
    for method in methods:
        found.setdefault(method.family, []).append(method.label)
    return list(found.values())


def _swept(family: Sequence[str], rows: Mapping[str, MethodSummary]) -> list[str]:
    """The options that have several numbers in a family, one of them on a line of at least FEWEST."""
    names = [name for name in rows[family[0]].options if len({_number(rows[label], name) for label in family}) > 1]
    return [name for name in names if any(len(line) >= FEWEST for line in _lines(family, rows, name).values())]


def _lines(family: Sequence[str], rows: Mapping[str, MethodSummary], option: str) -> dict[str, list[str]]:
    """The labels of a family that differ in `option` alone, by what else is swept."""
    found: dict[str, list[str]] = {}
    for label in family:
        if _number(rows[label], option) is not None:
            words = label.split(" ")
            line = " ".join(word for word in words if "=" in word and not word.startswith(f"{option}="))
            found.setdefault(line, []).append(label)
    return found


def _number(row: MethodSummary, option: str) -> float | None:
    value = row.options.get(option)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _chart(
    option: str, metric: str, title: str, methods: Sequence[Method], rows: Mapping[str, MethodSummary]
) -> Chart | None:
    lines: dict[str, str] = {}
    for family in _families(methods):
        if option in _swept(family, rows):
            lines |= {label: line for line, labels in _lines(family, rows, option).items() for label in labels}
    shown = [method for method in methods if method.label in lines]
    values = {label: _number(rows[label], option) or 0.0 for label in lines}
    wide = min(values.values()) > 0 and max(values.values()) >= WIDE * min(values.values())
    return reward_against(
        shown,
        {label: Interval(mean=value, low=value, high=value, n=rows[label].prompts) for label, value in values.items()},
        {label: rows[label].figures.get(metric) for label in lines},
        title=f"{title} against {option}",
        x_title=option,
        y_title=title,
        log_x=wide,
        lines=lines,
    )
