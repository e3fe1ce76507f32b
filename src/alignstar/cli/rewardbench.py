"""`alignstar rewardbench`: pairs of a better and a worse answer in, a reward's accuracy out. Computes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import json_lines_file
from alignstar.cli.progress import progress_bar
from alignstar.errors import FailedError, OptionError

if TYPE_CHECKING:
    from alignstar.evaluate.rewardbench import Accuracy, Scores
    from alignstar.evaluate.statistics import Interval


def rewardbench(
    reward: Annotated[list[str], typer.Argument(metavar="REWARD...", help="A reward; several are added up.")],
    data: Annotated[
        str, typer.Option(help="Pairs (prompt, chosen, rejected, subset): a file, or a hub data set with --split.")
    ],
    split: Annotated[str | None, typer.Option(help="The split of a hub data set.", show_default=False)] = None,
    config: Annotated[str | None, typer.Option(help="Its configuration.", show_default=False)] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME=THEIRS", help="What the data call prompt, chosen, ...")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write every pair's scores to this file, as JSON lines.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ... or auto.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile of Llama-shaped models, once per load.")
    ] = False,
) -> None:
    """How often a reward prefers the better of two answers: by subset, and by section as RewardBench averages them.

    Ties are wrong and counted. The exit status is 1 where a pair could not be scored; it enters no share.
    """
    from alignstar.evaluate.data import read_examples
    from alignstar.evaluate.jsonl import json_line
    from alignstar.evaluate.recipe import Data
    from alignstar.evaluate.rewardbench import score_pairs, summed_up
    from alignstar.loading import open_reward

    examples = read_examples(Data(source=data, config=config, split=split, columns=_columns(column or [])))
    if not examples:
        raise OptionError(f"--data {data!r} has no row; give pairs.")
    with (
        json_lines_file(out, option="--out") as write,
        open_reward(
            reward, device=device, dtype=dtype, trust_remote_code=trust_remote_code, compile=compile
        ) as judging,
        progress_bar(total=len(examples), doing=judging.name, remaining=True) as bar,
    ):
        pairs = asyncio.run(score_pairs(judging, examples, on_scored=lambda _pair: bar.advance()))
        for pair in pairs:
            write({**asdict(pair), "results": int(pair.right)})
        scores = summed_up(pairs, reward=judging.name)
    if json:
        typer.echo(json_line(asdict(scores)))
    else:
        _print(scores)
    if scores.overall.failed:
        first = next(pair for pair in pairs if pair.error is not None)
        raise FailedError(f"{scores.overall.failed} pairs could not be scored; the first, {first.where}: {first.error}")


def _columns(given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        ours, has_value, theirs = one.partition("=")
        if not has_value:
            raise OptionError(f"--column {one!r} must read NAME=THEIRS, such as prompt=question.")
        found[ours] = theirs
    return found


def _print(scores: Scores) -> None:
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=scores.reward, title_justify="left", title_style="bold")
    table.add_column("subset", overflow="fold")
    for head in ("right % [95 %]", "n", "ties", "without scores"):
        table.add_column(head, justify="right")
    for name, one in scores.subsets.items():
        table.add_row(name, *_cells(one))
    table.add_section()
    table.add_row("all pairs", *_cells(scores.overall), style="bold")
    console.print(table)
    if scores.sections:
        averages = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="As RewardBench averages", title_justify="left")
        averages.add_column("section")
        averages.add_column("right % [95 %]", justify="right")
        averages.add_column("n", justify="right")
        averages.add_column("without the subsets", overflow="fold")
        for name, share in scores.sections.items():
            averages.add_row(name, _percent(share), f"{share.n:,}", ", ".join(scores.missing[name]))
        if scores.score is not None:
            averages.add_section()
            averages.add_row("score", _percent(scores.score), f"{scores.score.n:,}", "", style="bold")
        console.print(averages)


def _cells(one: Accuracy) -> list[str]:
    return [_percent(one.share), f"{one.n:,}", f"{one.ties:,}", f"{one.failed:,}"]


def _percent(share: Interval) -> str:
    return f"{100 * share.mean:.1f} [{100 * share.low:.1f}, {100 * share.high:.1f}]" if share.n else "-"
