"""Curves over steps as an SVG of its own, with the style that the report's page gives its charts. Knows numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from alignstar.report.svg import Axis, axis_over, element, short

WIDTH, HEIGHT = 640.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 16.0, 44.0, 48.0
COLOURS = ("#0067a5", "#b3530a", "#00785a", "#a23b7c", "#6a51a3", "#5b6570")

STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#59636e}.title{font-size:14px;fill:#1b1f24}"
    ".grid{stroke:#d4d9df}polyline{fill:none;stroke-width:1.8}"
)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, title: str, x_title: str, y_title: str) -> str:
    """One line per series of (x, y), the points marked where there are few. Series without points are left out."""
    shown = {name: points for name, points in series.items() if points}
    x = axis_over([px for points in shown.values() for px, _ in points], LEFT, WIDTH - RIGHT)
    y = axis_over([py for points in shown.values() for _, py in points], HEIGHT - BOTTOM, TOP)
    parts = [element("rect", width=WIDTH, height=HEIGHT, fill="white"), *_axes(x, y, x_title, y_title)]
    for number, (name, points) in enumerate(shown.items()):
        parts += _line(x, y, points, COLOURS[number % len(COLOURS)], name)
    parts += [element("text", title, class_="title", x=LEFT, y=20), *_legend(list(shown))]
    return str(
        element(
            "svg", element("style", Markup(STYLE)), *parts, xmlns="http://www.w3.org/2000/svg", width=WIDTH,
            height=HEIGHT, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=title,
        )
    )  # fmt: skip


def _axes(x: Axis, y: Axis, x_title: str, y_title: str) -> list[Markup]:
    parts: list[Markup] = []
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM))
        parts.append(element("text", short(tick), x=at, y=HEIGHT - BOTTOM + 16, text_anchor="middle"))
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        parts.append(element("text", short(tick), x=LEFT - 6, y=at + 4, text_anchor="end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(element("text", x_title, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 12, text_anchor="middle"))
    turned = f"rotate(-90 14 {middle:g})"
    parts.append(element("text", y_title, x=14, y=middle, text_anchor="middle", transform=turned))
    return parts


def _line(x: Axis, y: Axis, points: Sequence[tuple[float, float]], colour: str, name: str) -> list[Markup]:
    places = [(x.at(px), y.at(py)) for px, py in points]
    line = element("polyline", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in places), stroke=colour)
    if len(points) > 60:
        return [line]
    marks = [
        element("circle", element("title", f"{name}: {short(py)} at {short(px)}"), cx=at[0], cy=at[1], r=3, fill=colour)
        for (px, py), at in zip(points, places, strict=True)
    ]
    return [line, *marks]


def _legend(names: Sequence[str]) -> list[Markup]:
    parts: list[Markup] = []
    at = LEFT
    for number, name in enumerate(names):
        parts.append(element("rect", x=at, y=28, width=12, height=4, fill=COLOURS[number % len(COLOURS)]))
        parts.append(element("text", name, x=at + 17, y=34))
        at += 17 + 7 * len(name) + 20
    return parts
