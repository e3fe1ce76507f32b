"""What the page says, section by section, as values: the template lays them out. Knows no HTML.

Every number comes from the summary or is a count; a reader finds beside it how many prompts it rests on and its
interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from alignstar.report.survey import Method
from alignstar.report.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number at the head of the page."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture, and the table with its numbers."""

    title: str
    note: str
    svg: Markup
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A headline with notes, charts and tables; `legend` tells the numbers in the charts (none: the methods')."""

    id: str
    title: str
    notes: Sequence[str] = ()
    legend: Sequence[Method] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """All that the template shows beside the browser's data."""

    title: str
    about: str
    facts: Sequence[Fact]
    warnings: Sequence[str]
    methods: Sequence[Method]
    sections: Sequence[Section]
    sampling: str
    tracing: str
    environment: Sequence[tuple[str, str]]
    meanings: Sequence[tuple[str, str]]
    recipe: str


def flat(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as lines of name and text."""
    lines: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            lines += flat(item, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", "none" if item is None else str(item)))
    return lines
