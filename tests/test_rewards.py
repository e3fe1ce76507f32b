from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignstar.errors import OptionError, RewardError
from alignstar.meter import Meter, metering
from alignstar.models.toy import ToyCodec, ToyModel, letters_to_ids
from alignstar.rewards import Reward, Scorer
from alignstar.rewards.combine import WeightedSum, affine, clip, sigmoid, standardise
from alignstar.rewards.function import FunctionReward, load_function
from alignstar.rewards.implicit import ImplicitReward
from alignstar.rewards.rules import diversity, keywords, length, regex, rep_n, repetition
from alignstar.types import Message, Prompt, Reply

PROMPT = Prompt(messages=(Message(role="user", content="Where is it?"),), text="Where is it?", ids=(0,))


def reply(text: str, *, complete: bool = True, ids: tuple[int, ...] = ()) -> Reply:
    return Reply(text=text, complete=complete, ids=ids)


class Fixed:
    """A reward that gives the numbers it was made with."""

    def __init__(self, *numbers: float, range: tuple[float, float] | None = None) -> None:
        self.name = "fixed"
        self.range = range
        self.numbers = list(numbers)

    async def score(self, prompt: Prompt, replies: Sequence[Reply]) -> list[float]:
        return self.numbers


def run(reward: Reward, *texts: str) -> list[float]:
    return asyncio.run(reward.score(PROMPT, [reply(text) for text in texts]))


# Rules.


def test_length_is_linear_outside_its_bounds() -> None:
    assert run(length(min_words=2, max_words=4), "", "one", "one two", "1 2 3 4", "1 2 3 4 5", "x " * 9) == [
        0, 0.5, 1, 1, 0.75, 0,
    ]  # fmt: skip
    assert run(length(target_words=2), "a", "a b", "a b c") == [0.5, 1, 0.5]
    assert run(length(max_characters=4), "four", "fives") == [1, 0.75]
    assert run(length(max_words=1, min_characters=4), "a b", "abcd", "ab") == [0, 1, 0.5]


def test_regex_counts_or_finds() -> None:
    assert run(regex(pattern="a+"), "bab", "b") == [1, 0]
    assert run(regex(pattern="a", mode="count", weight=-0.5), "banana", "b") == [-1.5, 0]
    bounded = regex(pattern="a", mode="count", weight=-0.5, max_count=2)
    assert run(bounded, "banana") == [-1]
    assert bounded.range == (-1, 0)
    assert regex(pattern="a", mode="count").range is None
    assert regex(pattern="a", weight=2).range == (0, 2)


def test_keywords_are_whole_words_in_any_case() -> None:
    reward = keywords(present=["sorry", "right away"], absent=["no", "c++"])
    assert run(reward, "Sorry! Right away, I know.", "no", "", "no c++") == [1, 0.25, 0.5, 0]


@pytest.mark.parametrize(
    ("text", "rep", "expected"),
    [
        ("a b c d e", (20, 25, 100 / 3), 0.4),
        ("a b a b a b a b", (75, 71.4286, 66.6667), 0.02381),
        ("word", (100, 100, 100), 0),
        ("", (100, 100, 100), 0),
        ("q w e r t y u i o p", (10, 11.1111, 12.5), 0.7),
    ],
)
def test_repetition_as_published(text: str, rep: tuple[float, ...], expected: float) -> None:
    assert [rep_n(text, n) for n in (2, 3, 4)] == pytest.approx(rep, abs=5e-5)
    assert diversity(text) == pytest.approx(expected, abs=5e-6)
    assert run(repetition(), text) == [diversity(text)]
    assert run(repetition(n=2), text) == [pytest.approx(1 - rep[0] / 100)]


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_without_plus_one_only_repetition_counts(words: list[str]) -> None:
    text = " ".join(words)
    for n in (1, 2, 3):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert (rep_n(text, n, plus_one=False) == 0) == (len(set(grams)) == len(grams))
    assert diversity("one two three four", plus_one=False) == 1


