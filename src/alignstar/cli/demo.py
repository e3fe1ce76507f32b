"""`alignstar demo`: shows what `alignstar.demo` decodes and measures. Chooses no method and computes no number."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console

from alignstar.cli.output import check_writable
from alignstar.cli.progress import progress_bar
from alignstar.demo import prompts as demo_prompts
from alignstar.demo import table, tuning
from alignstar.demo.run import Row, as_json, decode
from alignstar.demo.settings import SETTINGS, open_setting, plans
from alignstar.evaluate.jsonl import json_line

DEFAULT_PROMPTS = 10


def demo(
    prompts: Annotated[int, typer.Option(min=1, max=200, help="How many held-out prompts.")] = DEFAULT_PROMPTS,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row instead of tables.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Print how the strengths were chosen, and stop.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Choose the strengths again (minutes) and store them.")] = False,
    svg: Annotated[str | None, typer.Option(help="Also write a picture of the output to this file.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
) -> None:
    """Decode held-out prompts with every method on the embedded models; a table of reward, KL and cost.

    In the setting direct the reward is the one that the baseline was aligned to, in indirect another one.
    """
    # One bar is ours; those of the libraries that load small local files would only flicker beside it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if tune:
        _tune(device)
        return
    if sweep:
        Console().print(table.sweep(list(tuning.stored().values())))
        return
    if svg is not None:
        check_writable(svg, option="--svg")
    rows: dict[str, list[Row]] = {}
    try:
        asyncio.run(_decode(rows, demo_prompts("demo")[:prompts], as_lines=json, device=device))
    finally:
        # After Ctrl-C too: what is finished is shown.
        finished = {setting: done for setting, done in rows.items() if done}
        if finished and not json:
            _print_tables(finished, svg)


async def _decode(rows: dict[str, list[Row]], messages: list[str], *, as_lines: bool, device: str) -> None:
    """Fill `rows`, setting by setting; with `as_lines` print those of a setting when it ends, however it ends."""
    strengths = tuning.stored()
    with progress_bar(total=len(messages) * sum(len(plans(setting)) for setting in SETTINGS)) as bar:
        for setting in SETTINGS:
            bar.now(f"{setting}: loading")
            aligner = open_setting(setting, device=device)
            done = rows.setdefault(setting, [])
            try:
                for plan in plans(setting):
                    bar.now(f"{setting}: {plan.label}")
                    alpha = tuning.alpha_of(plan, setting, strengths)
                    done.append(
                        await decode(aligner, setting, plan, messages=messages, alpha=alpha, on_reply=bar.advance)
                    )
            finally:
                if as_lines:
                    _print_lines(done)


def _print_lines(rows: list[Row]) -> None:
    winner = next((row for row in rows if row.plan.label == "transfer-q"), None)
    for row in rows:
        typer.echo(json_line(as_json(row, winner)))


def _print_tables(rows: dict[str, list[Row]], svg: str | None) -> None:
    console = Console(record=svg is not None, width=None if svg is None else 124)
    message = next(iter(rows.values()))[0].replies[0].prompt.messages[-1].content
    console.print(table.replies(message, rows))
    for done in rows.values():
        console.print(table.results(done, width=console.width))
    console.print(table.CAPTION, style="dim", highlight=False)
    if svg is not None:
        console.save_svg(svg, title="alignstar demo")


def _tune(device: str) -> None:
    with progress_bar(total=tuning.points()) as bar:

        def on_point(setting: str, method: str, alpha: float) -> None:
            bar.now(f"{setting}: {method} alpha={alpha:g}")
            bar.advance()

        tried = asyncio.run(tuning.tune(device=device, on_point=on_point))
    tuning.store(tried)
    Console().print(table.sweep(tried))
