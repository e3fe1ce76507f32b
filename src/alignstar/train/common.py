"""What the three training functions share: arguments for the trainers of trl, and saving without pickles.

Knows transformers and peft formats. Does not know any loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def trainer_options(
    *,
    output_dir: Path,
    seed: int,
    epochs: float,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
    device: str,
) -> dict[str, Any]:
    """Keyword arguments for SFTConfig, RewardConfig and DPOConfig alike. `max_steps` of -1 means by epochs."""
    return {
        "output_dir": str(output_dir),
        "seed": seed,
        "data_seed": seed,
        "num_train_epochs": epochs,
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.01,
        "use_cpu": device == "cpu",
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 50,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device != "cpu",
    }


def save_half(
    model: PreTrainedModel | PeftModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    notes: Mapping[str, object],
    base: str | None = None,
) -> None:
    """Write a model or adapter in fp16 safetensors with its tokenizer, and `notes` as `alignstar.json` beside it.

    `base` is what an adapter shall name as its base model, for example "../sft". An earlier folder at `path` is
    replaced. The model in memory keeps its precision.
    """
    shutil.rmtree(path, ignore_errors=True)
    model.config.use_cache = True  # trainers turn it off
    before = next(model.parameters()).dtype
    cast("torch.nn.Module", model).to(torch.float16)
    model.save_pretrained(str(path), safe_serialization=True)
    cast("torch.nn.Module", model).to(before)
    tokenizer.save_pretrained(path)
    for weights in path.glob("*.safetensors"):
        weights.chmod(0o644)  # written as private
    (path / "alignstar.json").write_text(json.dumps(dict(notes), indent=2) + "\n")
    if base is not None:
        config = json.loads((path / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base
        (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for stray in (path / "README.md", path / "training_args.bin"):
        stray.unlink(missing_ok=True)
