"""`alignstar bench savings`: reward against cost of the approximations of Transfer Q*. Prints a table, writes JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable

if TYPE_CHECKING:
    from alignstar.bench.savings import Row


def savings(
    work: Annotated[
        Literal["toy", "demo"], typer.Option(help="toy: random tables, one a prompt; demo: the embedded models.")
    ] = "toy",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, the same for every row.")] = 100,
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """What the approximations of Transfer Q* lose in reward and save in tokens, beside smaller k and rollout_len."""
    from alignstar.bench import savings as measured
    from alignstar.bench.record import record, write

    if out is not None:
        check_writable(out, option="--out")
    with Console(stderr=True).status("") as status:
        rows = measured.savings(work, prompts, on_row=status.update)
    (Console() if Console().is_terminal else Console(width=120)).print(table(rows, work))
    if out is not None:
        runs = [row.as_json() for row in rows]
        write(out, record("savings", settings={"work": work, "prompts": prompts, "out": out}, runs=runs))


def table(rows: Sequence[Row], work: str) -> Table:
    """One line per way of decoding; the two families of rollouts have each its own reference."""
    made = Table(
        title=f"Transfer Q* with something left out; {work}, {len(rows[0].rewards)} prompts",
        caption="loss: reward below that of the section's reference, with its 95 % interval over prompts; LM and RM "
        "tokens and dependent forwards per emitted token; share: LM tokens of the reference's",
    )
    true = rows[0].true_loss is not None
    made.add_column("")
    for name in ("reward", "loss", *(("true loss",) if true else ()), "LM", "share", "RM", "steps"):
        made.add_column(name, justify="right")
    for row in rows:
        losses = [row.loss] if row.true_loss is None else [row.loss, row.true_loss]
        made.add_row(
            row.name,
            f"{row.reward.mean:.3f}",
            *(f"{loss.mean:+.3f} ({loss.low:+.3f}, {loss.high:+.3f})" for loss in losses),
            f"{row.lm_tokens:.1f}",
            f"{row.share:.0%}",
            f"{row.rm_tokens:.1f}",
            f"{row.sequential_steps:.2f}",
            end_section=row is rows[-1] or row.against != rows[rows.index(row) + 1].against,
        )
    return made
