"""The summary of a run: its figures against plain computations, what is left out, several seeds, who beats whom."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from alignstar.errors import OptionError
from alignstar.evaluate.kl import BOUND, POINT_MASS, best_of_n_bound
from alignstar.evaluate.statistics import mean_interval
from alignstar.evaluate.summary import summarise
from alignstar.evaluate.units import Run, Unit

WORDS = ("the", "parcel", "is", "late", "sorry", "we", "send", "refund", "today", "thanks")


def unit(method: str, prompt: int, *, seed: int = 0, error: str | None = None, **other: Any) -> Unit:
    given: dict[str, Any] = {
        "response": "one two three four five",
        "rewards": {"r": 0.0, "g": 0.0},
        "kl": 1.0,
        "usage": {"lm_tokens": 100, "rm_tokens": 40, "sequential_steps": 9, "wall_s": 0.5},
        "response_ids": tuple(range(5)),
        "finish_reason": "stop",
        **other,
    }
    if error is not None:
        given |= {"response": "", "rewards": {"r": None, "g": None}, "kl": None, "usage": {}, "finish_reason": "error"}
    return Unit(
        key=f"{method}|{prompt}|{seed}", method=method, options={}, prompt_index=prompt, prompt=f"where is {prompt}",
        seed=seed, steps=(), error=error, **given,
    )  # fmt: skip


def run(units, methods: Mapping[str, Any] | None = None, **recipe: Any) -> Run:
    methods = methods or {"base": ("greedy", {}), "best": ("best-of-n", {"n": 4, "selection": "best", "model": "sft"})}
    entries = [{"label": label, "method": name, "options": options} for label, (name, options) in methods.items()]
    rewards = {"r": {"role": "reward", "parameters": 2.0}, "g": {"role": "gold", "parameters": None}}
    models = {"sft": {"parameters": 4.0}, "baseline": None}
    whole = {"methods": entries, "rewards": rewards, "baseline": "base", "models": models, "metrics": {}, **recipe}
    return Run(recipe=whole, environment={}, units=units)


def random_units(prompts=30, seeds=(0,), methods=("base", "best")):
    rng = np.random.default_rng(1)
    return [
        unit(
            method, prompt, seed=seed, response=" ".join(rng.choice(WORDS, size=rng.integers(4, 20))),
            rewards={"r": float(rng.normal(place)), "g": float(rng.normal(place / 2))}, kl=float(rng.exponential()),
        )
        for place, method in enumerate(methods)
        for prompt in range(prompts)
        for seed in seeds
    ]  # fmt: skip


def quick(*args, **how):
    return summarise(*args, **{"resamples": 500, **how})


def figures(summary, label):
    return next(row for row in summary.methods if row.label == label).figures


def test_figures_are_means_with_their_bootstrap_intervals():
    units = random_units()
    summary = quick(run(units))
    for label in ("base", "best"):
        own = [u for u in units if u.method == label]
        expected = mean_interval([u.rewards["r"] for u in own], resamples=500)
        found = figures(summary, label)["reward:r"]
        assert (found.mean, found.low, found.high, found.n) == pytest.approx(
            (expected.mean, expected.low, expected.high, 30)
        )
        assert figures(summary, label)["words"].mean == pytest.approx(np.mean([len(u.response.split()) for u in own]))
        assert figures(summary, label)["kl"].n == 30
    assert figures(summary, "best")["lm_per_token"].mean == 20.0
    assert figures(summary, "best")["cost"].mean == 100 + 0.5 * 40
    assert {m.name for m in summary.metrics} == set(figures(summary, "base")) | set(figures(summary, "best"))


def test_every_figure_has_an_interval_around_it_and_a_count():
    summary = quick(run(random_units()))
    for row in summary.methods:
        for figure in row.figures.values():
            assert figure.n > 0
            assert figure.low <= figure.mean + 1e-12
            assert figure.mean <= figure.high + 1e-12
    for one in summary.comparisons:
        assert one.difference.n == one.effect.n == one.superiority.n == 30


def test_failed_units_and_unusable_scores_are_left_out_and_counted():
    units = [unit("base", i, rewards={"r": 1.0, "g": float(i)}) for i in range(4)]
    units += [unit("best", 0, error="broke"), unit("best", 1, rewards={"r": None, "g": 5.0})]
    units += [unit("best", 2, rewards={"r": 3.0, "g": 6.0}, finish_reason="length")]
    summary = quick(run(units))
    base, best = summary.methods
    assert (base.replies, base.failed, base.skipped) == (4, 0, {"r": 0, "g": 0})
    assert (best.prompts, best.replies, best.failed, best.skipped) == (2, 2, 1, {"r": 1, "g": 0})
    assert best.finished == {"stop": 1, "length": 1}
    assert (best.figures["reward:r"].mean, best.figures["reward:r"].n) == (3.0, 1)
    assert best.figures["reward:g"].mean == 5.5
    by_reward = {one.reward: one for one in summary.comparisons}
    # Prompts that both have: 2 for r, 1 and 2 for g.
    assert (by_reward["r"].difference.mean, by_reward["r"].difference.n) == (2.0, 1)
    assert (by_reward["g"].difference.mean, by_reward["g"].difference.n) == (4.0, 2)


def test_a_method_without_a_reply_has_no_figures():
    units = [unit("base", i, rewards={"r": float(i), "g": 0.0}) for i in range(3)] + [unit("best", 0, error="broke")]
    summary = quick(run(units))
    assert summary.methods[1].figures == {}
    assert summary.methods[1].failed == 1
    assert summary.comparisons == ()
    json.dumps(summary.as_json(), allow_nan=False)


def test_seeds_are_averaged_within_their_prompt():
    once = [unit(m, i, rewards={"r": float(i * (m == "best")), "g": 0.0}) for m in ("base", "best") for i in range(6)]
    thrice = [unit(u.method, u.prompt_index, seed=s, rewards=u.rewards) for u in once for s in range(3)]
    one, three = quick(run(once)), quick(run(thrice))
    assert three.seeds == (0, 1, 2)
    assert three.methods[1].replies == 18
    assert figures(three, "best")["reward:r"] == figures(one, "best")["reward:r"]
    assert one.comparisons[0].p == three.comparisons[0].p
    assert one.comparisons[0].difference == three.comparisons[0].difference
    assert one.win_ties == three.win_ties


def test_differences_are_of_the_seeds_that_both_have():
    units = [
        unit("base", 0, seed=0, rewards={"r": 1.0, "g": 0.0}),
        unit("base", 0, seed=1, rewards={"r": 9.0, "g": 0.0}),
    ]
    units += [unit("best", 0, seed=1, rewards={"r": 10.0, "g": 0.0})]
    assert quick(run(units)).comparisons[0].difference.mean == 1.0


def test_the_order_of_units_changes_nothing():
    units = random_units(seeds=(0, 1))
    ours, theirs = quick(run(units)), quick(run(sorted(units, key=lambda u: (-u.prompt_index, u.seed, u.method))))
    assert ours.win_ties == theirs.win_ties
    assert ours.comparisons == theirs.comparisons
    assert figures(ours, "best") == figures(theirs, "best")


def test_p_values_are_corrected_for_the_number_of_methods():
    methods = {label: ("greedy", {}) for label in ("base", "a", "b", "c")}
    units = random_units(prompts=12, methods=("base", "a", "b", "c"))
    summary = quick(run(units, methods))
    of_r = [one for one in summary.comparisons if one.reward == "r"]
    assert [one.method for one in of_r] == ["a", "b", "c"]
    assert all(one.exact for one in of_r)
    least = min(of_r, key=lambda one: one.p)
    assert least.p_adjusted == min(1.0, 3 * least.p)
    assert all(one.p_adjusted >= one.p for one in summary.comparisons)


def test_another_baseline_turns_the_comparison():
    units = random_units()
    plain, turned = quick(run(units)), quick(run(units), baseline="best")
    assert turned.baseline == "best"
    assert turned.comparisons[0].method == "base"
    assert turned.comparisons[0].difference.mean == pytest.approx(-plain.comparisons[0].difference.mean)
    assert turned.comparisons[0].p == pytest.approx(plain.comparisons[0].p, abs=0.01)
    assert turned.comparisons[0].superiority.mean == pytest.approx(1 - plain.comparisons[0].superiority.mean)
    with pytest.raises(OptionError, match="No method of this run is called 'x'"):
        quick(run(units), baseline="x")


def test_the_held_out_reward_decides_who_wins():
    scores = {"base": (0.0, 2.0, 5.0, 1.0), "best": (0.0, 3.0, 4.0, 2.5)}
    units = [unit(m, i, rewards={"r": -g, "g": g}) for m, values in scores.items() for i, g in enumerate(values)]
    summary = quick(run(units))
    assert summary.win_tie_reward == "g"
    cells = {(cell.first, cell.second): cell for cell in summary.win_ties}
    assert set(cells) == {("base", "best"), ("best", "base")}
    best = cells["best", "base"]
    assert (best.wins, best.ties, best.losses, best.win_tie.mean, best.win_tie.n) == (2, 1, 1, 0.75, 4)
    base = cells["base", "best"]
    assert (base.wins, base.ties, base.losses, base.win_tie.mean) == (1, 1, 2, 0.5)
    assert best.win_tie.low < 0.75 < best.win_tie.high
    close = quick(run(units), win_tie_tolerance=1.0)
    assert next(c for c in close.win_ties if c.first == "best").ties == 3
    by_r = quick(run(units), win_tie_reward="r")
    assert next(c for c in by_r.win_ties if c.first == "best").wins == 1
    with pytest.raises(OptionError, match="'x' is no reward"):
        quick(run(units), win_tie_reward="x")


def test_equal_replies_tie_though_their_scores_were_rounded_otherwise():
    noise = (1e-7, -3e-8, 0.0)
    units = [unit("base", i, rewards={"r": 1.0, "g": 1.0}) for i in range(3)]
    units += [unit("best", i, rewards={"r": 1.0 + e, "g": 1.0 + e}) for i, e in enumerate(noise)]
    other = unit("best", 3, response="another reply", rewards={"r": 1.0 + 1e-7, "g": 1.0 + 1e-7})
    units += [unit("base", 3, rewards={"r": 1.0, "g": 1.0}), other]
    summary = quick(run(units))
    cell = next(c for c in summary.win_ties if c.first == "best")
    assert (cell.wins, cell.ties, cell.losses) == (1, 3, 0)
    assert summary.comparisons[0].superiority.mean == 0.625
    cut = [unit("base", 0), unit("best", 0, finish_reason="length", rewards={"r": 1e-7, "g": 1e-7})]
    assert next(c for c in quick(run(cut)).win_ties if c.first == "best").wins == 1, "a reward may see that it is cut"


def test_wins_of_several_seeds_are_shares():
    units = [unit("base", 0, seed=s, rewards={"r": 0.0, "g": 0.0}) for s in range(4)]
    units += [unit("best", 0, seed=s, rewards={"r": 0.0, "g": g}) for s, g in enumerate((1.0, 1.0, 0.0, -1.0))]
    cell = next(c for c in quick(run(units)).win_ties if c.first == "best")
    assert (cell.wins, cell.ties, cell.losses, cell.win_tie.n) == (0.5, 0.25, 0.25, 1)


def test_the_divergence_of_best_of_n_is_its_bound():
    units = [unit("base", i, kl=2.0) for i in range(3)] + [unit("best", i, kl=None) for i in range(3)]
    summary = quick(run(units))
    base, best = summary.methods
    assert (base.kl_law, best.kl_law) == (POINT_MASS, BOUND)
    assert base.figures["kl"].mean == 2.0
    assert best.figures["kl"].mean == best.figures["kl"].high == best_of_n_bound(4)
    elsewhere = {"base": ("greedy", {}), "best": ("best-of-n", {"n": 4, "selection": "best", "model": "baseline"})}
    assert "kl" not in figures(quick(run(units, elsewhere)), "best")


def test_the_gap_is_against_the_baselines_own_spread():
    rng = np.random.default_rng(2)
    base = [{"r": float(a), "g": float(b)} for a, b in rng.normal(size=(40, 2))]
    spread = {name: np.std([row[name] for row in base]) for name in ("r", "g")}
    units = [unit("base", i, rewards=row) for i, row in enumerate(base)]
    units += [
        unit("best", i, rewards={"r": row["r"] + 3 * spread["r"], "g": row["g"] + spread["g"]})
        for i, row in enumerate(base)
    ]
    summary = quick(run(units))
    assert figures(summary, "base")["gap:g"].mean == pytest.approx(0.0, abs=1e-12)
    assert figures(summary, "best")["gap:g"].mean == pytest.approx(2.0)
    assert "gap:r" not in figures(summary, "best")


def test_the_recipe_chooses_normalisation_and_repetition():
    units = [unit(m, i, rewards={"r": r, "g": r}) for m, r in (("base", 1.0), ("best", 3.0)) for i in range(3)]
    plain = quick(run(units))
    assert figures(plain, "best")["normalised:r"].mean == 1.0
    assert figures(plain, "base")["diversity"].mean == pytest.approx(0.4)
    turned = {"diversity_plus_one": False, "coherence": None, "normalised": {"reference": "base", "lowest": "best"}}
    other = quick(run(units, metrics=turned))
    assert figures(other, "best")["normalised:r"].mean == 0.0
    assert figures(other, "base")["diversity"].mean == 1.0
    ratio = quick(run(units), normalisation="ratio")
    assert figures(ratio, "base")["normalised:r"].mean == pytest.approx(1 / 3)
    about = {m.name: m.about for m in plain.metrics}
    assert "(r - r[base]) / (r[best] - r[base])" in about["normalised:r"]
    assert "hashed words" in about["coherence"]
    assert "+ 1" in about["diversity"]


def test_the_summary_is_json():
    told = quick(run(random_units())).as_json()
    again = json.loads(json.dumps(told, allow_nan=False))
    assert again == told
    figure = again["methods"][0]["figures"]["reward:r"]
    assert set(figure) == {"mean", "low", "high", "n"}
    assert all(not (isinstance(v, float) and math.isnan(v)) for v in figure.values())


def test_a_run_without_units_or_rewards():
    with pytest.raises(OptionError, match="no unit yet"):
        quick(run([]))
    bare = quick(run([unit("base", i, rewards={}) for i in range(3)], rewards={}))
    assert (bare.comparisons, bare.win_ties, bare.win_tie_reward) == ((), (), None)
    assert figures(bare, "base")["diversity"].n == 3
