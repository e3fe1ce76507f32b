"""`alignstar train mixture`: shows the progress, and says who belongs together and how to decode for all of them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.progress import Stages
from alignstar.train.recipes import read_training_recipe

if TYPE_CHECKING:
    from alignstar.evaluate.statistics import Interval
    from alignstar.train.groups import Learned
    from alignstar.train.mixture_run import Outcome
    from alignstar.train.search import Linear, Trial


def train_mixture(path: Path, *, resume: bool, overwrite: bool) -> None:
    """The hidden groups of users, and a reward for each."""
    from alignstar.train import mixture_run

    recipe = read_training_recipe(path, mixture_run.MixtureRecipe)
    with _Shown() as shown:
        outcome = mixture_run.train_mixture(
            recipe, resume=resume, overwrite=overwrite, on_read=shown.read, on_trial=shown.tried
        )
    report(outcome, model=recipe.model)


def report(outcome: Outcome, *, model: str) -> None:
    """The mixture in two tables and some lines."""
    learned = outcome.learned
    console = Console() if Console().is_terminal else Console(width=120)
    held = sum(learned.votes.held_out.tolist())
    left = ", ".join(
        f"{n:,} {why}" for n, why in ((outcome.equal, "with equal answers"), (learned.too_long, "too long")) if n
    )
    typer.echo(
        f"{outcome.folder}: {len(learned.votes.user) - held:,} votes of {len(learned.votes.users):,} users to learn "
        f"from, {held:,} held out" + (f"; left out: {left}." if left else ".")
    )
    console.print(_tried(learned))
    typer.echo("likelihood by iteration: " + _likelihoods(learned))
    console.print(_groups(learned))
    if learned.agreement is not None:
        typer.echo(f"Agreement with the file's own groups: {learned.agreement:.1%} of the users.")
    line = learned.line("min")
    typer.echo(
        f"{outcome.folder}/mixture.json and {outcome.folder}/likelihood.svg say more. Decode for all groups with\n"
        f"alignstar generate --sft {shlex.quote(model)} --method maxmin --reward {shlex.quote(line)} --prompt ..."
    )


def _tried(learned: Learned) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("groups", "l2", "iterations", "likelihood", "held-out likelihood per vote", ""):
        table.add_column(name, justify="left" if name == "" else "right", no_wrap=True)
    for groups, row in sorted(learned.found.best.items()):
        kept = "kept" if row is learned.found.kept else ""
        held = f"{row.held_out.mean:.4f}" if row.held_out.votes else "none held out"
        table.add_row(
            str(groups), f"{row.trial.l2:g}", str(len(row.likelihoods)), f"{row.likelihoods[-1]:,.1f}", held, kept
        )
    return table


def _likelihoods(learned: Learned) -> str:
    return " | ".join(
        f"l2 {l2:g}: " + " ".join(f"{value:,.1f}" for value in state.likelihoods)
        for l2, state in learned.found.kept.path
    )


def _groups(learned: Learned) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    pooled = learned.groups[0].pooled is not None
    for name in (
        "group",
        "users",
        "votes",
        "weight",
        "held-out votes told right",
        *(["by one reward for all"] * pooled),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for u, group in enumerate(learned.groups):
        shares = [group.own] if group.pooled is None else [group.own, group.pooled]
        table.add_row(
            str(u), str(group.users), f"{group.votes:,}", f"{group.share:.3f}", *(_share(share) for share in shares)
        )
    return table


def _share(share: Interval) -> str:
    return f"{share.mean:.1%} [{share.low:.1%}, {share.high:.1%}]" if share.n else "none held out"


class _Shown(Stages):
    """A bar over the texts that are read, then one over the trials."""

    def read(self, done: int, total: int) -> None:
        """So many texts are read."""
        self.to("reading the texts", done, total)

    def tried(self, done: int, total: int, trial: Trial, state: Linear) -> None:
        """A trial has a new state."""
        self.to("trials", done, total, f"groups: {trial.groups}, likelihood {state.likelihoods[-1]:,.1f}")
