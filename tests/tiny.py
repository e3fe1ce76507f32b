"""Tiny models of many families, built from their configs with seeded random weights; no download."""

from __future__ import annotations

from typing import Any

import torch
import transformers as t
from transformers import AutoModelForCausalLM

from alignstar.engine import Engine
from alignstar.models.hf.language import HFModel
from alignstar.models.hf.network import LogitsReadout, Network

VOCAB = 61
EOS = 1
WINDOW = 6  # shorter than every sequence the tests use

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 2,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}
_MIXED = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": WINDOW}

CONFIGS: dict[str, Any] = {
    "llama": lambda: t.LlamaConfig(**_GROUPED),
    "mistral": lambda: t.MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: t.Qwen2Config(**_SHAPE, num_key_value_heads=2, use_sliding_window=True, **_MIXED),
    "qwen3": lambda: t.Qwen3Config(**_GROUPED),
    "gemma2": lambda: t.Gemma2Config(**_GROUPED, **_MIXED),
    "gpt_neox": lambda: t.GPTNeoXConfig(**_SHAPE),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=4, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=EOS
    ),
    "opt": lambda: t.OPTConfig(
        vocab_size=VOCAB, hidden_size=32, ffn_dim=48, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, word_embed_proj_dim=32, eos_token_id=EOS, bos_token_id=0, pad_token_id=2,
    ),
    "phi": lambda: t.PhiConfig(**_SHAPE),
    "bloom": lambda: t.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=EOS, pad_token_id=2
    ),
    "lfm2": lambda: t.Lfm2Config(
        **_SHAPE, num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2
    ),
}  # fmt: skip

REUSE = {name: name not in {"bloom", "lfm2"} for name in CONFIGS}
"""Which families the engine may reuse prefixes of: ALiBi takes no 4D mask, convolutions cannot be rolled back."""


def causal_lm(family: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 0.2) -> Any:
    """A causal model with weights large enough that its choices are not near ties."""
    model: Any = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype)
    randomise(model, seed, scale)
    return model.eval()


def randomise(model: Any, seed: int, scale: float) -> None:
    """Seeded normal weights in every matrix."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def hf_model(
    model: Any,
    *,
    engine: Engine,
    reuse: bool = True,
    compile: bool = False,
    kv_tokens: int = 4000,
    name: str = "tiny",
    **options: Any,
) -> HFModel:
    """The model on an engine."""
    readout = LogitsReadout(model, VOCAB)
    network = Network(
        name, model, readout, config=model.config, device=torch.device("cpu"), reuse=reuse, compile=compile
    )
    return HFModel(
        network,
        engine,
        vocab_size=VOCAB,
        eos_ids=frozenset({EOS}),
        max_context=256,
        kv_tokens=kv_tokens,
        **options,
    )


def greedy_reference(model: Any, prefix: tuple[int, ...], count: int, *, stop: bool = True) -> tuple[int, ...]:
    """Greedy decoding by whole forwards, one sequence at a time: no cache, no batch, no mask."""
    ids = list(prefix)
    for _ in range(count):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(torch.argmax(logits)))
        if stop and ids[-1] == EOS:
            break
    return tuple(ids[len(prefix) :])
