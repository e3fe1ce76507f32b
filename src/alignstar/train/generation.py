"""Batched sampling of answers with plain transformers, for preference pairs and for figures.

Knows one model and its tokenizer. Decoding methods live elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignstar.train.tokenizer import render_prompt
from alignstar.types import Ids


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
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    ids = [tuple(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    drawn = generate_after(
        model, tokenizer=tokenizer, prompts=ids, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    return [(cast("str", tokenizer.decode(list(row), skip_special_tokens=True)), ended) for row, ended in drawn]


@torch.inference_mode()
def generate_after(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 256,
    on_answers: Callable[[int], None] = lambda done: None,
) -> list[tuple[Ids, bool]]:
    """As `generate_answers`, from and to token ids: what follows each prompt up to the end-of-turn token, if it ended.

    That token is left out. `on_answers` is told how many there are so far.
    """
    model.eval()
    end = cast("int", tokenizer.eos_token_id)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[tuple[Ids, bool]] = [((), False)] * len(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            ids = {"input_ids": [list(prompts[i]) for i in chunk]}
            batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt")
            width = batch["input_ids"].shape[1]
            out: torch.Tensor = cast("Any", model).generate(
                **{k: v.to(model.device) for k, v in batch.items()},
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=end,
                **choice,
            )[:, width:]
            for i, row in zip(chunk, out.tolist(), strict=True):
                ended = end in row
                answers[i] = (tuple(row[: row.index(end)] if ended else row), ended)
            on_answers(start + len(chunk))
    return answers
