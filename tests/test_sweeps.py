"""What a report draws against a swept value: options of methods, and how sparse a reward's last layer is."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recorded
from alignstar.evaluate.measurements import collect
from alignstar.evaluate.shift import Shift, shifts
from alignstar.evaluate.summary import summarise
from alignstar.evaluate.text_metrics import HashedNgrams
from alignstar.evaluate.units import Run
from alignstar.report.survey import survey
from alignstar.report.sweeps import sweep_section
from test_report import page_of, table

REWARDS: dict[str, Any] = {
    "target": {"source": ["dir?sparsify=0.5&sparsify_seed=0"], "role": "reward", "parameters": None},
    "source": {"source": ["dir"], "role": "baseline_reward", "parameters": None},
    "sparser": {"source": ["dir?sparsify=0.9&sparsify_seed=0"], "role": "gold", "parameters": None},
    "other": {"source": ["elsewhere"], "role": "gold", "parameters": None},
}


def transferred(prompts: int = 5, *, seeds: tuple[int, ...] = (0,), missing: bool = False) -> Run:
    """A run scored by a source and by what it was turned into: target = source / 2 + 1, "other" = -source."""
    run = recorded.run(prompts=prompts, seeds=seeds, rewards=REWARDS)
    units = []
    for unit in run.units:
        source = (unit.rewards["learned"] or 0.0) * (1 + unit.prompt_index)
        scores = {"target": source / 2 + 1, "source": source, "sparser": 0.25, "other": -source}
        units.append(replace(unit, rewards=scores))
    if missing:
        units[0] = replace(units[0], rewards={**units[0].rewards, "target": None})
        units[1] = recorded.failed("greedy", 1)
    return replace(run, units=units)


def found(run: Run) -> dict[str, Shift]:
    table = collect(run, plus_one=True, encoder=HashedNgrams())
    return {one.reward: one for one in shifts(run.recipe, table, level=0.95, resamples=200, seed=0)}


def test_a_reward_is_told_from_the_source_by_mean_spread_and_order():
    run = transferred()
    shifted = found(run)
    assert list(shifted) == ["source", "target", "sparser", "other"]
    source = np.array([unit.rewards["source"] for unit in run.units], dtype=float)
    own, target, other = shifted["source"], shifted["target"], shifted["other"]
    assert (own.difference.mean, own.spread.mean) == (0.0, pytest.approx(1.0))
    assert own.correlation.mean == pytest.approx(1.0)
    assert target.difference.mean == pytest.approx(float(np.mean(1 - source / 2)))
    assert target.difference.low < target.difference.mean < target.difference.high
    assert (target.spread.mean, target.correlation.mean) == (pytest.approx(0.5), pytest.approx(1.0))
    assert other.correlation.mean == pytest.approx(-1.0)
    assert {one.difference.n for one in shifted.values()} == {5}
    assert math.isnan(shifted["sparser"].correlation.mean), "a constant correlates with nothing"


def test_only_replies_with_both_scores_count_and_every_prompt_weighs_the_same():
    run = transferred(seeds=(0, 1), missing=True)
    target = found(run)["target"]
    by_prompt: dict[int, list[float]] = {}
    for unit in run.units:
        if unit.rewards.get("target") is not None:
            by_prompt.setdefault(unit.prompt_index, []).append(unit.rewards["target"] - unit.rewards["source"])  # type: ignore[operator]
    assert target.difference.mean == pytest.approx(np.mean([np.mean(own) for own in by_prompt.values()]))
    assert target.difference.n == 5


def test_how_sparse_a_reward_is_stands_in_its_line():
    sparsities = {name: one.sparsity for name, one in found(transferred()).items()}
    assert sparsities == {"source": 0.0, "target": 0.5, "sparser": 0.9, "other": None}


def test_without_a_source_nothing_has_shifted():
    assert summarise(recorded.run()).shifts == ()
    unscored = transferred()
    units = [replace(unit, rewards={**unit.rewards, "source": None}) for unit in unscored.units]
    assert summarise(replace(unscored, units=units)).shifts == ()


def test_the_page_draws_the_shift_against_the_share_of_zeros(tmp_path: Path):
    page = page_of(transferred(), tmp_path)
    section = page.all("section", id="shift")[0]
    assert section.all("h2")[0].text == "From source to other rewards"
    assert [item.text for item in section.all("ul")[0].all("li")] == ["Asource", "Btarget", "Csparser", "Dother"]
    titles = [caption.all("b")[0].text for caption in section.all("figcaption")]
    assert titles == ["Rewards of all replies", "Difference to source", "Correlation with source"]
    drawn = section.all("svg")[1].text
    assert "source: share of the last layer set to zero 0 [0, 0]" in drawn
    assert "sparser: share of the last layer set to zero 0.9" in drawn
    assert "other" not in drawn
    rows = table(page, "shift", 3)
    assert list(rows) == ["source", "target", "sparser", "other"]
    for cell in rows["target"]:
        assert "n=5" in cell.text
    assert "shift,target,source,correlation,1" in (tmp_path / "report.csv").read_text()


def swept(**options: tuple[Any, ...]) -> Run:
    """Transfer Q* at every combination of two options, beside greedy."""
    (one, firsts), (two, seconds) = options.items()
    methods = {"greedy": ("greedy", {})} | {
        f"TQ* {one}={a:g} {two}={b:g}": ("transfer-q", {one: a, two: b}) for a in firsts for b in seconds
    }
    return recorded.run(methods=methods)


def test_figures_are_drawn_against_every_swept_option_and_joined_where_only_it_differs():
    run = swept(k=(2, 5), alpha=(0.25, 1.0, 4.0))
    section = sweep_section(summarise(run), survey(run).methods, ["learned"])
    assert section is not None
    assert [chart.title for chart in section.charts] == [
        "learned against alpha", "diversity against alpha", "coherence against alpha",
    ]  # fmt: skip
    drawn = str(section.charts[0].svg)
    assert drawn.count('class="sweep') == 4, "two lines of three values"
    assert ">k=2</text>" in drawn
    assert ">k=5</text>" in drawn
    assert "greedy" not in drawn
    assert [row.cells[0].text for row in section.charts[0].table.rows] == [
        label for label in (one["label"] for one in run.recipe["methods"]) if label != "greedy"
    ]
    assert section.charts[0].table.head == ["method", "learned"]


def test_two_values_or_words_make_no_line():
    run = swept(k=(2, 5), alpha=(1.0, 4.0))
    assert sweep_section(summarise(run), survey(run).methods, ["learned"]) is None
    words = {f"args {mode}": ("args", {"strategy": mode}) for mode in ("greedy", "stochastic")}
    run = recorded.run(methods=words)
    assert sweep_section(summarise(run), survey(run).methods, ["learned"]) is None


def test_a_sweep_over_a_wide_range_has_a_logarithmic_scale():
    run = swept(k=(2,), alpha=(0.01, 0.1, 1.0))
    section = sweep_section(summarise(run), survey(run).methods, ["learned"])
    assert section is not None
    assert ">0.1</text>" in str(section.charts[0].svg)
    assert "Without a figure" not in section.charts[0].note
