"""The picture of `bench maxmin`: what each group wins, and how well rewards know the minority, over the ratios; SVG.

Knows outcomes and draws, with the panels and markers of `frontier_picture`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from alignstar.bench.frontier_picture import COLOURS, Axis, axis
from alignstar.bench.maxmin import MAJORITY, MINORITY, Outcome
from alignstar.evaluate.statistics import Interval

WIDTH, HEIGHT, GAP, LEFT, TOP = 360, 260, 70, 70, 70
"""Of a panel, between panels, and around them [px]."""

DASHES = {MINORITY: "", MAJORITY: "5 4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a panel: an interval for every outcome. A group's lines are dashed alike."""

    label: str
    colour: str
    group: str
    value: Callable[[Outcome], Interval]


def picture(outcomes: Sequence[Outcome]) -> str:
    """The SVG, a panel for every way and one for the rewards' accuracy; lines join ratios, bars are 95 % intervals."""
    ways = list(dict.fromkeys(row.way for row in outcomes[0].rows))
    panels = [(f"Win rate against the SFT model: {way}", _rows(outcomes[0], way)) for way in ways]
    panels.append((f"Accuracy for the minority ({MINORITY})", _accuracies()))
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + 70 + 20 * max(len(lines) for _, lines in panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(LEFT, 28, f"One reward for all against rewards of groups, {MAJORITY} : {MINORITY}", size=17),
    ]
    for number, (title, lines) in enumerate(panels):
        parts += _panel(title, lines, outcomes, LEFT + number * (WIDTH + GAP))
    return "\n".join([*parts, "</svg>"])


def _rows(first: Outcome, way: str) -> list[Line]:
    """Both groups' win rates by every reward of a way."""
    rewards = [row.reward for row in first.rows if row.way == way]
    return [
        Line(
            label=f"{reward}: {group}", colour=COLOURS[number], group=group,
            value=lambda o, r=reward, g=group: o.row(way, r).means().interval(("wins", g)),
        )
        for number, reward in enumerate(rewards)
        for group in (MINORITY, MAJORITY)
    ]  # fmt: skip


def _accuracies() -> list[Line]:
    names = [
        ("pooled reward", f"pooled, {MINORITY}", 0, MINORITY),
        ("pooled, pairs that groups order differently", f"pooled, {MINORITY} where they differ", 0, MAJORITY),
        ("the group's own reward", f"own, {MINORITY}", 1, MINORITY),
        ("own, pairs that groups order differently", f"own, {MINORITY} where they differ", 1, MAJORITY),
    ]
    return [
        Line(label=label, colour=COLOURS[colour], group=dash, value=lambda o, n=name: o.accuracy[n])
        for label, name, colour, dash in names
    ]


def _panel(title: str, lines: Sequence[Line], outcomes: Sequence[Outcome], left: float) -> list[str]:
    bottom = TOP + HEIGHT
    shown = [(line, [line.value(o) for o in outcomes]) for line in lines]
    up = axis([end for _, values in shown for v in values for end in (v.low, v.high)], start=bottom, length=-HEIGHT)
    across = axis([float(o.ratio) for o in outcomes], start=left, length=WIDTH, logarithmic=True)
    parts = [
        f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444"/>',
        _text(left + WIDTH / 2, TOP - 10, title, anchor="middle"),
        *_ticks(across, up, outcomes, left, bottom),
    ]
    for number, (line, values) in enumerate(shown):
        places = [
            (across.at(float(o.ratio)) + 2.5 * (number - len(shown) / 2), v)
            for o, v in zip(outcomes, values, strict=True)
        ]
        parts += _drawn(line, places, up)
        y = bottom + 62 + 20 * number
        parts.append(
            f'<line x1="{left}" x2="{left + 34}" y1="{y - 4}" y2="{y - 4}" stroke="{line.colour}" stroke-width="2" '
            f'stroke-dasharray="{DASHES[line.group]}"/>'
        )
        parts.append(_text(left + 42, y, line.label))
    return parts


def _ticks(across: Axis, up: Axis, outcomes: Sequence[Outcome], left: float, bottom: float) -> list[str]:
    parts: list[str] = []
    for outcome in outcomes:
        parts.append(_text(across.at(float(outcome.ratio)), bottom + 17, f"{outcome.ratio}:1", anchor="middle"))
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(_text(left - 7, y + 4, f"{value:g}", anchor="end"))
    parts.append(_text(left + WIDTH / 2, bottom + 37, "annotators, majority : minority", anchor="middle"))
    return parts


def _drawn(line: Line, places: Sequence[tuple[float, Interval]], up: Axis) -> list[str]:
    path = " ".join(f"{x:.1f},{up.at(v.mean):.1f}" for x, v in places)
    parts = [
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2" '
        f'stroke-dasharray="{DASHES[line.group]}"/>'
    ]
    for x, v in places:
        parts.append(
            f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(v.low):.1f}" y2="{up.at(v.high):.1f}" '
            f'stroke="{line.colour}" opacity="0.4"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{up.at(v.mean):.1f}" r="3.5" fill="{line.colour}"/>')
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int | None = None) -> str:
    larger = "" if size is None else f' font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{larger} fill="#222">{escape(text)}</text>'
