"""`alignstar train policy`: a language model on the rewards of groups. Shows the progress, says what came out of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from alignstar.cli.progress import Stages
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
        outcome = train_policy(recipe, resume=resume, overwrite=overwrite, watcher=shown, on_progress=shown.to)
    for line in told(outcome):
        typer.echo(line)


def told(outcome: Outcome) -> list[str]:
    """The training in a few lines, for the terminal."""
    from alignstar.train.data import told as left_out

    fitted, standing = outcome.fitted, outcome.standing
    went = "" if outcome.resumed is None else f" (went on from step {outcome.resumed:,})"
    return [
        f"{outcome.folder}: {fitted.steps:,} steps in {fitted.seconds:.0f} s{went}.",
        *([f"Prompts left out: {left_out(outcome.left_out)}."] if outcome.left_out else []),
        *(
            f"Group {u}, {line}: expected reward {mean:.3g} in the end, {weight:.0%} of the weight."
            for u, (line, mean, weight) in enumerate(zip(outcome.groups, standing.means, standing.weights, strict=True))
        ),
        f"{outcome.folder}/metrics.json and loss.svg say more. Use it with --baseline {outcome.folder}.",
    ]


class _Shown(Stages):
    """A bar over what is done first, then one over steps, with the reward that the last ones were taken on."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0
        self._earned = ""

    def begin(self, *, total: int, done: int) -> None:
        """Draw the bar."""
        self._total = total
        self.to("training", done, total)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """One more, or what the last ones earned."""
        if "reward" in values:
            kl = f", kl {values['kl']:.2g} a token" if "kl" in values else ""
            self._earned = f"reward {values['reward']:.3g}{kl}"
        self.to("training", step, self._total, self._earned)

    def looked(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing is held out."""
