"""What a value head learns from: tokens after states, and the rewards of where they lead, decoded on our own engine.

Knows an aligner; knows no head and no loss.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from alignstar.aligner import Aligner, Request
from alignstar.errors import NeedsError
from alignstar.models import TokenModel
from alignstar.sampling import Array, log_softmax
from alignstar.types import Candidate, Ids, Response

ALONG_WEIGHT = 0.3
"""Of a token within a rollout: those of one rollout share their value, and there are many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A token after a state and the `reward` of a response that goes on from there.

    `ended`: the token is the response's last one. `next_ids` [m] and `next_p` are the model's best tokens after it
    (none after the last one, or where nobody asked). `prompt` numbers the prompt; `weight` counts it so often.
    """

    state: Ids
    token: int
    reward: float
    ended: bool
    prompt: int
    next_ids: Ids = ()
    next_p: tuple[float, ...] = ()
    weight: float = 1.0

    @property
    def reached(self) -> Ids:
        """The state that the token makes."""
        return (*self.state, self.token)


Responses: TypeAlias = Mapping[int, Sequence[Seen]]
"""What was seen along responses, by the response's number: that of its prompt times `responses`, plus which of them."""

OnResponse: TypeAlias = Callable[[int, Sequence[Seen]], None]
"""Told the number of a response that is finished, and what was seen along it."""


async def drawn(
    aligner: Aligner,
    role: str,
    prompts: Sequence[Request],
    *,
    responses: int,
    top_m: int,
    max_new_tokens: int,
    seed: int,
    concurrency: int,
    known: Responses = MappingProxyType({}),
    on_response: OnResponse = lambda number, seen: None,
) -> list[Seen]:
    """Every token of `responses` responses drawn from the model for each prompt, with the reward of the whole.

    `top_m` next tokens are told after each (0: none). A response without a usable reward is left out. Those that are
    `known` are not drawn again.
    """
    model = _tokens(aligner, role)

    async def seen_along(prompt: int, response: Response) -> list[Seen]:
        ids, start, reward = response.ids, response.prompt.ids, response.reward
        if reward is None or reward == -float("inf"):
            return []
        after = [await _next(model, start + ids[: t + 1], top_m) for t in range(len(ids) - 1)] if top_m else []
        seen: list[Seen] = []
        for t, token in enumerate(ids):
            last = t + 1 == len(ids)
            next_ids, next_p = ((), ()) if last or not top_m else after[t]
            seen.append(
                Seen(
                    state=start + ids[:t], token=token, reward=reward, ended=last, prompt=prompt, next_ids=next_ids,
                    next_p=next_p,
                )
            )  # fmt: skip
        return seen

    request: dict[str, Any] = {"method": "sample", "model": role, "max_new_tokens": max_new_tokens}
    return await _each(
        aligner, prompts, seen_along, responses=responses, seed=seed, concurrency=concurrency, known=known,
        on_response=on_response, **request,
    )  # fmt: skip


async def valued(
    aligner: Aligner,
    prompts: Sequence[Request],
    *,
    responses: int,
    max_new_tokens: int,
    seed: int,
    concurrency: int,
    along: int = 0,
    first: int = 0,
    known: Responses = MappingProxyType({}),
    on_response: OnResponse = lambda number, seen: None,
    **options: Any,
) -> list[Seen]:
    """Every candidate of Transfer Q* with its value TQ*(s, z) by rollouts, at the states that `transfer-q` visits.

    A candidate that ends the response has its exact reward. Those without a usable value are left out. `along`: of so
    many rollouts per response, at most, that lead elsewhere, every token with its value too. That is the value of the
    whole where rollouts are complete and greedy: a rollout from within is the rest of it. Prompts are numbered from
    `first` on. Responses that are `known` are not decoded again.
    """

    async def seen_along(prompt: int, response: Response) -> list[Seen]:
        state, seen, elsewhere = response.prompt.ids, list[Seen](), list[tuple[Ids, Candidate]]()
        for step in response.steps:
            for i, c in enumerate(step.considered):
                if c.value is not None and c.value != -float("inf"):
                    seen.append(_seen(state, c.ids[0], c.value, prompt))
                    if i != step.chosen and c.future:
                        elsewhere.append((state, c))
            state += step.emitted
        for before, c in elsewhere[:: -(-len(elsewhere) // along)] if along and elsewhere else ():
            for t, token in enumerate(c.future):
                told = _seen((*before, *c.ids, *c.future[:t]), token, c.value or 0.0, prompt)
                seen.append(replace(told, weight=ALONG_WEIGHT))
        return seen

    def _seen(state: Ids, token: int, value: float, prompt: int) -> Seen:
        return Seen(state=state, token=token, reward=value, ended=token in aligner.codec.eos_ids, prompt=prompt)

    request: dict[str, Any] = {
        "method": "transfer-q",
        "acceleration": "off",
        "max_new_tokens": max_new_tokens,
        **options,
    }
    return await _each(
        aligner, prompts, seen_along, responses=responses, seed=seed, concurrency=concurrency, first=first, known=known,
        on_response=on_response, **request,
    )  # fmt: skip


async def _each(
    aligner: Aligner,
    prompts: Sequence[Request],
    seen_along: Callable[[int, Response], Awaitable[Sequence[Seen]]],
    *,
    responses: int,
    seed: int,
    known: Responses,
    on_response: OnResponse,
    first: int = 0,
    **request: Any,
) -> list[Seen]:
    """What is seen along all responses, each with a seed of its own; the order depends on nothing else."""
    numbers = range(first * responses, (first + len(prompts)) * responses)
    done = {number: known[number] for number in numbers if number in known}
    left = [number for number in numbers if number not in known]
    going = aligner.agenerate_many(
        [prompts[number // responses - first] for number in left], seeds=[seed + number for number in left], **request
    )
    async with aclosing(going):
        async for place, response in going:
            number = left[place]
            done[number] = await seen_along(number // responses, response)
            on_response(number, done[number])
    ordered = (s for number in numbers for s in done[number])
    return sorted(ordered, key=lambda s: (s.prompt, s.state, s.token))


async def _next(model: TokenModel, state: Ids, m: int) -> tuple[Ids, tuple[float, ...]]:
    """The m best next tokens and their shares of each other's probability."""
    top = await model.top_next(state, m)
    shares: Array = np.exp(log_softmax(top.logps))
    return tuple(top.ids.tolist()), tuple(shares.tolist())


def _tokens(aligner: Aligner, role: str) -> TokenModel:
    model = aligner.models[role]
    if not isinstance(model, TokenModel):
        raise NeedsError(
            f"Training a value head needs next-token log-probabilities, which {model.name!r} does not tell."
        )
    return model
