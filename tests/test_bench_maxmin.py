"""`bench maxmin`: figures made by hand, a world whose tastes are known, the picture, the command and its refusals."""

from __future__ import annotations

import itertools
import json
import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from alignstar import cli
from alignstar.bench import maxmin_policy, maxmin_world
from alignstar.bench.maxmin import (
    DECODING,
    TRAINING,
    Outcome,
    Row,
    accuracies,
    gain,
    measure,
    picks,
    wins,
)
from alignstar.bench.maxmin_picture import picture
from alignstar.bench.maxmin_world import GROUPS, Learned, Replies, Space, World, judged, learn, vote
from alignstar.demo.customers import message
from alignstar.demo.people import Reply
from alignstar.demo.replies import reply

THOROUGH, BRIEF = GROUPS


def replies(split: str, prompts: int, count: int, *, seed: int = 0) -> Replies:
    """Replies by the shop's phrases; their features are what the groups truly think, of unit variance."""
    rng = random.Random(f"{split} {seed}")
    asked = [message(rng, split=split) for _ in range(prompts)]
    written = tuple(tuple(Reply(text=reply(rng, one)) for _ in range(count)) for one in asked)
    texts = tuple(one.text for one in asked)
    features = np.stack([judged(texts, written, group) for group in GROUPS], axis=-1)
    return Replies(messages=texts, replies=written, features=4.0 * (features - 0.4))


def toy_world() -> World:
    none: Any = None
    return World(
        annotated=replies("train", 300, 2), pool=replies("evaluation", 24, 6),
        references=replies("evaluation", 24, 3, seed=1), features=none, policy=none, tokenizer=none,
    )  # fmt: skip


WORLD = toy_world()


def echo(learned: Learned, objective: str, seed: int) -> Sequence[Sequence[Reply]]:
    """A policy that says what is said already: its objective's place in the pool, and the seed's."""
    at = TRAINING.index(objective) + seed
    return [row[at : at + 1] for row in WORLD.pool.replies]


# Figures


def test_ties_count_half_and_every_pair_counts_the_same() -> None:
    assert wins(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0, 2.0]])).tolist() == [(1 + 0.5 + 0 + 0.5) / 6]
    assert wins(np.array([[0.3]]), np.array([[0.3, 0.3]])).tolist() == [0.5]


FEATURES = np.array([[[2.0, -1.0], [0.4, 0.5], [0.9, 0.9], [0.9, 0.9], [-3.0, 3.0]]])


def learned(**changes: Any) -> Learned:
    return Learned(
        **{"pooled": np.array([1.0, 0.1]), "groups": np.eye(2), "shares": (0.5, 0.5), "recovered": 1.0, **changes}
    )


@pytest.mark.parametrize(("reward", "at"), [("pooled", 0), ("min", 2), ("game", 2)])
def test_what_a_reward_picks(reward: str, at: int) -> None:
    assert picks(FEATURES, learned(), reward).tolist() == [at]


def test_the_worst_of_the_groups_counts_not_their_mean() -> None:
    assert picks(np.array([[[4.0, -1.0], [0.9, 0.9]]]), learned(), "min").tolist() == [1]


def test_a_game_of_one_group_picks_its_best() -> None:
    assert picks(FEATURES, learned(groups=np.array([[0.0, 1.0]])), "game").tolist() == [4]


def row(way: str = "trained", reward: str = "pooled", *, thorough: Sequence[float], brief: Sequence[float]) -> Row:
    values = {THOROUGH: np.array(thorough), BRIEF: np.array(brief)}
    return Row(way=way, reward=reward, wins=values, true=values)


def test_a_gain_is_paired_by_prompt() -> None:
    pooled = row(thorough=[0.9, 0.3], brief=[0.2, 0.6])
    fair = row(reward="maxmin", thorough=[0.8, 0.2], brief=[0.6, 1.0])
    found = gain(pooled, fair)
    assert found.reward == "maxmin"
    for group, expected in {THOROUGH: -0.1, BRIEF: 0.4, "mean": 0.15}.items():
        told = found.wins[group]
        assert (told.mean, told.low, told.high, told.n) == pytest.approx((expected, expected, expected, 2))
    assert found.relative[BRIEF].mean == pytest.approx(0.4 / 0.4)
    assert found.relative["mean"].mean == pytest.approx(0.65 / 0.5 - 1)
    assert found.relative[BRIEF].low == pytest.approx(1.0 / 0.6 - 1)  # the second prompt twice


