"""Reward models from preferences on trl's RewardTrainer: the Bradley-Terry loss on one score per conversation.

Knows pairs of answers, complete or cut short. Does not know who preferred them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from alignstar.train.common import trainer_options
from alignstar.train.tokenizer import encode_exchanges


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to one prompt; the first is preferred. An answer cut short is not complete."""

    prompt: str
    chosen: str
    rejected: str
    chosen_complete: bool = True
    rejected_complete: bool = True


def train_reward(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    output_dir: Path,
    seed: int = 0,
    epochs: float = 1.0,
    max_steps: int = -1,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    center: float | None = 0.01,
    lora: LoraConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The sequence classifier after training on `pairs`; `center` weighs a pull of scores towards zero."""
    chosen = encode_exchanges(tokenizer, [(p.prompt, p.chosen, p.chosen_complete) for p in pairs])
    rejected = encode_exchanges(tokenizer, [(p.prompt, p.rejected, p.rejected_complete) for p in pairs])
    rows = Dataset.from_dict(
        {
            "chosen_ids": [head + tail for head, tail in chosen],
            "rejected_ids": [head + tail for head, tail in rejected],
        }
    )
    options = trainer_options(
        output_dir=output_dir,
        seed=seed,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        device=device,
    )
    config = RewardConfig(**options, center_rewards_coefficient=center, max_length=tokenizer.model_max_length)
    trainer = RewardTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    return cast("PreTrainedModel", trainer.model)


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[tuple[str, str, bool]],
    batch_size: int = 128,
) -> list[float]:
    """The raw score of each (prompt, answer, complete), in the given order."""
    model.eval()
    ids = [head + tail for head, tail in encode_exchanges(tokenizer, exchanges)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores = [0.0] * len(ids)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chunk]}, padding_side="right", return_tensors="pt")
        logits = model(**{k: v.to(model.device) for k, v in batch.items()}).logits[:, 0].float()
        for i, value in zip(chunk, logits.tolist(), strict=True):
            scores[i] = value
    return scores
