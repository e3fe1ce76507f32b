"""Backbones cut off, and backbones with a branch: layers of a value head's own beside those that the model has there.

The branch's layers begin as copies of the model's that follow layer `at`, and are trained with the head. One forward
runs both, so that what they share is computed once. Knows torch and transformers' backbones; no head, no reward.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from alignstar.errors import ModelError
from alignstar.models.hf.adapters import is_adapter

EPS = 1e-6


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


class Branch(torch.nn.Module):
    """Decoder layers that go on behind the first `at` of a model, and a norm behind them. `kinds` are their types."""

    def __init__(self, layers: Sequence[torch.nn.Module], *, at: int, size: int, kinds: Sequence[str]) -> None:
        super().__init__()
        self.at = at
        self.kinds = tuple(kinds)
        self.layers = torch.nn.ModuleList(layers)
        self.norm = torch.nn.RMSNorm(size, eps=EPS)


def branch_of(model: Any, at: int, count: int, *, name: str) -> Branch:
    """Copies of the `count` layers of a causal model that follow its first `at`.

    What adapters of other models have put on shared weights is left out. Raises ModelError where the model has not so
    many layers, they are no plain list, or `name` is an adapter that lies on them.
    """
    backbone = model.base_model
    total, listed = backbone.config.num_hidden_layers, layer_list(backbone)
    if listed is None or at < 1 or at + count > total:
        has = "which are no plain list" if listed is None else f"of which there are {total}"
        raise ModelError(
            f"branch={count} behind layer={at} of {name!r} cannot be made: it copies the layers {at + 1} to "
            f"{at + count}, {has}; use branch=0, or numbers that fit."
        )
    layers = copy.deepcopy(list(backbone.get_submodule(listed))[at : at + count])
    if sum(map(_bared, layers)) and is_adapter(name):
        raise ModelError(f"branch={count} copies layers, and those of {name!r} are under an adapter; merge it first.")
    kinds = (backbone.config.to_dict().get("layer_types") or ())[at : at + count]
    weight = model.get_input_embeddings().weight
    made = Branch(layers, at=at, size=weight.shape[1], kinds=kinds)
    return made.to(device=weight.device, dtype=weight.dtype)


class Grafted(torch.nn.Module):
    """A backbone that runs a branch too: `last_hidden_state` [..., 2 H] holds the branch's states behind its own.

    It runs its layers up to where the branch leaves, then the branch's, then its own above. The backbone that is given
    stays as it is and shares its weights; a branch is for one of these.
    """

    def __init__(self, backbone: Any, branch: Branch) -> None:
        super().__init__()
        listed = layer_list(backbone)
        assert listed is not None, "branch_of has looked"
        own = list(backbone.get_submodule(listed))
        self.branch = branch
        self.config = copy.deepcopy(backbone.config)
        self.config.num_hidden_layers += len(branch.layers)
        if branch.kinds:
            kinds = list(backbone.config.layer_types)
            self.config.layer_types = [*kinds[: branch.at], *branch.kinds, *kinds[branch.at :]]
        for number, layer in enumerate(branch.layers, start=len(own)):
            _store_at(layer, number)
        self.model: Any = copy.copy(backbone)
        layers = torch.nn.ModuleList([*own[: branch.at], *branch.layers, *own[branch.at :]])
        self.model._modules = {**backbone._modules, listed: layers}
        self.model.config = self.config
        self._left: Any = None
        self._reached: Any = None
        branch.layers[0].register_forward_pre_hook(self._leave, with_kwargs=True)
        branch.layers[-1].register_forward_hook(self._come_back)

    def forward(self, *, use_cache: bool = False, **inputs: Any) -> Any:
        """The backbone's outputs, with the branch's states behind its own."""
        try:
            told = self.model(use_cache=use_cache, **inputs)
            told.last_hidden_state = torch.cat((told.last_hidden_state, self.branch.norm(self._reached)), dim=-1)
        finally:
            self._left = self._reached = None
        return told

    def _leave(self, layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._left = given[0] if given else named["hidden_states"]

    def _come_back(self, layer: Any, given: Any, told: Any) -> Any:
        if isinstance(told, tuple):  # older layers tell attention weights too
            self._reached = told[0]
            return (self._left, *told[1:])
        self._reached = told
        return self._left


def _bared(layer: torch.nn.Module) -> int:
    """Put back what adapters have wrapped (of another model on the same weights, or this one's own); how many."""
    wrapped = [(name, module) for name, module in layer.named_modules() if hasattr(module, "base_layer")]
    for name, module in wrapped:
        above, _, last = name.rpartition(".")
        setattr(layer.get_submodule(above), last, module.base_layer)
    return len(wrapped)


def _store_at(layer: torch.nn.Module, number: int) -> None:
    """Have a decoder layer's keys and values stored under this number."""
    for module in layer.modules():
        if isinstance(getattr(module, "layer_idx", None), int):
            vars(module)["layer_idx"] = number