def test_accuracy_counts_pairs_of_a_prompt_and_those_where_groups_differ() -> None:
    pool = replies("evaluation", 3, 5)
    truly = {g: pool.truth(g) for g in GROUPS}
    found = accuracies(pool, learned(pooled=np.array([1.0, 0.0])))
    for i, group in itertools.product(range(3), GROUPS):
        pairs = list(itertools.combinations(range(5), 2))
        gaps = {g: [truly[g][i, a] - truly[g][i, b] for a, b in pairs] for g in GROUPS}
        counted = [p for p in range(len(pairs)) if gaps[group][p] != 0]
        right = [(gaps[THOROUGH][p] > 0) == (gaps[group][p] > 0) for p in counted]
        assert found[f"pooled, {group}"][i] == pytest.approx(np.mean(right))
        assert found[f"own, {group}"][i] == pytest.approx(1.0)
    apart = found[f"pooled, {BRIEF} where they differ"]
    assert set(apart[~np.isnan(apart)].tolist()) == {0.0}


# Rewards from choices


@pytest.mark.parametrize("ratio", [1, 2, 4, 6, 10])
def test_annotators_come_in_the_ratio_and_see_as_many_pairs_each(ratio: int) -> None:
    votes = vote(WORLD.annotated, ratio=ratio, seed=3)
    people = {v.annotator.id: v.annotator.group for v in votes}
    count = Counter(people.values())
    assert count[THOROUGH] == ratio * count[BRIEF]
    assert len(people) >= maxmin_world.FEWEST_ANNOTATORS
    assert set(Counter(v.annotator.id for v in votes).values()) == {100}
    assert len({(v.annotator.id, v.pair) for v in votes}) == len(votes)
    assert vote(WORLD.annotated, ratio=ratio, seed=3) == votes
    assert vote(WORLD.annotated, ratio=ratio, seed=4) != votes


def test_a_choice_is_mostly_of_what_the_annotator_likes() -> None:
    votes = vote(WORLD.annotated, ratio=1, seed=0)
    truly = {g: WORLD.annotated.truth(g) for g in GROUPS}
    right = [v.first == (t[0] > t[1]) for v in votes if (t := truly[v.annotator.group][v.pair])[0] != t[1]]
    assert np.mean(right) > 0.8


@pytest.mark.parametrize("ratio", [1, 4])
def test_groups_are_found_and_each_has_its_own_reward(ratio: int) -> None:
    made = learn(WORLD.annotated, vote(WORLD.annotated, ratio=ratio, seed=0), seed=0)
    assert made.recovered >= 0.95
    large, small = made.groups
    if ratio > 1:
        assert large[0] > large[1]
        assert small[1] > small[0]
    every = WORLD.annotated.features.reshape(-1, 2)
    for reward in (made.pooled, large, small):
        assert np.std(every @ reward) == pytest.approx(1.0)


def test_the_pooled_reward_follows_the_majority() -> None:
    share = [
        reward[1] / reward[0]
        for ratio in (1, 10)
        for reward in [learn(WORLD.annotated, vote(WORLD.annotated, ratio=ratio, seed=0), seed=0).pooled]
    ]
    assert share[1] < share[0]


def test_a_space_has_independent_directions_of_one_variance() -> None:
    raw = np.random.default_rng(0).normal(size=(60, 5)) @ np.random.default_rng(1).normal(size=(5, 5)) + 3.0
    raw = np.concatenate([raw, np.ones((60, 1))], axis=1)  # a number that never changes has no direction
    made = Space.of(raw, 3)(raw)
    assert made.shape == (60, 3)
    assert np.cov(made, rowvar=False) == pytest.approx(np.eye(3), abs=1e-9)
    assert Space.of(raw, 99)(raw).shape == (60, 5)


# All of it on a world without models


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [measure(WORLD, ratio=ratio, seeds=2, trained=echo) for ratio in (1, 10)]


