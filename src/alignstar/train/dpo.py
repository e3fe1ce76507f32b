"""Direct preference optimisation on trl's DPOTrainer, with the adapter's base model as the reference.

Knows pairs of complete answers. Does not know who preferred them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from alignstar.train.common import Fitted, run_trainer, trainer_options, without_dropout
from alignstar.train.reward import Pair
from alignstar.train.settings import Settings, Watcher
from alignstar.types import Message


def train_dpo(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    output_dir: Path,
    beta: float,
    seed: int = 0,
    epochs: float = 1.0,
    max_steps: int | None = None,
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
    settings = Settings(
        learning_rate=learning_rate, epochs=epochs, max_steps=max_steps, batch_size=batch_size, seed=seed, device=device
    )
    rows = [((Message(role="user", content=p.prompt),), p.chosen, p.rejected) for p in pairs]
    return fit_dpo(
        model, rows, tokenizer=tokenizer, settings=settings, output_dir=output_dir, beta=beta, lora=lora,
        max_length=tokenizer.model_max_length,
    ).model  # fmt: skip


def fit_dpo(
    model: PreTrainedModel,
    pairs: Sequence[tuple[tuple[Message, ...], str, str]],
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    output_dir: Path,
    beta: float,
    held_out: Sequence[tuple[tuple[Message, ...], str, str]] = (),
    max_length: int | None = None,
    lora: LoraConfig | None = None,
    checkpoint: Path | None = None,
    watcher: Watcher | None = None,
) -> Fitted:
    """As `train_dpo` on (prompt, chosen, rejected), with all that `settings` can ask for, from a `checkpoint` if any.

    Without `lora` the reference's log-probabilities are computed once, by the model as it is given: no second model is
    held. The trainer tokenises: with the chat template where there is one, else the prompt is one text.
    """
    options = trainer_options(settings, output_dir=output_dir, held_out=bool(held_out))
    chat = tokenizer.chat_template is not None
    trainer = DPOTrainer(
        model=without_dropout(model),
        args=DPOConfig(
            **options, beta=beta, max_length=max_length, precompute_ref_log_probs=lora is None, disable_dropout=False
        ),
        train_dataset=_rows(pairs, chat=chat),
        eval_dataset=_rows(held_out, chat=chat) if held_out else None,
        processing_class=tokenizer,
        peft_config=lora,
    )
    return run_trainer(trainer, settings, checkpoint=checkpoint, watcher=watcher)


def _rows(pairs: Sequence[tuple[tuple[Message, ...], str, str]], *, chat: bool) -> Dataset:
    def answer(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if chat else text

    def asked(messages: tuple[Message, ...]) -> Any:
        return [{"role": m.role, "content": m.content} for m in messages] if chat else messages[0].content

    return Dataset.from_list(
        [{"prompt": asked(m), "chosen": answer(good), "rejected": answer(bad)} for m, good, bad in pairs]
    )
