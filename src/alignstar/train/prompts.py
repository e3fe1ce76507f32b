"""Prompts that models answer while they are trained or learnt from: read, and those for which there is room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alignstar.errors import OptionError, PromptError
from alignstar.rewards import Reward
from alignstar.rewards.limits import reading
from alignstar.text import Codec
from alignstar.types import Message, Prompt


def encoded(codec: Codec, placed: Iterable[tuple[str, str | Sequence[Message]]]) -> list[Prompt]:
    """The prompts of requests, each given with where it stands. Raises PromptError, which says where."""
    prompts: list[Prompt] = []
    for where, request in placed:
        try:
            prompts.append(codec.prompt(request))
        except PromptError as error:
            raise PromptError(f"{where}: {error}") from None
    return prompts


def with_room(
    prompts: Sequence[Prompt], *, limit: int | None, rewards: Sequence[Reward], following: int
) -> list[Prompt]:
    """Those after which `following` tokens fit into the `limit` of a model and into what the rewards read.

    Raises OptionError where none is left.
    """
    kept = [
        prompt
        for prompt in prompts
        if (limit is None or len(prompt.ids) + following <= limit)
        and all(length + following <= most for reward in rewards for _, length, most in reading(reward, prompt))
    ]
    if not kept:
        raise OptionError(
            f"None of {len(prompts):,} prompts leaves room for max_new_tokens={following} in the model and the "
            "rewards; shorten them, or lower max_new_tokens."
        )
    return kept


def left_out(prompts: int, kept: int) -> dict[str, int]:
    """How many were left out, by the reason; empty where none was."""
    return {"leave no room for a response": prompts - kept} if prompts > kept else {}
