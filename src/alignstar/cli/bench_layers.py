"""`alignstar bench layers`: rewards of some layers against rewards of all. Prints tables, writes JSON."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable

if TYPE_CHECKING:
    from alignstar.bench.layers import Outcome, Row
    from alignstar.evaluate.statistics import Interval


def layers(
    quick: Annotated[
        bool, typer.Option("--quick", help="One group of people, 600 pairs, one seed: minutes on one thread.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="A file of preferences instead of the embedded world's two groups.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model to start from (none: the embedded SFT model).")] = None,
    pairs: Annotated[int | None, typer.Option(min=2, help="To learn from (none: 4000, quick: 600).")] = None,
    held_out: Annotated[int | None, typer.Option(min=2, help="To judge by (none: 2000, quick: 600).")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Orders and heads to average (none: 2, quick: 1).")] = None,
    epochs: Annotated[float, typer.Option(min=0.01, help="Of training.")] = 2.0,
    learning_rate: Annotated[
        float, typer.Option(min=1e-8, help="Of the layers; a head alone has 20 times that.")
    ] = 1e-3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Longer conversations of --data are left out.")] = 512,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "cpu",
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Rewards that train some layers and read one in the middle, against training all: accuracy and cost."""
    settings = dict(locals())
    if out is not None:
        check_writable(out, option="--out")
    from alignstar.bench import layers as measured
    from alignstar.bench.record import record, write
    from alignstar.models.hf.load import pick_device
    from alignstar.train.common import quiet

    quiet()
    used = measured.threads_used(threads)
    sizes = {"pairs": pairs or (600 if quick else 4000), "held_out": held_out or (600 if quick else 2000)}
    course = measured.Course(
        epochs=epochs, learning_rate=learning_rate, seeds=seeds or (1 if quick else 2), device=str(pick_device(device))
    )
    names = [data] if data is not None else list(measured.TASTES)[: 1 if quick else None]
    done: list[Outcome] = []
    with Console(stderr=True).status("") as status:
        for name in names:
            if data is not None:
                work = measured.file_work(data, max_tokens=max_tokens, path=model, **sizes)
            else:
                work = measured.demo_work(name, path=model, **sizes)
            done.append(measured.run(work, course, on_choice=status.update))
            show(done[-1])
            if out is not None:  # after every table: a long run that is interrupted keeps what it has
                told = {**settings, **sizes, "seeds": course.seeds}
                runs = [outcome.as_json() for outcome in done]
                write(out, record("layers", settings=told, runs=runs, threads=used))


def show(outcome: Outcome) -> None:
    """The table, and what it says of every choice but the first."""
    console = Console() if Console().is_terminal else Console(width=132)
    console.print(table(outcome))
    for row in outcome.rows[1:]:
        console.print(sentence(row, outcome.rows[0]), highlight=False)
    console.print(conclusion(outcome), highlight=False)
    console.print()


def sentence(row: Row, full: Row) -> str:
    """Whether a choice is within the interval of training all layers, and what it costs beside it."""
    low, high = (f"{100 * end:+.1f}" for end in (row.difference.low, row.difference.high))
    said = {"within": "within the interval of", "worse": "worse than", "better": "better than"}[row.verdict]
    return (
        f"{row.choice}: {said} {full.choice} ({low} to {high} points), with {row.trained / full.trained:.0%} of the "
        f"parameters trained, {row.share:.0%} of tokens x layers and {row.time:.0%} of the RM seconds."
    )


def conclusion(outcome: Outcome) -> str:
    """Which choices are no worse than training all layers, as far as can be seen, and cheaper in both ways."""
    full, *others = outcome.rows
    met = [row.choice for row in others if row.verdict != "worse" and row.trained < full.trained and row.share < 1]
    return f"Not worse than {full.choice}, and cheaper to train and to score with: {'; '.join(met) or 'none'}."


def table(outcome: Outcome) -> Table:
    """One line per choice."""
    made = Table(
        title=f"{outcome.work}: {outcome.training:,} pairs to learn from, {outcome.held_out:,} held out "
        f"({outcome.rows[0].accuracy.n:,} prompts); "
        f"l* = {outcome.star['mean']} of {outcome.layers} layers, by last states {outcome.star['last']}",
        caption="accuracy on held-out pairs and, pair by pair, its distance to the first line's in points, with 95 % "
        "intervals; RM s: median seconds of scoring the same conversations (CPU: of this process), in turn with the "
        "first line's; RM time and tokens x layers: over the first line's",
    )
    made.add_column("layers")
    for name in ("trained", "parameters", "kept", "accuracy", "difference", "RM s", "RM time", "tokens x layers"):
        made.add_column(name, justify="right")
    for row in outcome.rows:
        bottom, top, head = row.band
        made.add_row(
            row.choice,
            f"{bottom}..{top}" if top >= bottom else "head",
            f"{row.trained:,}",
            str(head),
            _percent(row.accuracy, "%"),
            "" if row is outcome.rows[0] else _percent(row.difference, ""),
            f"{statistics.median(row.rm_seconds):.2f}",
            f"{row.time:.2f}",
            f"{row.share:.0%}",
        )
    return made


def _percent(interval: Interval, unit: str) -> str:
    sign = "" if unit else "+"
    low, high = (format(100 * end, f"{sign}.1f") for end in (interval.low, interval.high))
    return f"{format(100 * interval.mean, f'{sign}.1f')}{unit} ({low}, {high})"
