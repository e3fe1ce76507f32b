"""How far the other rewards are from the one that the baseline was aligned to. Knows shifts and scores."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from alignstar.evaluate.shift import Shift
from alignstar.evaluate.statistics import Interval
from alignstar.report.page import Chart, Section
from alignstar.report.sections import distribution_of, metrics_table, reward_against
from alignstar.report.survey import Method, Survey

FRACTION = "share of the last layer set to zero"


def shift_section(shifts: Sequence[Shift], counted: Survey) -> Section | None:
    """The rewards' distributions over all replies and what moved; None without a source or without another reward."""
    if len(shifts) < 2:
        return None
    source = shifts[0].source
    items = [
        Method(label=shift.reward, number=letter, family=place)
        for place, (shift, letter) in enumerate(zip(shifts, string.ascii_uppercase, strict=False))
    ]
    columns = {
        f"difference to {source}": {shift.reward: shift.difference for shift in shifts},
        f"spread over that of {source}": {shift.reward: shift.spread for shift in shifts},
        f"correlation with {source}": {shift.reward: shift.correlation for shift in shifts},
    }
    scores = [(item, np.concatenate([counted.scores(m.label, item.label) for m in counted.methods])) for item in items]
    charts = [distribution_of(scores, title="Rewards of all replies", x_title="reward", of="reward")]
    return Section(
        id="shift",
        title=f"From {source} to other rewards",
        notes=[
            f"{source} is what the baseline was aligned to. All replies of all methods, every prompt weighing the "
            "same. A reward with another mean and spread, and a correlation of one, ranks replies as before.",
        ],
        legend=items,
        charts=[chart for chart in [*charts, *_against_sparsity(shifts, items, source)] if chart is not None],
        tables=[metrics_table(items, columns, title=f"Against {source}", of="reward")],
    )


def _against_sparsity(shifts: Sequence[Shift], items: Sequence[Method], source: str) -> list[Chart | None]:
    """The shift against the share of weights that are zero, where rewards differ from the source by that."""
    share = {s.reward: s.sparsity for s in shifts if s.sparsity is not None}
    if len(set(share.values())) < 3:
        return []
    sparse = [Method(label=item.label, number=item.number, family=0) for item in items if item.label in share]
    x = {name: Interval(mean=value, low=value, high=value, n=1) for name, value in share.items()}
    figures = {
        f"difference to {source}": {s.reward: s.difference for s in shifts},
        f"correlation with {source}": {s.reward: s.correlation for s in shifts},
    }
    return [
        reward_against(
            sparse, x, y, title=f"{title[0].upper()}{title[1:]}", x_title=FRACTION, y_title=title, lines={}, of="reward"
        )
        for title, y in figures.items()
    ]
