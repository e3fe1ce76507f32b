"""`alignstar train value`: a value head from responses that a model decodes. Shows the progress."""

from __future__ import annotations

from pathlib import Path

import typer

from alignstar.cli.progress import Stages
from alignstar.cli.prompts import read_placed
from alignstar.train.recipes import ValueRecipe, read_training_recipe


def train_value(path: Path, *, resume: bool, overwrite: bool, layers: str | None = None) -> None:
    """A value head; `layers` instead of the recipe's `layer`."""
    recipe = read_training_recipe(path, ValueRecipe, layer=layers)
    placed = read_placed(Path(recipe.prompts))
    from alignstar.train.data import told
    from alignstar.train.value_run import train_head

    with Stages() as shown:
        outcome = train_head(recipe, placed, resume=resume, overwrite=overwrite, on_progress=shown.to)
    fitted = outcome.fitted
    went = "" if outcome.resumed is None else f" (went on with {outcome.resumed:,} responses)"
    left = f" Prompts left out: {told(outcome.left_out)}." if outcome.left_out else ""
    typer.echo(
        f"{outcome.folder}: loss {fitted.losses[0]:.4g} to {fitted.losses[-1]:.4g} over {outcome.tokens:,} tokens"
        f"{went}, {fitted.explained:.1%} of the variance explained on held-out prompts.{left} Use it with --value "
        f"{outcome.folder}."
    )
