"""`alignstar train mixture` without its terminal: from a recipe to the groups of the users, safe against any end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import numpy as np
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator

from alignstar import __version__
from alignstar.errors import PromptError
from alignstar.evaluate.recipe import Section
from alignstar.evaluate.rows import Example
from alignstar.evaluate.worlds import identity_of
from alignstar.train.backbone import check_model
from alignstar.train.data import read_usable
from alignstar.train.folder import TrainingFolder
from alignstar.train.groups import FIRST, Learned, OnRead, OnTrial, learn_groups
from alignstar.train.mixture import Mode, cast_votes
from alignstar.train.mixture_report import likelihood_plot
from alignstar.train.recipes import Data, Positive, Rows
from alignstar.train.search import Plan, check

PLOT = "likelihood.svg"


def several(value: Any) -> Any:
    """A list is a tuple, and a single number one of one."""
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return (value,) if isinstance(value, int | float) else value


Groups: TypeAlias = Annotated[tuple[Annotated[int, Ge(1), Le(8)], ...], MinLen(1), BeforeValidator(several)]
Strengths: TypeAlias = Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1), BeforeValidator(several)]


class MixtureRecipe(Section):
    """`alignstar train mixture`: what `learn_groups` is told; the rows of `data` are preferences with a user each."""

    model: str
    data: Data
    out: str
    groups: Groups = (1, 2, 3)
    mode: Mode = "hard"
    l2: Strengths = (0.1, 0.03, 0.01)
    restarts: Positive = 6
    iterations: Positive = 50
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.2
    components: Positive = 256
    seed: Annotated[int, Ge(0)] = 0
    device: str = "auto"

    def plan(self) -> Plan:
        """What is tried."""
        return Plan(
            groups=self.groups, l2=self.l2, mode=self.mode, restarts=self.restarts, iterations=self.iterations,
            seed=self.seed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A mixture that was learnt, the folder, how many rows there were, and how many had two equal answers."""

    folder: Path
    learned: Learned
    rows: int
    equal: int


def read_votes(source: Rows) -> tuple[int, list[Example]]:
    """How many rows a source has, and those that prefer one answer to another.

    Raises PromptError with file and line for a row that is no preference or names no user, OptionError for a source
    that cannot be read.
    """
    rows, examples = read_usable(source, "pair", Counter())
    for example in examples:
        if example.user is None:
            raise PromptError(
                f"{example.where}: says not who preferred; give it a user, or name the key in data.columns."
            )
    if not examples:
        raise PromptError(f"{source.source!r} has no preference between two different answers; give some.")
    return rows, examples


def train_mixture(
    recipe: MixtureRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_read: OnRead = lambda done, total: None,
    on_trial: OnTrial = lambda done, total, trial, state: None,
) -> Outcome:
    """Learn a mixture into the recipe's `out`, from the last step stored there if there is one.

    Raises OptionError for a folder that holds something else, and without `resume` or `overwrite` for one where this
    was begun or is finished, and what `read_votes` and `learn_groups` raise.
    """
    with TrainingFolder(Path(recipe.out)) as folder:
        folder.admit(resume=resume, overwrite=overwrite)
        check_model(recipe.model)
        rows, examples = read_votes(recipe.data)
        votes = cast_votes([str(e.user) for e in examples], held_out=recipe.held_out, seed=recipe.seed)
        check(recipe.plan(), votes)
        folder.begin(_fixed(recipe, examples), overwrite=overwrite)
        learned = learn_groups(
            recipe.model, examples, folder.path, recipe.plan(), held_out=recipe.held_out, components=recipe.components,
            device=recipe.device, checkpoint=folder.checkpoints / f"checkpoint-{FIRST}", on_read=on_read,
            on_trial=on_trial,
        )  # fmt: skip
        outcome = Outcome(folder=folder.path, learned=learned, rows=rows, equal=rows - len(examples))
        notes = {
            "role": "mixture",
            "alignstar": __version__,
            "base": recipe.model,
            "groups": len(learned.groups),
            "agreement": learned.agreement,
            "recipe": recipe.model_dump(mode="json"),
        }
        n_votes = int(np.sum(~learned.votes.held_out))
        folder.finish(
            notes=notes, metrics=_metrics(outcome), plot=likelihood_plot(learned.found, n_votes=n_votes), plotted=PLOT
        )
    return outcome


def _fixed(recipe: MixtureRecipe, examples: Sequence[Example]) -> dict[str, Any]:
    """All that decides the result; where it goes does not."""
    digest = hashlib.blake2b(digest_size=8)
    for e in examples:
        said = [*(m.content for m in e.prompt), e.chosen, e.rejected, e.user]
        digest.update(json.dumps(said).encode())
    return {
        "kind": "mixture",
        "recipe": recipe.model_dump(mode="json", exclude={"out", "device"}),
        "model contents": identity_of(recipe.model),
        "rows": f"{len(examples)} rows, {digest.hexdigest()}",
    }


def _metrics(outcome: Outcome) -> dict[str, Any]:
    learned = outcome.learned
    return {
        "kind": "mixture",
        "data": {
            "rows": outcome.rows,
            "users": len(learned.votes.users),
            "training": int(np.sum(~learned.votes.held_out)),
            "held_out": int(np.sum(learned.votes.held_out)),
            "left_out": {"equal": outcome.equal, "too_long": learned.too_long},
        },
        "agreement": learned.agreement,
        "held_out_likelihood_per_vote": {n: row.held_out.mean for n, row in sorted(learned.found.best.items())},
    }
