"""Tiny checkpoints on disk, as a user has them: byte-level tokenizer, Llama shape, seeded weights, safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignstar.models.hf.branch import branch_of
from alignstar.models.hf.value import HeadConfig, ValueHead, save_head

CONTEXT = 96


def tokenizer(*, bos: bool = True, extra: tuple[str, ...] = (), shuffled: bool = False) -> Any:
    """One token per byte, and the special ones. `shuffled`: another vocabulary of the same size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=shuffled)
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet, *extra])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"eos_token": "</s>", "pad_token": "<pad>", **({"bos_token": "<s>"} if bos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=CONTEXT, **names)


def config(**changes: Any) -> LlamaConfig:
    """The shape of every model here."""
    shape: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return LlamaConfig(**{**shape, **changes})


def language_model(folder: Path, *, seed: int, with_tokenizer: Any = None, **changes: Any) -> Path:
    """Write a causal language model; its folder."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config(**changes, initializer_range=0.3))
    model.save_pretrained(folder)
    (with_tokenizer or tokenizer()).save_pretrained(folder)
    return folder


def classifier(folder: Path, *, seed: int, **changes: Any) -> Path:
    """Write a sequence classifier with one output; its folder."""
    torch.manual_seed(seed)
    model: Any = LlamaForSequenceClassification(config(num_labels=1, initializer_range=0.3, **changes))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def pickled(folder: Path, *, seed: int) -> Path:
    """Write a language model whose weights are a pickle (.bin); its folder."""
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config())
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer().save_pretrained(folder)
    return folder


def value_head(
    folder: Path, *, seed: int = 0, state_size: int = 16, of: Mapping[str, Any] | None = None, **settings: Any
) -> Path:
    """Write a value head with random weights, and a random branch on a model with the shape `of`; its folder."""
    torch.manual_seed(seed)
    head = ValueHead(HeadConfig(state_size=state_size, mean=0.5, scale=1.5, **settings))
    branch = None
    if head.config.branch:
        model: Any = LlamaForCausalLM(config(**{"num_hidden_layers": 3, **(of or {})}))
        branch = branch_of(model, head.config.layer, head.config.branch, name="random")
    with torch.no_grad():
        for parameter in (*head.parameters(), *(() if branch is None else branch.parameters())):
            parameter.normal_(0, 0.5)
    save_head(head, folder, notes={}, branch=branch)
    return folder
