"""Models with random weights for the benchmarks, as checkpoints on disk: a Llama shape, and a classifier like it.

A random model's next-token law is scaled to an entropy, since that is what decides how much a search has to look at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignstar.bench.naive import Judge
from alignstar.types import Message, Prompt

PEAKED = (1.5, 2.0)
FLAT = (4.05, 4.6)
"""Intervals of the mean next-token entropy [nats]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of both models, named as LlamaConfig names it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int


SHAPE_30M = Shape(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=2048,
)


def write(
    folder: Path, shape: Shape, prompts: Sequence[Prompt], *, entropy: tuple[float, float], seed: int = 0
) -> None:
    """Write `baseline`, scaled to `entropy` on the prompts, and `reward` with its mean and deviation."""
    fields: dict[str, Any] = {**asdict(shape), "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    # The usual deviation of 0.02 would make layers that change almost nothing.
    fields["initializer_range"] = 0.05
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig.from_dict(fields)).eval()
    scale_logits(model, prompts, entropy)
    classifier: Any = LlamaForSequenceClassification(LlamaConfig.from_dict({**fields, "num_labels": 1})).eval()
    reading = tokenizer(shape.vocab_size)
    mean, std = _reference(model, Judge(classifier, reading), prompts)
    for name, module in (("baseline", model), ("reward", classifier)):
        module.save_pretrained(folder / name)
        reading.save_pretrained(folder / name)
    (folder / "reward" / "alignstar.json").write_text(json.dumps({"mean": mean, "std": std}), encoding="utf-8")


def prompts(shape: Shape, *, count: int, length: int, seed: int = 0) -> tuple[Prompt, ...]:
    """Random prompts of `length` tokens; the first ones are the same for every count."""
    generator = torch.Generator().manual_seed(seed)
    reading = tokenizer(shape.vocab_size)
    made: list[Prompt] = []
    for _ in range(count):
        ids = torch.randint(0, shape.vocab_size, (length,), generator=generator).tolist()
        text = reading.decode(ids)
        # The blank keeps the prompt's last word and the reply's first apart.
        made.append(Prompt(messages=(Message(role="user", content=f"{text} "),), text=text, ids=tuple(ids)))
    return tuple(made)


def tokenizer(size: int) -> Any:
    """One token per word w0, w1, ...: text and ids say the same."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def mean_entropy(model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> float:
    """Mean entropy of the next-token law over the positions of the sequences, from `starts` (None: 0) on [nats]."""
    entropies: list[torch.Tensor] = []
    with torch.inference_mode():
        for sequence, start in zip(sequences, starts or [0] * len(sequences), strict=True):
            logits = model(input_ids=torch.tensor([list(sequence)], device=model.device)).logits[0, start:]
            law = torch.log_softmax(logits.double(), -1)
            entropies.append(-(law.exp() * law).sum(-1))
    return float(torch.cat(entropies).mean())


def scale_logits(model: Any, prompts: Sequence[Prompt], entropy: tuple[float, float]) -> None:
    """Multiply the output matrix until the mean entropy lies in the interval: bisection on the factor's logarithm."""
    weight = model.lm_head.weight.data.clone()
    low, high = -8.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        model.lm_head.weight.data = weight * 2.0**middle
        found = mean_entropy(model, [p.ids for p in prompts])
        if entropy[0] <= found <= entropy[1]:
            return
        low, high = (middle, high) if found > entropy[1] else (low, middle)
    raise ArithmeticError(f"no factor gives these prompts an entropy within {entropy}")


def _reference(model: Any, judge: Judge, prompts: Sequence[Prompt]) -> tuple[float, float]:
    """Mean and standard deviation of raw rewards over sampled continuations of the prompts."""
    scores: list[torch.Tensor] = []
    with torch.inference_mode():
        for prompt in prompts[:4]:
            rows = torch.tensor([prompt.ids] * 16)
            drawn = model.generate(
                rows, attention_mask=torch.ones_like(rows), do_sample=True, max_new_tokens=20, pad_token_id=0, top_k=0
            )
            scores.append(judge.of_ids(drawn.tolist()))
    raw = torch.cat(scores).double()
    return float(raw.mean()), float(raw.std())
