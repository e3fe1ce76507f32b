"""`alignstar bench maxmin`: one reward for all against rewards of groups. Prints tables, writes JSON and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.cli.bench_frontier import cell
from alignstar.cli.output import check_writable
from alignstar.cli.progress import progress_bar
from alignstar.errors import OptionError

if TYPE_CHECKING:
    from alignstar.bench.maxmin import Outcome

QUICK = {"ratios": (1, 10), "prompts": 32, "pairs": 300, "draws": 8, "seeds": 1, "steps": 12, "batch": 32}

CAPTION = (
    "Annotators of two groups, {majority} : {minority}, choose between two replies of the SFT model. pooled: one "
    "Bradley-Terry reward for all choices. The others use one reward per group, which EM finds without being told who "
    "belongs where. min: the worst of a response's rewards; game: the groups weighted for every prompt; maxmin: "
    "every step on the group that is worst off; pointwise: every step on the worst reward of every response. A win: "
    "the group truly likes the response better than a reply of the SFT model, ties half. Means over prompts with 95 % "
    "bootstrap intervals, a prompt's seeds averaged first; gains are paired by prompt."
)
CLAIM = (
    "The paper (Chakraborty et al. 2024): win rates rise by 16 % on average over the groups and by 33 % for the "
    "minority, without loss for the majority; the accuracy of a single reward for the minority falls from 70.4 % at "
    "1:1 to 42 % at 10:1. Its groups prefer opposite styles; these two agree about three pairs in four."
)


def maxmin(
    ratios: Annotated[str, typer.Option(help="Majority to minority, e.g. 1,10 for 1:1 and 10:1.")] = "1,2,4,6,10",
    prompts: Annotated[int, typer.Option(min=2, max=400, help="Held-out prompts.")] = 64,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs that annotators choose between.")] = 1200,
    draws: Annotated[int, typer.Option(min=2, help="n of best-of-n.")] = 16,
    seeds: Annotated[int, typer.Option(min=1, help="How often annotators are drawn and policies are trained.")] = 2,
    steps: Annotated[int, typer.Option(min=0, help="Steps of every policy; 0 trains none.")] = 40,
    batch: Annotated[int, typer.Option(min=8, help="Responses per step, a multiple of 4.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="Two ratios, one seed, fewer of everything.")] = False,
    out: Annotated[str | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    svg: Annotated[str | None, typer.Option(help="Draw the figures into this file.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch (none: its own choice).")] = None,
) -> None:
    """One reward for all against rewards of groups, decoding and training: what a minority of annotators gets."""
    settings: dict[str, Any] = {**dict(locals()), "ratios": _ratios(ratios)}
    if quick:
        settings |= QUICK
    if batch % 4:
        raise OptionError(f"batch={batch} must be a multiple of 4, the responses per prompt; round it.")
    for path, option in ((out, "--out"), (svg, "--svg")):
        if path is not None:
            check_writable(path, option=option)
    done: list[Outcome] = []
    try:
        _measure(done, settings)
    finally:
        # After Ctrl-C too: what is finished is shown.
        if done:
            _finish(done, settings)


def _ratios(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, rising."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise OptionError(f"ratios={text!r} must be whole numbers above 0, separated by commas.")
    return tuple(sorted({int(word) for word in words}))


def _measure(done: list[Outcome], settings: dict[str, Any]) -> None:
    """Fill `done`, ratio by ratio."""
    from alignstar.bench.maxmin import DECODING, TRAINING, measure
    from alignstar.bench.maxmin_policy import Course, trainer_of
    from alignstar.bench.maxmin_world import REFERENCES, demo_world
    from alignstar.train.common import quiet

    quiet()
    training = settings["steps"] > 0
    parts = settings["seeds"] * (len(DECODING) + training * len(TRAINING))
    with progress_bar(total=1 + len(settings["ratios"]) * parts, remaining=True, doing="replies") as bar:
        world = demo_world(
            pairs=settings["pairs"], prompts=settings["prompts"], draws=settings["draws"], references=REFERENCES,
            threads=settings["threads"],
        )  # fmt: skip
        course = Course(steps=settings["steps"], batch=settings["batch"])
        trained = trainer_of(world, course) if training else None
        for ratio in settings["ratios"]:
            done.append(
                measure(world, ratio=ratio, seeds=settings["seeds"], trained=trained, on_part=_told(bar))
            )  # fmt: skip


def _told(bar: Any) -> Callable[[str], None]:
    def told(what: str) -> None:
        bar.advance()  # what was before it is done
        bar.now(what)

    return told


def _finish(done: Sequence[Outcome], settings: dict[str, Any]) -> None:
    from alignstar.bench.maxmin import MAJORITY, MINORITY
    from alignstar.bench.maxmin_picture import picture
    from alignstar.bench.record import record, write

    console = Console() if Console().is_terminal else Console(width=150)
    for table in (accuracies(done), results(done), gains(done)):
        console.print(table)
    for text in (CAPTION.format(majority=MAJORITY, minority=MINORITY), CLAIM):
        console.print(text, style="dim", highlight=False, markup=False)
    if settings["out"] is not None:
        runs = [outcome.as_json() for outcome in done]
        write(settings["out"], record("maxmin", settings=settings, runs=runs, threads=settings["threads"]))
    if settings["svg"] is not None:
        Path(settings["svg"]).write_text(picture(done) + "\n", encoding="utf-8")


def accuracies(outcomes: Sequence[Outcome]) -> Table:
    """How well rewards know each group."""
    from alignstar.bench.maxmin import MAJORITY, MINORITY

    table = _table("How often a reward orders two replies as a group does", "ratio", "EM right")
    names = [f"pooled, {MAJORITY}", *(name for name in outcomes[0].accuracy if MINORITY in name)]
    for name in names:
        table.add_column(name, justify="right", min_width=21)
    for outcome in outcomes:
        table.add_row(
            f"{outcome.ratio}:1", f"{outcome.recovered:.0%}", *(cell(outcome.accuracy[name]) for name in names)
        )  # fmt: skip
    return table


def results(outcomes: Sequence[Outcome]) -> Table:
    """Every way of making responses at every ratio."""
    from alignstar.bench.maxmin import GROUPS

    columns = [(what, group) for what in ("wins", "true") for group in GROUPS]
    table = _table("Win rate against the SFT model's replies, and mean true reward", "ratio", "way", "reward")
    for what, group in columns:
        table.add_column(f"{what}: {group}", justify="right", no_wrap=True)
    for outcome in outcomes:
        for row in outcome.rows:
            means = row.means()
            table.add_row(
                f"{outcome.ratio}:1", row.way, row.reward, *(cell(means.interval(column)) for column in columns)
            )  # fmt: skip
        table.add_section()
    return table


def gains(outcomes: Sequence[Outcome]) -> Table:
    """What the groups win by fair rewards over the pooled one."""
    from alignstar.bench.maxmin import GROUPS

    names = (*GROUPS, "mean")
    table = _table("Win rate by rewards of groups, less that by the pooled reward", "ratio", "way", "reward")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"relative: {GROUPS[1]}", justify="right", no_wrap=True)
    for outcome in outcomes:
        for gain in outcome.gains():
            table.add_row(
                f"{outcome.ratio}:1", gain.way, gain.reward, *(cell(gain.wins[name]) for name in names),
                cell(gain.relative[GROUPS[1]]),
            )  # fmt: skip
        table.add_section()
    return table


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=True)
    return table
