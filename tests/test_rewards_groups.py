"""Rewards of groups, and the game of a prompt, against enumeration on exact worlds."""

import math

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import OptionError, PromptError
from alignstar.meter import Meter, metering
from alignstar.methods.args import args
from alignstar.methods.best_of_n import best_of_n
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.rewards.combine import clip
from alignstar.rewards.game import play, weights_over_prompts, worst_weights
from alignstar.rewards.groups import game, pointwise_min, soft_min, weighted_for
from alignstar.rewards.limits import reading
from alignstar.sampling import Noise, Sampling, logsumexp
from alignstar.theory import checks, transfer, tree
from alignstar.theory import maxmin as exact
from alignstar.types import Reply
from worlds import PROMPT, Proportional, codec, ids_of, random_world, steps_of, w1

WORLDS = [checks.draw(5, index) for index in range(40)]
TWO = {"max_new_tokens": 2, "k": 3}


def groups_of(world):
    """Three groups: the world's two rewards, and what is neither's."""
    third = transfer.over(transfer.plus(world.reward, world.baseline_reward), -2.0)
    return [world.reward, world.baseline_reward, third]


def same(levels):
    return pytest.approx(np.exp(tree.law(levels)), abs=2e-5)


def law(levels):
    return np.exp(tree.law(levels))


# The game, exactly


def test_no_policy_is_better_for_its_worst_group():
    rng = np.random.default_rng(0)
    for world in WORLDS:
        rewards = groups_of(world)
        solved = exact.game(world.sft, rewards, world.beta)
        assert solved.value <= solved.bound + 1e-9
        assert solved.bound - solved.value < 1e-5
        rivals = [transfer.gibbs(world.sft, r, world.beta) for r in rewards]
        rivals += [tree.normalise(tuple(x + rng.normal(size=x.shape) for x in solved.policy)) for _ in range(5)]
        pooled = transfer.over(transfer.plus(*rewards), len(rewards))
        for rival in [world.sft, transfer.gibbs(world.sft, pooled, world.beta), *rivals]:
            assert exact.objective(rival, world.sft, rewards, world.beta) <= solved.bound + 1e-9
        # The worst group of every single response, as a reward, promises less.
        pessimist = tuple(np.min(levels, axis=0) for levels in zip(*rewards, strict=True))
        promised = world.beta * logsumexp(tree.law(world.sft) + tree.flat(pessimist) / world.beta)
        assert promised <= solved.value + 1e-5


def test_weighted_groups_are_equally_badly_off():
    for world in WORLDS:
        rewards = groups_of(world)
        solved = exact.game(world.sft, rewards, world.beta)
        expected = np.array([law(solved.policy) @ tree.flat(r) for r in rewards])
        assert solved.weights.sum() == pytest.approx(1.0)
        assert solved.weights.min() >= 0.0
        for w, e in zip(solved.weights, expected, strict=True):
            assert w < 1e-5 or e == pytest.approx(expected.min(), abs=1e-5)


def test_symmetries_of_the_game():
    for world in WORLDS:
        a, b, c = groups_of(world)
        solved = exact.game(world.sft, [a, b, c], world.beta)
        turned = exact.game(world.sft, [c, a, b], world.beta)
        assert law(turned.policy) == same(solved.policy)
        doubled = exact.game(world.sft, [a, b, c, b], world.beta)
        assert law(doubled.policy) == same(solved.policy)
        assert doubled.value == pytest.approx(solved.value, abs=1e-6)
        content = transfer.plus(a, tree.leaves(lambda _: 1000.0, vocab_size=a[0].shape[1], horizon=len(a)))
        assert law(exact.game(world.sft, [content, b, c], world.beta).policy) == same(
            exact.game(world.sft, [b, c], world.beta).policy
        )
        alone = exact.game(world.sft, [a], world.beta)
        assert law(alone.policy) == same(transfer.gibbs(world.sft, a, world.beta))
        assert tree.flat(exact.weighted([a, b, c], np.array([0.0, 1.0, 0.0]))) == pytest.approx(tree.flat(b))


