"""`alignstar theory --impossibility`: one reward for groups that disagree, checked, as a table and as a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from alignstar.theory.checks import Tally
from alignstar.theory.impossibility import MUTANTS, SHARES, Price, draw, example, pooled, price, tally

CAPTION = (
    "Three replies: most people like the first best, the minority the second, nobody the third. pooled margin: of the "
    "first over the second by the one reward that fits all votes, in nats; the majority's is 2, the minority's -2. "
    "mismatch: how far the log-odds of all votes are from the group's, at least 4 (1 - share) TV. gap: what the policy "
    "of the pooled reward falls short of the group's own, beta KL, at least 2 beta TV squared."
)


def tallies(worlds: int, seed: int, *, mutate: bool) -> tuple[tuple[Tally, ...], dict[str, tuple[Tally, ...]]]:
    """The statements in random worlds, and the wrong readings of them."""
    drawn = [draw(seed, index) for index in range(worlds)]
    return tally(drawn), {name: tally(drawn, reading) for name, reading in MUTANTS.items()} if mutate else {}


def rows() -> list[dict[str, Any]]:
    """The example by the minority's share: the pooled margin, and what pooling costs either group."""
    found: list[dict[str, Any]] = []
    for share in SHARES:
        world = example(share)
        reward = pooled(world.rewards, world.shares)
        costs = {"minority": price(world, 1), "majority": price(world, 0)}
        told = {name: dataclasses.asdict(cost) for name, cost in costs.items()}
        found.append({"share": share, "pooled_margin": float(reward[0] - reward[1]), **told})
    return found


def show(console: Console) -> None:
    """The example as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("minority", "pooled margin", "mismatch", "at least", "gap", "at least", "majority's gap", "at least"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows():
        minority, majority = Price(**row["minority"]), Price(**row["majority"])
        numbers = (
            row["pooled_margin"], minority.mismatch, minority.least, minority.gap, minority.bound, majority.gap,
            majority.bound,
        )  # fmt: skip
        table.add_row(f"{row['share']:.0%}", *(f"{number:.3f}" for number in numbers))
    console.print(table)
    console.print(CAPTION, style="dim", highlight=False)


def draw_picture(path: str) -> None:
    """The example as curves over the minority's share."""
    from alignstar.report.curves import curves

    told = rows()
    lines: dict[str, Callable[[dict[str, Any]], float]] = {
        "mismatch": lambda row: row["minority"]["mismatch"],
        "≥ 4(1-η)TV": lambda row: row["minority"]["least"],
        "minority's gap": lambda row: row["minority"]["gap"],
        "≥ 2βTV²": lambda row: row["minority"]["bound"],
        "majority's gap": lambda row: row["majority"]["gap"],
    }
    drawn = curves(
        {name: [(row["share"], value(row)) for row in told] for name, value in lines.items()},
        title="One reward for two groups: what it costs them", x_title="share η of the minority", y_title="nats",
    )  # fmt: skip
    Path(path).write_text(drawn + "\n", encoding="utf-8")
