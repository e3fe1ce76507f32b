"""`alignstar judge`: puts a run's replies before a language model that judges, keeps what it says. Decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.progress import progress_bar
from alignstar.errors import FailedError, OptionError

if TYPE_CHECKING:
    from alignstar.evaluate.judge import Judgement, Pair
    from alignstar.evaluate.units import Run

CACHE = "judge.sqlite"


def judge(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run's folder: the --out of alignstar eval.")],
    url: Annotated[str, typer.Option(help="An OpenAI-compatible endpoint, up to and without /chat/completions.")],
    model: Annotated[str, typer.Option(help="The model that judges, as the endpoint calls it.")],
    method: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="A method to be judged. None: all of the run.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="METHOD", help="The method they are compared with. None: the recipe's.")
    ] = None,
    orders: Annotated[
        Literal["both", "random"], typer.Option(help="Show each pair in both orders, or in one drawn by the seed.")
    ] = "both",
    prompts: Annotated[int, typer.Option(min=1, help="Judge so many prompts at most, the first ones.")] = 300,
    temperature: Annotated[float, typer.Option(min=0, help="Of the judge; the papers use 0.7.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order under --orders random.")] = 0,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Stop after so many requests.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Stop after so many tokens.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way together.")] = 8,
    key_env: Annotated[
        str, typer.Option(metavar="NAME", help="The environment variable that holds the key.")
    ] = "OPENAI_API_KEY",
) -> None:
    """Let a language model compare the replies of a run with those of one method.

    Answers are kept in DIR/judge.sqlite: asking again costs nothing. The outcome goes to DIR/judge.json, too, where
    `alignstar report` finds it.
    """
    from alignstar.evaluate.chat import Limits
    from alignstar.evaluate.judgements import Judgements, write_judgements
    from alignstar.evaluate.units import open_run

    run = open_run(folder)
    labels: list[str] = [entry["label"] for entry in run.recipe["methods"]]
    rival = against or run.recipe["baseline"]
    for label in (rival, *(method or ())):
        if label not in labels:
            raise OptionError(f"No method of this run is called {label!r}; known: {', '.join(labels)}.")
    asked = [label for label in (method or labels) if label != rival]
    pairs = {label: found for label in asked if (found := pairs_of(run, label, rival, prompts))}
    if not pairs:
        raise OptionError(f"No prompt has replies of {rival!r} and of another method; finish the run first.")
    limits = Limits(requests=max_requests, tokens=max_tokens, concurrency=concurrency)
    how: dict[str, Any] = {"orders": orders, "seed": seed, "temperature": temperature}
    endpoint: dict[str, Any] = {"model": model, "cache": folder / CACHE, "key_env": key_env, "limits": limits}
    judgements, spent = asyncio.run(_judge(pairs, rival, url, endpoint, **how))
    write_judgements(Judgements(url=url, model=model, spent=spent, judgements=tuple(judgements), **how), folder)
    Console().print(_table(judgements, rival))
    Console(stderr=True).print(
        f"{spent['requests']} requests, {spent['tokens']} tokens, {spent['cached']} answers from the cache", style="dim"
    )
    missing = sum(one.no_answer + one.not_asked for one in judgements)
    if missing:
        raise FailedError(f"{missing} pairs were left without an answer; ask again, what was answered is kept.")


def pairs_of(run: Run, first: str, second: str, most: int) -> list[Pair]:
    """The replies of two methods to the first prompts that both have, by the first seed that both have."""
    from alignstar.evaluate.judge import Pair

    replies: dict[str, dict[tuple[int, int], tuple[str, str]]] = {first: {}, second: {}}
    for unit in run.units:
        if unit.method in replies and unit.error is None:
            replies[unit.method][unit.prompt_index, unit.seed] = (unit.prompt, unit.response)
    by_prompt: dict[int, int] = {}
    for index, seed in replies[first]:
        if (index, seed) in replies[second]:
            by_prompt.setdefault(index, seed)
    return [
        Pair(
            index=index,
            prompt=replies[first][index, seed][0],
            first=replies[first][index, seed][1],
            second=replies[second][index, seed][1],
            seed=seed,
        )
        for index, seed in sorted(by_prompt.items())[:most]
    ]


async def _judge(
    pairs: Mapping[str, Sequence[Pair]],
    rival: str,
    url: str,
    endpoint: Mapping[str, Any],
    *,
    orders: Literal["both", "random"],
    seed: int,
    temperature: float,
) -> tuple[list[Judgement], dict[str, int]]:
    from alignstar.evaluate.chat import Chat
    from alignstar.evaluate.judge import ChatJudge, judge_pairs, judgement

    judgements: list[Judgement] = []
    with progress_bar(total=sum(map(len, pairs.values())), doing="judging") as bar:
        async with Chat(url, **endpoint) as chat:
            judging = ChatJudge(chat, temperature=temperature)
            for label, own in pairs.items():
                bar.now(label)
                judged = await judge_pairs(
                    own, judging, orders=orders, seed=seed, on_judged=lambda _judged: bar.advance()
                )
                judgements.append(judgement(judged, judge=judging.name, first=label, second=rival, orders=orders))
            return judgements, asdict(chat.spent)


def _table(judgements: Sequence[Judgement], rival: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Against {rival}", title_justify="left")
    table.add_column("method", style="bold")
    for column in (
        "win-tie % [95 %]",
        "wins",
        "ties",
        "losses",
        "n",
        "unparsable",
        "first shown %",
        "same both ways %",
    ):
        table.add_column(column, justify="right")
    for one in judgements:
        share = one.win_tie
        table.add_row(
            one.first,
            f"{100 * share.mean:.1f} [{100 * share.low:.0f}, {100 * share.high:.0f}]",
            *(str(count) for count in (one.wins, one.ties, one.losses, one.n, one.unparsable)),
            f"{100 * one.first_shown.mean:.0f}",
            f"{100 * one.consistent.mean:.0f}" if one.consistent.n else "-",
        )
    return table