def test_opposed_groups_leave_the_model_as_it_is():
    for world in WORLDS:
        mean = float(law(world.sft) @ tree.flat(world.reward))
        here = tuple(level - mean * (level * 0 + 1) for level in world.reward)
        # Inner nodes hold 0 by convention; only leaves are read.
        solved = exact.game(world.sft, [here, transfer.over(here, -1.0)], world.beta)
        if np.ptp(tree.flat(here)) > 0:
            assert solved.weights == pytest.approx([0.5, 0.5], abs=1e-4)
        leaves = np.stack([tree.flat(here), -tree.flat(here)], axis=1)
        answered = play(tree.law(world.sft), leaves, solved.weights, world.beta)
        assert answered.gap < 1e-9
        assert law(solved.policy) == same(world.sft)


def test_the_game_is_solved_for_any_number_of_groups_and_strength():
    rng = np.random.default_rng(1)
    for index in range(60):
        n, groups = int(rng.integers(1, 30)), int(rng.integers(1, 9))
        beta = float(np.exp(rng.uniform(np.log(0.02), np.log(10.0))))
        rewards = rng.normal(size=(n, groups)) * np.exp(rng.uniform(-5.0, 5.0))
        if index % 3 == 0:
            rewards = np.round(rewards)
        log_base = np.log(rng.dirichlet(np.ones(n)))
        assert worst_weights(log_base, rewards, beta).gap <= 1e-9 * max(float(np.ptp(rewards)), 1e-9)


def test_over_prompts_a_group_may_lose_here_what_it_gains_there():
    """The sole answer that pleases both a little loses to answers that please one of them wholly, each in its turn."""
    there = np.array([[[1.0, 0.0], [0.3, 0.3]], [[5.0, 6.0], [5.3, 5.3]]])
    log_base, beta = np.zeros((2, 2)), 0.1
    solved = worst_weights(log_base, there, beta)
    assert solved.weights == pytest.approx([0.5, 0.5])
    odds = np.exp((0.5 - 0.3) / beta)
    assert solved.expected == pytest.approx([2.5 + (0.5 * odds + 0.3) / (odds + 1)] * 2)
    assert solved.dual == pytest.approx(2.5 + beta * np.log((odds + 1) / 2) + 0.3)


def test_the_game_over_prompts_is_the_mean_of_theirs_and_its_solution_the_least():
    rng = np.random.default_rng(7)
    for _ in range(10):
        prompts, n, beta = int(rng.integers(1, 5)), int(rng.integers(2, 8)), float(rng.uniform(0.05, 2.0))
        rewards = rng.normal(size=(prompts, n, 2))
        log_base = np.log(rng.dirichlet(np.ones(n), size=prompts))
        solved = worst_weights(log_base, rewards, beta)
        assert solved.gap < 1e-9
        for first in np.linspace(0.0, 1.0, 11):
            weights = np.array([first, 1.0 - first])
            told = play(log_base, rewards, weights, beta)
            alone = [play(base, r, weights, beta) for base, r in zip(log_base, rewards, strict=True)]
            assert told.dual == pytest.approx(np.mean([one.dual for one in alone]))
            assert told.expected == pytest.approx(np.mean([one.expected for one in alone], axis=0))
            assert solved.dual <= told.dual + 1e-9
        twice = worst_weights(np.tile(log_base, (2, 1)), np.tile(rewards, (2, 1, 1)), beta)
        assert twice.weights == pytest.approx(solved.weights, abs=1e-5)


def test_prompts_with_fewer_usable_draws_count_as_much():
    rng = np.random.default_rng(3)
    full = rng.normal(size=(3, 4, 2))
    ragged = [full[0], full[1][:2], full[2], np.full((3, 2), np.nan)]
    blind = np.concatenate([full[1][:2], [[np.nan, 9.0], [9.0, -np.inf]]])
    found = weights_over_prompts(ragged, 0.5)
    assert weights_over_prompts([full[0], blind, full[2]], 0.5) == pytest.approx(found)
    doubled = np.stack([full[0], np.concatenate([full[1][:2], full[1][:2]]), full[2]])
    assert worst_weights(np.zeros((3, 4)), doubled, 0.5).weights == pytest.approx(found, abs=1e-6)
    with pytest.raises(OptionError, match="None of 1 prompts has a response that every group can judge"):
        weights_over_prompts(ragged[3:], 0.5)


