"""From a recipe to a folder of units: plans, decodes, scores, stores. Safe against being ended at any moment.

Every unit is stored as soon as it is finished; taking a run up again makes those that are missing or had failed. One
bad prompt costs one unit. Knows nothing of the terminal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignstar.errors import OptionError
from alignstar.evaluate.answers import Finished, answer_all, check
from alignstar.evaluate.data import Sample, read_sample
from alignstar.evaluate.environment import environment
from alignstar.evaluate.plan import Task, fixed, refuse_other, tasks
from alignstar.evaluate.recipe import Recipe, Resolved
from alignstar.evaluate.store import Store
from alignstar.evaluate.units import Unit
from alignstar.evaluate.workers import in_processes
from alignstar.evaluate.worlds import World, identities, open_codec, open_world
from alignstar.text import Codec
from alignstar.types import Message


class Watcher(Protocol):
    """Follows a run."""

    def begin(self, *, total: int, done: int, sample: Sample) -> None:
        """It is known how many units there are, and how many of them an earlier run has made."""
        ...

    def finished(self, unit: Unit) -> None:
        """A unit was stored."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run has in the end: units, of which so many failed, and what the data left out."""

    units: int
    failed: int
    sample: Sample


def run(resolved: Resolved, folder: Path, *, resume: bool, workers: int, watcher: Watcher) -> Outcome:
    """Make every unit that `folder` does not hold yet, and export the whole.

    Raises OptionError where `folder` holds another run, or one and not `resume`; UserError for whatever the recipe asks
    for that cannot be had; FailedError where a worker process ends. What was finished by then is stored.
    """
    recipe = resolved.recipe
    if workers < 1:
        raise OptionError(f"workers={workers} must be at least 1; leave it out for 1.")
    if recipe.unknown:
        raise OptionError(
            f"The recipe says null for {', '.join(recipe.unknown)}: nobody has said what that is; fill it in, or price "
            "the recipe with --dry-run."
        )
    with Store(folder) as store, ExitStack() as opened:
        stored = store.about()
        if stored and not resume:
            raise OptionError(f"{str(folder)!r} holds a run already; go on with --resume, or give another --out.")
        identity = identities(recipe)
        world = opened.enter_context(open_world(recipe)) if workers == 1 else None
        sample = read_sample(recipe.data, count_tokens=_counter(recipe, world))
        resolved = resolved.stopping(written_out=any(example.written_out for example in sample.examples))
        recipe = resolved.recipe
        now = fixed(resolved, identity, sample.examples)
        if stored:
            refuse_other(stored["fixed"], now, folder=str(folder))
        data = {"rows": sample.rows, "used": len(sample.examples), "skipped": sample.skipped}
        store.describe(recipe=resolved.as_json(), environment=environment(data), fixed=now)
        failed = store.keys()
        wanted = list(tasks(resolved, identity, sample.examples))
        missing = [task for task in wanted if failed.get(task.key, True)]
        watcher.begin(total=len(wanted), done=len(wanted) - len(missing), sample=sample)

        def finished(task: Task, unit: Unit) -> None:
            store.add(unit, task.place)
            watcher.finished(unit)

        if missing and world is not None:
            asyncio.run(_here(world, recipe, missing, finished))
        elif missing:
            in_processes(recipe, missing, finished, workers=min(workers, len(missing)))
        store.export()
        kept = store.keys()
        return Outcome(units=len(kept), failed=sum(kept.values()), sample=sample)


def _counter(recipe: Recipe, world: World | None) -> Callable[[tuple[Message, ...]], int] | None:
    """Counts a prompt's tokens, where the recipe limits them."""
    if recipe.data.max_prompt_tokens is None:
        return None
    codec: Codec = open_codec(recipe) if world is None else world.aligner.codec
    return lambda messages: len(codec.prompt(messages, chat=recipe.chat).ids)


async def _here(world: World, recipe: Recipe, missing: Sequence[Task], finished: Finished) -> None:
    check(world, recipe, missing)
    queue = iter(missing)

    async def following() -> Task | None:
        return next(queue, None)

    await answer_all(world, recipe, following, finished)
