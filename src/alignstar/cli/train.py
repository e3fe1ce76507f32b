"""`alignstar train KIND RECIPE`: a recipe in, a trained folder out. Decides nothing about training itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from alignstar.errors import OptionError

KINDS: Mapping[str, str] = {
    "sft": "alignstar.cli.train_weights:train_sft",
    "reward": "alignstar.cli.train_weights:train_reward",
    "dpo": "alignstar.cli.train_weights:train_dpo",
    "value": "alignstar.cli.train_value:train_value",
    "mixture": "alignstar.cli.train_mixture:train_mixture",
    "policy": "alignstar.cli.train_policy:train",
}
"""Kind -> what trains it, as module:function; called with the recipe's path, `resume` and `overwrite`."""

LAYERED = ("reward", "value")
"""Kinds that are also called with `layers`."""


def train(
    kind: Annotated[str, typer.Argument(help=f"What to train: {', '.join(KINDS)}.")],
    recipe: Annotated[str, typer.Argument(help="A .yaml or .toml file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the recipe's out.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the training that out holds.")] = False,
    layers: Annotated[
        str | None, typer.Option(help="reward, value: the layers, instead of the recipe's: star, top_k(2), 1..4, ...")
    ] = None,
) -> None:
    """Train a model that decoding uses, by a recipe file (recipes/train/ has examples).

    sft: a language model on answers. reward: a score from preferences. dpo: a baseline from preferences.
    value: a value head for controlled-decoding and transfer-q, from responses that the model decodes for the prompts.
    mixture: the hidden groups of users behind preferences, and a reward for each of them.
    policy: a language model on the rewards of groups, always for the group that is worst off.
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} is unknown. Known: {', '.join(KINDS)}.")
    if resume and overwrite:
        raise OptionError("--resume goes on with a training and --overwrite replaces it; give one of them.")
    module, _, function = KINDS[kind].partition(":")
    run: Callable[..., None] = getattr(importlib.import_module(module), function)
    if layers is not None and kind not in LAYERED:
        raise OptionError(f"layers={layers!r} is for {' and '.join(LAYERED)}, not for {kind}; leave it out.")
    try:
        run(Path(recipe), resume=resume, overwrite=overwrite, **({} if layers is None else {"layers": layers}))
    except KeyboardInterrupt:
        typer.echo("Stopped. Go on from the last checkpoint with --resume.", err=True)
        raise
