"""The tables of `alignstar bench`. Computes nothing but units and shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from alignstar.bench import greedy as greedy_bench
    from alignstar.bench import memory as memory_bench
    from alignstar.bench import tq
    from alignstar.bench.plan import Price
    from alignstar.bench.rows import Difference
    from alignstar.bench.shapes import Shape


def transfer_q(outcome: tq.Outcome) -> Table:
    """One setup at one range and strength."""
    work = outcome.work
    naive = outcome.naive
    shorter = f" (naive {naive.tokens})" if naive.tokens != work.tokens else ""
    table = _table(
        f"{outcome.setup}; {outcome.prompts} prompt(s) x {work.tokens} tokens{shorter}; {_range(outcome.clip)}, "
        f"alpha {work.alpha:g}, k {work.k}, L {work.rollout_len}; next-token entropy {outcome.entropy:.2f} nats "
        f"(prompts {outcome.prompt_entropy:.2f})",
        f"per emitted token: milliseconds, LM and RM tokens, dependent LM forwards; x naive: median of "
        f"{len(naive.runs)} paired ratios; evaluated: share of the candidates with a reward; no rollout: share of the "
        "steps in which only the most probable token had one; KV: most positions held, LM + RM",
        left=("", "ids"),
        right=("x naive", "ms", "LM", "RM", "steps", "evaluated", "no rollout", "near ties", "KV"),
    )
    for row in outcome.rows:
        counts = row.counts
        searched = "evaluated" in counts
        table.add_row(
            row.name,
            f"{row.times_faster_than(naive):.2f}",
            f"{1000 * row.seconds_per_token:.2f}",
            f"{counts['lm_tokens']:.1f}",
            f"{counts['rm_tokens']:.1f}",
            f"{counts['sequential_steps']:.2f}",
            f"{counts['evaluated']:.1%}" if searched else "",
            f"{counts['without_rollout']:.0%}" if searched else "",
            f"{counts['near_ties']:.0f}" if "near_ties" in counts else "",
            f"{counts['lm_kv']:,.0f} + {counts['rm_kv']:,.0f}",
            _ids(outcome.difference(row)) if searched else "",
        )
    return table


def greedy(outcomes: Sequence[greedy_bench.Outcome]) -> Table:
    """Every setup in a line."""
    table = _table(
        "greedy decoding: ours against transformers generate",
        "milliseconds per emitted token; x generate: median of paired ratios",
        left=("", "ids"),
        right=("prompts", "tokens", "generate ms", "ours ms", "x generate", "near ties"),
    )
    for outcome in outcomes:
        theirs, mine = outcome.rows
        table.add_row(
            outcome.setup,
            str(outcome.prompts),
            str(outcome.tokens),
            f"{1000 * theirs.seconds_per_token:.2f}",
            f"{1000 * mine.seconds_per_token:.2f}",
            f"{outcome.ratio:.2f}",
            f"{mine.counts['near_ties']:.0f}",
            _ids(outcome.difference),
        )
    return table


def memory(outcome: memory_bench.Outcome) -> Table:
    """One range."""
    work = outcome.work
    table = _table(
        f"{outcome.setup}; {work.tokens} tokens; {_range(outcome.clip)}, alpha {work.alpha:g}; prompt + response + "
        f"{work.k} x {work.rollout_len} = {outcome.needed:,} positions of {outcome.kv_bytes:,} bytes",
        "of the language model; room: positions that it may hold; held: the most that it did; again: positions "
        "computed again per emitted token",
        left=("", "ids"),
        right=("room", "held", "x needed", "MiB", "again", "ms"),
    )
    for bound, row in zip(outcome.bounds, outcome.rows, strict=True):
        held = row.counts["lm_kv"]
        table.add_row(
            row.name,
            f"{bound:,}",
            f"{held:,.0f}",
            f"{outcome.share(row):.2f}",
            f"{held * outcome.kv_bytes / 2**20:,.1f}",
            f"{row.counts['recomputed_tokens']:.1f}",
            f"{1000 * row.seconds_per_token:.2f}",
            _ids(row.difference(outcome.rows[0])),
        )
    return table


def plan(prices: Sequence[Price], *, title: str, shape: Shape, measured: bool) -> Table:
    """The ways of running a method."""
    speed = "by this CPU's matrix products alone: an optimistic estimate" if measured else "at the speed given"
    table = _table(
        f"{title}; {shape.parameters / 1e6:,.1f} M parameters, {shape.kv_bytes:,} bytes of KV per position",
        f"tokens of the whole run; steps: dependent forwards of a prompt; KV: of the prompts decoded together; seconds "
        f"{speed}; ~: depends on the text",
        left=("",),
        right=("LM tokens", "RM tokens", "steps", "KV positions", "KV MiB", "seconds"),
    )
    for price in prices:
        cost = price.cost
        table.add_row(
            cost.way,
            f"{'' if cost.exact else '~'}{price.lm_tokens:,}",
            f"{'' if cost.exact else '~'}{price.rm_tokens:,}",
            f"{cost.sequential_steps:,}",
            f"{cost.lm_kv + cost.rm_kv:,}",
            f"{price.kv_bytes / 2**20:,.1f}",
            f"{price.seconds:,.3g}",
        )
    return table


def _table(title: str, caption: str, *, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """The first column and those behind the numbers stand at the left."""
    table = Table(title=title, caption=caption)
    table.add_column(left[0], no_wrap=True)
    for column in right:
        table.add_column(column, justify="right")
    for column in left[1:]:
        table.add_column(column)
    return table


def _range(clip: float | None) -> str:
    return "no range" if clip is None else f"clip +-{clip:g}"


def _ids(difference: Difference | None) -> str:
    """Whether a row's ids are the reference's."""
    if difference is None:
        return "equal"
    place = f"prompt {difference.prompt}, token {difference.token}"
    return f"near tie: {place}" if difference.near_tie else f"DIFFER: {place}"
