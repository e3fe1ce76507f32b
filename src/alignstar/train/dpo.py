"""Direct preference optimisation on trl's DPOTrainer, with the adapter's base model as the reference.

Knows pairs of complete answers. Does not know who preferred them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from alignstar.train.common import trainer_options
from alignstar.train.reward import Pair


def train_dpo(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    output_dir: Path,
    beta: float,
    seed: int = 0,
    epochs: float = 1.0,
    max_steps: int = -1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: LoraConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The model after DPO with the given beta; with `lora`, wrapped in the trained adapter.

    Raises ValueError where a pair holds an answer that is not complete.
    """
    if not all(p.chosen_complete and p.rejected_complete for p in pairs):
        raise ValueError("train_dpo() needs complete answers: a pair holds one that was cut short. Leave it out.")
    rows = Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": p.prompt}],
                "chosen": [{"role": "assistant", "content": p.chosen}],
                "rejected": [{"role": "assistant", "content": p.rejected}],
            }
            for p in pairs
        ]
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
    config = DPOConfig(
        **options, beta=beta, max_length=tokenizer.model_max_length, precompute_ref_log_probs=lora is None
    )
    trainer = DPOTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    return cast("PreTrainedModel", trainer.model)
