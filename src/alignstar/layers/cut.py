"""Prepares a model for training some of its layers: those above the head go, what is not to be trained is frozen.

Knows transformers models whose layers are a plain list. Knows no trainer and no metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignstar.errors import ModelError
from alignstar.layers.choice import Band
from alignstar.models.hf.branch import layer_list, truncated


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model ready to be trained, how many of its parameters will be, how many it has, and how many layers."""

    model: Any
    trained: int
    total: int
    layers: int


def prepare(model: Any, band: Band) -> Prepared:
    """`model` itself, without the layers above `band.head`, and with all but the band and its own head frozen.

    What lies outside the backbone (a classifier's head) is always trained; embeddings and the final norm are only with
    `band.everything`. Saved, it is a plain checkpoint with fewer layers. Raises ModelError where the layers are no
    plain list.
    """
    name = type(model).__name__
    cut = truncated(model, band.head, name=name)
    if cut is not model.base_model:
        setattr(model, model.base_model_prefix, cut)
        model.config = cut.config
    cut.requires_grad_(band.everything)
    if not band.everything and band.trained:
        listed = layer_list(cut)
        if listed is None:
            raise ModelError(f"{name} keeps its layers in no plain list, so some cannot be trained alone; use full.")
        layers = cut.get_submodule(listed)
        for layer in band.trained:
            layers[layer].requires_grad_(True)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Prepared(
        model=model,
        trained=sum(n for n, trained in sizes if trained),
        total=sum(n for n, _ in sizes),
        layers=band.head,
    )
