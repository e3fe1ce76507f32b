"""Supervised fine-tuning on trl's SFTTrainer: the loss is on answers only.

Knows prompts and answers as text. Does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from alignstar.train.common import trainer_options
from alignstar.train.tokenizer import encode_exchanges


def train_sft(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    output_dir: Path,
    seed: int = 0,
    epochs: float = 1.0,
    max_steps: int = -1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: LoraConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The model after training on (prompt, answer) examples; with `lora`, wrapped in the trained adapter.

    `output_dir` is the trainer's scratch folder; nothing is saved as a model there.
    """
    ids = encode_exchanges(tokenizer, [(prompt, answer, True) for prompt, answer in examples])
    rows = Dataset.from_dict(
        {
            "input_ids": [head + tail for head, tail in ids],
            "completion_mask": [[0] * len(head) + [1] * len(tail) for head, tail in ids],
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
    config = SFTConfig(**options, completion_only_loss=True, max_length=tokenizer.model_max_length)
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    return cast("PreTrainedModel", trainer.model)
