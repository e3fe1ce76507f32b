"""From a recipe to a trained policy: opens the rewards, draws what they are standardised by, trains, writes.

Safe against any end, as every training: it goes on from its last checkpoint, in which the groups' standing lies too.
Knows nothing of the terminal.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignstar import __version__
from alignstar.background import BACKGROUND
from alignstar.errors import OptionError
from alignstar.evaluate.worlds import identity_of, identity_of_reward
from alignstar.loading import open_reward
from alignstar.models.hf.codec import HFCodec, load_tokenizer
from alignstar.models.hf.load import pick_device
from alignstar.report.curves import curves
from alignstar.rewards import Reward
from alignstar.rewards.groups import GroupRewards
from alignstar.sampling import Array
from alignstar.train.base import CAUSAL, context_of, open_base, whole_model
from alignstar.train.common import Fitted, lora_config, run_trainer, save_model, trainer_options
from alignstar.train.data import read_usable
from alignstar.train.encode import digest
from alignstar.train.folder import STATE, TrainingFolder
from alignstar.train.generation import generate_after
from alignstar.train.maxmin import Scale, Standing
from alignstar.train.policy import MEAN, Answered, Fairness, GroupScores, policy_trainer, standing_of
from alignstar.train.prompts import encoded, left_out, with_room
from alignstar.train.recipes import PolicyRecipe
from alignstar.train.settings import OnProgress, Settings, Watcher, untold
from alignstar.types import Message, Prompt, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The policy's folder, how it went, and where the groups stand in the end.

    `left_out` counts the prompts that were not used, by reason. `resumed` is the step at which it went on (None: from
    the beginning).
    """

    folder: Path
    fitted: Fitted
    groups: tuple[str, ...]
    standing: Standing
    left_out: Mapping[str, int]
    resumed: int | None


def train_policy(
    recipe: PolicyRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    on_progress: OnProgress = untold,
) -> Outcome:
    """Train by a recipe into its `out`, from the last checkpoint there if there is one.

    `on_progress` is told of what comes before the training. Raises OptionError, ModelError, PromptError (with file and
    line) before training starts, and FailedError where no response of a batch has a finite reward of every group.
    """
    _check(recipe)
    with (
        TrainingFolder(Path(recipe.out)) as folder,
        open_reward([f"min({'; '.join(recipe.groups)})"], device=recipe.device, reuse=False) as joint,
    ):
        folder.admit(resume=resume, overwrite=overwrite)
        assert isinstance(joint, GroupRewards), "min(...) is rewards of groups"
        path = whole_model(recipe.model)
        tokenizer = load_tokenizer(path)
        codec = HFCodec(tokenizer, name=recipe.model)
        _, rows = read_usable(recipe.data, "prompt", Counter())
        places = {row.prompt: row.where for row in reversed(rows)}
        asked = encoded(codec, [(places[messages], messages) for messages in dict.fromkeys(row.prompt for row in rows)])
        prompts = with_room(asked, limit=context_of(path), rewards=joint.parts, following=recipe.max_new_tokens)
        model = open_base(path, recipe, task=CAUSAL)
        checkpoint = folder.begin(_fixed(recipe, path, prompts), overwrite=overwrite)
        scores = scores_of(joint.parts, prompts)
        scale = _scale(recipe, model, tokenizer, prompts, scores, on_progress) if recipe.standardise else None
        fitted, standing = _fit(recipe, model, tokenizer, prompts, scores, scale, folder, checkpoint, watcher)
        left = left_out(len(asked), len(prompts))
        _write(recipe, path, tokenizer, folder, fitted, standing, scale, len(prompts), left)
    resumed = None if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    return Outcome(
        folder=folder.path, fitted=fitted, groups=tuple(recipe.groups), standing=standing, left_out=left,
        resumed=resumed,
    )  # fmt: skip


def _check(recipe: PolicyRecipe) -> None:
    """Raises OptionError for values that do not go together."""
    if recipe.batch_size % recipe.responses:
        raise OptionError(
            f"batch_size={recipe.batch_size} must be a multiple of responses={recipe.responses}, which are drawn for "
            "every prompt; change one."
        )
    if recipe.prior is not None and len(recipe.prior) != len(recipe.groups):
        raise OptionError(
            f"prior={recipe.prior} must hold one weight for each of {len(recipe.groups)} groups; or leave it out."
        )
    if recipe.prior is not None and recipe.objective != "pooled":
        raise OptionError(f"prior={recipe.prior} weighs a pool, and objective is {recipe.objective!r}; leave it out.")


def scores_of(rewards: Sequence[Reward], prompts: Sequence[Prompt]) -> GroupScores:
    """The function that scores replies to these prompts for every group.

    One prompt and group after another: what shares a batch would change a score's last digits, and with them where a
    training that goes on ends.
    """
    known = {prompt.messages: prompt for prompt in prompts}

    async def ask(asked: Mapping[tuple[Message, ...], list[Reply]]) -> list[list[float]]:
        return [
            await reward.score(known[messages], replies) for messages, replies in asked.items() for reward in rewards
        ]

    def scores(answers: Sequence[Answered]) -> Array:
        places: dict[tuple[Message, ...], list[int]] = {}
        for i, (messages, _) in enumerate(answers):
            places.setdefault(messages, []).append(i)
        told = BACKGROUND.run(ask({messages: [answers[i][1] for i in at] for messages, at in places.items()}))
        table = np.empty((len(answers), len(rewards)))
        for number, at in enumerate(places.values()):
            table[at] = np.array(told[number * len(rewards) : (number + 1) * len(rewards)]).T
        return table

    return scores


