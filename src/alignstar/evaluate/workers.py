"""The same work in several processes, each with its own models and its share of the cores.

A worker is given tasks and sends units back; only the parent writes. A worker whose parent is gone ends itself. Knows
neither methods nor the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import cast

from alignstar.errors import AlignstarError, FailedError
from alignstar.evaluate.answers import Finished, answer_all, check
from alignstar.evaluate.plan import Task
from alignstar.evaluate.recipe import Recipe
from alignstar.evaluate.units import Unit
from alignstar.evaluate.worlds import open_world

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that the numeric libraries read when they start."""

SETTLING_S = 10.0
"""Longest wait for a worker to end by itself."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process and the line to it: places in the list of tasks go there, (place, unit) come back."""

    process: SpawnProcess
    line: Connection

    def give(self, place: int | None) -> None:
        """Ask for a task, or say that there are no more. That it has died is noticed when its line is read."""
        with contextlib.suppress(ConnectionError):
            self.line.send(place)


def in_processes(recipe: Recipe, missing: Sequence[Task], finished: Finished, *, workers: int) -> None:
    """Make the tasks in `workers` processes; `finished` is called here as units come.

    Raises what opening the models or checking a method raises there, FailedError where a process ends early.
    """
    places, left = iter(range(len(missing))), len(missing)
    with _started(recipe, missing, workers) as crew:
        for worker in crew:
            for _ in range(recipe.concurrency):
                worker.give(next(places, None))
        while left:
            for worker in _speaking(crew):
                said = _received(worker)
                if said is None:  # it was told, for each of its places, that there are no more tasks
                    crew.remove(worker)
                    continue
                place, unit = said
                finished(missing[place], unit)
                left -= 1
                worker.give(next(places, None))


def _speaking(crew: Sequence[_Worker]) -> list[_Worker]:
    """Those that have sent something, or have ended; waits for the first."""
    ready = wait([worker.line for worker in crew])
    return [worker for worker in crew if worker.line in ready]


def _received(worker: _Worker) -> tuple[int, Unit] | None:
    """What a worker says; None where it has ended as it should. Raises what it raised, FailedError where it died."""
    try:
        said = worker.line.recv()
    except (EOFError, ConnectionError) as error:
        worker.process.join()
        if worker.process.exitcode == 0:
            return None
        raise FailedError(
            f"A worker process ended with status {worker.process.exitcode} (killed for memory?); what is finished is "
            "stored: go on with --resume, and fewer --workers."
        ) from error
    if isinstance(said, Exception):
        raise said
    return said


@contextlib.contextmanager
def _started(recipe: Recipe, missing: Sequence[Task], workers: int) -> Generator[list[_Worker]]:
    spawn = multiprocessing.get_context("spawn")
    crew: list[_Worker] = []
    try:
        with _threads(max(1, (os.cpu_count() or 1) // workers)):
            for _ in range(workers):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_work, args=(theirs, recipe, missing), daemon=True)
                process.start()
                theirs.close()  # the worker has its own: when it ends, ours says so
                crew.append(_Worker(process, cast("Connection", ours)))
        yield list(crew)
    finally:
        for worker in crew:
            worker.line.close()  # it ends when it finds out; terminated, it would leave semaphores behind
        for worker in crew:
            worker.process.join(SETTLING_S)
            worker.process.terminate()
            worker.process.join()


@contextlib.contextmanager
def _threads(each: int) -> Generator[None]:
    """Processes started inside use so many threads."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, str(each)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(line: Connection, recipe: Recipe, missing: Sequence[Task]) -> None:
    """A worker's life: open the models, make what is asked for, send it back."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches every process of a terminal; the parent ends this one
    with contextlib.suppress(EOFError, ConnectionError):  # the parent has hung up
        try:
            asyncio.run(_answer_all(line, recipe, missing))
        except AlignstarError as error:
            line.send(error)


async def _answer_all(line: Connection, recipe: Recipe, missing: Sequence[Task]) -> None:
    with open_world(recipe) as world:
        check(world, recipe, missing)
        places = {task.key: place for place, task in enumerate(missing)}
        one_by_one = asyncio.Lock()

        async def following() -> Task | None:
            async with one_by_one:
                place: int | None = await asyncio.to_thread(line.recv)
            return None if place is None else missing[place]

        def finished(task: Task, unit: Unit) -> None:
            line.send((places[task.key], unit))

        await answer_all(world, recipe, following, finished)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
