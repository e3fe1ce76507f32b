"""Best-of-n and its selections against enumeration and closed forms."""

import itertools
from collections import Counter

import numpy as np
import pytest

from alignstar.errors import FailedError, OptionError
from alignstar.meter import Meter, metering
from alignstar.methods.best_of_n import best_of_n
from alignstar.methods.plain import sample
from alignstar.models.toy import ToyModel, ToyReward
from worlds import PROMPT, Proportional, ids_of, random_world, scorer, softmax, steps_of, w1

TWO = {"max_new_tokens": 2}
RESPONSES = ((2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))
TEXTS = {(2,): "", (0, 2): "A", (1, 2): "B"}
SELECTIONS = ("best", "soft", "regularised", "weighted", "majority")


def text_of(ids):
    return TEXTS.get(ids) or "".join("AB"[z] for z in ids if z < 2)


def first_letter(text):
    """An answer key: None where there is no text."""
    return text[0] if text else None


def unhashable(text):
    return [text]


FIRST_LETTER = f"python:{__name__}:first_letter"


async def one(world, **options):
    """The single step of a run on a world of two-token responses."""
    options = {"max_new_tokens": world.horizon, **options}
    rewarded = scorer(options.pop("reward", world.reward), world.vocab_size)
    (step,) = await steps_of(best_of_n(PROMPT, sft=world.sft, reward=rewarded, **options))
    assert step.emitted == step.considered[step.chosen].ids
    return step


async def frequencies(world, draws, **options):
    counted = Counter([(await one(world, seed=seed, **options)).emitted for seed in range(draws)])
    return np.array([counted[y] / draws for y in RESPONSES])


def within(exact, draws):
    return pytest.approx(exact, abs=4 * np.sqrt(0.25 / draws))


@pytest.mark.parametrize(
    ("n", "mean", "kl"), [(1, 0.347, 0.0), (2, 0.531930, 0.179426), (4, 0.732317, 0.608183), (16, 0.979679, 1.633943)]
)
async def test_best_of_n_law(n, mean, kl):
    """P(y) = F(y)^n - F(y-)^n, F the distribution function of the reward; KL at most log n - (n-1)/n."""
    world, draws = w1()[0], 1500
    p = dict(world.completions(world.sft, ()))
    ranked = sorted(RESPONSES, key=world.r)
    below = np.concatenate([[0.0], np.cumsum([p[y] for y in ranked])])
    exact = dict(zip(ranked, np.diff(below**n), strict=True))
    assert sum(exact[y] * world.r(y) for y in RESPONSES) == pytest.approx(mean, abs=6e-7)
    divergence = sum(exact[y] * np.log(exact[y] / p[y]) for y in RESPONSES)
    assert divergence == pytest.approx(kl, abs=6e-7)
    assert divergence <= np.log(n) - (n - 1) / n + 1e-12
    assert await frequencies(world, draws, n=n) == within([exact[y] for y in RESPONSES], draws)


async def test_soft_law():
    """By enumeration of what is drawn: y_1..y_n from the model, then one of them by softmax(reward / beta)."""
    world, n, beta, draws = w1()[0], 3, 0.3, 2000
    p = dict(world.completions(world.sft, ()))
    exact = dict.fromkeys(RESPONSES, 0.0)
    for drawn in itertools.product(RESPONSES, repeat=n):
        weight = np.prod([p[y] for y in drawn])
        for y, share in zip(drawn, softmax([world.r(y) / beta for y in drawn]), strict=True):
            exact[y] += weight * share
    found = await frequencies(world, draws, n=n, selection="soft", beta=beta)
    assert found == within([exact[y] for y in RESPONSES], draws)


async def test_soft_with_many_draws_is_the_optimum_of_reward_minus_beta_kl():
    """Without sampling error in the draws the choice follows rho(y) exp(r(y) / beta) / Z."""
    world, beta, draws = w1(Proportional)[0], 0.5, 1500
    p = np.exp(world.sft.law(PROMPT.ids))
    gibbs = softmax(np.log(p) + np.array([world.r((z,)) for z in range(3)]) / beta)
    options = {"n": 10, "selection": "soft", "beta": beta, "max_new_tokens": 1}
    counted = Counter([(await one(world, seed=seed, **options)).emitted for seed in range(draws)])
    assert [counted[(z,)] / draws for z in range(3)] == within(gibbs, draws)


async def test_best_of_1_is_sampling_and_more_draws_are_never_worse():
    for seed in range(20):
        world = random_world(seed, horizon=6)
        runs = [await one(world, n=n, seed=seed) for n in (1, 2, 4, 8)]
        plain = await steps_of(sample(PROMPT, sft=world.sft, max_new_tokens=6, seed=seed))
        for selection in SELECTIONS:
            alone = await one(world, n=1, seed=seed, selection=selection)
            assert (alone.emitted, alone.finish) == (ids_of(plain), plain[-1].finish)
        won = [run.considered[run.chosen].value for run in runs]
        assert won == sorted(won)
        for run in runs:
            assert run.considered[run.chosen].value == max(c.value for c in run.considered)
            assert run.considered[: len(runs[1].considered)] == runs[1].considered[: len(run.considered)]
        halves = [max(c.value for c in half) for half in (runs[3].considered[:4], runs[3].considered[4:])]
        assert won[3] == max(halves)


