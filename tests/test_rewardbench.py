"""A reward's accuracy on pairs, against numbers worked out by hand; the command that tells it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoints
from alignstar import cli
from alignstar.errors import NeedsError, OptionError
from alignstar.evaluate.rewardbench import SECTIONS, ScoredPair, score_pairs, summed_up, weighted_mean
from alignstar.evaluate.rows import example
from alignstar.evaluate.statistics import Interval, share_interval
from alignstar.loading import open_reward
from alignstar.rewards.function import FunctionReward


def pairs(subset: str, *scores: tuple[float, float]) -> list[ScoredPair]:
    return [ScoredPair(where="here", subset=subset, chosen=a, rejected=b) for a, b in scores]


RIGHT, WRONG, TIE = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)


def test_a_pair_is_right_where_the_better_answer_scores_higher_and_a_tie_is_not():
    found = summed_up([*pairs("a", RIGHT, RIGHT, WRONG, TIE), *pairs("b", (math.nan, 0.0))], reward="r")
    assert list(found.subsets) == ["a", "b"]
    a, b = found.subsets.values()
    assert (a.share, a.right, a.ties, a.failed, a.n) == (share_interval(2, 4), 2, 1, 0, 4)
    assert (b.right, b.ties, b.n) == (0, 0, 1)
    assert (found.overall.share.mean, found.overall.n, found.overall.ties) == (0.4, 5, 1)
    assert (found.sections, found.score) == ({}, None)


def test_a_pair_without_scores_enters_no_share():
    found = summed_up([*pairs("a", RIGHT), ScoredPair(where="here", subset="a", error="too long")], reward="r")
    assert (found.overall.share.mean, found.overall.n, found.overall.failed) == (1.0, 1, 1)
    nothing = summed_up([ScoredPair(where="here", subset="hep-go", error="too long")], reward="r")
    assert (nothing.overall.n, nothing.sections) == (0, {})


def test_sections_weigh_their_subsets_by_the_size_of_the_benchmark():
    """Chat: (100 x 1/2 + 28 x 1) / 128; Reasoning: (984 x 1 + 164 x 0) / 1148, as the published script weighs them."""
    given = [
        *pairs("alpacaeval-easy", RIGHT, WRONG), *pairs("mt-bench-easy", RIGHT), *pairs("math-prm", RIGHT),
        *pairs("hep-go", WRONG, TIE), *pairs("my own", RIGHT),
    ]  # fmt: skip
    found = summed_up(given, reward="r")
    assert {name: share.mean for name, share in found.sections.items()} == pytest.approx(
        {"Chat": 78 / 128, "Reasoning": 984 / 1148}
    )
    assert {name: share.n for name, share in found.sections.items()} == {"Chat": 3, "Reasoning": 3}
    assert found.missing["Chat"] == ["alpacaeval-length", "alpacaeval-hard", "mt-bench-med"]
    assert found.score is None, "two sections have no pair"


def test_the_score_is_the_plain_mean_of_the_four_sections():
    given = [
        *pairs("mt-bench-med", RIGHT), *pairs("llmbar-natural", WRONG), *pairs("donotanswer", RIGHT, WRONG),
        *pairs("math-prm", RIGHT, RIGHT, RIGHT, WRONG),
    ]  # fmt: skip
    found = summed_up(given, reward="r")
    assert found.score is not None
    assert (found.score.mean, found.score.n) == (pytest.approx((1 + 0 + 0.5 + 0.75) / 4), 8)


def test_the_benchmark_s_sections_have_their_published_sizes():
    assert {name: sum(parts.values()) for name, parts in SECTIONS.items()} == {
        "Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 + 6 * 164,
    }  # fmt: skip
    assert sum(len(parts) for parts in SECTIONS.values()) == 23


def test_an_interval_of_a_weighted_mean_comes_from_those_of_its_parts():
    one, two = Interval(mean=0.5, low=0.4, high=0.7, n=10), Interval(mean=1.0, low=0.7, high=1.0, n=4)
    assert weighted_mean([(2.0, one)]) == one
    both = weighted_mean([(3, one), (1, two)])
    assert (both.mean, both.n) == (0.625, 14)
    assert both.low == pytest.approx(0.625 - math.hypot(0.3, 0.3) / 4)
    assert both.high == pytest.approx(0.625 + 0.6 / 4)


def rows(*texts: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"prompt": "Say it", "chosen": a, "rejected": b, "subset": subset} for a, b, subset in texts]


def test_every_pair_is_scored_in_order_and_one_that_is_refused_says_why():
    def fussy(prompt: str, reply: str, complete: bool) -> float:
        if reply == "boom":
            raise ValueError("no such word")
        return float(len(reply))

    given = [example(row, where=f"row {n}") for n, row in enumerate(rows(("aa", "a", "x"), ("a", "boom", "y")))]
    seen: list[ScoredPair] = []
    found = asyncio.run(score_pairs(FunctionReward(fussy), given * 30, on_scored=seen.append))
    assert len(found) == len(seen) == 60
    assert {(p.where, p.subset, p.chosen, p.rejected) for p in found[::2]} == {("row 0", "x", 2.0, 1.0)}
    assert all(p.where == "row 1" and p.error is not None and "no such word" in p.error for p in found[1::2])
    with pytest.raises(OptionError, match="row 7: has no chosen and rejected answer"):
        asyncio.run(score_pairs(FunctionReward(fussy), [example({"prompt": "only"}, where="row 7")]))


def test_a_reward_without_language_models_cannot_be_the_implicit_one():
    for line in ("implicit", "min(rule:repetition; implicit?beta=1)"):
        with pytest.raises(NeedsError, match="made of two language models"), open_reward([line]):
            pass


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["rewardbench", *map(str, arguments)])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def written(path: Path, given: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def test_the_command_tells_subsets_sections_and_every_pair_s_scores(run: Run, tmp_path: Path):
    data = written(
        tmp_path / "pairs.jsonl",
        rows(("a b c", "a a a", "llmbar-natural"), ("a a", "a b", "llmbar-natural"), ("x", "x", "own")),
    )
    status, out, err = run("rule:repetition?plus_one=false", "--data", data, "--out", tmp_path / "scores.jsonl")
    assert (status, err) == (0, "")
    for part in ("llmbar-natural", "50.0 [9.5, 90.5]", "Chat Hard", "all pairs", "33.3"):
        assert part in out
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [(row["subset"], row["results"]) for row in scores] == [
        ("llmbar-natural", 1), ("llmbar-natural", 0), ("own", 0),
    ]  # fmt: skip
    status, out, err = run("rule:repetition?plus_one=false", "--data", data, "--json")
    told = json.loads(out)
    assert told["overall"]["right"] == 1
    assert told["overall"]["share"]["n"] == 3
    assert told["sections"]["Chat Hard"]["mean"] == 0.5
    assert told["score"] is None


def test_a_classifier_judges_pairs_as_it_judges_replies(run: Run, tmp_path: Path):
    reward = checkpoints.classifier(tmp_path / "reward", seed=3)
    data = written(tmp_path / "pairs.jsonl", rows(("On its way.", "No.", "s"), ("x" * 200, "y", "s")))
    status, out, err = run(reward, "--data", data, "--json", "--device", "cpu")
    assert status == 1
    assert err.startswith("1 pairs could not be scored; the first, ")
    assert "line 2: " in err
    told = json.loads(out)["overall"]
    assert (told["share"]["n"], told["failed"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["rule:repetition", "--data", "{none}"], "cannot be read"),
        (["rule:repetition", "--data", "{pairs}", "--column", "prompt"], "must read NAME=THEIRS"),
        (["rule:repetition", "--data", "{pairs}", "--column", "prompt=frage"], "has no 'frage'"),
        (["rule:repetition", "--data", "{empty}"], "has no row"),
        (["rule:nothing", "--data", "{pairs}"], "Known: length"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, tmp_path: Path, arguments: list[str], part: str):
    places = {
        "pairs": written(tmp_path / "pairs.jsonl", rows(("a", "b", "c"))),
        "empty": written(tmp_path / "empty.jsonl", []),
        "none": tmp_path / "none.jsonl",
    }
    status, _, err = run(*(argument.format(**places) for argument in arguments))
    assert status == 2
    assert part in err
    assert err.count("\n") == 1
