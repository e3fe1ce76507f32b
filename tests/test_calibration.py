"""Rewards brought to a scale that groups share: the line against closed forms, what it makes of groups, the command."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignstar import cli
from alignstar.errors import OptionError, PromptError
from alignstar.evaluate.ratings import calibrated, read_ratings
from alignstar.evaluate.recipe import Source
from alignstar.loading import open_reward
from alignstar.models.toy import ToyReward
from alignstar.rewards import Reward
from alignstar.rewards.calibration import calibrate
from alignstar.rewards.combine import affine
from alignstar.rewards.groups import pointwise_min
from alignstar.types import Message, Prompt, Reply

PROMPT = Prompt(messages=(Message(role="user", content="A"),), text="A", ids=(0,))
REPLIES = [Reply(text="".join(text), complete=True) for n in (1, 2, 3) for text in itertools.product("AB", repeat=n)]


async def scores(reward: Reward) -> np.ndarray:
    return np.array(await reward.score(PROMPT, REPLIES))


# The line


def test_a_line_is_found_as_it_is():
    x = [0.3, -2.0, 5.5, 0.3]
    found = calibrate(x, [0.25 * one + 0.5 for one in x])
    assert (found.slope, found.intercept, found.explained, found.n) == pytest.approx((0.25, 0.5, 1.0, 4))


def test_the_least_squares_of_a_worked_example():
    """Sums about the means: 4 of the rewards squared, 10 of the ratings squared, 6 of both; 1 of the 10 is left."""
    found = calibrate([0.0, 0.0, 2.0, 2.0], [0.0, 1.0, 3.0, 4.0])
    assert (found.slope, found.intercept) == pytest.approx((1.5, 0.5))
    assert found.explained == pytest.approx(1.0 - 1.0 / 10.0)


def test_ratings_are_told_from_rewards_and_not_the_other_way():
    """With noise in the ratings the mean rating at a reward lies on the line; errors are orthogonal to the reward."""
    rng = np.random.Generator(np.random.Philox(0))
    x = rng.normal(2.0, 3.0, 400)
    y = 0.2 * x - 1.0 + rng.normal(0.0, 1.0, 400)
    found = calibrate(x.tolist(), y.tolist())
    left = y - (found.slope * x + found.intercept)
    assert left.sum() == pytest.approx(0.0, abs=1e-9)
    assert left @ x == pytest.approx(0.0, abs=1e-8)
    assert found.explained == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


@pytest.mark.parametrize(
    ("rewards", "ratings", "message"),
    [
        ([1.0, 1.0], [0.0, 1.0], "2 rated replies have one reward, or one rating, in all"),
        ([0.0, 1.0], [0.3, 0.3], "2 rated replies have one reward, or one rating, in all"),
        ([0.0, 1.0], [1.0, 0.5], "The ratings change by -0.5 per unit of the reward; they must rise with it"),
        ([0.0, math.nan], [0.0, 1.0], "Rewards and ratings must be finite numbers"),
    ],
)
def test_what_makes_no_line_is_refused(rewards: list[float], ratings: list[float], message: str):
    with pytest.raises(OptionError, match=message):
        calibrate(rewards, ratings)


# Groups


async def test_units_and_zeros_of_learned_rewards_do_not_decide_who_is_worst_off():
    """The minimum is that of the ratings, whatever line each learned reward is of them; else it is not."""
    first, second = ToyReward(seed=1), ToyReward(seed=2)
    ratings = [await scores(first), await scores(second) + 0.4]
    worst = np.minimum(*ratings)
    for lines in (((1.0, 0.0), (1.0, 0.4)), ((30.0, -5.0), (0.1, 7.0)), ((0.2, 9.0), (4.0, -3.0))):
        learned = [affine(reward, *line) for reward, line in zip((first, second), lines, strict=True)]
        parts = [
            calibrate((await scores(reward)).tolist(), rating.tolist()).of(reward)
            for reward, rating in zip(learned, ratings, strict=True)
        ]
        assert await scores(pointwise_min(parts)) == pytest.approx(worst)
    assert await scores(pointwise_min(learned)) != pytest.approx(worst)


# From files, and the command


def rows(path: Path, given: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


GIVEN: list[dict[str, object]] = [
    {"prompt": "a", "completion": "one two three four", "rating": 5},
    {"prompt": "b", "completion": "one two", "rating": "3"},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "one"}], "rating": 2},
]
WORDS = "rule:length?min_words=4"  # the share of four words that is there: 1, 0.5, 0.25


async def test_rated_replies_are_read_scored_and_fitted(tmp_path: Path):
    rated = read_ratings(Source(source=str(rows(tmp_path / "r.jsonl", GIVEN))))
    assert [(one.example.chosen, one.rating) for one in rated] == [
        ("one two three four", 5.0), ("one two", 3.0), ("one", 2.0),
    ]  # fmt: skip
    done: list[int] = []
    with open_reward([WORDS]) as reward:
        found = await calibrated(reward, rated, on_scored=done.append)
        told = await reward.score(PROMPT, [Reply(text=one.example.chosen or "", complete=True) for one in rated])
    assert done == [3]
    assert found == calibrate(told, [5.0, 3.0, 2.0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": "b"}, "rating=None must be a finite number"),
        ({"prompt": "a", "completion": "b", "rating": "good"}, "rating='good' must be a finite number"),
        ({"prompt": "a", "rating": 1}, "has no reply; give a completion"),
    ],
)
def test_a_row_without_reply_or_rating_is_named(row: dict[str, object], message: str, tmp_path: Path):
    path = rows(tmp_path / "r.jsonl", [GIVEN[0], row])
    with pytest.raises(PromptError, match=rf"r\.jsonl.*2.*{message}"):
        read_ratings(Source(source=str(path)))


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["calibrate", *map(str, arguments)])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


def test_the_command_prints_a_line_that_rewards_are_given_by(command: Run, tmp_path: Path):
    data = rows(tmp_path / "r.jsonl", GIVEN)
    code, line, said = command(WORDS, "--data", data)
    assert (code, said) == (0, "It explains 100% of the variance of 3 ratings.\n")
    assert line == f"{WORDS}|affine:4.0,1.0\n"
    code, told, _ = command(WORDS, "--data", data, "--json")
    assert code == 0
    assert json.loads(told) == {
        "reward": WORDS, "line": line.strip(), "slope": 4.0, "intercept": 1.0, "explained": 1.0, "n": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (f"0.5*{WORDS}", "has a weight, which would stand before the step; leave it out"),
        ("rule:keywords?present=nothing", "3 rated replies have one reward, or one rating, in all"),
    ],
)
def test_the_command_refuses_in_one_sentence(reward: str, message: str, command: Run, tmp_path: Path):
    code, printed, said = command(reward, "--data", rows(tmp_path / "r.jsonl", GIVEN))
    assert (code, printed) == (2, "")
    assert message in said
    assert said.count("\n") == 1
    code, _, said = command(WORDS, "--data", rows(tmp_path / "empty.jsonl", []))
    assert code == 2
    assert "has no row; give rated replies" in said