async def test_regularised_adds_the_log_probability():
    for seed in range(20):
        world = random_world(seed, horizon=4)
        step = await one(world, n=6, seed=seed, selection="regularised", beta=0.3, temperature=1.5)
        for c in step.considered:
            exact = sum(world.sft.law(PROMPT.ids + c.ids[:t])[z] for t, z in enumerate(c.ids))
            assert c.logp == pytest.approx(exact)
            assert c.score == pytest.approx(world.r(c.ids) + 0.3 * exact)
        assert step.considered[step.chosen].score == max(c.score for c in step.considered)
        faint = await one(world, n=6, seed=seed, selection="regularised", beta=1e-9)
        assert faint.emitted == (await one(world, n=6, seed=seed)).emitted
        strong = await one(world, n=6, seed=seed, selection="regularised", beta=1e9)
        assert strong.considered[strong.chosen].logp == max(c.logp for c in strong.considered)


@pytest.mark.parametrize("key", ["text", FIRST_LETTER])
async def test_votes_have_their_closed_forms(key):
    world, beta = w1()[0], 0.4
    answer = first_letter if key == FIRST_LETTER else lambda text: text
    for seed in range(40):
        options = {"n": 7, "seed": seed, "key": key}
        most = await one(world, selection="majority", **options)
        answers = [answer(text_of(c.ids)) for c in most.considered]
        votes = Counter(a for a in answers if a is not None)
        for c, a in zip(most.considered, answers, strict=True):
            assert c.score == (-np.inf if a is None else votes[a])
        rewards = [c.value for c in most.considered]
        best = max(range(7), key=lambda i: (most.considered[i].score, rewards[i], -i))
        assert most.chosen == best

        heavy = await one(world, selection="weighted", beta=beta, **options)
        total = {a: sum(np.exp(r / beta) for r, b in zip(rewards, answers, strict=True) if a == b) for a in votes}
        for c, a in zip(heavy.considered, answers, strict=True):
            assert c.score == (-np.inf if a is None else pytest.approx(np.log(total[a])))
        if total:
            assert answers[heavy.chosen] == max(total, key=lambda a: total[a])
            same = [r for r, a in zip(rewards, answers, strict=True) if a == answers[heavy.chosen]]
            assert rewards[heavy.chosen] == max(same)


async def test_a_weighted_vote_lies_between_majority_and_best():
    for seed in range(30):
        world = random_world(seed, vocab_size=3, horizon=2)
        options = {"n": 9, "seed": seed, "key": "text"}
        best = await one(world, **options)
        cold = await one(world, selection="weighted", beta=1e-4, **options)
        assert cold.emitted == best.emitted
        hot = await one(world, selection="weighted", beta=1e6, **options)
        votes = [c.score for c in (await one(world, selection="majority", **options)).considered]
        assert votes[hot.chosen] == max(votes)
        moved = ToyReward(seed=seed, low=5.0, high=6.0)
        far = await one(world, selection="weighted", beta=0.3, reward=moved, **options)
        assert far.emitted == (await one(world, selection="weighted", beta=0.3, **options)).emitted


async def test_draws_without_usable_rewards_lose():
    world = w1()[0]
    nothing = ToyReward(nan=frozenset(("", "A", "B", "AA", "AB", "BA", "BB")))
    for selection in ("best", "soft", "regularised", "weighted"):
        with metering(Meter()) as meter:
            step = await one(world, reward=nothing, n=4, selection=selection)
        assert step.chosen == 0
        assert meter.usage().nan_rewards == 4
    some = ToyReward(world.reward.table, nan=frozenset(("AB", "BA", "AA")))
    for selection in SELECTIONS:
        for seed in range(20):
            step = await one(world, reward=some, n=6, seed=seed, selection=selection)
            if selection == "majority":  # an answer is an answer, whatever the reward says of it
                answers = Counter(text_of(c.ids) for c in step.considered)
                assert answers[text_of(step.emitted)] == max(answers.values())
            elif any(c.value > -np.inf for c in step.considered):
                assert step.considered[step.chosen].value > -np.inf


async def test_doubt_is_counted_between_different_responses_only():
    table = {"": (0.5, 0.5, 0.0), "A": (0.0, 0.0, 1.0), "B": (0.0, 0.0, 1.0)}
    model = ToyModel.from_table(table, prompt=PROMPT.ids)
    for rewards, doubtful in (((0.3, 0.3), True), ((0.3, 0.5), False)):
        reward = scorer(ToyReward({("A", True): rewards[0], ("B", True): rewards[1]}))
        for selection in ("best", "regularised", "weighted", "majority"):
            for seed in range(12):
                (step,) = await steps_of(
                    best_of_n(PROMPT, sft=model, reward=reward, n=4, selection=selection, seed=seed, **TWO)
                )
                votes = Counter(c.ids for c in step.considered)
                even = len(votes) == 2 and (selection in ("best", "regularised") or votes[0, 2] == votes[1, 2])
                assert step.near_ties == (doubtful and even)


async def test_key_errors_say_what_to_correct():
    world = w1()[0]
    with pytest.raises(OptionError, match=r"python:nothing must read python:package\.module:function"):
        await one(world, selection="majority", key="nothing")
    with pytest.raises(FailedError, match=r"key='python:.*' raised TypeError .*; correct it"):
        await one(world, selection="majority", key=f"python:{__name__}:unhashable")


async def test_cost():
    """Draws share the prompt's positions: LM P + NT (less the last tokens, which nobody reads on), RM N(P + T)."""
    model = ToyModel.random(0, 6, eos_weight=1e-300)
    for selection in SELECTIONS:
        with metering(Meter()) as meter:
            await steps_of(
                best_of_n(PROMPT, sft=model, reward=scorer(ToyReward(), 6), n=3, selection=selection, max_new_tokens=5)
            )
        usage = meter.usage()
        assert (usage.lm_tokens, usage.sequential_steps) == (len(PROMPT.ids) + 3 * 4, 5)
        assert (usage.rm_calls, usage.rm_tokens) == (3, len(PROMPT.text) + 3 * 5)