def test_every_way_and_reward_is_measured_and_told(outcomes: list[Outcome]) -> None:
    expected = [("best of 6", r) for r in DECODING] + [("trained", r) for r in TRAINING]
    for made in outcomes:
        assert [(r.way, r.reward) for r in made.rows] == expected
        told = json.loads(json.dumps(made.as_json(), allow_nan=False))
        assert set(told) == {"ratio", "seeds", "recovered", "accuracy", "rows", "gains", "wall_s"}
        assert [(g["way"], g["reward"]) for g in told["gains"]] == [e for e in expected if e[1] != "pooled"]
        assert len(told["rows"][0]["values"]["win_rate"][BRIEF]) == 24


def test_seeds_are_averaged_prompt_by_prompt(outcomes: list[Outcome]) -> None:
    made = outcomes[0].row("trained", "maxmin")
    truly, others = WORLD.pool.truth(BRIEF), WORLD.references.truth(BRIEF)
    at = TRAINING.index("maxmin")
    assert made.true[BRIEF] == pytest.approx(truly[:, at : at + 2].mean(axis=1))
    assert made.wins[BRIEF] == pytest.approx((wins(truly[:, [at]], others) + wins(truly[:, [at + 1]], others)) / 2)


def test_with_rewards_that_are_true_the_fair_pick_is_fairer(outcomes: list[Outcome]) -> None:
    """At 10:1 the pooled reward costs the minority; the smallest true reward is never smaller by the fair pick."""
    pooled, fair = (outcomes[1].row("best of 6", r) for r in ("pooled", "min"))
    worst = [np.minimum(r.true[THOROUGH], r.true[BRIEF]).mean() for r in (pooled, fair)]
    assert worst[1] > worst[0]


def test_without_policies_only_decoding_is_measured() -> None:
    told: list[str] = []
    made = measure(WORLD, ratio=2, seeds=1, trained=None, on_part=told.append)
    assert [r.way for r in made.rows] == ["best of 6"] * len(DECODING)
    assert len(told) == len(DECODING)


def test_the_picture_has_a_panel_for_every_way_and_the_accuracy(outcomes: list[Outcome]) -> None:
    space = "{http://www.w3.org/2000/svg}"
    root = ET.fromstring(picture(outcomes))
    texts = [element.text or "" for element in root.iter(f"{space}text")]
    assert sum(text.startswith("Win rate") for text in texts) == 2
    assert f"Accuracy for the minority ({BRIEF})" in texts
    assert texts.count("10:1") == 3
    bars = [e for e in root.iter(f"{space}line") if e.get("class") == "bar"]
    assert len(bars) == 2 * (2 * len(DECODING) + 2 * len(TRAINING) + 4)


# The command


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "maxmin", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(maxmin_world, "demo_world", lambda **given: WORLD)
    monkeypatch.setattr(maxmin_policy, "trainer_of", lambda world, course: echo)
    monkeypatch.setenv("COLUMNS", "250")
    out, svg = tmp_path / "m.json", tmp_path / "m.svg"
    assert command("--ratios", "10,1", "--seeds", "1", "--out", str(out), "--svg", str(svg)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for words in ("10:1", "best of 6", "pointwise", f"relative: {BRIEF}", "falls from 70.4 %"):
        assert words in " ".join(printed.out.split()), words
    told = json.loads(out.read_text())
    assert (told["bench"], [run["ratio"] for run in told["runs"]]) == ("maxmin", [1, 10])
    assert told["settings"]["ratios"] == [1, 10]
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ratios", "1:1"), "ratios='1:1' must be whole numbers above 0"),
        (("--ratios", "0"), "ratios='0' must be whole numbers above 0"),
        (("--batch", "30"), "batch=30 must be a multiple of 4"),
        (("--out", "/no/where.json"), "--out '/no/where.json' cannot be written"),
        (("--svg", "/no/where.svg"), "--svg '/no/where.svg' cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_the_embedded_models_are_annotated_and_trained(tmp_path: Path) -> None:
    """A few replies and two steps: everything fits together."""
    out = tmp_path / "m.json"
    few = ("--pairs", "24", "--prompts", "2", "--draws", "2", "--steps", "2", "--batch", "8", "--seeds", "1")
    assert command("--ratios", "2", *few, "--out", str(out)) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert len(run["rows"]) == len(DECODING) + len(TRAINING)
    assert all(0.0 <= r["true_reward"][BRIEF]["mean"] <= 1.0 for r in run["rows"])
