"""`alignstar bench frontier`: all methods on the embedded models. Prints tables, writes JSON and a picture."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.output import check_writable
from alignstar.cli.progress import progress_bar

if TYPE_CHECKING:
    from alignstar.bench.frontier import Point
    from alignstar.bench.frontier_claims import Finding
    from alignstar.bench.frontier_world import World
    from alignstar.evaluate.statistics import Interval

CAPTION = (
    "Means over prompts with 95 % bootstrap intervals, a prompt's seeds averaged first. learned: by the reward that is "
    "decoded with, held to 4 standard deviations; true: by the world's own rule. KL to the SFT model in nats: exact "
    "where no seed changes anything, ~ estimated, ≤ an upper bound. Tokens: per reply, decoded alone from a cold "
    "start; tokens: LM + {weight:g} RM, weighted by parameters. sec.: the whole row; rows of groups that keep one "
    "of the same draws draw them once."
)
QUICK_RATED = 8
"""Training prompts whose replies are rated for a look."""
VALUE_HEAD = "package:alignstar/demo/models/value"
KL_MARKS = {"exact": "", "estimate": "~", "bound": "≤"}
CLAIM_CAPTIONS = {
    "speculative-rejection": "equals best of: n of best-of-n with the same mean learned reward, estimated from all "
    "subsets of the largest n's draws; where it is that largest n, the figures are lower bounds. What can be saved "
    "grows with the length of a response over the headroom: best-of-n pays the length for every row, Speculative "
    "Rejection the headroom, and then a share of the budget for every decision.",
    "tree-bon": "Same seeds; best-of-n has as many draws as come nearest to TreeBoN's drawn tokens. The true reward "
    "judges, ties count half. Scoring passes are not counted, as in the paper.",
    "value": "gain: true reward above greedy decoding of the baseline; with rollouts: that of direct Transfer Q*, "
    "which taught the head. Tokens against one forward per position; head and branch count by their parameters.",
    "maxmin": "A / B: A is fair, B pools the groups with that share for source, both with rewards calibrated on stars "
    "that each group gave to replies to training prompts (min standardised: not so). maxmin weights: one weighting for "
    "all prompts, by the game on training prompts. The gain is that of the lesser of the two mean true rewards.",
}


def frontier(
    prompts: Annotated[int, typer.Option(min=1, max=400, help="Held-out prompts, the same for every point.")] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="How often a method that draws is repeated.")] = 2,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A method, curve or work (direct, indirect, groups); again."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="2 prompts and the cheapest points: a look, not a result.")
    ] = False,
    value: Annotated[
        str, typer.Option(metavar="DIR", help="A value head of the embedded baseline: direct.", show_default="its own")
    ] = VALUE_HEAD,
    value_target: Annotated[
        str | None, typer.Option(metavar="DIR", help="The same for the other reward: indirect (none: no such points).")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    svg: Annotated[str | None, typer.Option(help="Draw the direct setting into this file.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "cpu",
) -> None:
    """All methods on the embedded models: reward, learned and true, against tokens and KL; claims with intervals."""
    settings = dict(locals())
    for path, option in ((out, "--out"), (svg, "--svg")):
        if path is not None:
            check_writable(path, option=option)
    from alignstar.bench.frontier_plans import chosen, plans
    from alignstar.bench.frontier_world import demo_world
    from alignstar.bench.ratings import PROMPTS
    from alignstar.demo.settings import baseline_beta

    every = plans(beta=baseline_beta(), quick=quick, value=True, value_target=value_target is not None)
    wanted = chosen(every, only or [])
    rated = (QUICK_RATED if quick else PROMPTS) if any(plan.work == "groups" for plan in wanted) else 0
    world = demo_world(
        2 if quick else prompts, value=value, value_target=value_target, rated=rated, device=device, threads=threads
    )
    points: list[Point] = []
    try:
        asyncio.run(_measure(points, world, wanted, seeds))
    finally:
        # After Ctrl-C too: what is finished is shown.
        if points:
            _finish(points, world, settings)


async def _measure(points: list[Any], world: Any, wanted: Sequence[Any], seeds: int) -> None:
    """Fill `points`, plan by plan."""
    from alignstar.bench.frontier_draws import measure_after

    total = len(world.messages) * sum(seeds if plan.drawn else 1 for plan in wanted)
    with progress_bar(total=total) as bar:
        for plan in wanted:
            bar.now(f"{plan.work}: {plan.label} {plan.at}")
            points.append(await measure_after(world, plan, points, seeds=seeds, on_reply=bar.advance))


def _finish(points: Sequence[Point], world: World, settings: dict[str, Any]) -> None:
    from alignstar.bench.frontier_claims import CLAIMS, findings
    from alignstar.bench.frontier_picture import picture
    from alignstar.bench.frontier_plans import WORKS
    from alignstar.bench.record import record, write

    console = Console() if Console().is_terminal else Console(width=160)
    for work in WORKS:
        shown = [point for point in points if point.plan.work == work]
        if shown:
            console.print(results(shown))
    console.print(CAPTION.format(weight=points[0].rm_weight), style="dim", highlight=False, markup=False)
    found = findings(points)
    for claim in CLAIMS:
        told = [finding for finding in found if finding.claim == claim]
        if told:
            console.print(verdict(told, CLAIMS[claim]))
            console.print(CLAIM_CAPTIONS[claim], style="dim", highlight=False, markup=False)
    if settings["out"] is not None:
        runs = [point.as_json() for point in points]
        recorded = record("frontier", settings=settings, runs=runs, threads=settings["threads"])
        claims = [finding.as_json() for finding in found]
        shared = None if world.shared is None else world.shared.as_json()
        write(settings["out"], {**recorded, "shared": shared, "claims": claims})
    direct = [point for point in points if point.plan.work == "direct"]
    if settings["svg"] is not None and direct:
        drawn = picture(direct, title=f"All methods on the embedded models, {direct[0].learned().n} prompts")
        Path(settings["svg"]).write_text(drawn + "\n", encoding="utf-8")


def results(points: Sequence[Point]) -> Table:
    """All points of a work, a section per curve."""
    first = points[0]
    table = Table(
        title=f"{first.plan.work}: reward = {' and '.join(first.tastes)}, {first.learned().n} prompts",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    for name in ("method", "at"):
        table.add_column(name, no_wrap=True)
    for name in ("learned", *(f"true {taste}" for taste in first.tastes), "KL", "LM", "RM", "tokens", "sec."):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        kl, kind = point.kl()
        table.add_row(
            point.plan.label,
            point.plan.at,
            cell(point.learned()),
            *(cell(point.true(taste)) for taste in first.tastes),
            f"{KL_MARKS[kind]}{round(kl, 1) + 0.0:.1f}",
            f"{point.mean(lambda run: run.lm_tokens):,.0f}",
            f"{point.mean(lambda run: run.rm_tokens):,.0f}",
            f"{point.mean(point.cost):,.0f}",
            f"{point.seconds:.0f}",
        )
    return table


def verdict(findings: Sequence[Finding], title: str) -> Table:
    """What was found about one claim."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in findings[0].figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reached", no_wrap=True)
    for finding in findings:
        reached = "no" if not finding.reached else "yes" if finding.certain else "in part"
        table.add_row(finding.what, *(cell(figure) for figure in finding.figures.values()), reached)
    return table


def cell(figure: Interval | float) -> str:
    """A number, or a mean with its interval, in three figures."""
    if isinstance(figure, float | int):
        return _short(figure)
    return f"{_short(figure.mean)} [{_short(figure.low)}, {_short(figure.high)}]"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
