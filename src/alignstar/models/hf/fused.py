"""The forward of Llama-shaped decoders (Llama, Mistral, Qwen2, Qwen3) over paged rows, in few operations.

Small models and single tokens spend most of a forward between the operations: a layer here is one product for queries,
keys and values, one store and one gather for keys and values, one product for gate and up. Before its attention and
behind it a layer is a pure function, so that it can be compiled (`compiled.py`). Knows torch and the modules' weights,
which it shares with them; whether it is right for a model is found out by the self-check at load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional as F

from alignstar.models.hf.attending import New, Part, Slots, attend, parted
from alignstar.models.hf.branch import EPS, Branch, Grafted
from alignstar.models.hf.packed import layout
from alignstar.models.hf.paged import Packed, PagedRow, Pool

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


class Projection(NamedTuple):
    """A linear layer's weight [out, in] and bias [out]."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Norm(NamedTuple):
    """A root-mean-square norm's weight and what keeps it from dividing by zero."""

    weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer's weights; fused ones are stacked along their outputs."""

    kind: str
    scaling: float
    attention_norm: Norm
    qkv: Projection
    q_norm: Norm | None
    k_norm: Norm | None
    out: Projection
    mlp_norm: Norm
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
    branch = module.branch if isinstance(module, Grafted) else None
    return FusedForward(
        module, backbone, layers, branch=branch, windows=windows, dtype=dtype, device=device, layout=layout
    )


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
        attention_norm=_norm(block.input_layernorm),
        qkv=_stacked([attention.q_proj, attention.k_proj, attention.v_proj]),
        q_norm=_norm(norms["q_norm"]) if "q_norm" in norms else None,
        k_norm=_norm(norms["k_norm"]) if "k_norm" in norms else None,
        out=_stacked([attention.o_proj]),
        mlp_norm=_norm(block.post_attention_layernorm),
        gate_up=_stacked([mlp.gate_proj, mlp.up_proj]),
        down=_stacked([mlp.down_proj]),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _stacked(linears: Sequence[torch.nn.Linear]) -> Projection:
    """The layers' weights in one tensor, of which theirs become views: nothing is in memory twice.

    In a CPU's single precision inputs come first in memory, for which products of a few rows take a quarter less time.
    """
    weights = [linear.weight for linear in linears]
    turned = weights[0].device.type == "cpu" and weights[0].dtype == torch.float32
    given = cast("list[torch.Tensor | None]", [linear.bias for linear in linears])
    biases = [bias for bias in given if bias is not None]
    bias = _one_tensor(biases, turned=False) if len(biases) == len(linears) else None
    return Projection(_one_tensor(weights, turned=turned), bias)