# Rewards of groups


def toys(count=3, **options):
    return [ToyReward(seed=seed, low=-1.0, high=1.0, name=f"r{seed}", **options) for seed in range(count)]


async def scores(reward, texts=("", "A", "B", "AB", "BB")):
    return await reward.score(PROMPT, [Reply(text=text, complete=True) for text in texts])


async def columns(parts):
    return np.array([await scores(part) for part in parts]).T  # [texts, U]


async def test_soft_min_lies_between_minimum_and_mean():
    parts, prior = toys(), np.array([0.2, 0.5, 0.3])
    rows = await columns(parts)
    assert await scores(pointwise_min(parts)) == rows.min(axis=1).tolist()
    for kappa in (0.01, 0.3, 1.0, 5.0, 40.0, 3000.0):
        found = np.array(await scores(soft_min(parts, kappa, prior.tolist())))
        if kappa < 700:  # beyond, the formula as it is written overflows
            assert found == pytest.approx(-np.log(np.exp(-kappa * rows) @ prior) / kappa)
        assert np.all(rows.min(axis=1) <= found + 1e-15)
        assert np.all(found <= rows.min(axis=1) - np.log(prior[rows.argmin(axis=1)]) / kappa + 1e-12)
        assert np.all(found <= rows @ prior + 1e-12)
    assert await scores(soft_min(parts, 1e7)) == pytest.approx(rows.min(axis=1), abs=2e-7)
    assert await scores(soft_min(parts, 1e-7, prior.tolist())) == pytest.approx(rows @ prior, abs=1e-6)
    assert await scores(soft_min(parts, math.inf)) == rows.min(axis=1).tolist()


async def test_symmetries_of_soft_min():
    a, b, c = toys()
    for kappa in (0.5, 5.0, math.inf):
        found = pytest.approx(await scores(soft_min([a, b, c], kappa, [1, 2, 3])))
        assert await scores(soft_min([c, a, b], kappa, [3, 1, 2])) == found
        assert await scores(soft_min([a, b, c, b], kappa, [1, 1.5, 3, 0.5])) == found, "one group told as two"
        alone = await scores(soft_min([a, a], kappa))
        assert alone == pytest.approx(await scores(a))
    far = ToyReward(low=1000.0, high=1001.0)
    lost = [x + math.log(2) / 5.0 for x in await scores(a)]
    assert await scores(soft_min([a, far], 5.0)) == pytest.approx(lost), "a content group has no say but its prior"
    assert await scores(pointwise_min([a, far])) == await scores(a)


async def test_range_and_name_follow_the_groups():
    declared = [
        ToyReward(seed=seed, low=low, high=high, declared=True, name=f"r{seed}")
        for seed, low, high in ((0, -1.0, 2.0), (1, 0.0, 1.0), (2, -3.0, 5.0))
    ]
    assert pointwise_min(declared).range == (-3.0, 1.0)
    assert pointwise_min([*declared, *toys(1)]).range is None
    for kappa in (0.1, 2.0, 30.0):
        low, high = soft_min(declared, kappa).range
        assert -3.0 <= low < high <= (2.0 + 1.0 + 5.0) / 3
        assert all(low <= x <= high for x in await scores(soft_min(declared, kappa)))
    assert pointwise_min(toys(2)).name == "min(r0; r1)"
    assert soft_min(toys(2), 5.0).name == "soft_min[5](r0; r1)"
    assert game(toys(2), 0.5).name == "game[0.5](r0; r1)"
    assert clip(pointwise_min(toys(2)), 0.0, 0.5).range == (0.0, 0.5)
    assert list(reading(pointwise_min(declared), PROMPT)) == []


