"""The shape of a transformer: what a token costs in arithmetic, what a position costs in memory. Reads config.json.

Knows no weights and imports no torch. Counts are those of a dense decoder; norms and biases are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignstar.errors import ModelError

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner"),
    "vocab": ("vocab_size",),
    "dtype": ("dtype", "torch_dtype"),
}
"""Ours -> what checkpoints call it, the first one that is there counts."""

TWO_MATRICES = frozenset({"gpt2", "gpt_neox", "gptj", "opt", "phi", "bloom", "falcon"})
"""Model types whose feed-forward layer has no gate: two matrices instead of three."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a decoder whose keys and values are held in `dtype`."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    dtype: str
    feed_forward_matrices: int = 3
    tied: bool = False

    @property
    def kv_bytes(self) -> int:
        """Of one position: a key and a value per layer and key-value head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[self.dtype]

    @property
    def _products(self) -> int:
        """Weights that a token is multiplied with, the output matrix aside."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + self.feed_forward_matrices * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        """Matrices alone: embeddings (once if tied), attention, feed-forward."""
        return self._products + self.vocab * self.hidden * (1 if self.tied else 2)

    def flops(self, context: int) -> int:
        """Of one token that attends to `context` positions: two per weight, four per head's channel and position."""
        return 2 * (self._products + self.vocab * self.hidden) + 4 * self.layers * self.heads * self.head_dim * context


def shape_of(folder: str | None, given: Mapping[str, int | str | None]) -> Shape:
    """The shape in a model folder's config.json (None: none), with what was given in the place of what is there.

    An adapter has its base's. Left out, kv_heads is heads, head_dim hidden / heads, intermediate 4 hidden, dtype
    float32. Raises ModelError, in one sentence, for a folder without such a file and for a number that is missing.
    """
    config = {} if folder is None else _config(Path(folder))
    told: dict[str, Any] = {
        name: next((config[key] for key in keys if config.get(key) is not None), None) for name, keys in NAMES.items()
    }
    told.update({name: value for name, value in given.items() if value is not None})
    for name in ("layers", "hidden", "heads", "vocab"):
        if told[name] is None:
            raise ModelError(
                f"{'The shape' if folder is None else repr(folder)} does not say {name}; give it with --{name}."
            )
    told["kv_heads"] = told["kv_heads"] or told["heads"]
    told["head_dim"] = told["head_dim"] or told["hidden"] // told["heads"]
    told["intermediate"] = told["intermediate"] or 4 * told["hidden"]
    told["dtype"] = told["dtype"] or "float32"
    if told["dtype"] not in BYTES:
        raise ModelError(f"dtype={told['dtype']!r} is unknown; give one of {', '.join(BYTES)} with --dtype.")
    return Shape(
        **told,
        feed_forward_matrices=2 if config.get("model_type") in TWO_MATRICES else 3,
        tied=bool(config.get("tie_word_embeddings")),
    )


def _config(folder: Path) -> dict[str, Any]:
    """The language part of a checkpoint's configuration; an adapter's is its base's."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = str(_read(adapter).get("base_model_name_or_path"))
        return _config(folder / base if (folder / base).is_dir() else Path(base))
    config = _read(folder / "config.json")
    return {**config, **config.get("text_config", {})}


def _read(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"{str(file.parent)!r} holds no {file.name}; give a model's folder, or its shape with --layers, --hidden, "
            "--heads and --vocab."
        ) from error
    except ValueError as error:
        raise ModelError(f"{str(file)!r} is not JSON ({error}); save the model's configuration again.") from error
    if not isinstance(read, dict):
        raise ModelError(f"{str(file)!r} holds no JSON object; save the model's configuration again.")
    return read
