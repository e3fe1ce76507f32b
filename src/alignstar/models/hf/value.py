"""A value head on a layer of a causal language model: its module, its files, and how it is read while decoding.

A head reads the model's hidden state (after the final norm) of layer `layer`, or that of a branch of own layers behind
it; a folder holds value.safetensors and value.json, which names the model. On the last layer of the very model that
decodes, or on a branch of it, it is read off that model's own forward; else a trunk of its own runs, with the layers
above cut off. What is its own counts by its parameters. Knows torch and engine rows; no reward and no loss.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignstar.errors import EngineError, ModelError
from alignstar.meter import current_meter, together
from alignstar.models.hf.branch import Branch, Grafted, branch_of
from alignstar.models.hf.classifier import HFClassifier
from alignstar.models.hf.language import HFModel
from alignstar.sampling import Array, IntArray
from alignstar.types import Ids

CONFIG, WEIGHTS = "value.json", "value.safetensors"

BRANCH = "branch."
"""Begins the names of a branch's weights in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """What a head is. `base` is its model's folder (also one relative to the head's) or hub id.

    `rank` 0 is a prefix scorer, V(s) from the state of s; above, Q(s, z) is a product of so many numbers of s and of z.
    `width` is that of a hidden layer over the state (0: none). Values are mean + scale times what the head gives.
    `branch` is how many layers of its own go on behind layer `layer` (`Branch`), 0 for none.
    """

    base: str
    layer: int
    state_size: int
    rank: int = 0
    width: int = 0
    mean: float = 0.0
    scale: float = 1.0
    branch: int = 0


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
    """A head that was read from `folder`, and the weights of its branch."""

    folder: str
    head: ValueHead
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def grafted(self, model: Any, backbone: Any) -> Grafted | None:
        """`backbone`, that of its model or one cut off, with its branch; None where it has none.

        Raises ModelError where the branch does not fit the model.
        """
        config = self.head.config
        if not config.branch:
            return None
        branch = branch_of(model, config.layer, config.branch, name=self.base)
        try:
            branch.load_state_dict(self.weights)
        except RuntimeError as error:
            raise ModelError(
                f"value={self.folder!r} has a branch whose weights do not fit {self.base!r}; train it again."
            ) from error
        return Grafted(backbone, branch.eval())

    @property
    def base(self) -> str:
        """Its model: a directory or a hub id."""
        named = self.head.config.base
        beside = Path(self.folder) / named
        return str(beside.resolve()) if beside.is_dir() else named


def save_head(head: ValueHead, folder: Path, *, notes: Mapping[str, Any], branch: Branch | None = None) -> None:
    """Write a head and its branch in float32; `notes` (how it was trained) stand in its config too, unread."""
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(head.state_dict())
    if branch is not None:
        state |= {f"{BRANCH}{name}": tensor for name, tensor in branch.state_dict().items()}
    weights = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in state.items()}
    save_file(weights, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # written as private
    (folder / CONFIG).write_text(json.dumps({**asdict(head.config), "notes": dict(notes)}, indent=2) + "\n")


def load_head(folder: str) -> StoredHead:
    """Read a head. Raises ModelError where there is none, or one that does not fit its config."""
    for name in (CONFIG, WEIGHTS):
        if not (Path(folder) / name).is_file():
            raise ModelError(f"value={folder!r} holds no {name}; give a folder that `alignstar train value` wrote.")
    known = {entry.name for entry in fields(HeadConfig)}
    try:
        given = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
        head = ValueHead(HeadConfig(**{name: value for name, value in given.items() if name in known}))
        weights = load_file(Path(folder) / WEIGHTS)
        own = {name.removeprefix(BRANCH): weights.pop(name) for name in [*weights] if name.startswith(BRANCH)}
        head.load_state_dict(weights)
    except (ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"value={folder!r} cannot be read as a value head ({str(error).splitlines()[0]}); train it again."
        ) from error
    return StoredHead(folder=folder, head=head.eval(), weights=own)


class TappedReadout:
    """Next-token logits and, behind them, a head's features of the same hidden states, or of its branch's."""

    def __init__(self, model: Any, vocab_size: int, head: ValueHead) -> None:
        self.logits = model.get_output_embeddings()
        self.vocab_size = vocab_size
        self.features = head.state
        self.size = head.config.state_size

    def __call__(self, run: Callable[..., Any], want: int) -> torch.Tensor:
        """[B, want, vocab_size + features]; `run` is the backbone's, or that of one with a branch."""
        hidden = run().last_hidden_state[:, -want:]
        own, read = hidden[..., : self.size], hidden[..., -self.size :]  # the same where there is no branch
        return torch.cat((self.logits(own)[..., : self.vocab_size], self.features(read)), dim=-1)


Reading: TypeAlias = Callable[[Sequence[Ids]], Awaitable[Array]]
"""Features [texts, ...] of the states after texts."""


def read_off(model: HFModel, share: float) -> Reading:
    """Features from the decoding model's own forward; what is not the model's counts as `share` of a position more."""
    key = ("value", model)

    async def read(texts: Sequence[Ids]) -> Array:
        told = np.array(await together([model.features(text) for text in texts]))
        current_meter().read(key, texts, share=share, along=True)
        return told

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
