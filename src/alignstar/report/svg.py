"""SVG elements and axes. Knows numbers and places; what they mean is the charts' business.

Every text and attribute is escaped by construction: an element is a `Markup`, anything else is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """`<name ...>children</name>`; an attribute class_ is written class, font_size font-size; None leaves one out."""
    written = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _written(value))
        for key, value in attributes.items()
        if value is not None
    ]
    opened = Markup("<") + Markup(name) + Markup("").join(written) + Markup(">")
    return opened + Markup("").join(escape(child) for child in children) + Markup(f"</{name}>")


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values from `low` to `high` onto pixels from `start` to `end`; `log` by ratio instead of by difference."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The value's pixel; values beyond the ends are drawn at the ends."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between the ends, about five."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def axis_over(values: Sequence[float], start: float, end: float, *, log: bool = False) -> Axis:
    """An axis that shows all of `values` with a little room at both ends; `log` needs positive values."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log:
        room = max((high / low) ** 0.06, 1.15)
        return Axis(low / room, high * room, start, end, log=True)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.5)
    return Axis(low - room, high + room, start, end)


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.99)
    first = math.ceil(low / step)
    return [step * n for n in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [10.0**p * f for p in powers for f in factors if low <= 10.0**p * f <= high]
        if len(found) >= 3:
            return found
    return _ticks(low, high)


def short(value: float) -> str:
    """A number for an axis: four digits at most, thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
