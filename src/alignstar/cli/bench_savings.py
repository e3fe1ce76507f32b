"""`alignstar bench savings`: reward against cost of the approximations of Transfer Q*. Prints tables, writes JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable

if TYPE_CHECKING:
    from alignstar.bench.savings import Row, Work
    from alignstar.evaluate.statistics import Interval

CAPTION = (
    "Rewards are per response, tokens and steps per emitted token. loss: reward below transfer-q's on the same prompt, "
    "with its 95 % interval over prompts. tokens: what the language model and the reward model compute; share: of "
    "transfer-q's. steps: forwards that wait for each other. beyond: reward above what {lines} would leave at as many "
    "tokens, by straight lines between the rows without this figure."
)
LINES = {"greedy": "a smaller k or a shorter rollout_len, whichever is better,", "sampled": "fewer num_rollouts"}


def savings(
    work: Annotated[
        Literal["toy", "demo"], typer.Option(help="toy: random tables, one a prompt; demo: the embedded models.")
    ] = "toy",
    prompts: Annotated[int, typer.Option(min=1, help="Prompts, the same for every row.")] = 100,
    rollouts: Annotated[
        Literal["greedy", "sampled", "both"],
        typer.Option(help="One greedy rollout a candidate, several sampled ones (toy 16, demo 4), or both in turn."),
    ] = "both",
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    svg: Annotated[
        str | None, typer.Option(help="Draw reward against tokens into this file (of both, the greedy rollouts').")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
) -> None:
    """What the approximations of Transfer Q* lose in reward and save in tokens, beside smaller k and rollout_len."""
    settings = dict(locals())
    for path, option in ((out, "--out"), (svg, "--svg")):
        if path is not None:
            check_writable(path, option=option)
    from alignstar.bench import savings as measured
    from alignstar.bench.record import record, write
    from alignstar.bench.savings_picture import picture

    made = measured.work(work, prompts, threads=threads)
    console = Console() if Console().is_terminal else Console(width=176)
    runs: list[dict[str, Any]] = []
    for family in ("greedy", "sampled") if rollouts == "both" else (rollouts,):
        with Console(stderr=True).status("") as status:
            rows = measured.savings(made, family, on_row=status.update)
        console.print(table(rows, made))
        console.print(CAPTION.format(lines=LINES[family]), style="dim", highlight=False, markup=False)
        runs += [row.as_json() for row in rows]
        if out is not None:  # after every table: a long run that is interrupted keeps what it has
            write(out, record("savings", settings=settings, runs=runs, threads=threads))
        if svg is not None and (family == "greedy" or rollouts == "sampled"):
            Path(svg).write_text(picture(rows, title=_title(rows, made)) + "\n", encoding="utf-8")


def table(rows: Sequence[Row], made: Work) -> Table:
    """One line per way of decoding."""
    common = made.common(rows[0].rollouts)
    numbers = [f"{name} {common[name]}" for name in ("k", "rollout_len", "num_rollouts", "alpha") if name in common]
    title = ", ".join([_title(rows, made), *numbers])
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    judged = ("", "true ") if rows[0].true_loss is not None else ("",)
    drawn.add_column("", no_wrap=True)
    names = ("reward", *(f"{which}{name}" for which in judged for name in ("loss", "beyond")))
    for name in (*names, "tokens", "share", "steps"):
        drawn.add_column(name, justify="right")
    for row in rows:
        figures = [row.loss, row.beyond, row.true_loss, row.true_beyond][: 2 * len(judged)]
        drawn.add_row(
            row.name,
            f"{row.reward.mean:.3f}",
            *("" if row is rows[0] else _cell(figure) for figure in figures),
            f"{row.tokens:.1f}",
            f"{row.share:.0%}",
            f"{row.sequential_steps:.2f}",
        )
    return drawn


def _title(rows: Sequence[Row], made: Work) -> str:
    return f"Approximations of Transfer Q*: {made.name}, {len(made.cases)} prompts, {rows[0].rollouts} rollouts"


def _cell(figure: Interval | None) -> str:
    if figure is None:
        return ""
    mean, low, high = (f"{round(value, 3) + 0.0:+.3f}" for value in (figure.mean, figure.low, figure.high))
    return f"{mean} ({low}, {high})"
