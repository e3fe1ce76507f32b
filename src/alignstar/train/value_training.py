"""From rollouts to a stored value head: which layer it reads, with or without layers of its own. Writes the folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignstar.errors import OptionError
from alignstar.layers.choice import band_of, needs_star
from alignstar.layers.states import layer_variabilities
from alignstar.layers.variability import star_of
from alignstar.models.hf.branch import branch_of, truncated
from alignstar.models.hf.value import HeadConfig, save_head
from alignstar.train.branch_training import FittedBranch, fit_branch
from alignstar.train.rollouts import Seen
from alignstar.train.settings import OnProgress, untold
from alignstar.train.value import Fitted, Loss, examples, fit

MEASURED = 4096
"""Most states on which l* is measured."""


def train_value(
    model: Any,
    seen: Sequence[Seen],
    *,
    base: str,
    out: Path,
    loss: Loss,
    layer: int | str | None = None,
    rank: int = 32,
    width: int = 0,
    branch: int = 0,
    branch_learning_rate: float = 5e-4,
    epochs: int = 10,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_progress: OnProgress = untold,
) -> Fitted:
    """Fit a head on `seen` and write it to `out`. `base` is how the head names the model; `checkpoint` as in `fit`.

    `layer` None is the last one; in words (`alignstar.layers.choice`), the one at which the choice puts its head: no
    layer of the model is trained. With a `branch`, copies of the so many layers behind `layer` (None: of the last ones)
    are trained with the head, at a rate of their own. Raises OptionError for a loss that the head cannot learn, or
    nothing to learn from, ModelError for layers that the model has not.
    """
    check(loss, rank, branch)
    if not seen:
        raise OptionError("No response has a usable reward: there is nothing to learn from; look at the reward.")
    last: int = model.base_model.config.num_hidden_layers
    chosen = _head_layer(model, layer, rank, seen, last) if isinstance(layer, str) else layer or last - branch
    size = model.get_input_embeddings().weight.shape[1]
    config = HeadConfig(base=base, layer=chosen, state_size=size, rank=rank, width=width, branch=branch)
    how: dict[str, Any] = {
        "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    told: dict[str, Any] = {"checkpoint": checkpoint, "on_progress": on_progress}
    if branch:
        how["branch_learning_rate"] = branch_learning_rate
        made = fit_branch(model, config, seen, **how, **told)
    else:
        made = fit(
            config, examples(model, chosen, rank, seen, name=base, on_progress=on_progress), loss=loss, **how, **told
        )
    notes = {"loss": loss, "examples": len(seen), **how, "explained": round(made.explained, 4)}
    save_head(made.head, out, notes=notes, branch=made.branch if isinstance(made, FittedBranch) else None)
    return made


def check(loss: Loss, rank: int, branch: int = 0) -> None:
    """Raises OptionError for a loss that a head of this rank, or with a branch, cannot learn."""
    if loss == "transfer-q" and rank == 0:
        raise OptionError(
            "loss=transfer-q with rank=0 would need a forward for every candidate; use a rank of 1 or more, which "
            "values all tokens after a state at once."
        )
    if loss == "cd-q" and branch:
        raise OptionError(
            f"loss=cd-q learns from its own values in states that stay as they are, and branch={branch} changes them; "
            "use branch=0 or another loss."
        )


def check_layer(model: Any, layer: int | str | None, branch: int, *, name: str) -> None:
    """Raises ModelError or OptionError for layers of `train_value` that the model has not."""
    last: int = model.base_model.config.num_hidden_layers
    if isinstance(layer, str) and branch:
        raise OptionError(
            f"layer={layer!r} says where a head reads a model that stays as it is, and branch={branch} goes on from "
            "there; give the layer as a number, or leave it out for copies of the last layers."
        )
    if isinstance(layer, str):
        band_of(layer, layers=last, star=last)
    elif branch:
        branch_of(model, layer or last - branch, branch, name=name)
    else:
        truncated(model, layer or last, name=name)


def _head_layer(model: Any, choice: str, rank: int, seen: Sequence[Seen], last: int) -> int:
    """Where a choice puts the head; l* is the layer whose states tell the rewards' quarters apart best."""
    if not needs_star(choice):
        return band_of(choice, layers=last).head
    some = seen[:: -(-len(seen) // MEASURED)]
    rewards = np.array([s.reward for s in some])
    quarters = np.digitize(rewards, np.unique(np.quantile(rewards, (0.25, 0.5, 0.75))))
    texts = [s.state if rank else s.reached for s in some]
    nu = layer_variabilities(model, texts, quarters.tolist(), special=(), pool="last")
    return band_of(choice, layers=last, star=star_of(nu)).head
