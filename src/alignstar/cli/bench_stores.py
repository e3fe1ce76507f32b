"""`alignstar bench stores`: how rows that share a beginning are laid out for a forward. Prints a table, writes JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable

if TYPE_CHECKING:
    from alignstar.bench.stores import Row


def stores(
    repeats: Annotated[int, typer.Option(min=1, help="Alternating repeats; medians are printed.")] = 9,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "cpu",
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Decoding forwards of branches that share a prompt: rows of keys, packed ones, keys read in place."""
    settings = {"repeats": repeats, "threads": threads, "device": device, "out": out}
    if out is not None:
        check_writable(out, option="--out")
    from alignstar.bench import stores as measured
    from alignstar.bench.record import record, write

    with Console(stderr=True).status("") as status:
        found = measured.run_30m(device=device, threads=threads, repeats=repeats, on_case=status.update)
    (Console() if Console().is_terminal else Console(width=120)).print(table(found.rows))
    if out is not None:
        runs = [row.as_json() for row in found.rows]
        write(out, record("stores", settings=settings, runs=runs, threads=found.threads, accelerator=found.accelerator))


def table(rows: Sequence[Row]) -> Table:
    """One line per way and case."""
    made = Table(
        title="One token of every branch in one forward; a Llama shape of 30 million parameters, random weights",
        caption="gathered: positions copied per layer; x rows: median of paired ratios to a row per branch",
    )
    for name in ("prompts", "branches", "prefix"):
        made.add_column(name, justify="right")
    made.add_column("")
    for name in ("gathered", "ms", "x rows"):
        made.add_column(name, justify="right")
    for i, row in enumerate(rows):
        case = row.case
        made.add_row(
            str(case.prompts), str(case.branches), str(case.prefix), row.way, f"{row.gathered:,}",
            f"{1000 * row.seconds:.2f}", f"{row.times_rows:.2f}",
            end_section=i + 1 < len(rows) and rows[i + 1].case != case,
        )  # fmt: skip
    return made
