"""The bench of approximations: every row against plain Transfer Q* and against smaller numbers, on the same worlds."""

from __future__ import annotations

import re
from io import StringIO
from itertools import pairwise

import pytest
from rich.console import Console

from alignstar.bench.savings import FAMILIES, savings, toy_work
from alignstar.bench.savings_picture import picture
from alignstar.cli.bench_savings import table


@pytest.mark.parametrize("rollouts", FAMILIES)
def test_the_bench_compares_rows_of_the_same_worlds(rollouts: str) -> None:
    made = toy_work(2)
    rows = {row.name: row for row in savings(made, rollouts)}
    plain = rows["transfer-q"]
    assert (plain.share, plain.loss.mean) == (1.0, 0.0)
    for name, row in rows.items():
        assert row.reward.mean == pytest.approx(plain.reward.mean - row.loss.mean)
        assert row.share == pytest.approx(row.tokens / plain.tokens)
        assert row.share <= 1, name
    if rollouts == "greedy":
        assert rows["exact acceleration"].rewards == plain.rewards
        assert rows["greedy decoding"].tokens == 1.0
    else:
        assert rows["adaptive_rollouts=0.05"].rewards == plain.rewards
    text = StringIO()
    Console(file=text, width=160).print(table(list(rows.values()), made))
    assert all(name in text.getvalue() for name in rows)


def test_the_bench_tells_a_saving_from_the_better_of_what_smaller_numbers_get_for_its_tokens() -> None:
    rows = {row.name: row for row in savings(toy_work(2), "greedy")}
    lines = [[rows[name] for name in line] for line in FAMILIES["greedy"].lines]
    on_lines = {row.name for line in lines for row in line}
    assert {name for name, row in rows.items() if row.beyond is None} == on_lines
    for name in rows.keys() - on_lines:
        beyond, reached = rows[name].beyond, []
        for line in lines:
            points = sorted((row.tokens, row.reward.mean) for row in line)
            (x0, y0), (x1, y1) = next(two for two in pairwise(points) if two[1][0] >= rows[name].tokens)
            reached.append(y0 + (rows[name].tokens - x0) / (x1 - x0) * (y1 - y0))
        assert beyond is not None
        assert beyond.mean == pytest.approx(rows[name].reward.mean - max(reached), abs=1e-12), name


@pytest.mark.parametrize("rollouts", FAMILIES)
def test_the_picture_has_a_curve_for_every_approximation_and_every_smaller_number(rollouts: str) -> None:
    drawn = picture(savings(toy_work(1), rollouts), title="a title")
    told = {
        "greedy": ["k", "rollout_len", "block", "halving", "gate", "all three"],
        "sampled": ["num_rollouts", "adaptive_rollouts"],
    }[rollouts]
    assert re.findall(r">([^<>]+)</text>", drawn)[-len(told) :] == told
