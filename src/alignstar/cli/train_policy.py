"""`alignstar train policy`: a language model on the rewards of groups. Shows the progress, says what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from alignstar.cli.progress import Bar, progress_bar
from alignstar.train.recipes import PolicyRecipe, read_training_recipe

if TYPE_CHECKING:
    from alignstar.train.policy_run import Outcome


def train(path: Path, *, resume: bool, overwrite: bool) -> None:
    """A policy for several groups."""
    recipe = read_training_recipe(path, PolicyRecipe)
    from alignstar.train.common import quiet
    from alignstar.train.policy_run import train_policy

    quiet()
    with _Shown() as shown:
        outcome = train_policy(recipe, resume=resume, overwrite=overwrite, watcher=shown)
    for line in told(outcome):
        typer.echo(line)


def told(outcome: Outcome) -> list[str]:
    """The training in a few lines, for the terminal."""
    fitted, standing = outcome.fitted, outcome.standing
    went = "" if outcome.resumed is None else f" (went on from step {outcome.resumed:,})"
    return [
        f"{outcome.folder}: {fitted.steps:,} steps in {fitted.seconds:.0f} s{went}.",
        *(
            f"Group {u}, {line}: expected reward {mean:.3g} in the end, {weight:.0%} of the weight."
            for u, (line, mean, weight) in enumerate(zip(outcome.groups, standing.means, standing.weights, strict=True))
        ),
        f"{outcome.folder}/metrics.json and loss.svg say more. Use it with --baseline {outcome.folder}.",
    ]


class _Shown:
    """A progress bar over steps, with the reward that the last ones were taken on."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._done = 0

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *ended: object) -> None:
        self._stack.close()

    def begin(self, *, total: int, done: int) -> None:
        """Draw the bar."""
        self._done = done
        self._bar = self._stack.enter_context(progress_bar(total=total, done=done, remaining=True, doing="training"))

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """One more, or what the last ones earned."""
        assert self._bar is not None, "a training begins before its first step"
        if "reward" in values:
            self._bar.now(f"reward {values['reward']:.3g}, kl {values['kl']:.2g} a token" if "kl" in values else "")
        while self._done < step:
            self._bar.advance()
            self._done += 1

    def looked(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing is held out."""
