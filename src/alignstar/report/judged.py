"""What a judge said of a run, for the page: who won, beside what the reward says, and how far the judge can be trusted.

Knows judgements and the summary; asks nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignstar.evaluate.judge import Judgement
from alignstar.evaluate.judgements import Judgements
from alignstar.evaluate.statistics import Interval
from alignstar.evaluate.summary import Summary, WinTie
from alignstar.report.page import Section
from alignstar.report.survey import Method
from alignstar.report.tables import NONE, Cell, Row, Table, interval_cell, win_tie_cell


def judged_section(judged: Judgements, summary: Summary, methods: Sequence[Method]) -> Section:
    """Every comparison, in the methods' order."""
    by_reward = {(one.first, one.second): one for one in summary.win_ties}
    own = {one.first: one for one in judged.judgements}
    rival = judged.judgements[0].second
    head = ["method", "win-tie (%)", f"by {summary.win_tie_reward or 'reward'} (%)", "left out"]
    shown = "Both orders of every pair were shown" if judged.orders == "both" else "One order of every pair, drawn"
    return Section(
        id="judged",
        title=f"Judged by {judged.model}",
        notes=[
            f"Share of prompts (%) on which {judged.model} scores the reply at least as high as that of {rival}; "
            "below: the interval (Wilson), n, and prompts won, tied, lost. Beside it the same by the reward, of all "
            "prompts and seeds. Left out: pairs without two scores, which count for nobody.",
            f"{shown}, temperature {judged.temperature:g}. Same both ways: the share of pairs that came out the same "
            "in both orders. First shown: how often the reply shown first had the higher score, where they differed; "
            "one half says that the place does not matter.",
        ],
        tables=[
            Table(
                title=f"Against {rival}",
                head=[*head, "same both ways (%)", "first shown (%)"],
                rows=[_row(own[m.label], by_reward.get((m.label, rival)), m) for m in methods if m.label in own],
                texts=frozenset({0, 3}),
            )
        ],
    )


def _row(one: Judgement, by_reward: WinTie | None, method: Method) -> Row:
    reasons = {"unparsable": one.unparsable, "no answer": one.no_answer, "not asked": one.not_asked}
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
    cells = [
        Cell(text=one.first),
        win_tie_cell(one.win_tie, one.wins, one.ties, one.losses),
        Cell(text=NONE)
        if by_reward is None
        else win_tie_cell(by_reward.win_tie, by_reward.wins, by_reward.ties, by_reward.losses),
        Cell(text=left_out or "none"),
        *(interval_cell(share, percent=True) for share in (one.consistent, one.first_shown)),
    ]
    return Row(cells=cells, method=method)


def judged_intervals(judged: Judgements) -> list[tuple[str, str, str, str, Interval]]:
    """Every interval as (table, method, other, metric, interval)."""
    return [
        ("judged", one.first, one.second, f"{name}:{judged.model}", value)
        for one in judged.judgements
        for name, value in (
            ("win_tie", one.win_tie),
            ("win", one.win),
            ("same_both_ways", one.consistent),
            ("first_shown", one.first_shown),
        )
    ]
