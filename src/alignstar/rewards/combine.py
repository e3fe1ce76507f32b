"""Rewards made of rewards: weighted sum, affine, standardise, clip, sigmoid. Each knows its range from its parts'.

NaN passes through unchanged (the Scorer decides what becomes of it). Bounds are computed by the same floating-point
operations as scores, so that a score never leaves its range by a rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from alignstar.errors import OptionError
from alignstar.meter import together
from alignstar.rewards import Reward
from alignstar.types import Prompt, Reply

Range = tuple[float, float]


class WeightedSum:
    """Sum of weight times reward; the parts are asked concurrently. A range where every part has one."""

    def __init__(self, parts: Sequence[tuple[float, Reward]]) -> None:
        if not parts:
            raise OptionError("A weighted sum has no reward; give it at least one.")
        for weight, reward in parts:
            if not math.isfinite(weight):
                raise OptionError(f"The weight {weight} of {reward.name!r} must be a finite number.")
        self.parts = tuple(parts)

    @property
    def name(self) -> str:
        """The parts with their weights."""
        return " + ".join(f"{weight:g}*{reward.name}" for weight, reward in self.parts)

    @property
    def range(self) -> Range | None:
        """Interval arithmetic over the parts."""
        low, high = 0.0, 0.0
        for weight, reward in self.parts:
            bounds = reward.range
            if bounds is None:
                return None
            low += weight * bounds[weight < 0]
            high += weight * bounds[weight >= 0]
        return low, high

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """One weighted sum per reply."""
        columns = await together([reward.score(prompt, replies) for _, reward in self.parts])
        totals = [0.0] * len(replies)
        for (weight, _), column in zip(self.parts, columns, strict=True):
            totals = [total + weight * x for total, x in zip(totals, column, strict=True)]
        return totals


class Transformed:
    """A non-decreasing function of one reward; its bounds are the function of the reward's bounds."""

    def __init__(self, reward: Reward, name: str, function: Callable[[float], float], image: Range | None) -> None:
        self.reward = reward
        self.name = f"{name}({reward.name})"
        self._function = function
        self._image = image

    @property
    def range(self) -> Range | None:
        """The part's bounds, carried over; else the function's own."""
        bounds = self.reward.range
        return self._image if bounds is None else (self._function(bounds[0]), self._function(bounds[1]))

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        """The function of each score, inside the range; NaN stays NaN."""
        low, high = self.range or (-math.inf, math.inf)
        scores = await self.reward.score(prompt, replies)
        return [x if math.isnan(x) else min(max(self._function(x), low), high) for x in scores]


def affine(reward: Reward, slope: float, intercept: float) -> Transformed:
    """The reward in another unit and with another zero: slope * reward + intercept.

    `alignstar.rewards.calibration` finds the numbers that make a reward tell ratings. Raises OptionError unless
    slope > 0 and both are finite.
    """
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise OptionError(f"affine:{slope},{intercept} needs a finite slope above 0 and a finite intercept.")
    return Transformed(reward, f"affine[{slope:g},{intercept:g}]", lambda x: slope * x + intercept, None)


def standardise(reward: Reward, mean: float, std: float) -> Transformed:
    """(reward - mean) / std with fixed numbers. Raises OptionError unless std > 0 and both are finite."""
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise OptionError(f"standardise:{mean},{std} needs a finite mean and a standard deviation above 0.")
    return Transformed(reward, f"standardise[{mean:g},{std:g}]", lambda x: (x - mean) / std, None)


def clip(reward: Reward, low: float, high: float) -> Transformed:
    """The reward, held between low and high (also where it is infinite). Raises OptionError unless low < high."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError(f"clip:{low},{high} needs two finite bounds, the lower one first.")
    return Transformed(reward, f"clip[{low:g},{high:g}]", lambda x: min(max(x, low), high), (low, high))


def sigmoid(reward: Reward, scale: float = 1.0) -> Transformed:
    """1 / (1 + exp(-reward / scale)), in (0, 1). Raises OptionError unless scale > 0."""
    if not (math.isfinite(scale) and scale > 0):
        raise OptionError(f"sigmoid:{scale} needs a scale above 0.")

    def function(x: float) -> float:
        # The same as 1 / (1 + exp(-x / scale)), without its overflow.
        return 0.5 * (1.0 + math.tanh(0.5 * (x / scale)))

    return Transformed(reward, f"sigmoid[{scale:g}]", function, (0.0, 1.0))
