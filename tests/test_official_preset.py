"""The official presets against the published loop, token for token (float64, so that no near tie is excused)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import alignstar
import checkpoints
from alignstar.bench.naive import Judge, official

PROMPTS = ("Where?", "a", "It leaks.")
TOKENS = 7


def ending_often(folder: Path, *, seed: int, with_tokenizer: Any = None) -> Path:
    """A model whose greedy rollouts often meet EOS early."""
    checkpoints.language_model(folder, seed=seed, with_tokenizer=with_tokenizer)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[1] *= 4.0
    model.save_pretrained(folder)
    return folder


def without_pad() -> Any:
    tokenizer = checkpoints.tokenizer()
    tokenizer.pad_token = None
    return tokenizer


@pytest.mark.parametrize("padding", ["its own", "none"])
@pytest.mark.parametrize("transfer", ["direct", "indirect"])
def test_preset_equals_the_published_loop(transfer: str, padding: str, tmp_path: Path) -> None:
    tokenizer = checkpoints.tokenizer() if padding == "its own" else without_pad()
    baseline = ending_often(tmp_path / "baseline", seed=3, with_tokenizer=tokenizer)
    rewards = [checkpoints.classifier(tmp_path / f"reward{i}", seed=i) for i in (4, 5)]
    model: Any = AutoModelForCausalLM.from_pretrained(baseline, dtype=torch.float64).eval()
    judges = [
        Judge(
            AutoModelForSequenceClassification.from_pretrained(r, dtype=torch.float64).eval(), checkpoints.tokenizer()
        )
        for r in rewards
    ]
    indirect = transfer == "indirect"
    with alignstar.load(
        baseline=str(baseline),
        reward=str(rewards[0]),
        baseline_reward=str(rewards[1]) if indirect else None,
        dtype="float64",
    ) as aligner:
        responses = aligner.generate_many(PROMPTS, preset=f"official-{transfer}", max_new_tokens=TOKENS)
    ended = 0
    for prompt, response in zip(PROMPTS, responses, strict=True):
        expected = official(
            model,
            tokenizer,
            prompt,
            target=judges[0],
            source=judges[1] if indirect else None,
            rollout_len=5 if indirect else 20,
            max_new_tokens=TOKENS,
        )
        assert list(response.ids) == expected
        ended += sum(1 in c.future[:-1] or c.ids == (1,) for step in response.steps for c in step.considered)
        ended += sum(c.future[-1:] == (1,) for step in response.steps for c in step.considered)
    assert ended > 3  # rollouts did meet EOS
