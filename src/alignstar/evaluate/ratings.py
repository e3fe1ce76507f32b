"""A reward against what people rated: reads rated replies, scores them, fits the line that makes ratings of scores.

A row has a prompt, a reply to it (as `completion`, or a last message) and a `rating`, a number on a scale that all
groups share. Knows files and rewards; the line itself is `alignstar.rewards.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.data import raw_rows
from alignstar.evaluate.recipe import Source
from alignstar.evaluate.rows import Example, example
from alignstar.meter import Meter, metering, together
from alignstar.rewards import Reward
from alignstar.rewards.calibration import Calibration, calibrate
from alignstar.types import Prompt, Reply

TOGETHER = 64
"""Replies that are scored at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A reply to a prompt, the example's `chosen`, and what it was rated."""

    example: Example
    rating: float


def read_ratings(data: Source) -> list[Rated]:
    """Every row of the source. Raises PromptError with its place for one without a reply or a finite rating."""
    found: list[Rated] = []
    for where, row in raw_rows(data):
        one = example(row, where=where, columns=data.columns, dialogue=data.dialogue)
        if one.chosen is None:
            raise PromptError(f"{where}: has no reply; give a completion, or messages that end with the assistant's.")
        found.append(Rated(example=one, rating=_rating(cast("Mapping[str, Any]", row).get("rating"), where)))
    if not found:
        raise OptionError(f"{data.source!r} has no row; give rated replies.")
    return found


def _rating(value: Any, where: str) -> float:
    try:
        rating = float(value)
    except (TypeError, ValueError):
        rating = math.nan
    if not math.isfinite(rating):
        raise PromptError(f"{where}: rating={value!r} must be a finite number; correct it or drop the row.")
    return rating


async def calibrated(
    reward: Reward, rated: Sequence[Rated], *, on_scored: Callable[[int], None] = lambda _done: None
) -> Calibration:
    """The line that makes ratings of the reward's scores. Raises OptionError where there is none; see `calibrate`.

    `on_scored` is called with how many replies have their score.
    """
    scores: list[float] = []
    for start in range(0, len(rated), TOGETHER):
        with metering(Meter()):
            told = await together([_scored(reward, one.example) for one in rated[start : start + TOGETHER]])
        scores.extend(told)
        on_scored(len(scores))
    return calibrate(scores, [one.rating for one in rated])


async def _scored(reward: Reward, one: Example) -> float:
    asked = Prompt(messages=one.prompt, text=one.shown, ids=())
    (score,) = await reward.score(asked, [Reply(text=one.chosen or "", complete=True)])
    return score
