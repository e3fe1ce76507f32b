"""Supervised fine-tuning on trl's SFTTrainer: the loss is on answers only.

Knows prompts and answers as text or tokens. Does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from alignstar.train.common import Fitted, run_trainer, trainer_options
from alignstar.train.encode import Exchange
from alignstar.train.settings import Settings, Watcher
from alignstar.train.tokenizer import encode_exchanges


def train_sft(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[tuple[str, str]],
    output_dir: Path,
    seed: int = 0,
    epochs: float = 1.0,
    max_steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    lora: LoraConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The model after training on (prompt, answer) examples; with `lora`, wrapped in the trained adapter.

    `output_dir` is the trainer's scratch folder; nothing is saved as a model there. What is longer than the tokenizer's
    limit is cut.
    """
    limit = tokenizer.model_max_length
    ids = encode_exchanges(tokenizer, [(prompt, answer, True) for prompt, answer in examples])
    cut = [Exchange(prompt=tuple(h), answer=tuple(t[: limit - len(h)])) for h, t in ids if len(h) < limit]
    settings = Settings(
        learning_rate=learning_rate, epochs=epochs, max_steps=max_steps, batch_size=batch_size, seed=seed, device=device
    )
    return fit_sft(model, cut, tokenizer=tokenizer, settings=settings, output_dir=output_dir, lora=lora).model


def fit_sft(
    model: PreTrainedModel,
    exchanges: Sequence[Exchange],
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    output_dir: Path,
    held_out: Sequence[Exchange] = (),
    lora: LoraConfig | None = None,
    checkpoint: Path | None = None,
    watcher: Watcher | None = None,
) -> Fitted:
    """As `train_sft` on tokens, with everything that `settings` can ask for, from a `checkpoint` if there is one."""
    options = trainer_options(settings, output_dir=output_dir, held_out=bool(held_out))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options, completion_only_loss=True, max_length=None),
        train_dataset=_rows(exchanges),
        eval_dataset=_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=lora,
    )
    return run_trainer(trainer, settings, checkpoint=checkpoint, watcher=watcher)


def _rows(exchanges: Sequence[Exchange]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[*e.prompt, *e.answer] for e in exchanges],
            "completion_mask": [[0] * len(e.prompt) + [1] * len(e.answer) for e in exchanges],
        }
    )
