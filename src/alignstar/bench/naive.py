"""The published Transfer Q* loop, restated plainly: what `--preset official-direct` and `official-indirect` must equal.

Chakraborty et al. 2024, arXiv:2405.20495, as its authors published it in code. Every step computes everything again
with `generate`: nothing is reused, nothing is batched across prompts. It shares no code with the engine or the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class Judge:
    """A sequence classifier of transformers with one output, and its tokenizer."""

    model: Any
    tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Scores [len(texts)] of texts, special tokens added once more by the tokenizer's plain call."""
        return self.of_ids([self.tokenizer(text)["input_ids"] for text in texts])

    def of_ids(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Scores [len(ids)] at each text's last token.

        transformers itself looks for the last token that is not padding, and so scores the wrong position of a text
        that ends with EOS where EOS is also the padding; here the attention mask tells which token is the last.
        """
        width = max(map(len, ids))
        device = self.model.device
        tokens = torch.zeros(len(ids), width, dtype=torch.long, device=device)
        mask = torch.zeros(len(ids), width, dtype=torch.long, device=device)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.tensor(row, device=device)
            mask[i, : len(row)] = 1
        hidden = self.model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.model.score(hidden[torch.arange(len(ids), device=device), mask.sum(1) - 1])[:, 0]


Rewards: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Scores [k] of k rows of token ids [k, tokens], prompt and rollout included."""


def naive_transfer_q(
    model: Any,
    prompt_ids: Sequence[int],
    rewards: Rewards,
    *,
    k: int = 10,
    weight: float = 1.0,
    rollout_len: int = 20,
    max_new_tokens: int = 128,
    pad: int = 0,
) -> list[int]:
    """Token ids of the response, always `max_new_tokens` of them.

    Rollouts decode as the model's generation config says; one that ends early is filled with `pad` up to the longest.
    """
    ids = torch.tensor([list(prompt_ids)], device=model.device)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits, candidates = torch.topk(model(input_ids=ids).logits[0, -1], k)
            rows = torch.cat([ids.repeat(k, 1), candidates[:, None]], dim=1)
            ahead = model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=rollout_len, pad_token_id=pad
            )
            best = torch.argmax(logits + weight * rewards(ahead))
            ids = torch.cat([ids, candidates[best].reshape(1, 1)], dim=1)
    return ids[0, len(prompt_ids) :].tolist()


def official(
    model: Any, tokenizer: Any, prompt: str, *, target: Judge, source: Judge | None = None, **options: int
) -> list[int]:
    """The published program: texts with every special token in them, judged as they stand.

    `source` makes it indirect: a candidate's reward is then exp(0.5 (r_target - r_source)) r_target.
    """

    def rewards(rows: torch.Tensor) -> torch.Tensor:
        texts = tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        scores = target(texts)
        return scores if source is None else torch.exp(0.5 * (scores - source(texts))) * scores

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return naive_transfer_q(model, tokenizer(prompt)["input_ids"], rewards, pad=pad, **options)
