"""`alignstar methods`: the table of methods, or one method's options. Loads no model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignstar.methods import METHODS, resolve

LETTERS = (
    "P prompt, T response, L rollout or lookahead; "
    "k candidates, n rollouts of each, N responses drawn, b beams, U groups"
)
"""What the formulas of `cost` are made of."""


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its options.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per method (or option).")] = False,
) -> None:
    """What methods there are: paper, needs, cost; or one method's options."""
    rows = _methods() if name is None else _options(name)
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row))
    elif name is None:
        _print_methods(rows)
    else:
        _print_options(name, rows)


def _methods() -> list[dict[str, object]]:
    return [
        {
            "method": name,
            "summary": entry.summary,
            "paper": entry.paper,
            "needs": entry.needs,
            "streams": entry.streams,
            "cost": entry.cost,
        }
        for name, entry in METHODS.items()
    ]


def _options(name: str) -> list[dict[str, object]]:
    resolve(name)
    # A method's own file needs numpy: only this form of the command reads it.
    from alignstar.options import describe

    return [dict(option) for option in describe(name)]


def _print_methods(rows: list[dict[str, object]]) -> None:
    console = Console()
    console.print(_facts(rows))
    console.print(f"\nCost in tokens per prompt: {LETTERS}.", style="dim", highlight=False)
    console.print("Options of one: alignstar methods NAME.", style="dim", highlight=False)


def _print_options(name: str, rows: list[dict[str, object]]) -> None:
    console = Console()
    console.print(_facts([row for row in _methods() if row["method"] == name]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, column) for column in row))
    console.print(table)
    console.print("Pass one as -o name=value.", style="dim", highlight=False)


def _facts(rows: list[dict[str, object]]) -> Table:
    """Each method with what it does, and below it everything else that the table tells of it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    for number, row in enumerate(rows):
        if number:
            grid.add_row()
        told = {key: str(value) for key, value in row.items()}
        grid.add_row(Text(told.pop("method"), style="bold"), Text(told.pop("summary")))
        for key, value in told.items():
            grid.add_row(Text(f"  {key}", style="dim"), Text(value))
    return grid


def _cell(row: Mapping[str, object], column: str) -> Text:
    return Text("" if row[column] is None and column != "default" else str(row[column]))