async def test_what_one_group_cannot_judge_is_judged_by_none():
    a, b, _ = toys(nan=frozenset(("A",)))
    good = ToyReward(low=5.0, high=6.0, declared=True)
    for parts in ([a, good], [good, a], [a, b]):
        for kappa in (1.0, math.inf):
            told = await scores(soft_min(parts, kappa))
            assert math.isnan(told[1])
            assert not any(math.isnan(x) for x in told[2:])
    hopeless = ToyReward({("B", True): -math.inf})
    assert (await scores(soft_min([good, hopeless], 3.0)))[2] == -math.inf
    with metering(Meter()) as meter:
        rewards = await Scorer(pointwise_min([a, good]), codec(3))(PROMPT, [(0, 2), (1, 2)])
    assert rewards[0] == -math.inf
    assert meter.usage().nan_rewards == 1


def test_groups_errors():
    with pytest.raises(OptionError, match="The groups have no reward; give at least one"):
        pointwise_min([])
    with pytest.raises(
        OptionError, match=r"prior=\[1.0, 0.0\] must hold one finite number above 0 for each of 2 groups"
    ):
        soft_min(toys(2), 1.0, [1.0, 0.0])
    with pytest.raises(OptionError, match=r"kappa=0.0 must be above 0; inf is the plain minimum"):
        soft_min(toys(2), 0.0)
    with pytest.raises(OptionError, match="needs a finite beta above 0 and at least one draw"):
        game(toys(2), -1.0)


async def test_every_method_takes_groups_as_its_reward():
    for seed in range(6):
        world = random_world(seed, horizon=4)
        one = Scorer(world.reward, world.codec)
        several = Scorer(pointwise_min([world.reward, world.reward]), world.codec)
        other = Scorer(pointwise_min([world.reward, ToyReward(seed=seed + 50)]), world.codec)
        options = {"sft": world.sft, "max_new_tokens": 4, "seed": seed}
        for method, more in (
            (best_of_n, {"n": 5}),
            (args, {"k": 3}),
            (transfer_q, {"baseline": world.sft, "k": 3}),
        ):
            runs = [
                ids_of(await steps_of(method(PROMPT, reward=reward, **options, **more)))
                for reward in (one, several, other)
            ]
            assert runs[0] == runs[1]


# The game of a prompt


async def test_weights_of_a_prompt_are_those_of_its_draws():
    """Without sampling error in the draws the weights are the exact ones."""
    world, beta = w1(Proportional)[0], 0.3
    tables = (
        {("A", False): 0.9, ("B", False): 0.1, ("", True): 0.2},
        {("A", False): 0.0, ("B", False): 0.8, ("", True): 0.3},
    )
    parts = [ToyReward(table) for table in tables]
    reward = Scorer(game(parts, beta, draws=10), world.codec)
    prepared = await weighted_for(PROMPT, reward, world.sft, max_new_tokens=1, seed=0)
    leaves = np.array([[world.r((z,), part) for part in parts] for z in range(3)])
    solved = worst_weights(world.sft.law(PROMPT.ids), leaves, beta)
    assert [w for w, _ in prepared.reward.parts] == pytest.approx(solved.weights, abs=1e-5)
    assert min(solved.weights) > 0.05, "an inner solution, or the test says little"
    assert [part for _, part in prepared.reward.parts] == parts


async def test_weights_of_a_prompt_approach_the_exact_ones():
    world, r_bl = w1()
    beta, n = 0.3, 2000
    p = dict(world.completions(world.sft, ()))
    leaves = np.array([[world.r(y, part) for part in (world.reward, r_bl)] for y in p])
    solved = worst_weights(np.log(list(p.values())), leaves, beta)
    reward = Scorer(game([world.reward, r_bl], beta, draws=n), world.codec)
    prepared = await weighted_for(PROMPT, reward, world.sft, max_new_tokens=2, seed=3)
    weights = np.array([w for w, _ in prepared.reward.parts])
    estimated = play(np.log(list(p.values())), leaves, weights, beta)
    assert estimated.dual - solved.dual < 4 * beta / n + 1e-3
    assert weights == pytest.approx(solved.weights, abs=0.1)


