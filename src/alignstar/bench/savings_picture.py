"""The picture of `bench savings`: mean reward against tokens, a curve for every approximation and every smaller number.

Knows a family's rows. Straight lines between two ways are what a mixture of both would get.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignstar.bench.savings import FAMILIES, PLAIN, Row
from alignstar.report.curves import curves

LEFT_OUT = {"exact acceleration"}
"""It changes no reward."""


def picture(rows: Sequence[Row], *, title: str) -> str:
    """The SVG of one family's rows; all curves end in plain Transfer Q*."""
    named = {row.name: row for row in rows}
    lines = FAMILIES[rows[0].rollouts].lines
    series = {line[1].rpartition(" ")[2]: list(line) for line in lines}
    for name in [name for name in named if name not in LEFT_OUT and named[name].beyond is not None]:
        series.setdefault("all three" if " " in name else name.partition("=")[0], [PLAIN]).append(name)
    points = {label: sorted((named[n].tokens, named[n].reward.mean) for n in names) for label, names in series.items()}
    return curves(points, title=title, x_title="LM + RM tokens per emitted token", y_title="mean reward")
