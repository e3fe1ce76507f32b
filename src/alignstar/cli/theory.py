"""`alignstar theory`: papers on random tabular worlds, where they must hold, and misread, where that must show."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli import theory_impossibility
from alignstar.cli.output import check_writable
from alignstar.errors import OptionError
from alignstar.theory.checks import MUTANTS, TOLERANCE, Tally, draw, tally


def theory(
    worlds: Annotated[int, typer.Option(min=1, help="How many random worlds to draw.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other worlds.")] = 0,
    mutate: Annotated[bool, typer.Option("--mutate", help="Also check wrong readings; each must be caught.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    impossibility: Annotated[
        bool, typer.Option("--impossibility", help="MaxMin-RLHF instead: what one reward for two groups costs them.")
    ] = False,
    svg: Annotated[str | None, typer.Option(help="With --impossibility: draw its example into this file.")] = None,
) -> None:
    """Check Theorem 1 (or the impossibility of one reward for all) on random tabular worlds, by enumeration.

    Exit status 1: a statement is violated; 3: with --mutate, a wrong reading passed every check.
    """
    if svg is not None:
        if not impossibility:
            raise OptionError(f"--svg {svg!r} draws what --impossibility shows; give that as well, or leave it out.")
        check_writable(svg, option="--svg")
        theory_impossibility.draw_picture(svg)
    if impossibility:
        tallies, misread = theory_impossibility.tallies(worlds, seed, mutate=mutate)
    else:
        drawn = [draw(seed, index) for index in range(worlds)]
        tallies = tally(drawn)
        misread = {name: tally(drawn, reading) for name, reading in MUTANTS.items()} if mutate else {}
    caught = {name: _violated(found) for name, found in misread.items()}
    if as_json:
        checks = [dataclasses.asdict(t) for t in tallies]
        example = {"example": theory_impossibility.rows()} if impossibility else {}
        typer.echo(json.dumps({"worlds": worlds, "seed": seed, "checks": checks, "mutants": caught, **example}))
    else:
        if impossibility:
            theory_impossibility.show(Console())
        _print(tallies, caught)
    if _violated(tallies):
        raise typer.Exit(1)
    if not all(caught.values()):
        raise typer.Exit(3)


def _violated(tallies: tuple[Tally, ...]) -> dict[str, int]:
    """Violations per violated check."""
    return {t.check: t.violations for t in tallies if t.violations}


def _print(tallies: tuple[Tally, ...], caught: dict[str, dict[str, int]]) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("statement")
    for column in ("worlds", "violations", "worst slack"):
        table.add_column(column, justify="right", no_wrap=True)
    for t in tallies:
        style = "red" if t.violations else None
        table.add_row(t.check, str(t.worlds), str(t.violations), f"{t.worst_slack:.1e}", style=style)
    console.print(table)
    console.print(f"A violation is a slack below -{TOLERANCE:g}; identities have minus their error.", style="dim")
    if not caught:
        return
    mutants = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    mutants.add_column("wrong reading", no_wrap=True)
    mutants.add_column("caught by (violations)")
    for name, checks in caught.items():
        found = ", ".join(f"{check} ({count})" for check, count in checks.items())
        mutants.add_row(name, found or "survived", style=None if checks else "red")
    console.print(mutants)