async def test_another_seed_draws_anew():
    world, r_bl = w1()
    reward = Scorer(game([world.reward, r_bl], 0.3, draws=7), world.codec)
    found = [
        [w for w, _ in (await weighted_for(PROMPT, reward, world.sft, max_new_tokens=2, seed=seed)).reward.parts]
        for seed in (0, 1, 0)
    ]
    assert found[0] == found[2] != found[1]


async def test_a_prompt_without_usable_draws_has_equal_weights():
    world, r_bl = w1()
    blind = ToyReward(nan=frozenset(("", "A", "B", "AA", "AB", "BA", "BB")))
    reward = Scorer(game([world.reward, blind], 0.3), world.codec)
    prepared = await weighted_for(PROMPT, reward, world.sft, max_new_tokens=2, seed=0)
    assert [w for w, _ in prepared.reward.parts] == [0.5, 0.5]
    partly = ToyReward(r_bl.table, nan=frozenset(("AA",)))
    reward = Scorer(game([world.reward, partly], 0.3), world.codec)
    prepared = await weighted_for(PROMPT, reward, world.sft, max_new_tokens=2, seed=0)
    noise = Noise(seed=0, purpose="game")
    drawn = await world.sft.continue_(PROMPT.ids, max_new_tokens=2, n=32, sampling=Sampling(), noise=noise)
    judged = [y.ids for y in drawn if y.ids != (0, 0)]
    assert 0 < len(judged) < 32
    leaves = np.array([[world.r(y, part) for part in (world.reward, r_bl)] for y in judged])
    expected = worst_weights(np.zeros(len(judged)), leaves, 0.3).weights
    assert [w for w, _ in prepared.reward.parts] == pytest.approx(expected, abs=1e-6)
    plain = Scorer(pointwise_min([world.reward]), world.codec)
    assert await weighted_for(PROMPT, plain, world.sft, max_new_tokens=2, seed=0) is plain


def test_a_game_is_a_function_of_prompt_and_seed_and_its_draws_are_paid_for():
    world, r_bl = w1()
    options = {"method": "best-of-n", "n": 3, "max_new_tokens": 2, "seed": 4}

    def aligner(reward):
        return Aligner(sft=world.sft, reward=reward, codec=world.codec)

    reward = game([world.reward, r_bl], 0.3, draws=6)
    alone = aligner(reward).generate("A", **options)
    company = aligner(reward).generate_many(["B", "A", "AB", "A"], **options)
    for other in (company[1], company[3], aligner(reward).generate("A", **options)):
        assert (other.ids, other.usage.lm_tokens, other.usage.rm_calls) == (
            alone.ids, alone.usage.lm_tokens, alone.usage.rm_calls,
        )  # fmt: skip
    plain = aligner(pointwise_min([world.reward, r_bl])).generate("A", **options)
    assert alone.usage.rm_calls == plain.usage.rm_calls + 2 * 6
    assert alone.usage.lm_tokens > plain.usage.lm_tokens
    assert alone.reward == min(world.r(alone.ids), world.r(alone.ids, r_bl))
    scored = [c.value for c in alone.steps[0].considered]
    drawn = [c.ids for c in alone.steps[0].considered]
    shares = {(v - world.r(y, r_bl)) / (world.r(y) - world.r(y, r_bl)) for v, y in zip(scored, drawn, strict=True)}
    assert max(shares) - min(shares) < 1e-9, "one weighting for the whole request"
    assert 0.0 < min(shares) < 1.0


def test_a_game_needs_room_in_the_model_that_it_draws_from():
    world, r_bl = w1()
    small = ToyModel.random(0, 3, max_context=2)
    aligner = Aligner(sft=small, baseline=world.sft, reward=game([world.reward, r_bl], 0.3, draws=2), codec=world.codec)
    options = {"method": "best-of-n", "model": "baseline", "n": 2}
    with pytest.raises(PromptError, match="The prompt has 1 tokens and 3 may follow, but toy 0 reads 2"):
        aligner.generate("A", max_new_tokens=3, **options)
    assert aligner.generate("A", max_new_tokens=1, **options).ids
