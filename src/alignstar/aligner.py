"""The main path: models, a codec, rewards and one method make a Response.

Checks a request at the edge, runs the method's generator in one task of its own under its own meter, and follows it
with a reader. Knows no method by name and decodes nothing itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeAlias

from alignstar.background import BACKGROUND
from alignstar.engine import Engine
from alignstar.errors import NeedsError, OptionError, PromptError
from alignstar.meter import Meter, metering
from alignstar.methods import load
from alignstar.methods.presets import Preset
from alignstar.methods.presets import preset as preset_named
from alignstar.methods.roles import models_used
from alignstar.models import Sampler, TokenModel
from alignstar.models.value import ValueModel
from alignstar.options import RoleNeed, complete, roles
from alignstar.rewards import Reward, Scorer
from alignstar.rewards.groups import has_game, weighted_for
from alignstar.rewards.limits import reading
from alignstar.streaming import AsyncStream, Emit, Reader, Stream
from alignstar.text import Codec, Stops
from alignstar.types import Ids, Message, Prompt, Response, Step

Request: TypeAlias = str | Sequence[Message] | Prompt
"""What can be answered: a text, a conversation, or a prompt that is made already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """A request that was found in order; `start`, called with what is `bound`, makes the method's generator."""

    prompt: Prompt
    method: str
    options: Mapping[str, Any]
    seed: int
    stops: Stops
    bound: Mapping[str, Any]
    start: Callable[..., AsyncGenerator[Step, None]]


