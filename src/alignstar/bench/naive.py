"""The published Transfer Q* loop, restated plainly: what `--preset official-direct` and `official-indirect` must equal.

Chakraborty et al. 2024, arXiv:2405.20495, as its authors published it in code. Every step computes everything again
with `generate`: nothing is reused, nothing is batched across prompts. It shares no code with the engine or the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Judge:
    """A sequence classifier of transformers with one output, and its tokenizer."""

    model: Any
    tokenizer: Any

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Scores [len(texts)] at each text's last token, special tokens added once more by the tokenizer's plain call.

        transformers itself looks for the last token that is not padding, and so scores the wrong position of a text
        that ends with EOS where EOS is also the padding; the last token is told by the attention mask here.
        """
        ids = [self.tokenizer(text)["input_ids"] for text in texts]
        width = max(map(len, ids))
        tokens = torch.zeros(len(ids), width, dtype=torch.long)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for i, row in enumerate(ids):
            tokens[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        hidden = self.model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state
        return self.model.score(hidden[torch.arange(len(ids)), mask.sum(1) - 1])[:, 0]


def naive_transfer_q(
    model: Any,
    tokenizer: Any,
    prompt: str,
    *,
    target: Judge,
    source: Judge | None = None,
    k: int = 10,
    weight: float = 1.0,
    rollout_len: int = 20,
    max_new_tokens: int = 128,
) -> list[int]:
    """Token ids of the response, always `max_new_tokens` of them.

    `source` makes it indirect: a candidate's reward is then exp(0.5 (r_target - r_source)) r_target.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    start = ids.shape[1]
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits, candidates = torch.topk(model(input_ids=ids).logits[0, -1], k)
            rows = torch.cat([ids.repeat(k, 1), candidates[:, None]], dim=1)
            ahead = model.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=rollout_len, pad_token_id=pad
            )
            texts = tokenizer.batch_decode(ahead, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            rewards = target(texts)
            if source is not None:
                rewards = torch.exp(0.5 * (rewards - source(texts))) * rewards
            best = torch.argmax(logits + weight * rewards)
            ids = torch.cat([ids, candidates[best].reshape(1, 1)], dim=1)
    return ids[0, start:].tolist()
