"""`alignstar calibrate`: rated replies in, a reward's line on the ratings' scale out. Computes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from alignstar.cli.progress import progress_bar
from alignstar.errors import OptionError


def calibrate(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A reward of one group, without a weight.")],
    data: Annotated[
        str, typer.Option(help="Rows with prompt, completion and rating: a file, or a hub data set with --split.")
    ],
    split: Annotated[str | None, typer.Option(help="The split of a hub data set.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of two lines.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ... or auto.")] = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a model.")
    ] = False,
) -> None:
    """Bring a group's reward to a scale that all groups were asked to rate on, for min(...), soft_min(...), game(...).

    Prints the reward's line with the step affine:SLOPE,INTERCEPT: the rating to be expected, by least squares.
    """
    from alignstar.evaluate.jsonl import json_line
    from alignstar.evaluate.ratings import calibrated, read_ratings
    from alignstar.evaluate.recipe import Source
    from alignstar.loading import open_reward
    from alignstar.rewards.spec import parse_reward

    if parse_reward(reward).weight != 1.0:
        raise OptionError(f"reward={reward!r} has a weight, which would stand before the step; leave it out.")
    rated = read_ratings(Source(source=data, split=split))
    with (
        open_reward([reward], device=device, dtype=dtype, trust_remote_code=trust_remote_code) as judging,
        progress_bar(total=len(rated), doing=judging.name) as bar,
    ):
        found = asyncio.run(
            calibrated(judging, rated, on_scored=lambda done: bar.progress.update(bar.task, completed=done))
        )
    line = f"{reward}|{found.step}"
    if json:
        typer.echo(json_line({"reward": reward, "line": line, **asdict(found)}))
    else:
        typer.echo(line)
        typer.echo(f"It explains {found.explained:.0%} of the variance of {found.n:,} ratings.", err=True)
