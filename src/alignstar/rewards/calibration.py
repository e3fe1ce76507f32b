"""Linear calibration: the straight line that makes a learned reward tell ratings, so that groups can be compared.

A reward learnt from choices is known up to its zero and its unit, so that "which group is worst off" has no meaning
between two of them: add a number to one and another group is. It gets one where both are brought to a scale that the
groups share, such as stars that people of each group gave to some replies. Ordinary least squares of the ratings on the
rewards estimate the rating to be expected at a reward. Knows numbers, no model and no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignstar.errors import OptionError
from alignstar.rewards import Reward
from alignstar.rewards.combine import Transformed, affine


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """slope * reward + intercept is the rating to be expected, in the ratings' unit.

    Found on `n` ratings; `explained` is the share of their variance that the line explains.
    """

    slope: float
    intercept: float
    explained: float
    n: int

    @property
    def step(self) -> str:
        """The transformation as a reward's line has it."""
        return f"affine:{self.slope!r},{self.intercept!r}"

    def of(self, reward: Reward) -> Transformed:
        """The reward on the scale of the ratings."""
        return affine(reward, self.slope, self.intercept)


def calibrate(rewards: Sequence[float], ratings: Sequence[float]) -> Calibration:
    """The line through (reward, rating) of some replies, in any order, with the least squared error of the ratings.

    Raises OptionError for numbers that are not finite, where rewards or ratings are all the same, and where the ratings
    do not rise with the reward.
    """
    x, y = np.asarray(rewards, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise OptionError("Rewards and ratings must be finite numbers; leave out what could not be scored.")
    if len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        raise OptionError(
            f"{len(x)} rated replies have one reward, or one rating, in all; a line needs different ones."
        )
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    if not slope > 0:
        raise OptionError(f"The ratings change by {slope:.3g} per unit of the reward; they must rise with it.")
    intercept = float(y.mean() - slope * x.mean())
    left = y - (slope * x + intercept)
    spread = y - y.mean()
    return Calibration(
        slope=slope, intercept=intercept, explained=1.0 - float(left @ left / (spread @ spread)), n=len(x)
    )
