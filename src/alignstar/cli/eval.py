"""`alignstar eval`: a recipe in, a folder of units out, or its price. Decides nothing about either."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from alignstar.cli.progress import Bar, progress_bar
from alignstar.errors import FailedError, OptionError
from alignstar.evaluate.data import Sample
from alignstar.evaluate.recipe import read_recipe
from alignstar.evaluate.units import Unit


def eval(
    recipe: Annotated[str, typer.Argument(help="A .yaml or .toml file: models, rewards, methods, data.")],
    out: Annotated[str | None, typer.Option(help="The folder for what is measured.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    workers: Annotated[int, typer.Option(help="Processes, each with its own models.", min=1)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Price it; open no model and read no data.")] = False,
) -> None:
    """Decode a recipe's prompts with every method and score what comes; every finished reply is kept at once.

    The exit status is 1 where a prompt failed; the others are measured all the same.
    """
    resolved = read_recipe(recipe)
    if dry_run:
        from alignstar.cli.prices import print_prices

        print_prices(resolved)
        return
    if out is None:
        raise OptionError("No folder for the results was given; use --out FOLDER, or --dry-run to price the recipe.")
    from alignstar.evaluate.runner import run

    with _Shown(resolved.recipe.reward_in("reward")) as shown:
        outcome = run(resolved, Path(out), resume=resume, workers=workers, watcher=shown)
    skipped = "".join(f"; skipped {count}: {reason}" for reason, count in outcome.sample.skipped.items())
    told = f"{len(outcome.sample.examples)} of {outcome.sample.rows} rows used{skipped}"
    typer.echo(f"{outcome.units - outcome.failed} units in {out} ({told}). Next: alignstar report {out}")
    if outcome.failed:
        raise FailedError(
            f"{outcome.failed} of {outcome.units} units failed, as said above; correct the cause, go on with --resume."
        )


class _Shown:
    """A progress bar that says the method, its mean reward so far, and the time left."""

    def __init__(self, reward: str | None) -> None:
        self._reward = reward
        self._scores: dict[str, list[float]] = {}
        self._stack = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def begin(self, *, total: int, done: int, sample: Sample) -> None:
        """Draw the bar."""
        self._bar = self._stack.enter_context(progress_bar(total=total, done=done, remaining=True))

    def finished(self, unit: Unit) -> None:
        """One more is stored."""
        assert self._bar is not None, "a run begins before it finishes anything"
        score = None if self._reward is None else unit.rewards[self._reward]
        scores = self._scores.setdefault(unit.method, [])
        scores.extend([] if score is None else [score])
        so_far = f": {self._reward} {sum(scores) / len(scores):.3f}" if scores else ""
        self._bar.now(unit.method + so_far)
        self._bar.advance()
        if unit.error is not None:
            Console(stderr=True).print(
                f"{unit.method}, prompt {unit.prompt_index}, seed {unit.seed}: {unit.error}", style="red",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
