"""Two groups of annotators who disagree, and the noisy preferences they give.

The thorough group likes what the true reward `source` pays for, the brief group what `target` pays for. Each
annotator prefers by Bradley-Terry: P(a over b) = sigmoid(sharpness * (r(a) - r(b))). Knows no model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from alignstar.demo.truth import true_reward

TASTES = {"thorough": "source", "brief": "target"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotator:
    """A person with an id, a group from `TASTES`, and the sharpness of their choices (nats per unit of reward)."""

    id: str
    group: str
    sharpness: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply to a message; `complete` says that the writer ended it."""

    text: str
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """One annotator's choice between two replies to the same message."""

    message: str
    chosen: Reply
    rejected: Reply
    annotator: str
    group: str
    margin: float  # true reward of chosen minus rejected in the group's own taste; negative for a slip


def staff(*, n: int = 20, thorough_share: float = 0.5, sharpness: float = 8.0, seed: int = 0) -> list[Annotator]:
    """`n` annotators, of whom `thorough_share` (rounded) are thorough and warm and the rest brief and blunt.

    Each one's sharpness lies within a quarter of `sharpness`. Raises ValueError for a share outside [0, 1].
    """
    if not 0.0 <= thorough_share <= 1.0:
        raise ValueError(f"thorough_share={thorough_share} must lie in [0, 1].")
    rng = random.Random(f"staff {seed}")
    n_thorough = round(n * thorough_share)
    return [
        Annotator(
            id=f"{group}-{i:02d}",
            group=group,
            sharpness=sharpness * rng.uniform(0.75, 1.25),
        )
        for i in range(n)
        for group in ["thorough" if i < n_thorough else "brief"]
    ]


def annotate(
    pairs: Sequence[tuple[str, Reply, Reply]], *, annotators: Sequence[Annotator], seed: int = 0
) -> list[Preference]:
    """One noisy preference for each (message, reply, reply), by an annotator drawn at random."""
    rng = random.Random(f"annotate {seed}")
    preferences = []
    for message, first, second in pairs:
        person = rng.choice(annotators)
        gap = _liking(person, message, first) - _liking(person, message, second)
        first_wins = rng.random() < 0.5 * (1.0 + math.tanh(0.5 * person.sharpness * gap))
        chosen, rejected = (first, second) if first_wins else (second, first)
        preferences.append(
            Preference(
                message=message,
                chosen=chosen,
                rejected=rejected,
                annotator=person.id,
                group=person.group,
                margin=gap if first_wins else -gap,
            )
        )
    return preferences


def _liking(person: Annotator, message: str, reply: Reply) -> float:
    return true_reward(TASTES[person.group], message=message, reply=reply.text, complete=reply.complete)
