"""The model that a training starts from: found, refused where it would not do, opened. Trains nothing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignstar.errors import ModelError, OptionError
from alignstar.loading import located
from alignstar.models.hf.adapters import is_adapter
from alignstar.models.hf.load import DTYPES, check_checkpoint, pick_device
from alignstar.models.hf.network import context_limit
from alignstar.train.recipes import TrainingRecipe, WeightsRecipe

CAUSAL, CLASSIFIER = "CAUSAL_LM", "SEQ_CLS"
"""What a model is trained for, in peft's words."""


def whole_model(source: str) -> str:
    """The folder or hub id of a recipe's model. Raises ModelError for none, one without safetensors, an adapter."""
    path = located(source)
    if is_adapter(path):
        raise ModelError(
            f"model={source!r} is an adapter and training starts from a whole model; name its base, or train it with "
            "lora.merge: true."
        )
    check_checkpoint(path, "model")
    return path


def row_limit(path: str, recipe: TrainingRecipe) -> int:
    """The most tokens of a row: as the recipe says, never more than the model reads."""
    context = context_of(path)
    return recipe.max_length if context is None else min(recipe.max_length, context)


def context_of(path: str) -> int | None:
    """The most tokens that a model reads; None where it does not say. Raises ModelError for no configuration."""
    try:
        config: Any = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"model={path!r} has no configuration that can be read: {_first(error)}.") from error
    return context_limit(config.get_text_config())


def device_of(recipe: TrainingRecipe) -> str:
    """Where to train: cpu, cuda or mps. Raises OptionError for one that this machine has not, and for several GPUs."""
    device = pick_device(recipe.device).type
    if device == "cuda" and torch.cuda.device_count() > 1:
        raise OptionError(
            f"{torch.cuda.device_count()} GPUs are visible and a training uses one; choose it with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    return device


def open_base(path: str, recipe: WeightsRecipe, *, task: str) -> PreTrainedModel:
    """The model; a classifier's new head is a function of the seed.

    Raises ModelError for what cannot be opened, OptionError for layers to adapt that it has not.
    """
    how: dict[str, Any] = {"dtype": DTYPES[recipe.dtype], "use_safetensors": True}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            if task == CLASSIFIER:
                model: Any = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **how)
            else:
                model = AutoModelForCausalLM.from_pretrained(path, **how)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"model={recipe.model!r} cannot be loaded: {_first(error)}.") from error
    _check_targets(model, recipe)
    return model


def _check_targets(model: Any, recipe: WeightsRecipe) -> None:
    head = {id(model.get_output_embeddings()), id(dict(model.named_children()).get("score"))}
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and id(m) not in head]
    for target in (recipe.lora and recipe.lora.targets) or ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise OptionError(
                f"lora.targets names {target!r}, which is no inner linear layer of {recipe.model!r}; known: "
                f"{', '.join(known)}."
            )


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
