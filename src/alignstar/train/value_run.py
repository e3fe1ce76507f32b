"""From a recipe to a value head: decodes what it learns from, fits it, writes. Safe against any end.

Every response is kept as soon as it is decoded, and the head's training after every epoch. Knows nothing of the
terminal.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignstar import __version__
from alignstar.aligner import Aligner
from alignstar.evaluate.worlds import identity_of, identity_of_reward
from alignstar.files import replace_text
from alignstar.loading import load, located
from alignstar.models.hf.language import HFModel
from alignstar.report.curves import curves
from alignstar.train.encode import digest
from alignstar.train.folder import STATE, TrainingFolder
from alignstar.train.kept import Kept
from alignstar.train.prompts import encoded, left_out, with_room
from alignstar.train.recipes import ValueRecipe
from alignstar.train.rollouts import Seen, drawn, valued
from alignstar.train.settings import OnProgress, untold
from alignstar.train.value import Fitted
from alignstar.train.value_training import check, check_layer, train_value
from alignstar.types import Message, Prompt

FIRST = 1
"""The only checkpoint of a training: it grows."""

RESPONSES, HEAD = "responses.jsonl", "head.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The head's folder and how its training went, over so many `tokens` along responses to so many `prompts`.

    `left_out` counts the prompts that were not used, by reason. `resumed` is how many responses an earlier run had
    decoded (None: from the beginning).
    """

    folder: Path
    fitted: Fitted
    tokens: int
    prompts: int
    left_out: Mapping[str, int]
    resumed: int | None


def train_head(
    recipe: ValueRecipe,
    placed: Sequence[tuple[str, str | Sequence[Message]]],
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress = untold,
) -> Outcome:
    """Train by a recipe into its `out`, from what is kept there if there is something.

    `placed` are the prompts, each with where it stands. Raises OptionError for a folder that holds something else, and
    without `resume` or `overwrite` for one where this was begun or is finished; PromptError, with its place, for a
    prompt that the model cannot be given; ModelError for a model that is none. All of that before anything is decoded.
    """
    check(recipe.loss, recipe.rank, recipe.branch)
    with TrainingFolder(Path(recipe.out)) as folder:
        folder.admit(resume=resume, overwrite=overwrite)
        dtype = "float32" if recipe.branch else "auto"  # small steps are lost in weights of 16 bits
        with load(baseline=recipe.model, reward=recipe.reward, device=recipe.device, dtype=dtype) as aligner:
            prompts = encoded(aligner.codec, placed)
            model = aligner.models["baseline"]
            assert isinstance(model, HFModel)
            usable = with_room(
                prompts, limit=model.max_context, rewards=[aligner.rewards["reward"]], following=recipe.max_new_tokens
            )
            check_layer(model.network.module, recipe.layer, recipe.branch, name=recipe.model)
            checkpoint = folder.begin(_fixed(recipe, usable), overwrite=overwrite)
            at = folder.checkpoints / f"checkpoint-{FIRST}"
            with Kept(at / RESPONSES) as kept:
                known = len(kept.responses)
                seen = _seen(aligner, recipe, usable, kept, on_progress)
            with model.network.adapter():
                fitted = _fit(recipe, model.network.module, seen, folder, at / HEAD, on_progress)
        outcome = Outcome(
            folder=folder.path, fitted=fitted, tokens=len(seen), prompts=len(usable),
            left_out=left_out(len(prompts), len(usable)), resumed=None if checkpoint is None else known,
        )  # fmt: skip
        _finish(recipe, folder, outcome)
    return outcome


def _fixed(recipe: ValueRecipe, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All that decides the head; where it goes, and how many responses are decoded at a time, does not."""
    lines = [recipe.reward] if isinstance(recipe.reward, str) else recipe.reward
    return {
        "kind": "value",
        "recipe": recipe.model_dump(mode="json", exclude={"out", "device", "concurrency"}),
        "model contents": identity_of(recipe.model),
        "reward contents": identity_of_reward(lines),
        "prompts": f"{len(prompts)} prompts, {digest([prompt.ids for prompt in prompts])}",
    }


def _seen(
    aligner: Aligner, recipe: ValueRecipe, prompts: Sequence[Prompt], kept: Kept, on_progress: OnProgress
) -> list[Seen]:
    """What the head learns from: what is kept, and what is missing decoded and kept."""
    total = len(prompts) * recipe.responses

    def keep(number: int, seen: Sequence[Seen]) -> None:
        if not kept.responses:
            replace_text(kept.path.with_name(STATE), json.dumps({"global_step": FIRST}))
        kept.add(number, seen)
        on_progress("responses", len(kept.responses), total)

    on_progress("responses", len(kept.responses), total)
    how: dict[str, Any] = {
        "responses": recipe.responses, "max_new_tokens": recipe.max_new_tokens, "seed": recipe.seed,
        "concurrency": recipe.concurrency, "known": kept.responses, "on_response": keep,
    }  # fmt: skip
    if recipe.loss != "transfer-q":
        top_m = recipe.top_m if recipe.loss == "cd-q" else 0
        return asyncio.run(drawn(aligner, "baseline", prompts, top_m=top_m, **how))
    search: dict[str, Any] = {
        "k": recipe.k,
        "alpha": recipe.alpha,
        "rollout_len": recipe.rollout_len,
        "selection": "sample",
    }
    return asyncio.run(valued(aligner, prompts, **how, **search))


def _fit(
    recipe: ValueRecipe,
    module: Any,
    seen: Sequence[Seen],
    folder: TrainingFolder,
    checkpoint: Path,
    on_progress: OnProgress,
) -> Fitted:
    path = located(recipe.model)
    return train_value(
        module, seen, base=os.path.relpath(path, folder.path) if Path(path).is_dir() else path, out=folder.path,
        loss=recipe.loss, layer=recipe.layer, rank=recipe.rank, width=recipe.width, branch=recipe.branch,
        branch_learning_rate=recipe.branch_learning_rate, epochs=recipe.epochs, batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate, seed=recipe.seed, checkpoint=checkpoint, on_progress=on_progress,
    )  # fmt: skip


def _finish(recipe: ValueRecipe, folder: TrainingFolder, outcome: Outcome) -> None:
    """The metrics, the plot and the notes."""
    fitted = outcome.fitted
    losses = {"training": fitted.losses, "held out": fitted.held_out}
    series = {name: list(enumerate(values, start=1)) for name, values in losses.items()}
    folder.finish(
        notes={
            "role": "value", "alignstar": __version__, "base": recipe.model, "explained": fitted.explained,
            "recipe": recipe.model_dump(mode="json"),
        },
        metrics={
            "kind": "value",
            "data": {"prompts": outcome.prompts, "tokens": outcome.tokens, "left_out": dict(outcome.left_out)},
            "explained": fitted.explained,
            "log": [
                {"epoch": epoch, "loss": loss, "eval_loss": held_out}
                for epoch, (loss, held_out) in enumerate(zip(fitted.losses, fitted.held_out, strict=True), start=1)
            ],
        },
        plot=curves(series, title=f"value: {recipe.model}", x_title="epoch", y_title="loss"),
    )  # fmt: skip
