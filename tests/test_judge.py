"""The pairwise judge: order, ties, what is left out; and its endpoint: cache, retries, limits, secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

from alignstar.errors import FailedError, OptionError
from alignstar.evaluate.chat import BudgetSpent, Chat, Limits, NoAnswer
from alignstar.evaluate.judge import (
    QUESTION,
    ChatJudge,
    Judged,
    Pair,
    RewardJudge,
    judge_pairs,
    judgement,
    read_scores,
    shown_second,
)
from alignstar.rewards.rules import length
from alignstar.types import Message
from endpoints import HANG_UP, STALL, endpoint, fails, says

QUICK = Limits(attempts=4, timeout_s=0.5, pause_s=0.001)


class PrefersLonger:
    """A judge with a mind of its own."""

    name = "longer"

    async def scores(self, prompt, first, second):
        return float(len(first)), float(len(second))


class PrefersFirst:
    """A judge that only looks at the place."""

    name = "first"

    def __init__(self):
        self.shown = []

    async def scores(self, prompt, first, second):
        self.shown.append((prompt, first, second))
        return 9.0, 2.0


def pairs(n=6, first="a long reply", second="short"):
    return [Pair(index=i, prompt=f"prompt {i}", first=first, second=second) for i in range(n)]


NAN = float("nan")


def of(judged, orders="both"):
    return judgement(judged, judge="j", first="A", second="B", orders=orders)


# Order, ties, what is left out


@pytest.mark.parametrize("orders", ["both", "random"])
async def test_the_longer_text_wins_wherever_it_is_shown(orders):
    found = of(await judge_pairs(pairs(40), PrefersLonger(), orders=orders))
    assert (found.wins, found.ties, found.losses, found.n) == (40, 0, 0, 40)
    assert (found.consistent.mean, found.consistent.n) == (
        (1.0, 40) if orders == "both" else (pytest.approx(NAN, nan_ok=True), 0)
    )
    swapped = of(await judge_pairs(pairs(40, "short", "a long reply"), PrefersLonger(), orders=orders))
    assert (swapped.wins, swapped.losses) == (0, 40)


async def test_both_orders_cancel_a_liking_for_a_place():
    judge = PrefersFirst()
    found = of(await judge_pairs(pairs(5), judge))
    assert (found.wins, found.ties, found.losses) == (0, 5, 0)
    assert found.first_shown.mean == 1.0
    assert found.first_shown.n == 10
    assert (found.consistent.mean, found.consistent.n) == (0.0, 5)
    assert sorted(judge.shown) == sorted(
        (f"prompt {i}", *texts) for i in range(5) for texts in (("a long reply", "short"), ("short", "a long reply"))
    )


async def test_one_order_is_a_fair_coin_of_the_seed():
    judge = PrefersFirst()
    found = of(await judge_pairs(pairs(400), judge, orders="random", seed=2), "random")
    assert found.first_shown.n == 400
    assert abs(found.wins - 200) < 4 * 10  # 4 standard errors of 400 fair coins
    again = of(await judge_pairs(pairs(400), PrefersFirst(), orders="random", seed=2), "random")
    assert again.wins == found.wins
    assert [shown_second(i, 2) for i in range(50)] != [shown_second(i, 3) for i in range(50)]


async def test_turned_scores_are_turned_back():
    (judged,) = await judge_pairs(pairs(1), PrefersLonger())
    assert judged.scores == (12.0, 5.0)
    assert judged.shown == ((12.0, 5.0), (5.0, 12.0))


def test_a_pair_is_the_same_both_ways_where_both_orders_have_one_outcome():
    shown = {
        "win": ((8, 3), (2, 9)),
        "tie": ((5, 5), (7, 7)),
        "tie once": ((8, 3), (5, 5)),
        "loss": ((1, 4), (6, 3)),
        "place": ((8, 3), (8, 3)),
    }
    judged = [Judged(index=i, scores=(5, 5), shown=one) for i, one in enumerate(shown.values())]
    judged.append(Judged(index=9, scores=None, shown=((8, 3),), why="unparsable"))
    assert (of(judged).consistent.mean, of(judged).consistent.n) == (0.6, 5)


def test_ties_count_whole_in_win_tie_and_half_in_win():
    judged = [Judged(index=i, scores=s) for i, s in enumerate([(8, 3), (5, 5), (5, 5), (2, 9)])]
    found = of(judged)
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert found.win_tie.mean == 0.75
    assert found.win.mean == 0.5


def test_what_has_no_scores_is_left_out_and_counted():
    judged = [Judged(index=0, scores=(8, 3))]
    judged += [
        Judged(index=i, scores=None, why=why) for i, why in enumerate(["unparsable", "no answer", "not asked"] * 2)
    ]
    found = of(judged)
    assert (found.n, found.wins, found.ties, found.unparsable, found.no_answer, found.not_asked) == (1, 1, 0, 2, 2, 2)
    assert found.win_tie.mean == 1.0


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("8 7\nBecause.", (8.0, 7.0)),
        ("\n  7.5, 10\nBecause 3 of 4.", (7.5, 10.0)),
        ("Scores: 1 and 10.", (1.0, 10.0)),
        ("Answer 1: 8, answer 2: 7", None),
        ("8/10 7/10", None),
        ("0 0", None),
        ("11 5", None),
        ("-3 5", None),
        ("8", None),
        ("Both are good.\n8 7", None),
        ("", None),
    ],
)
def test_scores_are_read_from_the_first_line_alone(answer, scores):
    assert read_scores(answer) == scores


async def test_a_turn_that_the_model_wrote_itself_is_not_judged():
    judge = PrefersFirst()
    await judge_pairs(pairs(1, first="Yes.\n\nHuman: more", second="No."), judge)
    assert ("prompt 0", "Yes.", "No.") in judge.shown


async def test_a_reward_judges_too():
    judge = RewardJudge(length(target_words=3))
    found = of(await judge_pairs(pairs(3, "one two three", "one"), judge))
    assert (found.wins, judge.name) == (3, "rule:length")


# The endpoint


async def ask(chat, text="Q", **parameters):
    return await chat.ask([Message(role="user", content=text)], **parameters)


async def test_an_answer_costs_once(tmp_path):
    async with endpoint(lambda body, number: says(f"answer {number}")) as server:
        for _ in range(2):
            async with Chat(server.url, model="m", cache=tmp_path / "c", limits=QUICK) as chat:
                assert await ask(chat, "one") == "answer 1"
        assert chat.spent.requests == 0
        assert chat.spent.cached == 1
        async with Chat(server.url, model="m", cache=tmp_path / "c", limits=QUICK) as chat:
            assert await ask(chat, "one", temperature=0.7) == "answer 2"
        async with Chat(server.url, model="other", cache=tmp_path / "c", limits=QUICK) as chat:
            assert await ask(chat, "one") == "answer 3"
        assert len(server.asked) == 3


async def test_the_same_question_at_the_same_time_is_one():
    async with (
        endpoint(lambda body, number: says(f"answer {number}")) as server,
        Chat(server.url, model="m", limits=QUICK) as chat,
    ):
        assert await asyncio.gather(*(ask(chat) for _ in range(5))) == ["answer 1"] * 5
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "bad", [fails(500), fails(503), fails(429), STALL, HANG_UP, (200, "<html>", {}), (200, '{"choices": []}', {})]
)
async def test_what_passes_by_itself_is_tried_again(bad):
    async with (
        endpoint(lambda body, number: bad if number < 3 else says("at last")) as server,
        Chat(server.url, model="m", limits=QUICK) as chat,
    ):
        assert await ask(chat) == "at last"
        assert len(server.asked) == chat.spent.requests == 3


async def test_a_question_without_an_answer_is_given_up(tmp_path):
    async with endpoint(lambda body, number: fails(500)) as server:
        async with Chat(server.url, model="m", cache=tmp_path / "c", limits=QUICK) as chat:
            with pytest.raises(NoAnswer, match=r"4 attempts.*status 500"):
                await ask(chat)
        assert len(server.asked) == 4
        server.answer = lambda body, number: says("now")
        async with Chat(server.url, model="m", cache=tmp_path / "c", limits=QUICK) as chat:
            assert await ask(chat) == "now"  # a failure is not remembered


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_what_does_not_pass_is_refused_at_once(status):
    async with (
        endpoint(lambda body, number: fails(status, "no such model")) as server,
        Chat(server.url, model="m", limits=QUICK) as chat,
    ):
        with pytest.raises(OptionError, match=f"status {status}: 'no such model'"):
            await ask(chat)
        assert len(server.asked) == 1


async def test_the_endpoint_says_how_long_to_wait(monkeypatch):
    slept = []
    real = asyncio.sleep

    async def sleep(seconds):
        if threading.current_thread() is threading.main_thread() and seconds != 0.005:
            slept.append(seconds)
        await real(0.005 if seconds == 0.005 else 0)

    def answer(body, number):
        return {1: fails(429, retry_after=7), 2: fails(429, retry_after=9999), 3: fails(500)}.get(number, says("x"))

    monkeypatch.setattr("asyncio.sleep", sleep)
    limits = Limits(attempts=5, timeout_s=5, pause_s=1.0)
    async with endpoint(answer) as server, Chat(server.url, model="m", limits=limits) as chat:
        assert await ask(chat) == "x"
    assert slept[:2] == [7.0, 60.0]
    assert 4.0 <= slept[2] < 8.0  # 2^2, and up to twice that


async def test_a_dead_endpoint_ends_everything():
    limits = Limits(attempts=1, timeout_s=0.5, pause_s=0.001, failures=3, concurrency=1)
    async with endpoint(lambda body, number: HANG_UP) as server, Chat(server.url, model="m", limits=limits) as chat:
        with pytest.raises(FailedError, match="3 questions in a row"):
            await judge_pairs(pairs(50), ChatJudge(chat))
        assert len(server.asked) == 3


async def test_failures_that_are_not_in_a_row_are_only_counted():
    limits = Limits(attempts=1, timeout_s=0.5, failures=2, concurrency=1)

    def answer(body, number):
        return HANG_UP if number % 3 == 0 else says("8 3")

    async with endpoint(answer) as server, Chat(server.url, model="m", limits=limits) as chat:
        found = of(await judge_pairs(pairs(9), ChatJudge(chat), orders="random"), "random")
        assert (found.n, found.no_answer, found.unparsable) == (6, 3, 0)
        assert len(server.asked) == 9


async def test_no_more_requests_than_allowed_are_sent():
    limits = Limits(requests=7, attempts=3, timeout_s=1, pause_s=0.001, concurrency=4)
    async with (
        endpoint(lambda body, number: fails(503) if number == 2 else says("8 3")) as server,
        Chat(server.url, model="m", limits=limits) as chat,
    ):
        found = of(await judge_pairs(pairs(20), ChatJudge(chat), orders="random"), "random")
        assert len(server.asked) == 7
        assert found.n + found.not_asked == 20
        assert found.n == 6  # one of the seven was a retry
        with pytest.raises(BudgetSpent, match="7 requests"):
            await ask(chat, "more")


async def test_no_more_tokens_than_allowed_are_asked_for():
    limits = Limits(tokens=25, concurrency=1, timeout_s=1)
    async with endpoint(lambda body, number: says("8 3")) as server, Chat(server.url, model="m", limits=limits) as chat:
        found = of(await judge_pairs(pairs(9), ChatJudge(chat), orders="random"), "random")
        assert (len(server.asked), found.n, found.not_asked, chat.spent.tokens) == (3, 3, 6, 30)


async def test_an_endpoint_that_counts_no_tokens_spends_some():
    silent = (200, json.dumps({"choices": [{"message": {"content": "8 3"}}]}), {})
    async with endpoint(lambda body, number: silent) as server, Chat(server.url, model="m", limits=QUICK) as chat:
        await ask(chat, "x" * 300)
        assert chat.spent.tokens > 100


async def test_requests_keep_company_within_the_limit():
    limits = Limits(concurrency=3, timeout_s=5)
    async with endpoint(lambda body, number: says("8 3")) as server, Chat(server.url, model="m", limits=limits) as chat:
        await judge_pairs(pairs(12), ChatJudge(chat))
        assert server.most_open == 3


async def test_rubbish_is_unparsable_and_remembered(tmp_path):
    def answer(body, number):
        return says("I like them both!" if "prompt 1\n" in body["messages"][1]["content"] else "9 4")

    async with endpoint(answer) as server:
        for _ in range(2):
            async with Chat(server.url, model="m", cache=tmp_path / "c", limits=QUICK) as chat:
                found = of(await judge_pairs(pairs(4), ChatJudge(chat)))
            assert (found.n, found.ties, found.unparsable) == (3, 3, 1)
        assert chat.spent.requests == 0


async def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")

    def answer(body, number):
        return says("8 3") if number == 1 else fails(401, "wrong key sk-very-secret given")

    async with (
        endpoint(answer) as server,
        Chat(server.url, model="m", cache=tmp_path / "c", key_env="JUDGE_KEY", limits=QUICK) as chat,
    ):
        await ask(chat)
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        with pytest.raises(OptionError) as refused:
            await ask(chat, "another")
    assert "very-secret" not in str(refused.value)
    assert "very-secret" not in caplog.text
    assert all(b"very-secret" not in path.read_bytes() for path in tmp_path.iterdir())


async def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with endpoint(lambda body, number: says("x")) as server, Chat(server.url, model="m", limits=QUICK) as chat:
        await ask(chat)
        assert "authorization" not in server.headers[0]


@pytest.mark.parametrize("url", ["localhost:80/v1", "ftp://h/v1", "http://me:pw@h/v1"])
def test_a_url_must_be_one_without_secrets(url):
    with pytest.raises(OptionError) as refused:
        Chat(url, model="m")
    assert "pw" not in str(refused.value)


def test_the_question_holds_both_answers_in_order():
    text = QUESTION.format(prompt="{P}", first="{F}", second="{S}")
    assert text.index("{P}") < text.index("{F}") < text.index("{S}")
