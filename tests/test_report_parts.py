"""The parts of the report: which prompts a page holds, axes and charts, what is counted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded
from alignstar.evaluate.statistics import Interval
from alignstar.report.browser import embedded
from alignstar.report.charts import RADIUS, Mark, Spread, distributions, scatter
from alignstar.report.sample import spread, stratified
from alignstar.report.survey import choose, payload, survey
from alignstar.report.svg import axis_over, element, short


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(0, 800))
def test_a_sample_fits_its_budget_and_is_whole_if_it_can_be(weights: list[int], budget: int):
    by_item = dict(enumerate(weights))
    chosen = spread(list(by_item), by_item, budget)
    assert chosen == sorted(set(chosen))
    assert sum(by_item[item] for item in chosen) <= budget
    if sum(weights) <= budget:
        assert chosen == list(by_item)


@pytest.mark.parametrize("count", [10, 37, 50])
def test_every_tenth_of_the_ranks_has_its_share_of_a_sample(count: int):
    ranked = [(7 * n) % 1000 for n in range(1000)]
    chosen = set(spread(ranked, dict.fromkeys(ranked, 1), count))
    shares = [len(chosen.intersection(ranked[low : low + 100])) for low in range(0, 1000, 100)]
    assert sum(shares) == count
    assert all(abs(share - count / 10) <= 1 for share in shares)


def test_what_a_reader_looks_for_comes_first_but_takes_no_more_than_a_quarter():
    ranked = list(range(1000))
    weights = dict.fromkeys(ranked, 1)
    few = stratified(ranked, weights, 100, first={3, 500})
    assert {3, 500} <= set(few)
    assert len(few) == 100
    many = stratified(ranked, weights, 100, first=set(range(500)))
    assert len([item for item in many if item >= 500]) == pytest.approx(75 / 2, abs=6)


def test_what_the_page_holds_stays_within_the_budgets():
    run = recorded.run(prompts=30)
    units = [replace(one, steps=tuple(recorded.step(n, "token") for n in range(5))) for one in run.units]
    counted = survey(replace(run, units=units))
    chosen = choose(counted, text_budget=8_000, trace_budget=6_000)
    data = payload(units, counted, chosen)
    assert 0 < len(chosen.traced) < len(chosen.prompts) < 30
    bare = [
        {**p, "replies": [{k: v for k, v in r.items() if k != "trace"} for r in p["replies"]]} for p in data["prompts"]
    ]
    assert len(embedded(bare).encode()) <= 8_000
    assert len(embedded(data["prompts"]).encode()) <= 8_000 + 6_000
    assert {p["index"] for p in data["prompts"] if "trace" in p["replies"][0]} == chosen.traced


def test_failed_units_have_no_score():
    run = recorded.run(prompts=3)
    units = [recorded.failed("greedy", 0), *list(run.units)[1:]]
    counted = survey(replace(run, units=units))
    assert counted.scores("greedy", "learned").tolist() == [0.1, 0.2]
    assert counted.scores("greedy", "true").tolist() == [0.05, 0.1]
    assert counted.prompts[0].mean == pytest.approx((1.0 + 2.0 + 3.0) / 3)
    assert (counted.failed, counted.done["greedy"]) == ({"greedy": 1}, 2)


def test_entries_of_one_sweep_are_one_family():
    counted = survey(recorded.run(prompts=1))
    assert [m.family for m in counted.methods] == [0, 1, 2, 2]
    assert [m.number for m in counted.methods] == [1, 2, 3, 4]


def test_embedded_json_says_the_same_and_holds_nothing_that_html_reads():
    text = "</script> <!-- & \u2028\u2029 \\ \" '"
    written = str(embedded({"text": text}))
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {"text": text}


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_ticks_are_few_round_and_within_the_axis(low: float, width: float, log: bool):
    low = abs(low) + 1e-3 if log else low
    axis = axis_over([low, low + width], 0.0, 100.0, log=log)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 14
    assert all(0 <= axis.at(tick) <= 100 for tick in ticks)
    assert ticks == sorted(ticks)


def test_an_axis_of_one_value_has_it_in_the_middle():
    assert axis_over([3.0], 0.0, 100.0).at(3.0) == 50
    assert axis_over([3.0], 0.0, 100.0, log=True).at(3.0) == pytest.approx(50)


def test_elements_escape_texts_and_attributes():
    assert element("text", "<a & b>", x=1.25, class_='"') == '<text x="1.2" class="&#34;">&lt;a &amp; b&gt;</text>'


def interval(mean: float, half: float = 0.0) -> Interval:
    return Interval(mean=mean, low=mean - half, high=mean + half, n=5)


def mark(n: int, x: float, y: float, **other: object) -> Mark:
    return Mark(number=n, family=n, label=f"method {n}", x=interval(x, 1.0), y=interval(y, 0.5), **other)  # type: ignore[arg-type]


def test_a_scatter_tells_every_value_with_interval_and_n():
    drawn = str(scatter([mark(1, 3, 1), mark(2, 6, 2, bound=True)], name="a chart", x_title="KL", y_title="reward"))
    assert 'role="img" aria-label="a chart"' in drawn
    assert "<title>method 1: KL 3 [2, 4], n = 5; reward 1 [0.5, 1.5], n = 5</title>" in drawn
    assert "<title>method 2: KL at most 6; reward 2 [1.5, 2.5], n = 5</title>" in drawn
    assert drawn.count('class="bound"') == 1


def test_no_disc_covers_another():
    drawn = str(scatter([mark(n, 1, 1) for n in range(12)], name="", x_title="", y_title=""))
    discs = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="9">', drawn)]
    assert len(discs) == 12
    assert all(math.dist(a, b) > 1.5 * RADIUS for i, a in enumerate(discs) for b in discs[:i])


def test_a_histogram_counts_every_value_once():
    values = np.array([0.0, 0.1, 0.1, 1.0, 2.0])
    drawn = str(distributions([Spread(number=1, family=0, label="m", values=values)], name="", x_title="r"))
    counts = [int(n) for n in re.findall(r": (\d+) of 5</title>", drawn)]
    assert sum(counts) == 5
    assert "quartiles 0.1, 0.1, 1; n = 5" in drawn


def test_equal_values_have_a_histogram():
    drawn = str(distributions([Spread(number=1, family=0, label="m", values=np.full(3, 2.0))], name="", x_title="r"))
    assert "3 of 3" in drawn


@pytest.mark.parametrize(
    ("value", "written"), [(0.5, "0.5"), (-2.0, "\N{MINUS SIGN}2"), (12345.0, "12.35k"), (1e6, "1,000k")]
)
def test_short_numbers(value: float, written: str):
    assert short(value) == written
