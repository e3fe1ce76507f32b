"""The page's charts as SVG: a scatter of methods with intervals, distributions by method.

A method is drawn as a disc with its number, which the page's legend and tables repeat: no reader needs the colours.
Values stand in `<title>` elements (shown on hover, read aloud) and, by the page, in tables. Computes bins and nothing
else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from alignstar.evaluate.statistics import Interval
from alignstar.report.svg import Axis, axis_over, element, short

WIDTH, HEIGHT = 460.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 12.0, 10.0, 42.0
COLOURS = 8
"""How many colours the page's style sheet has; families of methods share them in turn."""

RADIUS = 9.0
AROUND = ((15.0, 0.0), (-15.0, 0.0), (0.0, -15.0), (0.0, 15.0))
"""Where a disc moves to, once or several times, from a place that is taken."""

NAME_HEIGHT = 12.0
MOST_BINS = 40
ROW = 42.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A method in a scatter: its number, its family (the entries of one sweep), and both coordinates.

    `bound` says that `x` is an upper bound; `line` which of its family it is joined with, and what that line is called.
    """

    number: int | str
    family: int
    label: str
    x: Interval
    y: Interval
    bound: bool = False
    line: str = ""


def scatter(marks: Sequence[Mark], *, name: str, x_title: str, y_title: str, log_x: bool = False) -> Markup:
    """Means of `y` against means of `x`, both with intervals; what is on one line is joined in order of x."""
    x = axis_over([v for m in marks for v in (m.x.low, m.x.high)], LEFT, WIDTH - RIGHT, log=log_x)
    y = axis_over([v for m in marks for v in (m.y.low, m.y.high)], HEIGHT - BOTTOM, TOP)
    parts = [_x_axis(x, x_title, HEIGHT - BOTTOM, TOP), _y_axis(y, y_title)]
    for line in dict.fromkeys((m.family, m.line) for m in marks):
        swept = sorted((m for m in marks if (m.family, m.line) == line), key=lambda m: m.x.mean)
        parts += [_line(x, y, a, b) for a, b in pairwise(swept)]
    parts += [_cross(x, y, m) for m in marks]
    places = _apart([(x.at(m.x.mean), y.at(m.y.mean)) for m in marks])
    for m, (cx, cy) in zip(marks, places, strict=True):
        at = f"at most {short(m.x.mean)}" if m.bound else _told(m.x)
        parts.append(_disc(cx, cy, m, f"{x_title} {at}; {y_title} {_told(m.y)}"))
    return _chart(name, HEIGHT, [*parts, *_line_names(marks, places)])


def _line_names(marks: Sequence[Mark], places: Sequence[tuple[float, float]]) -> list[Markup]:
    """What lines are called, left of the discs at their last points, below one another where these are close."""
    last: dict[tuple[int, str], tuple[float, float]] = {}
    for m, place in sorted(zip(marks, places, strict=True), key=lambda pair: pair[0].x.mean):
        if m.line:
            last[m.family, m.line] = place
    names: list[Markup] = []
    free = 0.0
    for (_, line), (cx, cy) in sorted(last.items(), key=lambda item: item[1][1]):
        at = max(free, cy + 3.5)
        free = at + NAME_HEIGHT
        beside = (px for px, py in places if abs(py - cy) < 2 * RADIUS and abs(px - cx) < 5 * RADIUS)
        names.append(element("text", line, class_="line", x=min(beside) - RADIUS - 4, y=at, text_anchor="end"))
    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A method's values, one per response; not empty."""

    number: int | str
    family: int
    label: str
    values: NDArray[np.float64]


def distributions(spreads: Sequence[Spread], *, name: str, x_title: str) -> Markup:
    """One histogram per method on a shared axis; under it the box from quartile to quartile, the median a line."""
    ends = [float(end) for s in spreads for end in (s.values.min(), s.values.max())]
    x = axis_over(ends, LEFT, WIDTH - RIGHT)
    bins = min(MOST_BINS, max(10, 2 * math.isqrt(max(len(s.values) for s in spreads))))
    edges = np.linspace(min(ends), max(ends), bins + 1) if min(ends) < max(ends) else np.array([x.low, x.high])
    bottom = TOP + ROW * len(spreads)
    parts = [_x_axis(x, x_title, bottom, TOP)]
    for row, spread in enumerate(spreads):
        parts += _row(spread, edges, x, TOP + ROW * row + ROW - 12)
    return _chart(name, bottom + BOTTOM, parts)


