"""What rewards can read: which of the reward models inside a reward are too small for a prompt and its responses."""

from __future__ import annotations

from collections.abc import Iterator

from alignstar.rewards import Reward
from alignstar.rewards.classifier import ClassifierReward
from alignstar.rewards.combine import Transformed, WeightedSum
from alignstar.rewards.groups import GroupRewards
from alignstar.types import Prompt


def reading(reward: Reward, prompt: Prompt) -> Iterator[tuple[str, int, int]]:
    """(name, tokens that the prompt takes, most tokens that it reads) of every reward model that has a limit."""
    if isinstance(reward, WeightedSum):
        for _, part in reward.parts:
            yield from reading(part, prompt)
    elif isinstance(reward, GroupRewards):
        for part in reward.parts:
            yield from reading(part, prompt)
    elif isinstance(reward, Transformed):
        yield from reading(reward.reward, prompt)
    elif isinstance(reward, ClassifierReward) and reward.max_context is not None:
        yield reward.name, reward.rendering.shortest(prompt), reward.max_context