def _one_tensor(parameters: Sequence[torch.Tensor], *, turned: bool) -> torch.Tensor:
    first = parameters[0]
    rows = sum(p.shape[0] for p in parameters)
    step = 1 if turned else first.stride(0)
    stride = (1, rows) if turned else first.contiguous().stride()
    starts = accumulate((p.shape[0] * step for p in parameters), initial=int(first.storage_offset()))
    where = first.untyped_storage().data_ptr()
    if all(
        p.untyped_storage().data_ptr() == where and p.storage_offset() == start and p.stride() == stride
        for p, start in zip(parameters, starts, strict=False)
    ):  # stacked before, for another forward of the same module
        return first.detach().as_strided((rows, *first.shape[1:]), stride)
    stacked = torch.cat([parameter.detach() for parameter in parameters])
    if turned:
        stacked = stacked.t().contiguous().t()
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
        branch: Branch | None,
        windows: dict[str, int | None],
        dtype: torch.dtype,
        device: torch.device,
        layout: Callable[..., Packed],
    ) -> None:
        self.layout = layout
        self.leaves, self.returns = (-1, -1) if branch is None else (branch.at, branch.at + len(branch.layers))
        self.branch_norm = None if branch is None else Norm(branch.norm.weight, EPS)
        self.head: Any = getattr(module, "lm_head", None)
        self.backbone = backbone
        self.layers = layers
        self.norm = _norm(backbone.norm)
        self.windows = windows
        self.dtype = dtype
        self.device = device
        self.before, self.after = before_attention, after_attention

    def __call__(self, pool: Pool, rows: Sequence[PagedRow], *, keep: int = 0, logits_to_keep: int = 0) -> Any:
        """`last_hidden_state` [B, Q, H], and `logits` of the last `logits_to_keep` positions where there is a head.

        With `keep` only the last so many positions of a row are told, and the last layer ends for them alone.
        """
        packed = self.layout(rows, windows=self.windows, dtype=self.dtype, device=self.device)
        return self.run(pool, packed, keep=keep, logits_to_keep=logits_to_keep)

    def run(self, pool: Slots, packed: Packed, *, keep: int = 0, logits_to_keep: int) -> Any:
        """See `__call__`; the rows are laid out."""
        new = New(packed)
        hidden = F.embedding(new.tokens, self.backbone.embed_tokens.weight)
        angles = self.backbone.rotary_emb(hidden, position_ids=new.positions[None])
        cos, sin = angles[0].view(len(new.tokens), 1, -1), _signed(angles[1]).view(len(new.tokens), 1, -1)
        parts = list[Part]()
        places = new.places(packed, keep)
        left = reached = hidden
        for index, layer in enumerate(self.layers):
            if index == self.leaves:
                left = hidden
            if index == self.returns:
                reached, hidden = hidden, left
            query, stored = self.before(hidden, layer, cos, sin)
            buffer = pool.buffer(index, stored)
            buffer.index_copy_(0, new.written, stored)
            parts = parts or parted(packed, buffer[0].numel() * buffer.element_size())
            query = new.spread(query).view(*packed.tokens.shape, *query.shape[1:])
            attended = attend(pool, buffer, query, parts, kind=layer.kind, scaling=layer.scaling)
            attended = new.real(attended)
            if index + 1 == len(self.layers) and places is not None and self.branch_norm is None:
                hidden, attended = hidden[places.reshape(-1)], attended[places.reshape(-1)]
            hidden = self.after(hidden, attended, layer)
        if self.returns == len(self.layers):
            reached, hidden = hidden, left
        told = packed.tokens.shape if places is None else places.shape
        if self.branch_norm is not None and places is not None:
            hidden, reached = hidden[places], reached[places]
        hidden = _rms_norm(hidden.view(*told, -1), self.norm)
        logits = None if self.head is None else self.head(hidden[:, -logits_to_keep:])
        if self.branch_norm is not None:
            hidden = torch.cat((hidden, _rms_norm(reached.view(*told, -1), self.branch_norm)), dim=-1)
        return SimpleNamespace(last_hidden_state=hidden, logits=logits)


def before_attention(
    hidden: torch.Tensor, layer: Layer, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of states [N, H] the queries [N, heads, dim], and keys with values behind them [N, 2 kv heads, dim].

    `cos` and `sin` are of the angles [N, 1, dim] of the states' positions, `sin` as `_signed` gives it.
    """
    dim = cos.shape[-1]
    qkv = F.linear(_rms_norm(hidden, layer.attention_norm), *layer.qkv).view(hidden.shape[0], -1, dim)
    n_q = layer.out.weight.shape[1] // dim
    n_kv = (qkv.shape[1] - n_q) // 2
    if layer.q_norm is None or layer.k_norm is None:
        rotated = _rotated(qkv[:, : n_q + n_kv], cos, sin)
        query, key = rotated[:, :n_q], rotated[:, n_q:]
    else:
        query = _rotated(_rms_norm(qkv[:, :n_q], layer.q_norm), cos, sin)
        key = _rotated(_rms_norm(qkv[:, n_q : n_q + n_kv], layer.k_norm), cos, sin)
    return query, torch.cat((key, qkv[:, n_q + n_kv :]), dim=1)


def after_attention(hidden: torch.Tensor, attended: torch.Tensor, layer: Layer) -> torch.Tensor:
    """The layer's outcome [N, H] of its states and what attention gave for them [N, heads * dim]."""
    hidden = hidden + F.linear(attended, *layer.out)
    gate, up = F.linear(_rms_norm(hidden, layer.mlp_norm), *layer.gate_up).chunk(2, dim=-1)
    return hidden + F.linear(F.silu(gate).mul_(up), *layer.down)


def _rms_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """As the modules compute it: in float32 whatever the model's type."""
    if x.dtype == torch.float32 and x.device.type != "cpu":
        return F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    if x.dtype == torch.float32:  # F.rms_norm takes up to twice as long there
        return (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + norm.eps)).mul_(norm.weight)
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(x.dtype)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of [N, heads, dim] by the angles [N, 1, dim]; `sin` with the signs of `_signed`."""
    half = x.shape[-1] // 2
    # Not addcmul, which rounds half precision otherwise than the modules do.
    return torch.cat((x[..., half:], x[..., :half]), dim=-1).mul_(sin).add_(x * cos)


def _signed(sin: torch.Tensor) -> torch.Tensor:
    """The sines [..., dim] with the signs that a rotation's first half takes them with."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
