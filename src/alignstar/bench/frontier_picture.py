"""The picture of a frontier, drawn as SVG: reward against tokens (logarithmic) and against KL to the SFT model.

One row of panels for the true reward, one for the learned one. Lines join a method's strengths, a bar is the
95 % interval over prompts; a hollow marker says that the KL is an upper bound. Knows points and draws; no library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from alignstar.bench.frontier import Point
from alignstar.evaluate.statistics import Interval

COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
)  # fmt: skip
SHAPES = ("circle", "square", "diamond", "triangle")

WIDTH, HEIGHT, GAP, LEFT, TOP, LEGEND = 440, 320, 70, 70, 60, 230
"""Of a panel, between panels, around them, and of the legend [px]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From a value to a place: `low` to `high` over `length` pixels from `start` (a negative length goes upwards)."""

    low: float
    high: float
    start: float
    length: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies [px]."""
        low, high, value = (math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return self.start + self.length * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Values to be written: 1, 2 and 5 times powers of ten, between the ends."""
        if self.logarithmic:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
        else:
            rough = (self.high - self.low) / 6
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
            found = [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def axis(values: Sequence[float], *, start: float, length: float, logarithmic: bool = False) -> Axis:
    """An axis with some room around the values; one value alone gets room too."""
    low, high = min(values), max(values)
    if logarithmic:
        return Axis(low=low / 1.3, high=high * 1.3, start=start, length=length, logarithmic=True)
    room = 0.06 * (high - low) or 0.5
    return Axis(low=low - room, high=high + room, start=start, length=length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What a panel shows: an interval against a number of every point."""

    x_name: str
    y_name: str
    x: Callable[[Point], float]
    y: Callable[[Point], Interval]
    logarithmic: bool
    hollow: Callable[[Point], bool]


def picture(points: Sequence[Point], *, title: str) -> str:
    """The SVG of points of one work, in the order of their curves."""
    taste = points[0].tastes[0]
    rewards: list[tuple[str, Callable[[Point], Interval]]] = [
        (f"true reward ({taste})", lambda p: p.true(taste)),
        ("learned reward", lambda p: p.learned()),
    ]
    curves = {
        label: [p for p in points if p.plan.label == label] for label in dict.fromkeys(p.plan.label for p in points)
    }
    parts: list[str] = []
    for row, (name, reward) in enumerate(rewards):
        panels = (
            Panel(
                x_name="LM + RM tokens per reply", y_name=name, x=lambda p: p.mean(p.cost), y=reward, logarithmic=True,
                hollow=lambda p: False,
            ),
            Panel(
                x_name="KL to the SFT model [nats]; hollow: upper bound", y_name=name, x=lambda p: p.kl()[0], y=reward,
                logarithmic=False, hollow=lambda p: p.kl()[1] == "bound",
            ),
        )  # fmt: skip
        for column, panel in enumerate(panels):
            parts += _panel(panel, curves, LEFT + column * (WIDTH + GAP), TOP + row * (HEIGHT + GAP))
    width = LEFT + 2 * WIDTH + GAP + LEGEND + 40
    height = TOP + 2 * HEIGHT + GAP + 60
    parts += _legend(list(curves), LEFT + 2 * WIDTH + GAP + 30, TOP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">'
    )
    return "\n".join(
        [
            head,
            f'<rect width="{width}" height="{height}" fill="white"/>',
            _text(LEFT, 30, title, size=17),
            *parts,
            "</svg>",
        ]
    )


def _panel(panel: Panel, curves: dict[str, list[Point]], left: float, top: float) -> list[str]:
    shown = [(p, panel.x(p), panel.y(p)) for points in curves.values() for p in points]
    across = axis([x for _, x, _ in shown], start=left, length=WIDTH, logarithmic=panel.logarithmic)
    ends = [end for _, _, y in shown for end in (y.low, y.high)]
    up = axis(ends, start=top + HEIGHT, length=-HEIGHT)
    parts = [*_frame(across, up, left, top, panel)]
    for index, points in enumerate(curves.values()):
        colour = COLOURS[index % len(COLOURS)]
        places = [(across.at(panel.x(p)), panel.y(p), panel.hollow(p)) for p in points]
        if points[0].plan.one_strength:
            path = " ".join(f"{x:.1f},{up.at(y.mean):.1f}" for x, y, _ in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5" opacity="0.7"/>')
        for x, y, hollow in places:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(y.low):.1f}" y2="{up.at(y.high):.1f}" stroke="{colour}" '
                'opacity="0.35"/>'
            )
            parts.append(_marker(index, x, up.at(y.mean), hollow=hollow))
    return parts


def _frame(across: Axis, up: Axis, left: float, top: float, panel: Panel) -> list[str]:
    bottom = top + HEIGHT
    parts = [f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#444"/>']
    for value in across.ticks():
        x = across.at(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="#eee"/>')
        parts.append(_text(x, bottom + 17, f"{value:,.0f}" if panel.logarithmic else f"{value:g}", anchor="middle"))
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(_text(left - 7, y + 4, f"{value:g}", anchor="end"))
    parts.append(_text(left + WIDTH / 2, bottom + 37, panel.x_name, anchor="middle"))
    x, y = left - 48, top + HEIGHT / 2
    parts.append(f'<g transform="rotate(-90 {x} {y})">{_text(x, y, panel.y_name, anchor="middle")}</g>')
    return parts


def _legend(labels: Sequence[str], left: float, top: float) -> list[str]:
    parts: list[str] = []
    for index, label in enumerate(labels):
        parts.append(_marker(index, left, top + 10 + 24 * index, hollow=False))
        parts.append(_text(left + 14, top + 14.5 + 24 * index, label))
    return parts


def _marker(index: int, x: float, y: float, *, hollow: bool) -> str:
    colour = COLOURS[index % len(COLOURS)]
    paint = f'fill="{"white" if hollow else colour}" stroke="{colour}" stroke-width="1.5"'
    match SHAPES[index // len(COLOURS) % len(SHAPES)]:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {paint}/>'
        case "square":
            return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {paint}/>'
        case "diamond":
            corners = ((0, -6), (6, 0), (0, 6), (-6, 0))
        case _:
            corners = ((0, -6), (6, 5), (-6, 5))
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}" {paint}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int | None = None) -> str:
    larger = "" if size is None else f' font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{larger} fill="#222">{escape(text)}</text>'
