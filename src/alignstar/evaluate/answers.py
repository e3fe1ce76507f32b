"""Makes units of tasks with opened models: decodes, scores by every reward, measures the divergence.

One bad prompt costs one unit. Knows neither where units are kept nor in which process it runs.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict
from typing import Any, TypeAlias

from alignstar.errors import AlignstarError, PromptError, UserError
from alignstar.evaluate.kl import divergence
from alignstar.evaluate.plan import Task
from alignstar.evaluate.recipe import Recipe
from alignstar.evaluate.units import Unit
from alignstar.evaluate.worlds import World
from alignstar.meter import Meter, metering, together
from alignstar.rewards import Scorer
from alignstar.text import Codec, Stops
from alignstar.types import Response, Step

Finished: TypeAlias = Callable[[Task, Unit], None]
"""Called with every unit, once it is made."""


async def answer_all(
    world: World, recipe: Recipe, following: Callable[[], Awaitable[Task | None]], finished: Finished
) -> None:
    """Make the tasks that `following` gives until it gives None, `recipe.concurrency` of them at a time."""

    async def work() -> None:
        while (task := await following()) is not None:
            finished(task, await answer(world, recipe, task))

    await together([work() for _ in range(recipe.concurrency)])


async def answer(world: World, recipe: Recipe, task: Task) -> Unit:
    """The unit of a task; whatever goes wrong with it is in its `error`."""
    made: dict[str, Any] = {
        "key": task.key,
        "method": task.entry.label,
        "options": task.entry.options,
        "prompt_index": task.prompt_index,
        "prompt": task.shown,
        "seed": task.seed,
    }
    try:
        response = await world.aligner.agenerate(task.messages, **_request(recipe, task))
        rewards = await _rewards(world, recipe, response)
        kl = await divergence(response, world.aligner.models)
    except Exception as error:  # noqa: BLE001 - a run of hours does not end for one prompt; the error is kept and counted
        told = str(error) if isinstance(error, AlignstarError) else f"{type(error).__name__}: {error}"
        return Unit(
            **made,
            response="",
            response_ids=(),
            finish_reason="error",
            rewards=dict.fromkeys(recipe.rewards),
            kl=None,
            usage={},
            steps=(),
            error=told,
        )
    return Unit(
        **made,
        response=response.text,
        response_ids=response.ids,
        finish_reason=response.finish_reason,
        rewards=rewards,
        kl=None if kl is None else kl.plain,
        kl_rao_blackwell=None if kl is None else kl.rao_blackwell,
        usage=asdict(response.usage),
        steps=tuple(_traced(step, world.aligner.codec) for step in response.steps) if task.traced else (),
        error=None,
    )


def _traced(step: Step, codec: Codec) -> dict[str, Any]:
    """The step for the trace: beside each candidate's ids their text, which a reader of the run could not work out."""
    considered = [{**asdict(one), "text": codec.decode(one.ids, special=True)} for one in step.considered]
    return {**asdict(step), "considered": considered}


def check(world: World, recipe: Recipe, tasks: Iterable[Task]) -> None:
    """Raise UserError where a method cannot run with these models, whatever the prompt."""
    for task in {task.entry.label: task for task in tasks}.values():
        try:
            world.aligner.astream(task.messages, **_request(recipe, task))  # planned, and never started
        except PromptError:
            continue
        except UserError as error:
            raise type(error)(f"{task.entry.label!r}: {error}") from error


def _request(recipe: Recipe, task: Task) -> dict[str, Any]:
    entry = task.entry
    how = {"stop": recipe.stop or (), "chat": entry.chat, "truncate": recipe.truncate}
    return {"method": entry.method, "seed": task.seed, **how, **entry.options}


async def _rewards(world: World, recipe: Recipe, response: Response) -> dict[str, float | None]:
    """The response's score by every reward of the recipe, in its order."""
    stops = Stops(recipe.stop or ())
    scores: dict[str, float | None] = {} if world.optimised is None else {world.optimised: response.reward}
    for name, reward in world.others.items():
        with metering(Meter()):  # looking at a result is no part of what it cost
            scored = await Scorer(reward, world.aligner.codec, stops)(response.prompt, [response.ids])
        scores[name] = float(scored[0])
    finite = {name: score if score is not None and math.isfinite(score) else None for name, score in scores.items()}
    return {name: finite[name] for name in recipe.rewards}
