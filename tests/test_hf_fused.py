"""The fused forward: which models it serves, that it equals the module, and what happens where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

import tiny
from alignstar.models.hf import fused
from alignstar.models.hf.fused import FusedForward
from alignstar.models.hf.network import LogitsReadout, Network
from alignstar.models.hf.paged import PagedForward, PagedRow, Pool

FUSED = {"llama", "mistral", "qwen2", "qwen3"}


@pytest.fixture(autouse=True)
def _without_kernels_of_our_own(monkeypatch: pytest.MonkeyPatch):
    """Which single precision on a CPU has (test_hf_native.py)."""
    monkeypatch.setattr("alignstar.models.hf.network.native_forward", lambda fused: None)


def network(model: Any, name: str = "tiny") -> Network:
    return Network(
        name, model, LogitsReadout(model, tiny.VOCAB), config=model.config, device=torch.device("cpu")
    )  # fmt: skip


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_llama_shaped_models_are_fused_and_no_others(family: str):
    forward = network(tiny.causal_lm(family))._paged
    assert isinstance(forward, FusedForward) == (family in FUSED)


@pytest.mark.parametrize("family", sorted(FUSED))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_of_unequal_lengths_equal_the_modules_own_forward(family: str, dtype: torch.dtype):
    model = tiny.causal_lm(family, dtype=dtype)
    for bias in (p for name, p in model.named_parameters() if name.endswith("bias")):
        torch.nn.init.normal_(bias, generator=torch.Generator().manual_seed(1))
    made = network(model)
    pool = Pool(200, torch.device("cpu"))
    texts = [tuple(range(3, 3 + n)) for n in (20, 7, 13)]
    slots = [pool.take(len(text)) for text in texts]
    made.paged(pool, [PagedRow(new=t[:-4], slots=s[:-4]) for t, s in zip(texts, slots, strict=True)], 1)
    got = made.paged(pool, [PagedRow(new=t[-4:], slots=s) for t, s in zip(texts, slots, strict=True)], 3)
    for row, text in zip(got, texts, strict=True):
        torch.testing.assert_close(row, made.plain([text], 3)[0], rtol=0, atol=made.tolerance)


def test_biases_of_every_projection_count():
    config = LlamaConfig(**tiny._SHAPE, attention_bias=True, mlp_bias=True)
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    tiny.randomise(model, 0, 0.2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
    assert isinstance(network(model)._paged, FusedForward)


def test_weights_are_in_memory_once():
    model = tiny.causal_lm("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = network(model)._paged, network(model)._paged
    assert isinstance(first, FusedForward)
    assert isinstance(second, FusedForward)
    for a, b, block in zip(first.layers, second.layers, model.model.layers, strict=True):
        assert a.qkv.weight.data_ptr() == b.qkv.weight.data_ptr() == block.self_attn.q_proj.weight.data_ptr()
        assert a.gate_up.weight.data_ptr() == b.gate_up.weight.data_ptr() == block.mlp.gate_proj.weight.data_ptr()
        assert a.qkv.weight.untyped_storage().data_ptr() == block.self_attn.v_proj.weight.untyped_storage().data_ptr()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_come_first_in_the_memory_of_single_precision(dtype: torch.dtype):
    """A CPU's products of a few rows take a quarter less time so; other types have their own kernels."""
    model = tiny.causal_lm("llama", dtype=dtype)
    forward = network(model)._paged
    assert isinstance(forward, FusedForward)
    for block, layer in zip(model.model.layers, forward.layers, strict=True):
        for weight in (layer.qkv.weight, layer.out.weight, layer.gate_up.weight, layer.down.weight):
            assert weight.stride(0 if dtype == torch.float32 else 1) == 1
        assert block.mlp.down_proj.weight.data_ptr() == layer.down.weight.data_ptr()


def test_an_adapted_model_runs_through_its_own_modules():
    adapted = get_peft_model(tiny.causal_lm("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert fused.fused_forward(adapted.base_model.model, windows={}, dtype=torch.float64, device="cpu") is None


def test_a_fused_forward_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "_rotated", lambda x, cos, sin: x * cos)
    made = network(tiny.causal_lm("llama"))
    assert isinstance(made._paged, PagedForward)
    assert made.reuse


@pytest.mark.parametrize("kinds", [["global"], ["global", "local"]])
def test_layers_that_find_their_window_by_themselves_run_whole(kinds: list[str]):
    """Longer than the self-check's texts, whose window would hold all of them."""
    config = GPTNeoConfig(
        vocab_size=tiny.VOCAB, hidden_size=16, num_heads=2, num_layers=len(kinds), attention_types=[[kinds, 1]],
        window_size=40, max_position_embeddings=100,
    )  # fmt: skip
    made = network(GPTNeoForCausalLM(config).eval())
    assert made.reuse == (kinds == ["global"])
    if made.reuse:
        pool, texts = Pool(200, torch.device("cpu")), [tuple(range(3, 3 + n)) for n in (25, 9)]
        got = made.paged(pool, [PagedRow(new=text, slots=pool.take(len(text))) for text in texts], 1)
        for row, text in zip(got, texts, strict=True):
            torch.testing.assert_close(row, made.plain([text], 1)[0], rtol=0, atol=made.tolerance)