@given(text=st.text("ab .,", max_size=30))
def test_rules_stay_in_their_range(text: str) -> None:
    for reward in (
        length(min_words=2, max_words=3), regex(pattern="a"), regex(pattern="a", mode="count", max_count=3, weight=-2),
        keywords(present=["a"], absent=["b"]), repetition(), repetition(plus_one=False), repetition(n=1),
    ):  # fmt: skip
        assert reward.range is not None
        low, high = reward.range
        assert low <= run(reward, text)[0] <= high


@pytest.mark.parametrize(
    "make",
    [
        length,
        partial(length, max_words=0),
        partial(length, min_words=3, max_words=2),
        partial(length, target_words=3, max_words=4),
        partial(regex, pattern="("),
        partial(regex, pattern="a", mode="often"),
        partial(regex, pattern="a", weight=math.nan),
        partial(regex, pattern="a", max_count=0),
        keywords,
        partial(keywords, present=[" "]),
        partial(repetition, n=0),
        partial(WeightedSum, []),
        partial(WeightedSum, [(math.inf, Fixed())]),
        partial(standardise, Fixed(), 0.0, 0.0),
        partial(affine, Fixed(), 0.0, 1.0),
        partial(affine, Fixed(), 1.0, math.nan),
        partial(clip, Fixed(), 1.0, 1.0),
        partial(clip, Fixed(), -math.inf, 1.0),
        partial(sigmoid, Fixed(), -1.0),
        partial(FunctionReward, len, prompt="ids"),
        partial(ImplicitReward, ToyModel.random(0), ToyModel.random(1), beta=0.0),
    ],
)
def test_bad_values_are_refused_in_one_sentence(make: Callable[[], object]) -> None:
    with pytest.raises(OptionError) as caught:
        make()
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


# Combinations.


def test_combinations_compute_what_they_say() -> None:
    assert run(WeightedSum([(2, Fixed(1, 3)), (-0.5, Fixed(4, 2))]), "a", "b") == [0, 5]
    assert run(standardise(Fixed(1, 3), 1, 4), "a", "b") == [0, 0.5]
    assert run(affine(Fixed(1, -3), 2, 4), "a", "b") == [6, -2]
    assert run(clip(Fixed(-2, 0.5, 9), -1, 1), "a", "b", "c") == [-1, 0.5, 1]
    assert run(sigmoid(Fixed(0, 2, -2), 2), "a", "b", "c") == pytest.approx([0.5, 1 / (1 + math.exp(-1)), 0.2689414])
    assert run(sigmoid(Fixed(-1e9, 1e9)), "a", "b") == [0, 1]


def test_ranges_come_from_the_parts() -> None:
    one, two, free = Fixed(range=(0, 1)), Fixed(range=(-2, 4)), Fixed()
    assert WeightedSum([(2, one), (-0.5, two)]).range == (-2, 3)
    assert WeightedSum([(2, one), (1, free)]).range is None
    assert standardise(two, 1, 3).range == (-1, 1)
    assert standardise(free, 1, 3).range is None
    assert affine(two, 0.5, 1).range == (0, 3)
    assert affine(free, 0.5, 1).range is None
    assert clip(free, -1, 1).range == (-1, 1)
    assert clip(two, -1, 9).range == (-1, 4)
    assert sigmoid(free).range == (0, 1)
    assert sigmoid(two, 2).range == pytest.approx((1 / (1 + math.e), 1 / (1 + math.exp(-2))))


numbers = st.floats(-1e3, 1e3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just(standardise), st.tuples(numbers, st.floats(0.01, 100))),
        st.tuples(st.just(affine), st.tuples(st.floats(0.01, 100), numbers)),
        st.tuples(st.just(clip), st.tuples(st.floats(-9, -1e-3), st.floats(1e-3, 9))),
        st.tuples(st.just(sigmoid), st.tuples(st.floats(0.01, 100))),
        st.tuples(st.just(lambda reward, weight: WeightedSum([(weight, reward), (0.3, reward)])), st.tuples(numbers)),
    ),
    max_size=4,
)


