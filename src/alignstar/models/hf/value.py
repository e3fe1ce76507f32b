"""A value head on a layer of a causal language model: its module, its files, and how it is read while decoding.

A head reads the model's hidden state (after the final norm) of layer `layer`; a folder holds value.safetensors and
value.json, which names the model. On the last layer of the very model that decodes it is read off that model's own
forward, which costs nothing; else a trunk of its own runs, with the layers above cut off. Knows torch and engine rows;
no reward and no loss.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignstar.errors import EngineError, ModelError
from alignstar.meter import current_meter, together
from alignstar.models.hf.classifier import HFClassifier
from alignstar.models.hf.language import HFModel
from alignstar.sampling import Array, IntArray
from alignstar.types import Ids

CONFIG, WEIGHTS = "value.json", "value.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What a head is. `base` is its model's folder (also one relative to the head's) or hub id.

    `rank` 0 is a prefix scorer, V(s) from the state of s; above, Q(s, z) is a product of so many numbers of s and of z.
    `width` is that of a hidden layer over the state (0: none). Values are mean + scale times what the head gives.
    """

    base: str
    layer: int
    state_size: int
    rank: int = 0
    width: int = 0
    mean: float = 0.0
    scale: float = 1.0


class ValueHead(torch.nn.Module):
    """The parameters of a head: `state` maps hidden states to features, `token` embeddings to their factors."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        size, outputs = config.state_size, max(1, config.rank)
        layers = [torch.nn.Linear(size, outputs)]
        if config.width:
            layers = [torch.nn.Linear(size, config.width), torch.nn.SiLU(), torch.nn.Linear(config.width, outputs)]
        self.state = torch.nn.Sequential(*layers)
        self.token = torch.nn.Linear(size, config.rank) if config.rank else None

    def forward(self, states: torch.Tensor, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Values [...] of hidden states [..., d]; token values: of the tokens of `embeddings` [..., d] after them."""
        features = self.state(states)
        if self.token is None:
            return self.config.mean + self.config.scale * features[..., 0]
        return self.config.mean + self.config.scale * (features * self.token(embeddings)).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHead:
    """A head that was read from `folder`."""

    folder: str
    head: ValueHead

    @property
    def base(self) -> str:
        """Its model: a directory or a hub id."""
        named = self.head.config.base
        beside = Path(self.folder) / named
        return str(beside.resolve()) if beside.is_dir() else named


def save_head(head: ValueHead, folder: Path, *, notes: Mapping[str, Any]) -> None:
    """Write a head in float32; `notes` (how it was trained) stand in its config too, where nothing reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in head.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # written as private
    (folder / CONFIG).write_text(json.dumps({**asdict(head.config), "notes": dict(notes)}, indent=2) + "\n")


def load_head(folder: str) -> StoredHead:
    """Read a head. Raises ModelError where there is none, or one that does not fit its config."""
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise ModelError(f"value={folder!r} holds no {name}; give a folder that `alignstar train value` wrote.")
    known = {field.name for field in fields(HeadConfig)}
    try:
        given = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        head = ValueHead(HeadConfig(**{name: value for name, value in given.items() if name in known}))
        head.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"value={folder!r} cannot be read as a value head ({str(error).splitlines()[0]}); train it again."
        ) from error
    return StoredHead(folder=folder, head=head.eval())


def layer_list(backbone: Any) -> str | None:
    """What a backbone calls the list of its layers; None where they are no plain list of its own."""
    total = backbone.config.num_hidden_layers
    lists = [n for n, m in backbone.named_children() if isinstance(m, torch.nn.ModuleList) and len(m) == total]
    return lists[0] if len(lists) == 1 else None


def truncated(model: Any, layers: int, *, name: str) -> Any:
    """A causal model's backbone without the layers above the first `layers`, on the same weights.

    Raises ModelError where the backbone has not so many layers, or they are no plain list.
    """
    backbone = model.base_model
    total = backbone.config.num_hidden_layers
    if layers == total:
        return backbone
    listed = layer_list(backbone)
    if not 1 <= layers < total or listed is None:
        raise ModelError(f"layer={layers} of {name!r} cannot be read; it has layers 1 to {total}, use layer={total}.")
    config = copy.deepcopy(backbone.config)
    config.num_hidden_layers = layers
    if config.to_dict().get("layer_types"):
        config.layer_types = config.layer_types[:layers]
    cut = copy.copy(backbone)
    cut._modules = {**backbone._modules, listed: torch.nn.ModuleList(list(backbone.get_submodule(listed))[:layers])}
    cut.config = config
    return cut


class TappedReadout:
    """Next-token logits and, behind them, a head's features of the same hidden states."""

    def __init__(self, model: Any, vocab_size: int, head: ValueHead) -> None:
        self.logits = model.get_output_embeddings()
        self.vocab_size = vocab_size
        self.features = head.state

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """[B, want, vocab_size + features]; `run` is the backbone's."""
        hidden = run().last_hidden_state[:, -want:]
        return torch.cat((self.logits(hidden)[..., : self.vocab_size], self.features(hidden)), dim=-1)


Reading: TypeAlias = Callable[[Sequence[Ids]], Awaitable[Array]]
"""Features [texts, ...] of the states after texts."""


def read_off(model: HFModel) -> Reading:
    """Features from the decoding model's own forward; a state that it has seen costs nothing."""

    async def read(texts: Sequence[Ids]) -> Array:
        return np.array(await together([model.features(text) for text in texts]))

    return read


def read_trunk(trunk: HFClassifier, share: float) -> Reading:
    """Features from a trunk of its own, a position of which counts as `share` of a language model's."""

    async def read(texts: Sequence[Ids]) -> Array:
        served = await trunk.outputs(texts)
        current_meter().read(trunk, texts, share=share, computed=served.computed, calls=served.calls, held=served.held)
        return np.array(served.value)

    return read


class HFValue:
    """A ValueModel: a head and where the features of its states come from."""

    def __init__(
        self, name: str, head: ValueHead, embeddings: torch.Tensor, read: Reading, max_context: int | None
    ) -> None:
        self.name = name
        self.max_context = max_context
        self._config = head.config
        self._read = read
        self._tokens: Array | None = None  # [V, rank]
        if head.token is not None:
            with torch.inference_mode():
                self._tokens = (
                    head.token(embeddings.to(head.token.weight.device, head.token.weight.dtype)).double().cpu().numpy()
                )

    async def prefix_values(self, prefixes: Sequence[Ids]) -> Array:
        """See PrefixScorer. Token values are read at the state before the last token."""
        if self._tokens is None:
            return self._values((await self._read(prefixes))[:, 0])
        states = await self._read([prefix[:-1] for prefix in prefixes])
        return self._values((states * self._tokens[[prefix[-1] for prefix in prefixes]]).sum(-1))

    async def next_values(self, prefix: Ids, ids: IntArray) -> Array:
        """See TokenValues. A prefix scorer reads every candidate."""
        if self._tokens is None:
            return await self.prefix_values([(*prefix, int(z)) for z in ids])
        return self._values(self._tokens[ids] @ (await self._read([prefix]))[0])

    def _values(self, told: Array) -> Array:
        if np.isnan(told).any():
            raise EngineError(f"The value head {self.name} gave NaN; try --dtype float32.")
        return self._config.mean + self._config.scale * told
