"""The forward of Llama-shaped decoders (Llama, Mistral, Qwen2, Qwen3) over paged rows, in few operations.

Small models and single tokens spend most of a forward between the operations: a layer here is one product for queries,
keys and values, one store and one gather for keys and values, one product for gate and up. Knows torch and these
modules' weights, which it shares with them; whether it is right for a model is found out by the self-check at load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional as F

from alignstar.models.hf.packed import layout
from alignstar.models.hf.paged import Packed, PagedRow, Pool

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class Projection(NamedTuple):
    """A linear layer's weight [out, in] and bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer's weights; fused ones are stacked along their outputs."""

    kind: str
    scaling: float
    attention_norm: Any
    qkv: Projection
    q_norm: Any
    k_norm: Any
    out: Projection
    mlp_norm: Any
    gate_up: Projection
    down: Projection


def fused_forward(
    module: torch.nn.Module,
    *,
    windows: dict[str, int | None],
    dtype: torch.dtype,
    device: torch.device,
    layout: Callable[..., Packed] = layout,
) -> FusedForward | None:
    """The fused forward of a causal model or of its backbone; None for another architecture, or for wrapped layers."""
    config: Any = module.config
    backbone: Any = getattr(module, "model", module)
    if getattr(config, "model_type", None) not in MODEL_TYPES or config.hidden_act != "silu":
        return None
    blocks = list(backbone.layers)
    if not all(type(m) is torch.nn.Linear for block in blocks for m in _linears(block)):
        return None  # an adapter's, or quantised
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(blocks)
    layers = [_layer(block, kind) for block, kind in zip(blocks, kinds, strict=True)]
    return FusedForward(module, backbone, layers, windows=windows, dtype=dtype, device=device, layout=layout)


def _linears(block: Any) -> list[torch.nn.Module]:
    attention, mlp = block.self_attn, block.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip


def _layer(block: Any, kind: str) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    norms = dict(attention.named_children())
    return Layer(
        kind=kind,
        scaling=attention.scaling,
        attention_norm=block.input_layernorm,
        qkv=_stacked([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=norms.get("q_norm"),
        k_norm=norms.get("k_norm"),
        out=Projection(attention.o_proj.weight, attention.o_proj.bias),
        mlp_norm=block.post_attention_layernorm,
        gate_up=_stacked([mlp.gate_proj, mlp.up_proj]),
        down=Projection(mlp.down_proj.weight, mlp.down_proj.bias),
    )


def _stacked(linears: Sequence[torch.nn.Linear]) -> Projection:
    """The layers' weights in one tensor, of which theirs become views: nothing is in memory twice."""
    given = cast("list[torch.Tensor | None]", [linear.bias for linear in linears])
    biases = [bias for bias in given if bias is not None]
    bias = _one_tensor(biases) if len(biases) == len(linears) else None
    return Projection(_one_tensor([linear.weight for linear in linears]), bias)


def _one_tensor(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    first = parameters[0]
    rows = sum(p.shape[0] for p in parameters)
    starts = accumulate((p.numel() for p in parameters), initial=int(first.storage_offset()))
    where = first.untyped_storage().data_ptr()
    if all(
        p.untyped_storage().data_ptr() == where and p.storage_offset() == start
        for p, start in zip(parameters, starts, strict=False)
    ):  # stacked before, for another forward of the same module
        return first.detach().as_strided((rows, *first.shape[1:]), first.stride())
    stacked = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = stacked[start : start + parameter.shape[0]]
        start += parameter.shape[0]
    return stacked


class FusedForward:
    """Runs paged rows through a Llama-shaped model; the outputs are named as transformers names them."""

    def __init__(
        self,
        module: torch.nn.Module,
        backbone: Any,
        layers: Sequence[Layer],
        *,
        windows: dict[str, int | None],
        dtype: torch.dtype,
        device: torch.device,
        layout: Callable[..., Packed],
    ) -> None:
        self.layout = layout
        self.head: Any = getattr(module, "lm_head", None)
        self.backbone = backbone
        self.layers = layers
        self.windows = windows
        self.dtype = dtype
        self.device = device
        self.head_dim: int = backbone.layers[0].self_attn.head_dim

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], *, logits_to_keep: int = 0) -> Any:
        """`last_hidden_state` [B, Q, H], and `logits` of the last `logits_to_keep` positions where there is a head."""
        packed = self.layout(rows, windows=self.windows, dtype=self.dtype, device=self.device)
        batch, queries = packed.tokens.shape
        read, width = packed.read.reshape(-1), packed.read.shape[1]
        hidden = F.embedding(packed.tokens, self.backbone.embed_tokens.weight)
        cos, sin = (t[:, :, None] for t in self.backbone.rotary_emb(hidden, position_ids=packed.positions))
        for index, layer in enumerate(self.layers):
            normed = _rms_norm(hidden, layer.attention_norm)
            qkv = F.linear(normed, *layer.qkv).view(batch, queries, -1, self.head_dim)
            n_q = layer.out.weight.shape[1] // self.head_dim
            n_kv = (qkv.shape[2] - n_q) // 2
            if layer.q_norm is None:
                rotated = _rotated(qkv[:, :, : n_q + n_kv], cos, sin)
                query, key = rotated[:, :, :n_q], rotated[:, :, n_q:]
            else:
                query = _rotated(_rms_norm(qkv[:, :, :n_q], layer.q_norm), cos, sin)
                key = _rotated(_rms_norm(qkv[:, :, n_q : n_q + n_kv], layer.k_norm), cos, sin)
            new = torch.cat((key, qkv[:, :, n_q + n_kv :]), dim=2).view(batch * queries, 2 * n_kv, self.head_dim)
            buffer = pool.buffer(index, new)
            buffer.index_copy_(0, packed.written, new)
            kept = pool.gather(buffer, read).view(batch, width, 2 * n_kv, self.head_dim).transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                kept[:, :n_kv],
                kept[:, n_kv:],
                attn_mask=packed.mask[layer.kind] if isinstance(packed.mask, dict) else packed.mask,
                scale=layer.scaling,
                enable_gqa=n_q != n_kv,
            )
            hidden = hidden + F.linear(attended.transpose(1, 2).reshape(batch, queries, -1), *layer.out)
            gate, up = F.linear(_rms_norm(hidden, layer.mlp_norm), *layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate).mul_(up), *layer.down)
        if packed.rows is not None:
            hidden = hidden.view(batch * queries, -1)[packed.rows]
        hidden = _rms_norm(hidden, self.backbone.norm)
        logits = None if self.head is None else self.head(hidden[:, -logits_to_keep:])
        return SimpleNamespace(last_hidden_state=hidden, logits=logits)


def _rms_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """As the modules compute it: in float32 whatever the model's type."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * wide.to(x.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of [B, Q, heads, dim] by the angles [B, Q, 1, dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
