"""Batched sampling of answers with plain transformers, for preference pairs and for figures.

Knows one model and its tokenizer. Decoding methods live elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignstar.train.tokenizer import render_prompt


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 256,
) -> list[tuple[str, bool]]:
    """One (answer, ended) for each prompt, in the given order; a temperature of 0 is greedy.

    The draw depends on the seed and on the batch size. The global random state is left as it was.
    """
    model.eval()
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers: list[tuple[str, bool]] = [("", False)] * len(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in chunk],
                add_special_tokens=False,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                return_token_type_ids=False,
            )
            width = batch["input_ids"].shape[1]
            out: torch.Tensor = cast("Any", model).generate(
                **{k: v.to(model.device) for k, v in batch.items()},
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **choice,
            )[:, width:]
            for i, row in zip(chunk, out.tolist(), strict=True):
                ended = tokenizer.eos_token_id in row
                answers[i] = (cast("str", tokenizer.decode(row, skip_special_tokens=True)), ended)
    return answers