class Aligner:
    """Models and rewards by role, ready to answer. May be used from any thread and any event loop.

    Every call takes `method` or `preset`, `seed`, `max_new_tokens`, `stop` (strings that end a response and are cut
    off), `chat` (apply the chat template; None: where there is one), `truncate` ("left": cut a prompt that is too long
    instead of refusing it) and the method's options as keywords. The plain calls run on one background loop; `a...` are
    their async forms. All raise UserError before anything starts when the request is not in order.
    """

    def __init__(
        self,
        *,
        sft: Sampler | None = None,
        baseline: Sampler | None = None,
        reward: Reward | None = None,
        baseline_reward: Reward | None = None,
        value: ValueModel | None = None,
        codec: Codec,
        engine: Engine | None = None,
    ) -> None:
        models = {"sft": sft, "baseline": baseline}
        rewards = {"reward": reward, "baseline_reward": baseline_reward}
        self.models: Mapping[str, Sampler] = {role: m for role, m in models.items() if m is not None}
        self.rewards: Mapping[str, Reward] = {role: r for role, r in rewards.items() if r is not None}
        self.values: Mapping[str, ValueModel] = {} if value is None else {"value": value}
        self.codec = codec
        self._engine = engine

    def generate(self, prompt: Request, **request: Any) -> Response:
        """One response; see the class for the keywords."""
        return BACKGROUND.run(self.agenerate(prompt, **request))

    def generate_many(self, prompts: Sequence[Request], **request: Any) -> list[Response]:
        """One response per prompt, in the order of the prompts; keywords as for `agenerate_many`."""
        done = dict(self.generate_as_completed(prompts, **request))
        return [done[i] for i in range(len(prompts))]

    def generate_as_completed(
        self, prompts: Sequence[Request], **request: Any
    ) -> Generator[tuple[int, Response], None, None]:
        """(index of the prompt, response) as responses finish; keywords as for `agenerate_many`.

        Closing the generator cancels what still runs.
        """
        return BACKGROUND.iterate(self.agenerate_many(prompts, **request))

    def stream(self, prompt: Request, **request: Any) -> Stream:
        """The Steps of one response as they are decided, with the text that each adds."""
        return Stream(self.astream(prompt, **request))

    async def agenerate(self, prompt: Request, **request: Any) -> Response:
        """One response; see the class for the keywords. Cancelling the call cancels the request."""
        # A task of its own: the meter is a context variable, and the caller's context must not see it.
        return await asyncio.create_task(self._run(self._plan(prompt, **request), _ignore))

    def astream(self, prompt: Request, **request: Any) -> AsyncStream:
        """The Steps of one response; a slow reader holds up this request only."""
        plan = self._plan(prompt, **request)
        return AsyncStream(lambda emit: self._run(plan, emit))

    async def agenerate_many(
        self,
        prompts: Sequence[Request],
        *,
        concurrency: int = 16,
        seeds: Sequence[int] | None = None,
        **request: Any,
    ) -> AsyncGenerator[tuple[int, Response], None]:
        """(index of the prompt, response) as responses finish, at most `concurrency` of them running.

        `seeds` gives each prompt its own (None: all have `seed`). If one fails, the others are cancelled.
        """
        if concurrency < 1:
            raise OptionError(f"concurrency={concurrency} must be at least 1; leave it out for 16.")
        if seeds is not None and len(seeds) != len(prompts):
            raise OptionError(f"{len(seeds)} seeds were given for {len(prompts)} prompts; give one for each.")
        own: Sequence[dict[str, Any]] = [{}] * len(prompts) if seeds is None else [{"seed": seed} for seed in seeds]
        plans = [self._plan(p, **{**request, **more}) for p, more in zip(prompts, own, strict=True)]
        gate = asyncio.Semaphore(concurrency)

        async def numbered(index: int, plan: _Plan) -> tuple[int, Response]:
            async with gate:
                return index, await self._run(plan, _ignore)

        tasks = [asyncio.create_task(numbered(i, plan)) for i, plan in enumerate(plans)]
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End the engine's thread; what still runs fails."""
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> Aligner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _run(self, plan: _Plan, emit: Emit) -> Response:
        """Drive the method's generator from first to last in the task that this runs in."""
        reader, taken = Reader(self.codec, plan.stops), list[Step]()
        started = time.perf_counter()
        with metering(Meter(watched=emit is not _ignore or bool(plan.stops.strings))) as meter:
            async with aclosing(plan.start(**await self._after_games(plan))) as steps:
                async for step in steps:
                    taken.append(reader.read(step))
                    await emit(taken[-1])
                    if taken[-1].finish is not None:
                        break
            usage = meter.usage(wall_s=time.perf_counter() - started)
        return Response(
            prompt=plan.prompt,
            text=reader.text,
            ids=reader.ids,
            method=plan.method,
            finish_reason=taken[-1].finish or "length",
            reward=await self._final_reward(plan, reader.ids),
            seed=plan.seed,
            usage=usage,
            steps=tuple(taken),
            options=plan.options,
        )

    @property
    def _reference(self) -> str:
        """The role of the model from which a game's responses are drawn."""
        return "sft" if "sft" in self.models else "baseline"

    async def _after_games(self, plan: _Plan) -> dict[str, Any]:
        """What the method is bound to; a game of groups is played, and its reward weighted for this prompt."""
        bound = dict(plan.bound)
        for name in self.rewards:
            if name in bound and has_game(self.rewards[name]):
                bound[name] = await weighted_for(
                    plan.prompt,
                    bound[name],
                    self.models[self._reference],
                    max_new_tokens=plan.options["max_new_tokens"],
                    seed=plan.seed,
                )
        return bound

    async def _final_reward(self, plan: _Plan, ids: Ids) -> float | None:
        if "reward" not in self.rewards:
            return None
        with metering(Meter()):  # looking at the result is no part of what it cost
            scores = await Scorer(self.rewards["reward"], self.codec, plan.stops)(plan.prompt, [ids])
        return float(scores[0])

    def _plan(
        self,
        prompt: Request,
        *,
        method: str = "transfer-q",
        preset: str | None = None,
        seed: int = 0,
        max_new_tokens: int = 128,
        stop: str | Sequence[str] = (),
        chat: bool | None = None,
        truncate: Literal["left"] | None = None,
        **options: Any,
    ) -> _Plan:
        chosen = None if preset is None else _preset_for(preset, method)
        full = complete(method, {**options, "seed": seed, "max_new_tokens": max_new_tokens}, chosen)
        stops = Stops((stop,) if isinstance(stop, str) else tuple(stop))
        needs = roles(method)
        used = models_used(full, frozenset(self.models)) | {need.name for need in needs if need.required}
        bound = self._bound(method, needs, used, stops)
        if chat is None and chosen is not None:
            chat = chosen.chat
        made = prompt if isinstance(prompt, Prompt) else self.codec.prompt(prompt, chat=chat)
        drawing = {self._reference} if any(has_game(reward) for reward in self.rewards.values()) else set[str]()
        fitting = self._fitting(made, used | drawing, full, truncate)
        return _Plan(
            prompt=fitting,
            method=method,
            options={name: value for name, value in full.items() if name != "seed"},
            seed=seed,
            stops=stops,
            bound=bound,
            start=partial(load(method), fitting, **full),
        )

    def _bound(self, method: str, needs: Sequence[RoleNeed], used: frozenset[str], stops: Stops) -> dict[str, Any]:
        """The models and scorers that the method takes, by parameter. Raises NeedsError for one that is missing."""
        bound: dict[str, Any] = {}
        for need in needs:
            if need.name in self.models:
                bound[need.name] = self.models[need.name]
            elif need.name in self.values:
                bound[need.name] = self.values[need.name]
            elif need.name in self.rewards:
                bound[need.name] = Scorer(self.rewards[need.name], self.codec, stops)
            elif need.required or need.name in used:
                flag = need.name.replace("_", "-")
                what = "a reward" if need.name == "reward" else f"the {need.name} model"
                raise NeedsError(f"method={method!r} needs {what}; give one with --{flag}.")
            if need.tokens and need.name in used and not isinstance(bound[need.name], TokenModel):
                raise NeedsError(
                    f"method={method!r} needs next-token log-probabilities, which {bound[need.name].name!r} does not "
                    "tell; use a method for which text is enough, such as best-of-n."
                )
        return bound

    def _fitting(
        self, prompt: Prompt, used: frozenset[str], options: Mapping[str, Any], truncate: Literal["left"] | None
    ) -> Prompt:
        """The prompt, cut at its left where that was asked for. Raises PromptError where it does not fit."""
        if truncate not in (None, "left"):
            raise OptionError(f"truncate={truncate!r} must be 'left' or none; leave it out to refuse long prompts.")
        following = _may_follow(options)
        for role, reward in self.rewards.items():
            for name, length, limit in reading(reward, prompt):
                if truncate is None and length + following > limit:
                    raise PromptError(
                        f"The prompt has {length} tokens for the {role.replace('_', ' ')} {name} and {following} may "
                        f"follow, but it reads {limit}; shorten it, lower max_new_tokens, or cut it with truncate=left."
                    )
        reading_ids = {**self.models, **self.values}
        limits = {name: m.max_context for role, m in reading_ids.items() if role in used for name in [m.name]}
        known = {name: limit for name, limit in limits.items() if limit is not None}
        if not known:
            return prompt
        name = min(known, key=lambda n: known[n])
        if len(prompt.ids) + following <= known[name]:
            return prompt
        if truncate == "left" and known[name] > following:
            kept = prompt.ids[-(known[name] - following) :]
            return replace(prompt, ids=kept, text=self.codec.decode(kept, special=True))
        raise PromptError(
            f"The prompt has {len(prompt.ids)} tokens and {following} may follow, but {name} reads {known[name]}; "
            "shorten it, lower max_new_tokens, or cut it with truncate=left."
        )


async def _ignore(step: Step) -> None:
    """Nobody reads along."""


def _preset_for(name: str, method: str) -> Preset:
    chosen = preset_named(name)
    if chosen.method != method:
        raise OptionError(
            f"preset={name!r} belongs to method={chosen.method!r}, not {method!r}; leave one of them out."
        )
    return chosen


def _may_follow(options: Mapping[str, Any]) -> int:
    """Most positions after the prompt: the response, and rollouts that go on beyond it."""
    length = options.get("rollout_len")
    beyond = 20 if length == "auto" else length or 0
    return options["max_new_tokens"] + (beyond if options.get("rollout_past_max") else 0)