def _fixed(recipe: PolicyRecipe, path: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All that decides the weights; where they go, and what is logged, does not."""
    written = recipe.model_dump(mode="json", exclude={"out", "device", "log_every"})
    return {
        "kind": "policy",
        "recipe": {**written, "learning_rate": recipe.rate},
        "model contents": identity_of(path),
        "group contents": identity_of_reward(recipe.groups),
        "prompts": f"{len(prompts)} prompts, {digest([prompt.ids for prompt in prompts])}",
    }


def _scale(
    recipe: PolicyRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scores: GroupScores,
    on_progress: OnProgress,
) -> Scale:
    """Of the groups' rewards on responses that the model draws before it is trained: a function of the recipe alone."""
    cast("Any", model).to(pick_device(recipe.device))
    asked = [prompts[i % len(prompts)] for i in range(recipe.reference)]
    drawn = generate_after(
        model, tokenizer=tokenizer, prompts=[prompt.ids for prompt in asked], temperature=recipe.temperature,
        max_new_tokens=recipe.max_new_tokens, seed=recipe.seed, batch_size=recipe.batch_size,
        on_answers=lambda done: on_progress("responses to scale by", done, len(asked)),
    )  # fmt: skip
    texts = [cast("str", tokenizer.decode(list(ids), skip_special_tokens=True)) for ids, _ in drawn]
    return Scale.of(
        scores(
            [
                (prompt.messages, Reply(text=text, complete=ended, ids=ids))
                for prompt, text, (ids, ended) in zip(asked, texts, drawn, strict=True)
            ]
        )
    )


def _fit(
    recipe: PolicyRecipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    scores: GroupScores,
    scale: Scale | None,
    folder: TrainingFolder,
    checkpoint: Path | None,
    watcher: Watcher | None,
) -> tuple[Fitted, Standing]:
    settings = Settings(
        learning_rate=recipe.rate, max_steps=recipe.max_steps, batch_size=recipe.batch_size, seed=recipe.seed,
        checkpoint_every=recipe.checkpoint_every, log_every=recipe.log_every,
        device=pick_device(recipe.device).type,
    )  # fmt: skip
    standing = None
    if checkpoint is not None:
        standing = standing_of(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    trainer, reward = policy_trainer(
        model, tokenizer=tokenizer, prompts=[prompt.messages for prompt in prompts], scores=scores,
        fairness=Fairness(
            objective=recipe.objective, prior=None if recipe.prior is None else tuple(recipe.prior),
            momentum=recipe.momentum, scale=scale,
        ),
        options=trainer_options(settings, output_dir=folder.checkpoints), beta=recipe.beta,
        responses=recipe.responses, max_new_tokens=recipe.max_new_tokens, temperature=recipe.temperature,
        lora=None if recipe.lora is None else lora_config(recipe.lora, task=CAUSAL), standing=standing,
    )  # fmt: skip
    fitted = run_trainer(trainer, settings, checkpoint=checkpoint, watcher=watcher)
    return fitted, reward.standing


def _write(
    recipe: PolicyRecipe,
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: TrainingFolder,
    fitted: Fitted,
    standing: Standing,
    scale: Scale | None,
    prompts: int,
    left: Mapping[str, int],
) -> None:
    """The model, the metrics, the plot and the notes."""
    model: Any = fitted.model
    adapter = recipe.lora is not None and not recipe.lora.merge
    if recipe.lora is not None and recipe.lora.merge:
        model = model.merge_and_unload()
    base = (str(Path(path).resolve()) if Path(path).is_dir() else path) if adapter else None
    save_model(model, tokenizer=tokenizer, path=folder.path, base=base)
    series = {
        f"group {u}: {line}": [(row["step"], row[MEAN.format(u)]) for row in fitted.log if MEAN.format(u) in row]
        for u, line in enumerate(recipe.groups)
    }
    folder.finish(
        notes={
            "role": "policy", "alignstar": __version__, "base": recipe.model, "method": recipe.objective,
            "beta": recipe.beta, "groups": recipe.groups, "scale": None if scale is None else asdict(scale),
            "standing": asdict(standing), "recipe": {**recipe.model_dump(mode="json"), "learning_rate": recipe.rate},
        },
        metrics={
            "kind": "policy", "steps": fitted.steps, "seconds": round(fitted.seconds, 1), "prompts": prompts,
            "left_out": dict(left), "standing": asdict(standing), "log": list(fitted.log),
        },
        plot=curves(series, title=f"{recipe.objective}: {recipe.model}", x_title="step", y_title="mean reward"),
    )  # fmt: skip
