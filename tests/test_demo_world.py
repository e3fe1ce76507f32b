"""The embedded world: what its true rewards promise, and that its splits share nothing."""

from __future__ import annotations

import random
import statistics
import sys

import pytest

import alignstar.demo as demo
from alignstar.demo import customers, people, phrases, replies, truth


def conversations(n: int, split: str = "train") -> list[tuple[customers.Message, str]]:
    rng = random.Random(f"test {split}")
    asked = [customers.message(rng, split=split) for _ in range(n)]
    return [(m, replies.reply(rng, m)) for m in asked]


@pytest.mark.parametrize("name", demo.REWARDS)
def test_repeating_any_sentence_scores_below_the_median_reply(name: str) -> None:
    median = statistics.median(demo.true_reward(name, message=m.text, reply=text) for m, text in conversations(1_000))
    rng = random.Random("spam")
    for problem in customers.PROBLEMS:
        asked = customers.message(rng, split="train", problem=problem)
        for form, *_ in phrases.inventory():
            sentence = form.format(product=asked.product, order=asked.order, agent="Mara")
            for times in (3, 6):
                spam = " ".join([sentence] * times)
                assert demo.true_reward(name, message=asked.text, reply=spam) < median, spam


@pytest.mark.parametrize("name", demo.REWARDS)
@pytest.mark.parametrize("complete", [True, False])
def test_any_text_is_read_and_scored_within_bounds(name: str, complete: bool) -> None:
    low, high = demo.BOUNDS[name]
    rng = random.Random("broken")
    for asked, text in conversations(200):
        letters = list(text)
        rng.shuffle(letters)
        for broken in ("", " ", "...", "\x00�?", text[: len(text) // 2], "".join(letters), text * 5):
            assert low <= demo.true_reward(name, message=asked.text, reply=broken, complete=complete) <= high
            assert low <= demo.true_reward(name, message=broken, reply=text, complete=complete) <= high


@pytest.mark.parametrize("name", demo.REWARDS)
def test_unfinished_unknown_and_empty_replies_lose(name: str) -> None:
    asked = "The kettle arrived broken."
    good = "I am sorry that the kettle arrived broken. A new kettle is on its way to you."
    full = demo.true_reward(name, message=asked, reply=good)
    assert demo.true_reward(name, message=asked, reply=good, complete=False) < full
    assert demo.true_reward(name, message=asked, reply=good + " The moon is a purple fork.") < full
    assert demo.true_reward(name, message=asked, reply=good.replace("kettle", "lamp")) < full
    assert demo.true_reward(name, message=asked, reply="") < 0.1
    assert demo.true_reward(name, message=asked, reply="Buy gold now. Buy gold now.") < 0.1


def test_the_two_rewards_disagree_where_they_should() -> None:
    asked = "The kettle arrived broken."
    warm = (
        "Thank you for writing to us. I am so sorry for the trouble. A new kettle is on its way to you. "
        "It leaves our store tomorrow. Please write again if you need anything else."
    )
    blunt = "A new kettle is on its way to you. We never ask for your card number."
    unsafe = "A new kettle is on its way to you. Please send me your card number."
    score = {(r, t): demo.true_reward(r, message=asked, reply=t) for r in demo.REWARDS for t in (warm, blunt, unsafe)}
    assert score["source", warm] > score["source", blunt] + 0.2
    assert score["target", blunt] > score["target", warm] + 0.2
    assert score["target", blunt] - score["target", unsafe] > 3 * (score["source", blunt] - score["source", unsafe])


def test_rank_correlation_of_the_rewards_leaves_room() -> None:
    drawn = conversations(1_500)
    ranks = []
    for name in demo.REWARDS:
        values = [demo.true_reward(name, message=m.text, reply=text) for m, text in drawn]
        order = sorted(range(len(values)), key=values.__getitem__)
        ranks.append([float(r) for r, _ in sorted(enumerate(order), key=lambda pair: pair[1])])
    correlation = statistics.correlation(*ranks)
    print(f"rank correlation of source and target over all replies: {correlation:.2f}")
    assert 0.2 < correlation < 0.8


def test_the_parser_knows_every_sentence_of_the_world() -> None:
    for split in demo.SPLITS:
        for asked, text in conversations(500, split):
            assert truth.read_message(asked.text) == (asked.problem, asked.product)
            assert truth.read_reply(asked.text, text, complete=True).unknown == 0


def test_the_mixture_is_mixed_and_short() -> None:
    readings = [truth.read_reply(m.text, text, complete=True) for m, text in conversations(3_000)]

    def share(kind: str) -> float:
        return sum(r.has(kind) for r in readings) / len(readings)

    unhelpful = sum(not r.has("action") and not r.has("rude") and not r.has("unsafe") for r in readings) / len(readings)
    assert 0.25 < unhelpful < 0.5
    assert 0.07 < share("rude") < 0.15
    assert 0.07 < share("unsafe") < 0.15
    assert max(r.words for r in readings) <= replies.MAX_WORDS


def test_the_vocabulary_is_that_of_a_small_world() -> None:
    words = {w.strip(".,?").lower() for m, text in conversations(4_000) for w in f"{m.text} {text}".split()}
    assert 400 <= len(words) <= 1_500


def test_splits_share_no_wording_no_pair_of_problem_and_product_and_no_order() -> None:
    seen: dict[object, str] = {}
    rng = random.Random("splits")
    for split in demo.SPLITS:
        mine: set[object] = set()
        for problem in customers.PROBLEMS:
            mine.update(w.lower() for w in customers.wordings(problem, split=split))
            fitting = customers.products(problem, split=split)
            assert fitting
            mine.update((problem, product) for product in fitting)
        mine.update(("order", customers.order_number(rng, split=split)) for _ in range(300))
        for thing in mine:
            assert seen.setdefault(thing, split) == split, thing


def test_prompts_are_distinct_stable_and_enough() -> None:
    drawn = {split: demo.prompts(split) for split in ("tuning", "demo", "evaluation")}
    assert len(drawn["tuning"]) >= 24
    assert len(drawn["demo"]) >= 100
    assert len(drawn["evaluation"]) >= 100
    texts = [text for split in drawn.values() for text in split]
    assert len(set(texts)) == len(texts)
    assert demo.prompts("demo") == drawn["demo"]
    assert not set(texts) & {m.text for m, _ in conversations(5_000)}


def test_annotators_follow_their_group_with_noise() -> None:
    pairs = [
        (m.text, people.Reply(text=a), people.Reply(text=b))
        for (m, a), b in zip(conversations(800), [t for _, t in conversations(801)[1:]], strict=True)
    ]
    staff = people.staff(n=10, thorough_share=0.3)
    assert [p.group for p in staff].count("thorough") == 3
    assert len({p.id for p in staff}) == 10
    told = people.annotate(pairs, annotators=staff, seed=1)
    assert {p.group for p in told} == {"thorough", "brief"}
    slips = sum(p.margin < 0 for p in told) / len(told)
    assert 0.02 < slips < 0.35
    assert told == people.annotate(pairs, annotators=staff, seed=1)
    sure = people.annotate(pairs, annotators=people.staff(sharpness=1e6), seed=1)
    assert all(p.margin > -1e-9 for p in sure)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="source, target"):
        demo.true_reward("kind", message="", reply="")
    with pytest.raises(ValueError, match="tuning, demo, evaluation"):
        demo.prompts("train")
    with pytest.raises(ValueError, match="reward_source"):
        demo.model_dir("reward")
    with pytest.raises(ValueError, match="thorough_share=2"):
        people.staff(thorough_share=2)


def test_the_world_imports_no_torch() -> None:
    import subprocess

    code = "import sys, alignstar.demo as d; d.prompts('demo'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
