"""`alignstar bench compile`: what the option `--compile` gains, and what it takes. Prints a table, writes JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable

if TYPE_CHECKING:
    from alignstar.bench.compiled import Found


def compiled(
    repeats: Annotated[int, typer.Option(min=1, help="Alternating repeats; medians are printed.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")] = "float32",
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """The forward compiled and as it is: one token of 1, 10, 40 and 160 rows, and the seconds that compiling takes."""
    settings = {"repeats": repeats, "threads": threads, "device": device, "dtype": dtype, "out": out}
    if out is not None:
        check_writable(out, option="--out")
    from alignstar.bench import compiled as measured
    from alignstar.bench.record import record, write

    with Console(stderr=True).status("") as status:
        found = measured.run_30m(device=device, dtype=dtype, threads=threads, repeats=repeats, on_case=status.update)
    (Console() if Console().is_terminal else Console(width=120)).print(table(found))
    if out is not None:
        rows = [row.as_json() for row in found.rows]
        runs = [{"compile_s": found.compile_s, "compile_cpu_s": found.compile_cpu_s, "rows": rows}]
        write(
            out, record("compile", settings=settings, runs=runs, threads=found.threads, accelerator=found.accelerator)
        )


def table(found: Found) -> Table:
    """One line per number of rows."""
    made = Table(
        title="One token of every row in one forward; a Llama shape of 30 million parameters, random weights",
        caption=f"compiling took {found.compile_s:.1f} s, {found.compile_cpu_s:.1f} s of the processor; x: median of "
        "paired ratios; times on a CPU are the processor's",
    )
    for name in ("rows", "uncompiled ms", "compiled ms", "x"):
        made.add_column(name, justify="right")
    for row in found.rows:
        made.add_row(
            str(row.rows), f"{1000 * row.uncompiled:.2f}", f"{1000 * row.compiled:.2f}", f"{row.times:.2f}"
        )  # fmt: skip
    return made
