"""From a recipe to a trained folder: reads the rows, opens the model, trains, measures, writes. Safe against any end.

The same for every kind (`KINDS`): what differs is how a row is read and which trainer fits. Knows nothing of the
terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignstar import __version__
from alignstar.evaluate.rows import Example
from alignstar.evaluate.worlds import identity_of
from alignstar.models.hf.codec import load_tokenizer
from alignstar.report.curves import curves
from alignstar.train.base import CAUSAL, CLASSIFIER, device_of, open_base, row_limit, whole_model
from alignstar.train.common import Fitted, lora_config, save_model
from alignstar.train.data import Chosen, Need, choose
from alignstar.train.dpo import fit_dpo
from alignstar.train.encode import EncodedPair, Exchange, Reader, digest, pad_for
from alignstar.train.folder import TrainingFolder
from alignstar.train.layered import Layered, layered
from alignstar.train.quality import Quality, quality
from alignstar.train.recipes import DPORecipe, RewardRecipe, TrainingRecipe
from alignstar.train.reward import fit_reward, score_ids
from alignstar.train.settings import OnProgress, Watcher, untold
from alignstar.train.sft import fit_sft
from alignstar.types import Ids, Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a training made of its rows: the model's folder, how it went, and a reward's quality on held-out pairs.

    `resumed` is the step at which it went on (None: from the beginning).
    """

    folder: Path
    chosen: Chosen
    fitted: Fitted
    quality: Quality | None
    resumed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read(Generic[T]):
    """A row as its trainer takes it, and the texts in it, for their lengths."""

    example: Example
    row: T
    texts: tuple[Ids, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work(Generic[T]):
    """Everything that a trainer is given."""

    recipe: Any
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    training: tuple[Read[T], ...]
    held_out: tuple[Read[T], ...]
    task: str
    folder: TrainingFolder
    checkpoint: Path | None
    watcher: Watcher | None
    layered: Layered | None = None

    def arguments(self) -> dict[str, Any]:
        """The keywords that the fit functions have in common."""
        recipe: TrainingRecipe = self.recipe
        lora = recipe.lora
        if lora is not None and self.layered is not None:
            lora = lora.model_copy(update={"targets": self.layered.linears(lora.targets)})
        return {
            "tokenizer": self.tokenizer,
            "settings": replace(recipe.settings(), device=device_of(recipe)),
            "output_dir": self.folder.checkpoints,
            "held_out": [read.row for read in self.held_out],
            "lora": None if lora is None else lora_config(lora, task=self.task),
            "checkpoint": self.checkpoint,
            "watcher": self.watcher,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """What one kind of training does in its own way."""

    need: Need
    task: str
    read: Callable[[Reader, Example], Read[T]]
    fit: Callable[[Work[T]], Fitted]
    notes: Callable[[Any], Mapping[str, Any]] = lambda _: {}


def train(
    kind: str,
    recipe: TrainingRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    on_progress: OnProgress = untold,
) -> Outcome:
    """Train by a recipe into its `out`, from the last checkpoint there if there is one.

    `on_progress` is told of what comes before the training.

    Raises OptionError for a folder that holds something else, and without `resume` or `overwrite` for one where this
    was begun or is finished; PromptError for a bad row, with file and line; ModelError for a model that is none. All of
    that before training starts.
    """
    how = KINDS[kind]
    with TrainingFolder(Path(recipe.out)) as folder:
        folder.admit(resume=resume, overwrite=overwrite)
        path = whole_model(recipe.model)
        tokenizer = load_tokenizer(path)
        reader = Reader(tokenizer, name=recipe.model)
        chosen, training, held_out = _read(how, recipe, reader, limit=row_limit(path, recipe))
        if how.task == CLASSIFIER:
            pad_for(tokenizer, [ids for read in (*training, *held_out) for ids in read.texts])
        model = open_base(path, recipe, task=how.task)
        chosen_layers = _layered(model, recipe, training, tokenizer, on_progress)
        fixed = _fixed(kind, recipe, path, {"training": training, "held_out": held_out})
        checkpoint = folder.begin(fixed, overwrite=overwrite)
        work = Work(
            recipe=recipe, model=model, tokenizer=tokenizer, training=training, held_out=held_out, task=how.task,
            folder=folder, checkpoint=checkpoint, watcher=watcher, layered=chosen_layers,
        )  # fmt: skip
        fitted = how.fit(work)
        scores = _scores(fitted, work) if how.task == CLASSIFIER and held_out else None
        told = None if scores is None else _quality(scores, held_out)
        _write(kind, how, work, path=path, chosen=chosen, fitted=fitted, scores=scores, told=told)
    resumed = None if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
    return Outcome(folder=folder.path, chosen=chosen, fitted=fitted, quality=told, resumed=resumed)


def _read(
    how: Kind[T], recipe: TrainingRecipe, reader: Reader, *, limit: int
) -> tuple[Chosen, tuple[Read[T], ...], tuple[Read[T], ...]]:
    """The rows of a recipe as tokens; what is longer than `limit` is left out and counted."""
    chosen = choose(recipe, need=how.need)
    read = {id(e): how.read(reader, e) for e in (*chosen.training, *chosen.held_out)}
    fitting = chosen.only(
        lambda e: max(len(ids) for ids in read[id(e)].texts) <= limit, reason=f"are longer than {limit:,} tokens"
    )
    return fitting, tuple(read[id(e)] for e in fitting.training), tuple(read[id(e)] for e in fitting.held_out)


def _fixed(kind: str, recipe: TrainingRecipe, path: str, rows: Mapping[str, tuple[Read[Any], ...]]) -> dict[str, Any]:
    """All that decides the weights; where they go, and what is logged, does not."""
    written = recipe.model_dump(mode="json", exclude={"out", "device", "log_every"})
    return {
        "kind": kind,
        "recipe": {**written, "learning_rate": recipe.rate},
        "model contents": identity_of(path),
        "rows": {
            name: f"{len(reads)} rows, {digest([ids for read in reads for ids in read.texts])}"
            for name, reads in rows.items()
        },
    }


def _layered(
    model: PreTrainedModel,
    recipe: TrainingRecipe,
    training: tuple[Read[Any], ...],
    tokenizer: PreTrainedTokenizerBase,
    on_progress: OnProgress,
) -> Layered | None:
    """The model cut and frozen where the recipe chooses layers."""
    if not isinstance(recipe, RewardRecipe) or recipe.layers is None:
        return None
    pairs = [read.row for read in training]
    return layered(model, recipe.layers, pairs, tokenizer=tokenizer, pool=recipe.pool, on_progress=on_progress)


def _scores(fitted: Fitted, work: Work[EncodedPair]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of the held-out pairs [2, pairs]: the preferred ones first."""
    pad = cast("int", work.tokenizer.pad_token_id)
    texts = [read.row.chosen for read in work.held_out] + [read.row.rejected for read in work.held_out]
    scores = score_ids(fitted.model, texts, pad_id=pad, batch_size=work.recipe.batch_size)
    return np.asarray(scores, dtype=np.float64).reshape(2, -1)


def _quality(scores: np.ndarray[Any, np.dtype[np.float64]], held_out: tuple[Read[Any], ...]) -> Quality:
    examples = [read.example for read in held_out]
    return quality(
        scores[0],
        scores[1],
        chosen_lengths=[len(e.chosen or "") for e in examples],
        rejected_lengths=[len(e.rejected or "") for e in examples],
        prompts=[e.prompt for e in examples],
    )


def _write(
    kind: str,
    how: Kind[Any],
    work: Work[Any],
    *,
    path: str,
    chosen: Chosen,
    fitted: Fitted,
    scores: np.ndarray[Any, np.dtype[np.float64]] | None,
    told: Quality | None,
) -> None:
    """The model, the metrics, the plot and the notes."""
    recipe: TrainingRecipe = work.recipe
    model: Any = fitted.model
    adapter = recipe.lora is not None and not recipe.lora.merge
    if recipe.lora is not None and recipe.lora.merge:
        model = model.merge_and_unload()
    base = (str(Path(path).resolve()) if Path(path).is_dir() else path) if adapter else None
    save_model(model, tokenizer=work.tokenizer, path=work.folder.path, base=base)
    held_out = {**fitted.held_out, **({} if told is None else asdict(told))}
    work.folder.finish(
        notes={
            "role": kind,
            "alignstar": __version__,
            "base": recipe.model,
            **how.notes(recipe),
            **({} if work.layered is None else {"layers": work.layered.as_json()}),
            **({} if scores is None or told is None else _summary(scores, told)),
            "recipe": {**recipe.model_dump(mode="json"), "learning_rate": recipe.rate},
        },
        metrics={
            "kind": kind,
            "steps": fitted.steps,
            "planned_steps": fitted.total,
            "best_step": fitted.best_step,
            "seconds": round(fitted.seconds, 1),
            "data": {
                "rows": chosen.rows,
                "training": len(chosen.training),
                "held_out": len(chosen.held_out),
                "left_out": dict(chosen.left_out),
            },
            "held_out": held_out,
            "log": list(fitted.log),
        },
        plot=loss_plot(fitted, title=f"{kind}: {recipe.model}"),
    )


def _summary(scores: np.ndarray[Any, np.dtype[np.float64]], told: Quality) -> dict[str, Any]:
    """What the scores on held-out replies are like, and how often they order a pair as people did."""
    return {
        "mean": float(scores.mean()), "std": float(scores.std()), "low": float(scores.min()),
        "high": float(scores.max()), "accuracy": asdict(told.accuracy), "n_held_out_pairs": told.pairs,
    }  # fmt: skip


def loss_plot(fitted: Fitted, *, title: str) -> str:
    """Training and held-out loss over steps, as an SVG."""
    series = {
        name: [(row["step"], row[key]) for row in fitted.log if key in row]
        for name, key in (("training", "loss"), ("held out", "eval_loss"))
    }
    return curves(series, title=title, x_title="step", y_title="loss")


def _read_answer(reader: Reader, example: Example) -> Read[Exchange]:
    exchange = reader.exchange(example, example.chosen or "")
    return Read(example=example, row=exchange, texts=((*exchange.prompt, *exchange.answer),))


def _read_pair(reader: Reader, example: Example) -> Read[EncodedPair]:
    pair = reader.pair(example)
    return Read(example=example, row=pair, texts=(pair.chosen, pair.rejected))


def _read_messages(reader: Reader, example: Example) -> Read[tuple[tuple[Message, ...], str, str]]:
    answers = (example.chosen or "", example.rejected or "")
    both = [reader.exchange(example, answer) for answer in answers]
    texts = tuple((*one.prompt, *one.answer) for one in both)
    return Read(example=example, row=(example.prompt, *answers), texts=texts)


def _fit_sft(work: Work[Exchange]) -> Fitted:
    return fit_sft(work.model, [read.row for read in work.training], **work.arguments())


def _fit_reward(work: Work[EncodedPair]) -> Fitted:
    recipe: RewardRecipe = work.recipe
    pairs = [read.row for read in work.training]
    return fit_reward(work.model, pairs, center=recipe.center or None, **work.arguments())


def _fit_dpo(work: Work[tuple[tuple[Message, ...], str, str]]) -> Fitted:
    recipe: DPORecipe = work.recipe
    return fit_dpo(work.model, [read.row for read in work.training], beta=recipe.beta, **work.arguments())


KINDS: Mapping[str, Kind[Any]] = {
    "sft": Kind(need="answer", task=CAUSAL, read=_read_answer, fit=_fit_sft),
    "reward": Kind(need="pair", task=CLASSIFIER, read=_read_pair, fit=_fit_reward),
    "dpo": Kind(
        need="pair", task=CAUSAL, read=_read_messages, fit=_fit_dpo, notes=lambda r: {"method": "dpo", "beta": r.beta}
    ),
}
"""Kind -> its way."""