@given(low=numbers, width=st.floats(0, 100), at=st.floats(0, 1), chain=steps)
def test_no_score_leaves_its_range(low: float, width: float, at: float, chain: list) -> None:
    x = min(max(low + at * width, low), low + width)
    reward: Reward = Fixed(x, low, low + width, range=(low, low + width))
    for make, arguments in chain:
        reward = make(reward, *arguments)
    assert reward.range is not None
    for score in run(reward, "a", "b", "c"):
        assert reward.range[0] <= score <= reward.range[1]


def test_nan_becomes_the_minimum_only_in_the_end() -> None:
    nan = Fixed(math.nan, 0.5)
    for inner in (clip(nan, -1, 1), sigmoid(nan), standardise(nan, 0, 1), affine(nan, 2, 1), WeightedSum([(1, nan)])):
        assert math.isnan(run(inner, "a", "b")[0])

    def scored(reward: Reward) -> tuple[list[float], int]:
        scorer, meter = Scorer(reward, ToyCodec()), Meter()
        with metering(meter):
            scores = asyncio.run(scorer.replies(PROMPT, [reply("a"), reply("b")]))
        return scores.tolist(), meter.usage().nan_rewards

    assert scored(nan) == ([-math.inf, 0.5], 1)
    assert scored(clip(nan, -1, 1)) == ([-1, 0.5], 1)
    assert scored(clip(Fixed(math.inf, -math.inf), -1, 1)) == ([1, -1], 0)
    with pytest.raises(RewardError, match=r"\+inf"):
        scored(Fixed(math.inf, 0))
    with pytest.raises(RewardError, match="1 scores for 2"):
        scored(Fixed(1.0))


# Functions.


def polite(prompt: str, response: str, complete: bool) -> float:
    return len(prompt) + 100 * ("please" in response) + 1000 * complete


async def slow(prompt: str, response: str, complete: bool) -> float:
    await asyncio.sleep(0)
    return float(len(response))


class Scales:
    def __call__(self, messages: list[dict[str, str]], response: str, complete: bool) -> np.float32:
        return np.float32(len(messages[0]["content"]))


def test_functions_of_every_kind() -> None:
    assert run(FunctionReward(polite), "please", "no") == [1112, 1012]
    assert run(FunctionReward(slow), "abc") == [3]
    assert run(FunctionReward(lambda *given: slow(*given)), "abc") == [3]
    assert run(FunctionReward(Scales(), prompt="messages"), "abc") == [12]
    assert FunctionReward(polite).name == "polite"


async def test_a_function_that_waits_holds_up_nobody() -> None:
    begun, release = threading.Event(), threading.Event()

    def waiting(prompt: str, response: str, complete: bool) -> float:
        begun.set()
        return float(release.wait(timeout=10))

    task = asyncio.create_task(FunctionReward(waiting).score(PROMPT, [reply("a"), reply("b")]))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    release.set()  # reached in time only because the loop runs on
    assert await task == [1, 1]


def raises(error: BaseException) -> Callable[..., float]:
    def function(*given: object) -> float:
        raise error

    return function


async def raises_later(*given: object) -> float:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (raises(ZeroDivisionError("no")), "ZeroDivisionError"),
        (raises(StopIteration()), "StopIteration"),
        (raises_later, "KeyError"),
        (lambda *given: "high", "'high'"),
        (lambda *given: None, "None"),
        (lambda: 1.0, "TypeError"),
    ],
)
def test_a_function_that_fails_is_named(function: Callable[..., float], part: str) -> None:
    with pytest.raises(RewardError) as caught:
        run(FunctionReward(function, name="python:mine:f"), "a")
    assert "'python:mine:f'" in str(caught.value)
    assert part in str(caught.value)


