"""How the demo's results look: replies side by side, the table of a setting, the sweep. Knows rich, runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignstar.demo.run import Row
from alignstar.demo.settings import ALPHAS, REWARDS
from alignstar.demo.tuning import PROMPTS, Tried
from alignstar.evaluate.statistics import Interval, paired_difference


def replies(message: str, rows: Mapping[str, Sequence[Row]]) -> RenderableType:
    """The first prompt's reply by every method, one column per setting."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    table.add_column("method", style="bold", no_wrap=True)
    for setting in rows:
        table.add_column(f"{setting}: reward = {REWARDS[setting]}", ratio=1)
    labels = dict.fromkeys(row.plan.label for setting in rows for row in rows[setting])
    for label in labels:
        cells = [next((_reply(row) for row in rows[setting] if row.plan.label == label), Text()) for setting in rows]
        table.add_row(label, *cells)
    return Group(Text("customer  ", style="bold").append(message, style="not bold"), table)


def _reply(row: Row) -> Text:
    return Text(row.replies[0].text.strip()).append(f"\n{row.true[0]:.2f}", style="bold cyan")


COLUMNS = {
    "at": 6,
    "model": 5,
    "true": 11,
    "transfer-q gains": 13,
    "KL": 5,
    "LM tok.": 5,
    "RM tok.": 5,
    "sec.": 4,
}  # fmt: skip
"""What follows the method in the table of a setting, with the width that it needs at least."""


def results(rows: Sequence[Row], *, width: int) -> RenderableType:
    """The table of one setting, for a terminal of `width` columns (80 are enough)."""
    setting, narrow = rows[0].setting, width < 100
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0 if narrow else (0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title=f"{setting}: reward = {REWARDS[setting]}, {len(rows[0].replies)} prompts",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("method", no_wrap=True, width=17 if narrow else None)
    for column, least in COLUMNS.items():
        table.add_column(column, justify="right", width=least if narrow else None)
    winner = next((row for row in rows if row.plan.label == "transfer-q"), None)
    for row in rows:
        table.add_row(*_cells(row, winner), style="bold" if row is winner else "")
    return table


def _cells(row: Row, winner: Row | None) -> list[str]:
    strengths = [f"{row.options[name]:g}" for name in ("alpha", "weight", "n") if name in row.options]
    return [
        row.plan.label,
        strengths[0] if strengths else "",
        f"{row.learned_mean:.2f}",
        _interval(row.true_interval, sign=""),
        "" if winner is None or winner is row else _interval(paired_difference(winner.true, row.true), sign="+"),
        f"{'≤' if row.kl_is_bound else ''}{row.kl:.1f}",
        f"{row.per_reply('lm_tokens'):,.0f}",
        f"{row.per_reply('rm_tokens'):,.0f}",
        f"{row.seconds:.1f}",
    ]


def _interval(interval: Interval, *, sign: str) -> str:
    """Breaks after the mean only."""
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.2f},{interval.high:{sign}.2f}]"


CAPTION = (
    "at: alpha, ARGS' weight 1/alpha, or N. model, true: mean reward by the trained reward model and by the world's "
    "own rule, with its 95 % bootstrap interval. transfer-q gains: its true reward minus the row's, paired by prompt. "
    "KL: mean -log pi_sft(reply) in nats, for best-of-n the bound log N - (N-1)/N. Tokens: per reply, decoded alone "
    "from a cold start. sec.: the whole row."
)


def sweep(tried: Sequence[Tried]) -> RenderableType:
    """The mean learned reward of every method at every strength, the chosen one marked."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Mean learned reward on {PROMPTS} tuning prompts, by alpha (ARGS: weight = 1/alpha)",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("setting")
    table.add_column("method", no_wrap=True)
    for alpha in ALPHAS:
        table.add_column(f"{alpha:g}", justify="right")
    for row in tried:
        cells = [
            Text(f"{value:.2f}", style="bold green" if alpha == row.alpha else "")
            for alpha, value in zip(ALPHAS, row.learned_rewards, strict=True)
        ]
        table.add_row(row.setting, row.method, *cells)
    return table
