"""A reward's classifier with some layers to train, by a choice in words. Knows pairs as tokens; trains nothing.

l* is measured on the training pairs themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from alignstar.layers.choice import Band, band_of, needs_star
from alignstar.layers.cut import prepare
from alignstar.layers.states import Pool, layer_variabilities
from alignstar.layers.variability import star_of
from alignstar.train.encode import EncodedPair
from alignstar.train.labelled import of_pairs
from alignstar.train.settings import OnProgress, untold

MEASURED = 1000
"""Most pairs on which l* is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layered:
    """A classifier of which `band` is to be trained: `trained` of its `total` parameters. It had `layers` layers.

    `nu` [L] was measured where the choice needs l*, else it is empty.
    """

    model: Any
    choice: str
    band: Band
    layers: int
    nu: tuple[float, ...]
    trained: int
    total: int

    def linears(self, names: Sequence[str] | None) -> list[str]:
        """The full names of the trained layers' linear maps, those that end in one of `names` (None: all)."""
        inside = f"{self.model.base_model_prefix}."
        return [
            name
            for name, module in self.model.named_modules()
            if name.startswith(inside)
            and isinstance(module, torch.nn.Linear | Conv1D)
            and module.weight.requires_grad
            and (names is None or name.rpartition(".")[2] in names)
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything but the model."""
        return {
            "choice": self.choice, **asdict(self.band), "of": self.layers, "nu": list(self.nu),
            "trained": self.trained, "total": self.total,
        }  # fmt: skip


def layered(
    model: Any,
    choice: str,
    pairs: Sequence[EncodedPair],
    *,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool = "mean",
    on_progress: OnProgress = untold,
) -> Layered:
    """`model` itself, cut and frozen as the choice says; `pool` is how a text's state is taken where l* is measured.

    Raises OptionError for layers that the model has not.
    """
    layers: int = model.base_model.config.num_hidden_layers
    nu = _measured(model, pairs, tokenizer, pool, on_progress) if needs_star(choice) else ()
    band = band_of(choice, layers=layers, star=star_of(nu) if nu else None)
    made = prepare(model, band)
    return Layered(
        model=made.model, choice=choice, band=band, layers=layers, nu=nu, trained=made.trained, total=made.total
    )


def _measured(
    model: Any, pairs: Sequence[EncodedPair], tokenizer: PreTrainedTokenizerBase, pool: Pool, on_progress: OnProgress
) -> tuple[float, ...]:
    found = of_pairs(pairs[:: -(-len(pairs) // MEASURED)])
    nu = layer_variabilities(
        model, found.texts, found.labels, special=tokenizer.all_special_ids, pool=pool,
        on_texts=lambda done: on_progress("measuring layers", done, len(found.texts)),
    )  # fmt: skip
    return tuple(nu.tolist())
