"""What makes two groups comparable: stars that both give to replies, rewards calibrated on them, weights over prompts.

The SFT model answers training prompts; each group gives some of the replies one to five stars by its own taste, and
each learned reward is calibrated on its group's stars (`alignstar.rewards.calibration`). On that scale the game over
all of these prompts has one weighting of the groups. Evaluation prompts are not among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from alignstar.aligner import Aligner
from alignstar.demo.customers import message
from alignstar.rewards import Reward, Scorer
from alignstar.rewards.calibration import Calibration, calibrate
from alignstar.rewards.game import weights_over_prompts
from alignstar.sampling import Array

True_: TypeAlias = Callable[[str, str, bool], Mapping[str, float]]
"""(message, reply, complete) -> the true reward of every taste."""

PROMPTS, DRAWS = 64, 16
"""Training prompts, and replies to each that the game is played on."""
RATED = 4
"""Of a prompt's replies so many are rated."""
STARS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """By taste, what brings its reward to stars, and its weight in the game over all prompts."""

    calibrated: Mapping[str, Calibration]
    weights: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Keys: calibrated (slope, intercept, explained, n by taste), weights."""
        return {
            "calibrated": {taste: asdict(line) for taste, line in self.calibrated.items()},
            "weights": dict(self.weights),
        }


def training_messages(count: int = PROMPTS) -> list[str]:
    """Customers' messages of the training split, distinct."""
    rng, texts = random.Random("ratings"), dict[str, None]()
    while len(texts) < count:
        texts.setdefault(message(rng, split="train").text)
    return list(texts)


def stars(truth: float) -> float:
    """A true reward in [0, 1] as whole stars, one to five, of which one is 0 and five are 1."""
    return round(truth * (STARS - 1)) / (STARS - 1)


def shared(
    base: Aligner, rewards: Mapping[str, Reward], *, messages: Sequence[str], true: True_, max_new_tokens: int,
    beta: float, draws: int = DRAWS,
) -> Shared:  # fmt: skip
    """What these messages tell of the rewards by taste; `beta` is the game's strength, in stars as above."""
    found: dict[str, Calibration] = {}
    scores: dict[str, Array] = {}
    for taste, reward in rewards.items():
        scores[taste], given = _rated(base, reward, messages, max_new_tokens, draws, lambda *of, t=taste: true(*of)[t])
        found[taste] = calibrate(scores[taste][:, :RATED].ravel().tolist(), given.ravel().tolist())
    by_group = np.stack([line.slope * scores[taste] + line.intercept for taste, line in found.items()], axis=2)
    weights = weights_over_prompts(list(by_group), beta)
    return Shared(calibrated=found, weights=dict(zip(found, weights.tolist(), strict=True)))


def _rated(
    base: Aligner, reward: Reward, messages: Sequence[str], max_new_tokens: int, draws: int,
    true: Callable[[str, str, bool], float],
) -> tuple[Array, Array]:  # fmt: skip
    """The rewards [prompts, draws] of replies, those to prompt i drawn with seed i; stars of the first few of each."""
    aligner = Aligner(sft=base.models["sft"], reward=reward, codec=base.codec)
    scorer = Scorer(reward, base.codec)
    answered = aligner.generate_many(
        messages, seeds=range(len(messages)), method="best-of-n", model="sft", n=draws, max_new_tokens=max_new_tokens
    )
    drawn = [response.steps[0].considered for response in answered]
    replies = [[scorer.reply(one.ids) for one in row[:RATED]] for row in drawn]
    given = [
        [stars(true(text, reply.text, reply.complete)) for reply in row]
        for text, row in zip(messages, replies, strict=True)
    ]
    return np.array([[one.score for one in row] for row in drawn]), np.array(given)
