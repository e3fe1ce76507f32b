"""What the training functions share: the trainers' arguments, runs that can be taken up again, saving without pickles.

A checkpoint's optimizer state is read by transformers with torch.load(weights_only=True), which runs no code, and only
from the folder that this training wrote. Knows transformers and peft formats. Does not know any loss.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import disable_progress_bars
from peft import LoraConfig, PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from alignstar.errors import FailedError
from alignstar.train.recipes import Lora
from alignstar.train.settings import Settings, Watcher

STRAYS = ("README.md", "training_args.bin")
"""What trainers and peft write beside a model: a card that nobody filled in, and a pickle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A trained model and how it went: one row per logged step (`step`, `epoch`, and what was measured).

    `steps` were made. `best_step` is the one whose weights these are, where an early stop was asked for. `held_out` is
    what the trainer measured on the held-out rows in the end, empty without any. `seconds` are those of this process.
    """

    model: PreTrainedModel
    log: tuple[Mapping[str, float], ...]
    steps: int
    total: int
    best_step: int | None
    held_out: Mapping[str, float]
    seconds: float


def trainer_options(settings: Settings, *, output_dir: Path, held_out: bool = False) -> dict[str, Any]:
    """Keyword arguments for SFTConfig, RewardConfig and DPOConfig alike; `held_out`: there are rows to look at."""
    every = settings.checkpoint_every
    pace = None if every is None else every if every < 1 else int(every)
    looking: dict[str, Any] = {"eval_strategy": "no"}
    if held_out and pace is not None:
        looking = {
            "eval_strategy": "steps",
            "eval_steps": pace,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "load_best_model_at_end": settings.patience is not None,
        }
    return {
        "output_dir": str(output_dir),
        "seed": settings.seed,
        "data_seed": settings.seed,
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.01,
        "use_cpu": settings.device == "cpu",
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "save_strategy": "no" if pace is None else "steps",
        **({} if pace is None else {"save_steps": pace, "save_total_limit": 1}),
        **looking,
        "logging_first_step": True,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": settings.device != "cpu",
    }


def lora_config(lora: Lora, *, task: str) -> LoraConfig:
    """Adapters for a language model (CAUSAL_LM) or a classifier (SEQ_CLS), whose head is trained as a whole."""
    return LoraConfig(
        r=lora.rank,
        lora_alpha=2 * lora.rank if lora.alpha is None else cast("int", lora.alpha),
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.targets is None else lora.targets,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
        task_type=task,
    )


def run_trainer(
    trainer: Trainer, settings: Settings, *, checkpoint: Path | None = None, watcher: Watcher | None = None
) -> Fitted:
    """Train from the beginning or from a checkpoint. With a watcher nothing is printed.

    Raises FailedError as soon as a logged loss is not finite.
    """
    trainer.add_callback(_Finite())
    if watcher is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Told(watcher))
    looks = trainer.eval_dataset is not None
    if looks and settings.patience is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=settings.patience))
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    steps, log = trainer.state.global_step, tuple(trainer.state.log_history)
    best = trainer.state.best_global_step if looks and settings.patience is not None else None
    seen = next((row for row in log if "eval_loss" in row and row["step"] == (best or steps)), None)
    if looks and seen is None:
        trainer.remove_callback(_Told)
        seen = trainer.evaluate()
    return Fitted(
        model=cast("PreTrainedModel", trainer.model),
        log=log,
        steps=steps,
        total=trainer.state.max_steps,
        best_step=best,
        held_out={} if seen is None else _told_of(seen),
        seconds=time.perf_counter() - began,
    )


class _Finite(TrainerCallback):
    """Ends a training that cannot be saved any more."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FailedError(
                f"The training loss is {loss} at step {state.global_step}; lower learning_rate="
                f"{args.learning_rate:g} and begin anew with --overwrite."
            )


class _Told(TrainerCallback):
    """Tells a watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._watcher.begin(total=state.max_steps, done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self._watcher.stepped(state.global_step, {})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: object,
    ) -> None:
        if logs is not None and "loss" in logs:
            self._watcher.stepped(state.global_step, logs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if metrics is not None:
            self._watcher.looked(state.global_step, _told_of(metrics))


def _told_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """What an evaluation measured of the rows; nothing of the machine and of this process."""
    told = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    return {n: v for n, v in told.items() if not n.endswith(("runtime", "per_second", "num_tokens"))}


def quiet() -> None:
    """Turn off, in this process, the progress bars of the libraries: they would run into a watcher's."""
    os.environ["TQDM_DISABLE"] = "1"  # read whenever trl draws one
    disable_progress_bars()


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every dropout off: scores of two texts are compared, and must not differ by chance."""
    for module in cast("torch.nn.Module", model).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def save_model(
    model: PreTrainedModel | PeftModel, *, tokenizer: PreTrainedTokenizerBase, path: Path, base: str | None = None
) -> None:
    """Write a model or adapter in safetensors with its tokenizer; `base` is what an adapter names as its base."""
    model.config.use_cache = True  # trainers turn it off
    model.save_pretrained(str(path), safe_serialization=True)
    tokenizer.save_pretrained(path)
    for weights in path.glob("*.safetensors"):
        weights.chmod(0o644)  # written as private
    if base is not None:
        config = json.loads((path / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for stray in STRAYS:
        (path / stray).unlink(missing_ok=True)


def save_half(
    model: PreTrainedModel | PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    notes: Mapping[str, object],
    base: str | None = None,
) -> None:
    """As `save_model` in fp16, with `notes` as `alignstar.json` beside it; an earlier folder at `path` is replaced.

    `base` may be relative to the folder, for example "../sft". The model in memory keeps its precision.
    """
    shutil.rmtree(path, ignore_errors=True)
    before = next(model.parameters()).dtype
    cast("torch.nn.Module", model).to(torch.float16)
    save_model(model, tokenizer=tokenizer, path=path, base=base)
    cast("torch.nn.Module", model).to(before)
    (path / "alignstar.json").write_text(json.dumps(dict(notes), indent=2) + "\n")
