"""`alignstar train value`: a value head from responses that a model decodes. Decides nothing about training itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from alignstar.cli.progress import progress_bar
from alignstar.cli.prompts import Request, read_prompts
from alignstar.errors import OptionError
from alignstar.train.recipes import ValueRecipe, read_training_recipe

if TYPE_CHECKING:
    from alignstar.aligner import Aligner
    from alignstar.train.rollouts import Seen


def train_value(path: Path, *, resume: bool, overwrite: bool, layers: str | None = None) -> None:
    """A value head; one that is in the recipe's `out` is replaced. `layers` instead of the recipe's `layer`."""
    if resume or overwrite:
        raise OptionError("train value keeps no checkpoints and replaces its out; leave out --resume and --overwrite.")
    recipe = read_training_recipe(path, ValueRecipe, layer=layers)
    requests = read_prompts(prompt=None, prompts=recipe.prompts)
    from alignstar.loading import load
    from alignstar.models.hf.language import HFModel
    from alignstar.train import value

    value.check(recipe.loss, recipe.rank)
    with load(baseline=recipe.model, reward=recipe.reward, device=recipe.device) as aligner:
        seen = _seen(aligner, recipe, requests)
        model = aligner.models["baseline"]
        assert isinstance(model, HFModel)
        with model.network.adapter():
            made = value.train_value(
                model.network.module, seen,
                base=os.path.relpath(recipe.model, recipe.out) if Path(recipe.model).is_dir() else recipe.model,
                out=Path(recipe.out), loss=recipe.loss, layer=recipe.layer, rank=recipe.rank, width=recipe.width,
                epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
                seed=recipe.seed,
            )  # fmt: skip
    typer.echo(
        f"{recipe.out}: loss {made.losses[0]:.4g} to {made.losses[-1]:.4g} over {len(seen):,} tokens, "
        f"{made.explained:.1%} of the variance explained on held-out prompts. Use it with --value {recipe.out}."
    )


def _seen(aligner: Aligner, recipe: ValueRecipe, requests: list[Request]) -> list[Seen]:
    """What the head learns from, decoded here."""
    import asyncio

    from alignstar.train.rollouts import drawn, valued

    with progress_bar(total=len(requests) * recipe.responses, doing="rollouts") as bar:
        how: dict[str, Any] = {
            "responses": recipe.responses, "max_new_tokens": recipe.max_new_tokens, "seed": recipe.seed,
            "concurrency": recipe.concurrency, "on_response": bar.advance,
        }  # fmt: skip
        if recipe.loss == "transfer-q":
            search: dict[str, Any] = {
                "k": recipe.k,
                "alpha": recipe.alpha,
                "rollout_len": recipe.rollout_len,
                "selection": "sample",
            }
            return asyncio.run(valued(aligner, requests, **how, **search))
        top_m = recipe.top_m if recipe.loss == "cd-q" else 0
        return asyncio.run(drawn(aligner, "baseline", requests, top_m=top_m, **how))
