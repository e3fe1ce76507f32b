"""`bench frontier`: hand-made runs with known figures, all plans on a toy world, the command's output and refusals."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignstar import cli
from alignstar.bench import frontier_world
from alignstar.bench.frontier import Draw, Point, Run
from alignstar.bench.frontier_claims import CLAIMS, bootstrap, draws_for, expected_best, findings
from alignstar.bench.frontier_draws import measure_after
from alignstar.bench.frontier_picture import Axis, picture
from alignstar.bench.frontier_plans import WORKS, Plan, chosen, plans
from alignstar.bench.frontier_world import Counted
from alignstar.errors import OptionError
from alignstar.methods import METHODS
from alignstar.models.toy import ToyModel
from alignstar.sampling import Noise, Sampling
from alignstar.types import Reply
from frontier_worlds import BETA, V, measured, toy_world

CLAIM_KEYS = {"claim", "what", "reached", "certain"}


def plan_of(label: str, at: str = "", work: str = "direct") -> Plan:
    (found,) = [p for p in plans(beta=BETA, quick=True, value=True) if (p.work, p.label, p.at) == (work, label, at)]
    return found


def run(prompt: int = 0, *, repeat: int = 0, true: float | Mapping[str, float] = 0.0, **changed: Any) -> Run:
    fields: dict[str, Any] = {
        "prompt": prompt, "repeat": repeat, "prompt_tokens": 10, "tokens": 21, "learned": 0.0, "surprise": 7.0,
        "law": -5.0, "lm_tokens": 100, "rm_tokens": 50, "generated": 20,
    }  # fmt: skip
    tastes = true if isinstance(true, Mapping) else {"source": true, "target": true}
    return Run(**{**fields, **changed}, true=tastes)


def point(label: str, *runs: Run, work: str = "direct", rm_weight: float = 1.0, **plan: Any) -> Point:
    made = Plan(work=work, label=label, **{"method": label, "reward": "source", **plan})
    return Point(plan=made, runs=runs, seconds=1.0, rm_weight=rm_weight)


# Plans


def test_every_method_has_a_point():
    assert {plan.method for plan in plans(beta=BETA, value=True)} == set(METHODS)
    assert {plan.method for plan in plans(beta=BETA, quick=True, value=True)} == set(METHODS)


@pytest.mark.parametrize("quick", [True, False])
def test_points_are_told_apart(quick: bool):
    names = [(plan.work, plan.label, plan.at) for plan in plans(beta=BETA, quick=quick, value=True)]
    assert len(names) == len(set(names))
    assert {plan.work for plan in plans(beta=BETA, quick=quick)} == set(WORKS)
    headed = [p for p in plans(beta=BETA, quick=quick, value=True, value_target=True) if p.work == "indirect"]
    assert {p.label for p in headed} - {work[1] for work in names} == set()
    assert len(headed) == len([name for name in names if name[0] == "indirect"]) + (2 if quick else 6)


def test_points_are_chosen_by_work_method_and_curve():
    every = plans(beta=BETA)
    assert chosen(every, []) == every
    assert {plan.work for plan in chosen(every, ["indirect"])} == {"indirect"}
    assert {plan.label for plan in chosen(every, ["cd-minus", "deal"])} == {"cd-minus", "deal"}
    assert {plan.method for plan in chosen(every, ["tree-bon"])} == {"tree-bon"}
    assert {plan.label for plan in chosen(every, ["transfer-q"])} == {"transfer-q"}, "a curve is not its method"
    with pytest.raises(OptionError, match=r"only='tree' is unknown\. Known: direct, greedy"):
        chosen(every, ["deal", "tree"])


# What is made of runs


def test_seeds_of_a_prompt_are_averaged_before_prompts_are():
    made = point("x", run(0, true=1.0), run(0, repeat=1, true=0.0), run(1, true=0.0), run(1, repeat=1, true=0.0))
    assert made.per_prompt(lambda r: r.true["source"]) == (0.5, 0.0)
    interval = made.true("source")
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.25, 0.0, 0.5, 2)


def test_tokens_of_the_reward_model_have_their_weight():
    assert point("x", run(), rm_weight=0.5).mean(point("x", run(), rm_weight=0.5).cost) == 100 + 25


@pytest.mark.parametrize(
    ("plan", "kl"),
    [
        ({}, (7.0, "exact")),
        ({"drawn": True, "law": True}, (2.0, "estimate")),
        ({"drawn": True, "kl_bound": 3.0}, (3.0, "bound")),
        ({"drawn": True, "kl_bound": 9.0}, (7.0, "bound")),
        ({"drawn": True}, (7.0, "bound")),
    ],
)
def test_kl_says_what_it_is(plan: dict[str, Any], kl: tuple[float, str]):
    assert point("x", run(), **plan).kl() == kl


def test_the_best_of_some_draws_is_the_mean_over_all_subsets():
    values = [0.3, -1.0, 0.3, 2.0, 0.5]
    exact = [np.mean([max(subset) for subset in itertools.combinations(values, m)]) for m in range(1, len(values) + 1)]
    assert expected_best(values) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(("tokens", "draws"), [(0, 1), (14, 1), (15, 1), (16, 2), (34, 2), (36, 3), (900, 3)])
def test_draws_come_nearest_to_as_many_tokens(tokens: int, draws: int):
    assert draws_for(tokens, [10, 10, 30]) == draws


def test_an_interval_of_a_figure_is_over_prompts():
    values = np.array([0.0, 0.0, 1.0, 1.0])
    found = bootstrap(lambda weights: float(weights @ values), 4)
    assert (found.mean, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 4)


def draws(*learned: float, tokens: int = 20, true: float = 0.0) -> tuple[Draw, ...]:
    return tuple(
        Draw(
            reply=Reply(text=f"{x}", complete=True), tokens=tokens, learned=x, surprise=3.0,
            true={"source": true, "target": true},
        )
        for x in learned
    )  # fmt: skip


def test_tokens_saved_are_read_off_the_curve_of_best_of_n():
    # 10 tokens of prompt for each model and 40 a draw: best of 1, 2, 3 cost 60, 100, 140.
    curve = point(
        "best-of-n", run(lm_tokens=70, rm_tokens=70, draws=draws(0.0, 1.0, 2.0)), drawn=True, options={"n": 3}
    )
    assert expected_best([0.0, 1.0, 2.0]) == pytest.approx([1.0, 5 / 3, 2.0])
    options = {"budget": 30, "headroom": 4}
    own = run(learned=5 / 3, lm_tokens=20, rm_tokens=5)
    (found,) = findings([curve, point("speculative-rejection", own, at="here", options=options, drawn=True)])
    assert (found.claim, found.what, found.reached) == ("speculative-rejection", "here", False)
    figures = found.as_json()
    assert figures["equals best of"]["mean"] == pytest.approx(2)
    assert figures["tokens saved x"]["mean"] == pytest.approx(100 / 25)
    assert figures["LM saved x"]["mean"] == pytest.approx((10 + 2 * 20) / 20)
    assert figures["at most x"] == pytest.approx((20 + 5 * 40) / 25)  # 5 rows have room for 4 tokens each


def test_a_saving_beyond_the_curve_is_that_of_its_end_and_counts_when_it_is_large():
    curve = point("best-of-n", run(lm_tokens=70, rm_tokens=70, draws=draws(0.0, 1.0, 2.0)), drawn=True)
    own = run(learned=3.0, lm_tokens=4, rm_tokens=4)
    plan = {"options": {"budget": 30, "headroom": 4}, "drawn": True}
    (found,) = findings([curve, point("speculative-rejection", own, **plan)])
    assert found.as_json()["tokens saved x"] == pytest.approx({"mean": 17.5, "low": 17.5, "high": 17.5})
    assert found.as_json()["equals best of"]["mean"] == pytest.approx(3)
    assert (found.reached, found.certain) == (True, True)


def test_a_win_rate_is_against_as_many_drawn_tokens_and_ties_count_half():
    # Of three draws of 20 tokens, 40 generated tokens pay for two; the third would have won.
    def rivals(prompt: int) -> Run:
        return run(prompt, draws=(*draws(0.0, 1.0, true=0.5), *draws(9.0, true=1.0)))

    theirs = point("best-of-n", rivals(0), rivals(1), drawn=True)
    ours = point(
        "tree-bon", run(0, true=0.5, learned=2.0, generated=40), run(1, true=0.6, learned=0.9, generated=40), drawn=True
    )
    (found,) = findings([theirs, ours])
    figures = found.as_json()
    assert figures["win rate"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert figures["by learned reward"]["mean"] == 0.5
    assert (figures["ties"], figures["its n"], figures["best-of-n's"], figures["drawn tokens"]) == (0.5, 2, 40, 40)
    assert (found.reached, found.certain) == (True, False)


def test_a_gain_is_kept_above_greedy_decoding_at_the_same_strength():
    at = {"method": "transfer-q", "at": "alpha=1"}
    points = [
        point("baseline greedy", run(0, true=0.2), run(1, true=0.4), method="greedy"),
        point("transfer-q", run(0, true=0.7), run(1, true=0.9), **at),
        point(
            "transfer-q value", *(run(i, true=t, lm_tokens=36, rm_tokens=0) for i, t in enumerate((0.7, 0.801))), **at
        ),
        point("transfer-q value", run(0), run(1), method="transfer-q", at="alpha=2"),
    ]
    elsewhere = [  # the same in the other setting, which has two kinds of Transfer Q*
        point(p.plan.label.replace("transfer-q", "transfer-q direct").replace("direct value", "value"), *p.runs,
              work="indirect", method=p.plan.method, at=p.plan.at)
        for p in points
    ]  # fmt: skip
    worse = point("transfer-q indirect", run(0), run(1), work="indirect", **at)
    (other,) = findings([*elsewhere, worse])
    assert other.what == "indirect, alpha=1"
    (found,) = findings(points)
    assert (found.what, found.as_json()["gain kept"]) == ("direct, alpha=1", other.as_json()["gain kept"])
    figures = found.as_json()
    assert figures["gain kept"] == pytest.approx(0.4505 / 0.5)
    assert figures["above 90% of it"]["mean"] == pytest.approx(0.0005)
    assert figures["above 90% of it"]["low"] == pytest.approx(-0.049)
    assert figures["x plain tokens"]["mean"] == pytest.approx(36 / (10 + 21 - 1))
    assert (found.reached, found.certain) == (True, False)


def test_no_gain_is_kept_where_there_is_none():
    at = {"method": "transfer-q", "at": "alpha=1"}
    same = [run(0, true=0.2, lm_tokens=30, rm_tokens=0), run(1, true=0.4, lm_tokens=30, rm_tokens=0)]
    labels = {"baseline greedy": {"method": "greedy"}, "transfer-q": at, "transfer-q value": at}
    (found,) = findings([point(label, *same, **how) for label, how in labels.items()])
    assert (found.figures["gain"].mean, found.reached) == (0.0, False)
    assert found.as_json()["gain kept"] is None


def test_the_group_that_is_worst_off_may_be_another_one():
    pooled = point(
        "best-of-n, pooled 0.9", *(run(i, true={"source": 0.9, "target": 0.3}) for i in range(3)), work="groups"
    )
    fair = point("best-of-n, min", *(run(i, true={"source": 0.5, "target": 0.7}) for i in range(3)), work="groups")
    other = point("maxmin game", run(), run(1), run(2), work="groups")  # decodes in another way
    (found,) = findings([pooled, fair, other])
    figures = found.as_json()
    assert found.what == "best-of-n, min / best-of-n, pooled 0.9"
    assert figures["worst group gains"] == pytest.approx({"mean": 0.2, "low": 0.2, "high": 0.2})
    assert (figures["fair: target"], figures["pooled: source"]) == pytest.approx((0.7, 0.9))
    assert (found.reached, found.certain) == (True, True)


# On a toy world


def test_a_counted_model_is_the_model_and_counts_what_is_drawn():
    model = ToyModel.random(1, V)
    counted = Counted(model)
    noise = Noise(seed=8, purpose="sample")
    drawn = [
        asyncio.run(
            m.continue_((0,), max_new_tokens=5, n=3, sampling=Sampling(), noise=noise)  # pyright: ignore
        )
        for m in (model, counted)
    ]
    assert [row.ids for row in drawn[0]] == [row.ids for row in drawn[1]]
    assert counted.generated == {8: sum(len(row.ids) for row in drawn[0])}
    asyncio.run(counted.continue_((0,), max_new_tokens=5))
    assert set(counted.generated) == {8}
    assert asyncio.run(counted.top_next((0,), 2)).ids.tolist() == asyncio.run(model.top_next((0,), 2)).ids.tolist()


def test_draws_of_fewer_are_the_first_ones_of_more():
    two, four = (measured(plan_of("best-of-n", f"n={n}"), seeds=2) for n in (2, 4))
    assert [r.draws for r in two.runs] == [r.draws[:2] for r in four.runs]
    for r in four.runs:
        assert len(r.draws) == 4
        assert r.generated == sum(draw.tokens for draw in r.draws)
        assert r.learned == max(draw.learned for draw in r.draws)
        assert r.true in [draw.true for draw in r.draws if draw.learned == r.learned]


def test_seeds_and_prompts_have_draws_of_their_own_and_company_changes_nothing():
    made = measured(plan_of("best-of-n", "n=4"), prompts=2, seeds=3)
    assert [(r.repeat, r.prompt) for r in made.runs] == [(s, i) for s in range(3) for i in range(2)]
    assert all(a.draws != b.draws for a, b in itertools.combinations(made.runs, 2))
    assert measured(plan_of("best-of-n", "n=4"), prompts=4, seeds=1).runs[:2] == made.runs[:2]


def test_what_no_seed_changes_is_decoded_once():
    made = measured(plan_of("args", "alpha=0.5"), seeds=3)
    assert [(r.repeat, r.prompt) for r in made.runs] == [(0, 0), (0, 1)]


def test_the_model_s_own_samples_have_no_divergence_from_it():
    made = measured(plan_of("sft sample"), prompts=4, seeds=2)
    assert made.kl()[1] == "estimate"
    assert made.kl()[0] == pytest.approx(0.0, abs=1e-12)


@pytest.fixture(scope="module")
def every() -> list[Point]:
    world = toy_world()

    async def run_all() -> list[Point]:
        points: list[Point] = []
        for plan in plans(beta=BETA, quick=True, value=True):
            points.append(await measure_after(world, plan, points, seeds=2))
        return points

    return asyncio.run(run_all())


def test_every_plan_runs_and_tells_what_was_promised(every: list[Point]):
    for made in every:
        told = json.loads(json.dumps(made.as_json(), allow_nan=False))
        assert set(told) == {
            "work", "method", "at", "options", "reward", "prompts", "seeds", "learned_reward", "true_reward", "kl",
            "kl_kind", "lm_tokens", "rm_tokens", "tokens", "drawn_tokens", "wall_s", "values",
        }  # fmt: skip
        assert told["seeds"] == (2 if made.plan.drawn else 1)
        assert told["tokens"] == pytest.approx(told["lm_tokens"] + 0.5 * told["rm_tokens"])
        assert set(told["values"]) == {"learned", "source", "target"}
        assert len(told["values"]["learned"]) == told["prompts"] == 2


def test_every_claim_is_spoken_about(every: list[Point]):
    found = findings(every)
    assert {finding.claim for finding in found} == set(CLAIMS)
    for finding in found:
        assert set(json.loads(json.dumps(finding.as_json(), allow_nan=False))) > CLAIM_KEYS
        assert finding.reached or not finding.certain


# The picture


def test_axes_place_values_and_ticks():
    up = Axis(low=0.0, high=10.0, start=100.0, length=-50.0)
    assert [up.at(x) for x in (0.0, 5.0, 10.0)] == [100.0, 75.0, 50.0]
    assert up.ticks() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    across = Axis(low=10.0, high=1000.0, start=0.0, length=100.0, logarithmic=True)
    assert across.at(100.0) == pytest.approx(50.0)
    assert across.ticks() == pytest.approx([10, 20, 50, 100, 200, 500, 1000])


def test_the_picture_has_four_panels_with_every_point(every: list[Point]):
    shown = [made for made in every if made.plan.work == "direct"]
    root = ET.fromstring(picture(shown, title="a < b"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in root.iter(f"{space}text")]
    labels = list(dict.fromkeys(made.plan.label for made in shown))
    assert texts[0] == "a < b"
    assert [label for label in labels if texts.count(label) == 1] == labels
    assert texts.count("LM + RM tokens per reply") == 2
    bars = [e for e in root.iter(f"{space}line") if e.get("opacity") == "0.35"]
    assert len(bars) == 4 * len(shown)
    hollow = [e for e in root.iter() if e.get("fill") == "white" and e.get("stroke")]
    assert len(hollow) == 2 * sum(made.kl()[1] == "bound" for made in shown)
    assert all(math.isfinite(float(e.get("x1", "0"))) for e in bars)


# The command


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "frontier", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(frontier_world, "demo_world", lambda prompts, **given: toy_world(prompts))
    monkeypatch.setenv("COLUMNS", "200")
    out, svg = tmp_path / "new" / "f.json", tmp_path / "f.svg"
    out.parent.mkdir()
    assert command("--quick", "--value", "head", "--seeds", "1", "--out", str(out), "--svg", str(svg)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in ("direct: reward = source, 2 prompts", "indirect: reward = target", "LM + 0.5 RM", *CLAIMS.values()):
        assert words in " ".join(printed.out.split()), words
    told = json.loads(out.read_text())
    assert told["bench"] == "frontier"
    assert told["settings"] == {
        "prompts": 24, "seeds": 1, "only": None, "quick": True, "value": "head", "out": str(out), "svg": str(svg),
        "value_target": None, "threads": None, "device": "cpu",
    }  # fmt: skip
    assert len(told["runs"]) == len(plans(beta=BETA, quick=True, value=True))
    assert {claim["claim"] for claim in told["claims"]} == set(CLAIMS)
    assert told["shared"]["weights"] == {"source": 0.75, "target": 0.25}
    assert told["shared"]["calibrated"]["target"] == {"slope": 0.25, "intercept": 0.4, "explained": 1.0, "n": 2}
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "beam"), "only='beam' is unknown. Known: direct, greedy, sft greedy"),
        (("--out", "/no/where.json"), "--out '/no/where.json' cannot be written"),
        (("--svg", "/no/where.svg"), "--svg '/no/where.svg' cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]):
    assert command(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--value", "--value-target"])
def test_a_folder_without_a_value_head_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch")
    assert command("--quick", option, str(tmp_path)) == 2
    assert "holds no value.json" in capsys.readouterr().err


def test_the_embedded_models_are_opened_once_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torch")
    out = tmp_path / "f.json"
    assert command("--quick", "--only", "args", "--only", "best-of-n, min", "--out", str(out)) == 0
    runs = json.loads(out.read_text())["runs"]
    assert [made["method"] for made in runs] == ["args", "best-of-n, min"]
    assert all(made["prompts"] == 2 and made["tokens"] == made["lm_tokens"] + made["rm_tokens"] for made in runs)
