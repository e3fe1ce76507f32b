"""`alignstar train KIND RECIPE`: a recipe in, a trained folder out. Decides nothing about training itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError

from alignstar.cli.progress import progress_bar
from alignstar.cli.prompts import Request, read_prompts
from alignstar.errors import OptionError
from alignstar.evaluate.recipe_file import read_file, refused

if TYPE_CHECKING:
    from alignstar.aligner import Aligner
    from alignstar.train.rollouts import Seen

Positive = Annotated[int, Ge(1)]


class ValueRecipe(BaseModel):
    """What `alignstar train value` is told; docs/papers.md says what the losses are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    model: str
    prompts: str
    reward: str | list[str]
    out: str
    loss: Literal["fudge", "cd-q", "transfer-q"] = "fudge"
    layer: Positive | None = None
    rank: Annotated[int, Ge(0)] = 32
    width: Annotated[int, Ge(0)] = 0
    responses: Positive = 4
    max_new_tokens: Positive = 128
    top_m: Positive = 8
    k: Positive = 10
    alpha: Annotated[float, Gt(0)] = 1.0
    rollout_len: Annotated[int, Ge(0)] | None = None
    epochs: Positive = 10
    batch_size: Positive = 512
    learning_rate: Annotated[float, Gt(0), Le(1)] = 3e-3
    seed: int = 0
    device: str = "auto"
    concurrency: Positive = 32


def train(
    kind: Annotated[str, typer.Argument(help="What to train: value.")],
    recipe: Annotated[str, typer.Argument(help="A .yaml or .toml file.")],
) -> None:
    """Train a part that decoding uses, by a recipe file.

    value: a value head for controlled-decoding and transfer-q, from responses that the model decodes for the prompts.
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} is unknown. Known: {', '.join(KINDS)}.")
    KINDS[kind](Path(recipe))


def train_value(path: Path) -> None:
    """A value head; every relative path of the recipe is relative to where the command runs."""
    try:
        recipe = ValueRecipe.model_validate(read_file(path))
    except ValidationError as error:
        raise refused(error, ValueRecipe, name=str(path)) from None
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


KINDS: Mapping[str, Callable[[Path], None]] = {"value": train_value}
"""Kind -> what trains it."""