def _row(spread: Spread, edges: NDArray[np.float64], x: Axis, base: float) -> list[Markup]:
    """A method's histogram standing on `base`, its box below."""
    counts = np.histogram(spread.values, edges)[0]  # [bins]
    n, highest = len(spread.values), counts.max()
    low, middle, high = (float(q) for q in np.quantile(spread.values, [0.25, 0.5, 0.75]))
    bars = [
        element(
            "rect",
            _title(f"{spread.label}: {short(a)} to {short(b)}: {count:,} of {n:,}"),
            x=x.at(a),
            y=base - (ROW - 16) * count / highest,
            width=max(0.8, x.at(b) - x.at(a) - 0.6),
            height=(ROW - 16) * count / highest,
        )
        for (a, b), count in zip(pairwise(edges.tolist()), counts.tolist(), strict=True)
        if count
    ]
    box = element(
        "g",
        _title(f"{spread.label}: quartiles {short(low)}, {short(middle)}, {short(high)}; n = {n:,}"),
        element("rect", x=x.at(low), y=base + 2, width=max(1.0, x.at(high) - x.at(low)), height=5),
        element("line", class_="median", x1=x.at(middle), x2=x.at(middle), y1=base + 1, y2=base + 8),
        class_="box",
    )
    group = element("g", *bars, box, class_=f"f{spread.family % COLOURS}")
    return [group, _disc(LEFT - 18, base - 6, spread, f"{n:,} values")]


def _apart(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where discs stand: at their points, or beside them where another disc would be covered."""
    placed: list[tuple[float, float]] = []
    for px, py in points:
        places = [(px + ring * dx, py + ring * dy) for ring in range(8) for dx, dy in AROUND]
        free = (at for at in places if all(math.dist(at, other) > 1.6 * RADIUS for other in placed))
        placed.append(next(free, (px, py)))
    return placed


def _chart(name: str, height: float, parts: Sequence[Markup]) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=name)


def _title(text: str) -> Markup:
    return element("title", text)


def _told(interval: Interval) -> str:
    return f"{short(interval.mean)} [{short(interval.low)}, {short(interval.high)}], n = {interval.n:,}"


def _disc(cx: float, cy: float, method: Mark | Spread, told: str) -> Markup:
    return element(
        "g",
        _title(f"{method.label}: {told}"),
        element("circle", cx=cx, cy=cy, r=RADIUS),
        element("text", str(method.number), x=cx, y=cy + 3.5, text_anchor="middle"),
        class_=f"disc f{method.family % COLOURS}",
    )


def _cross(x: Axis, y: Axis, mark: Mark) -> Markup:
    cx, cy = x.at(mark.x.mean), y.at(mark.y.mean)
    return element(
        "g",
        element("line", x1=x.start, x2=cx, y1=cy, y2=cy, class_="bound")
        if mark.bound
        else element("line", x1=x.at(mark.x.low), x2=x.at(mark.x.high), y1=cy, y2=cy),
        element("line", x1=cx, x2=cx, y1=y.at(mark.y.low), y2=y.at(mark.y.high)),
        element("circle", cx=cx, cy=cy, r=2.5),
        class_=f"interval f{mark.family % COLOURS}",
    )


def _line(x: Axis, y: Axis, a: Mark, b: Mark) -> Markup:
    return element(
        "line",
        x1=x.at(a.x.mean),
        y1=y.at(a.y.mean),
        x2=x.at(b.x.mean),
        y2=y.at(b.y.mean),
        class_=f"sweep f{a.family % COLOURS}",
    )


def _x_axis(axis: Axis, title: str, bottom: float, top: float) -> Markup:
    lines = [element("line", class_="grid", x1=p, x2=p, y1=top, y2=bottom) for p in map(axis.at, axis.ticks())]
    texts = [
        element("text", short(tick), x=axis.at(tick), y=bottom + 15, text_anchor="middle") for tick in axis.ticks()
    ]
    middle = (axis.start + axis.end) / 2
    named = element("text", title, class_="name", x=middle, y=bottom + 34, text_anchor="middle")
    return element("g", *lines, *texts, named, class_="axis")


def _y_axis(axis: Axis, title: str) -> Markup:
    lines = [element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=p, y2=p) for p in map(axis.at, axis.ticks())]
    texts = [element("text", short(tick), x=LEFT - 6, y=axis.at(tick) + 4, text_anchor="end") for tick in axis.ticks()]
    middle = (axis.start + axis.end) / 2
    named = element(
        "text", title, class_="name", x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:g})"
    )
    return element("g", *lines, *texts, named, class_="axis")
