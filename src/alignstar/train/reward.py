"""Reward models from preferences on trl's RewardTrainer: the Bradley-Terry loss on one score per conversation.

Knows pairs of answers, complete or cut short, as text or tokens. Does not know who preferred them.
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

from alignstar.train.common import Fitted, run_trainer, trainer_options, without_dropout
from alignstar.train.encode import EncodedPair
from alignstar.train.settings import Settings, Watcher
from alignstar.train.tokenizer import encode_exchanges
from alignstar.types import Ids


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
    max_steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    center: float | None = 0.01,
    lora: LoraConfig | None = None,
    device: str = "cpu",
) -> PreTrainedModel:
    """The sequence classifier after training on `pairs`; `center` weighs a pull of scores towards zero.

    Pairs that are longer than the tokenizer's limit are left out.
    """
    limit = tokenizer.model_max_length
    chosen = encode_exchanges(tokenizer, [(p.prompt, p.chosen, p.chosen_complete) for p in pairs])
    rejected = encode_exchanges(tokenizer, [(p.prompt, p.rejected, p.rejected_complete) for p in pairs])
    encoded = [
        EncodedPair(chosen=(*head, *tail), rejected=(*head, *other))
        for (head, tail), (_, other) in zip(chosen, rejected, strict=True)
        if len(head) + max(len(tail), len(other)) <= limit
    ]
    settings = Settings(
        learning_rate=learning_rate, epochs=epochs, max_steps=max_steps, batch_size=batch_size, seed=seed, device=device
    )
    made = fit_reward(
        model, encoded, tokenizer=tokenizer, settings=settings, output_dir=output_dir, center=center, lora=lora
    )
    return made.model


def fit_reward(
    model: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    *,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    output_dir: Path,
    held_out: Sequence[EncodedPair] = (),
    center: float | None = 0.01,
    lora: LoraConfig | None = None,
    checkpoint: Path | None = None,
    watcher: Watcher | None = None,
) -> Fitted:
    """As `train_reward` on tokens, with everything that `settings` can ask for, from a `checkpoint` if there is one.

    `model` has one output. Its frozen parameters stay frozen.
    """
    options = trainer_options(settings, output_dir=output_dir, held_out=bool(held_out))
    trainer = RewardTrainer(
        model=without_dropout(model),
        args=RewardConfig(**options, center_rewards_coefficient=center, max_length=None, disable_dropout=False),
        train_dataset=_rows(pairs),
        eval_dataset=_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        peft_config=lora,
    )
    return run_trainer(trainer, settings, checkpoint=checkpoint, watcher=watcher)


def _rows(pairs: Sequence[EncodedPair]) -> Dataset:
    return Dataset.from_dict(
        {"chosen_ids": [list(p.chosen) for p in pairs], "rejected_ids": [list(p.rejected) for p in pairs]}
    )


def score(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    exchanges: Sequence[tuple[str, str, bool]],
    batch_size: int = 128,
) -> list[float]:
    """The raw score of each (prompt, answer, complete), in the given order."""
    ids = [(*head, *tail) for head, tail in encode_exchanges(tokenizer, exchanges)]
    return score_ids(model, ids, pad_id=cast("int", tokenizer.pad_token_id), batch_size=batch_size)


@torch.inference_mode()
def score_ids(model: PreTrainedModel, texts: Sequence[Ids], *, pad_id: int, batch_size: int = 128) -> list[float]:
    """The raw score of each text, in the given order. No text ends with `pad_id`."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores = [0.0] * len(texts)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        longest = max(len(texts[i]) for i in chunk)
        ids = torch.tensor([[*texts[i], *([pad_id] * (longest - len(texts[i])))] for i in chunk], device=model.device)
        lengths = torch.tensor([len(texts[i]) for i in chunk], device=model.device)
        mask = (torch.arange(longest, device=model.device)[None] < lengths[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        for i, value in zip(chunk, logits.tolist(), strict=True):
            scores[i] = value
    return scores