def test_functions_are_found_by_import_path(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards_here.py").write_text("def good(prompt, response, complete):\n    return 2.5\nnumber = 3\n")
    (tmp_path / "broken_rewards_here.py").write_text("def broken(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    assert run(FunctionReward(load_function("my_rewards_here:good")), "a") == [2.5]
    assert load_function("math:dist") is math.dist
    for bad in ("my_rewards_here:bad", "my_rewards_here:number", "nowhere_at_all:f", "my_rewards_here", ":f", "m:"):
        with pytest.raises(OptionError, match=f"python:{bad}"):
            load_function(bad)
    with pytest.raises(OptionError, match="SyntaxError"):
        load_function("broken_rewards_here:broken")


# The implicit reward, on the worked example.

SFT = {"": (0.5, 0.3, 0.2), "A": (0.6, 0.3, 0.1), "B": (0.2, 0.5, 0.3)}
REWARD = {"E": 0.0, "AA": 0.2, "AB": 1.0, "AE": 0.4, "BA": 0.8, "BB": 0.1, "BE": 0.6}
BETA = 0.5


def ids_of(text: str) -> tuple[int, ...]:
    return tuple("ABE".index(letter) for letter in text)


def gibbs(table: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """Token law of the trajectory law pi_sft exp(r / beta) / Z, by summing over what follows each state."""
    weights: dict[str, float] = {}
    for text, reward in REWARD.items():
        probability = math.prod(table[text[:i]]["ABE".index(z)] for i, z in enumerate(text))
        for i in range(len(text) + 1):
            weights[text[:i]] = weights.get(text[:i], 0.0) + probability * math.exp(reward / BETA)
    return {state: tuple(weights[state + z] / weights[state] for z in "ABE") for state in table}


async def test_the_implicit_reward_is_the_reward_up_to_a_constant() -> None:
    sft, aligned = ToyModel.from_table(SFT), ToyModel.from_table(gibbs(SFT))
    reward = ImplicitReward(aligned, sft, beta=BETA)
    prompt = Prompt(messages=PROMPT.messages, text="", ids=())
    scores = await reward.score(prompt, [reply(text, ids=ids_of(text)) for text in REWARD])
    constants = [r - score for r, score in zip(REWARD.values(), scores, strict=True)]
    assert constants == pytest.approx([BETA * math.log(2.646386)] * 7, abs=1e-6)


async def test_implicit_increments_add_up() -> None:
    dpo, ref = ToyModel.random(1), ToyModel.random(2)
    reward = ImplicitReward(dpo, ref, beta=0.3)
    ids = letters_to_ids("ABA")
    whole, part, empty = await reward.score(PROMPT, [reply("ABA", ids=ids), reply("AB", ids=ids[:2]), reply("")])
    moved = Prompt(messages=PROMPT.messages, text="", ids=PROMPT.ids + ids[:2])
    (last,) = await reward.score(moved, [reply("A", ids=ids[2:])])
    assert whole == pytest.approx(part + last)
    assert empty == 0
    (same,) = await ImplicitReward(dpo, dpo).score(PROMPT, [reply("ABA", ids=ids)])
    assert same == 0


async def test_the_implicit_reward_pays_both_models_at_once() -> None:
    meter = Meter()
    reward = ImplicitReward(ToyModel.random(1, name="a"), ToyModel.random(2, name="b"))
    with metering(meter):
        await reward.score(PROMPT, [reply("ABA", ids=letters_to_ids("ABA"))])
    usage = meter.usage()
    assert (usage.rm_calls, usage.sequential_steps) == (1, 1)
    assert usage.lm_tokens == 2 * 3  # the prompt and two tokens; the last one need not be read


async def test_the_implicit_reward_needs_token_ids() -> None:
    with pytest.raises(RewardError, match="token ids"):
        await ImplicitReward(ToyModel.random(1), ToyModel.random(2)).score(PROMPT, [reply("text")])
