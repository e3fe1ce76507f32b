"""MaxMin, every state a game of the groups, against enumeration and against Transfer Q*."""

import numpy as np
import pytest

from alignstar.errors import NeedsError, OptionError
from alignstar.meter import Meter, metering
from alignstar.methods.maxmin import fair, maxmin
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.rewards.game import worst_weights
from alignstar.rewards.groups import GroupRewards, by_group
from alignstar.sampling import logsumexp
from worlds import PROMPT, by_id, codec, ids_of, random_world, softmax, steps_of, w1


def grouped(world, parts):
    return Scorer(GroupRewards(parts), world.codec)


def trace(steps):
    return [(step.emitted, [(c.ids, c.logp, c.score, c.value, c.future) for c in step.considered]) for step in steps]


@pytest.mark.parametrize("aggregate", ["game", "value_min"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"rollout_len": 0},
        {"rollout_strategy": "sample", "num_rollouts": 3, "rollout_len": None},
        {"selection": "sample", "selection_temperature": 0.5, "alpha": 0.3},
        {"candidate_rule": "full"},
    ],
)
async def test_one_group_is_transfer_q(aggregate, how):
    for seed in range(8):
        world = random_world(seed)
        options = {"baseline": world.sft, "reward": Scorer(world.reward, world.codec), "k": 3, "seed": seed}
        options |= {"max_new_tokens": 5, "rollout_len": 2} | how
        with metering(Meter()) as meter:
            steps = await steps_of(maxmin(PROMPT, aggregate=aggregate, **options))
        with metering(Meter()) as other:
            expected = await steps_of(transfer_q(PROMPT, acceleration="off", **options))
        assert trace(steps) == trace(expected)
        assert meter.usage() == other.usage()


async def test_every_state_is_the_exact_game_of_its_candidates():
    """The last step has exact values: weighted groups are equally badly off under the policy that scores make."""
    for seed in range(12):
        world = random_world(seed, vocab_size=4, horizon=2)
        parts = [world.reward, ToyReward(seed=seed + 30), ToyReward(seed=seed + 60, low=0.2)]
        alpha = 0.2
        steps = await steps_of(
            maxmin(PROMPT, sft=world.sft, reward=grouped(world, parts), k=4, alpha=alpha, max_new_tokens=2)
        )
        state = ids_of(steps[:1])
        if len(steps) < 2:
            continue
        logps = world.sft.law(PROMPT.ids + state)
        values = np.array([[world.r((*state, z), part) for part in parts] for z in range(4)])
        policy = softmax(by_id(steps[1], size=4))
        expected = policy @ values
        reached = expected.min() - alpha * float(policy @ (np.log(policy) - logps))
        for _ in range(20):  # F of any weighting is a bound on what any policy reaches
            weights = np.random.default_rng(seed).dirichlet(np.ones(3))
            assert reached <= alpha * logsumexp(logps + values @ weights / alpha) + 1e-9
        solved = worst_weights(logps, values, alpha)
        assert reached == pytest.approx(solved.dual, abs=1e-6)
        assert by_id(steps[1], size=4) == pytest.approx(logps + values @ solved.weights / alpha, abs=1e-6)


async def test_value_min_is_the_minimum_after_averaging():
    for seed in range(10):
        world = random_world(seed)
        parts = [world.reward, ToyReward(seed=seed + 30)]
        options = {"baseline": world.sft, "reward": grouped(world, parts), "max_new_tokens": 5, "rollout_len": None}
        once = await steps_of(maxmin(PROMPT, aggregate="value_min", **options))
        assert trace(once) == trace(await steps_of(transfer_q(PROMPT, acceleration="off", **options)))
        options |= {"rollout_strategy": "sample", "num_rollouts": 4, "seed": seed}
        later, sooner = maxmin(PROMPT, aggregate="value_min", **options), transfer_q(PROMPT, **options)
        a, b = (await anext(later)).considered, (await anext(sooner)).considered
        assert [c.future for c in a] == [c.future for c in b]
        assert all(x.value >= y.value - 1e-12 for x, y in zip(a, b, strict=True))
        assert any(x.value > y.value + 1e-12 for x, y in zip(a, b, strict=True))
        await later.aclose()
        await sooner.aclose()


@pytest.mark.parametrize("aggregate", ["game", "value_min"])
async def test_order_and_repetition_of_groups_change_nothing(aggregate):
    for seed in range(10):
        world = random_world(seed)
        a, b, c = world.reward, ToyReward(seed=seed + 30), ToyReward(seed=seed + 60)

        async def run(*parts, world=world):
            return await steps_of(
                maxmin(
                    PROMPT, sft=world.sft, reward=grouped(world, parts), aggregate=aggregate, alpha=0.3,
                    rollout_len=2, max_new_tokens=5,
                )
            )  # fmt: skip

        steps = await run(a, b, c)
        for others in ((c, a, b), (a, b, c, b), (a, b, c, ToyReward(low=900.0, high=901.0))):
            run_again = await run(*others)
            assert ids_of(run_again) == ids_of(steps)
            for x, y in zip(steps, run_again, strict=True):
                assert [k.score for k in x.considered] == pytest.approx([k.score for k in y.considered], abs=1e-4)


async def test_a_candidate_that_one_group_cannot_judge_loses():
    world, r_bl = w1()
    blind = ToyReward(r_bl.table, nan=frozenset(("A", "AA", "AB")))
    options = {"sft": world.sft, "rollout_len": None, "max_new_tokens": 2, "k": 3}
    for aggregate in ("game", "value_min"):
        steps = await steps_of(
            maxmin(PROMPT, reward=grouped(world, [world.reward, blind]), aggregate=aggregate, **options)
        )
        assert by_id(steps[0], "value")[0] == -np.inf
        assert steps[0].emitted != (0,)
        nothing = ToyReward(nan=frozenset(("", "A", "B", "AA", "AB", "BA", "BB")))
        with metering(Meter()) as meter:
            steps = await steps_of(
                maxmin(PROMPT, reward=grouped(world, [world.reward, nothing]), aggregate=aggregate, **options)
            )
        assert ids_of(steps) == (0, 0), "the most probable tokens"
        assert meter.usage().nan_rewards == 6
    assert fair(np.zeros(2), np.array([[1.0, 5.0], [-np.inf, 9.0]]), "game", 1.0) == pytest.approx([1.0, -np.inf])


async def test_all_groups_read_the_same_rollouts():
    model = ToyModel.random(0, 6, eos_weight=1e-300)
    usages = []
    for count in (1, 3):
        with metering(Meter()) as meter:
            await steps_of(
                maxmin(
                    PROMPT, sft=model, reward=Scorer(GroupRewards([ToyReward()] * count), codec(6)), k=3, rollout_len=2,
                    max_new_tokens=4, alpha=100.0,
                )
            )  # fmt: skip
        usages.append(meter.usage())
    assert usages[0].lm_tokens == usages[1].lm_tokens
    assert usages[1].rm_calls == 3 * usages[0].rm_calls == 3 * 3 * 4


def test_errors():
    world, _ = w1()
    reward = Scorer(world.reward, world.codec)
    with pytest.raises(NeedsError, match="method='maxmin' needs the baseline model; give one with --baseline"):
        maxmin(PROMPT, reward=reward)
    with pytest.raises(OptionError, match="num_rollouts=2 with greedy rollouts gives the same rollout 2 times"):
        maxmin(PROMPT, sft=world.sft, reward=reward, num_rollouts=2)
    assert [scorer.reward for scorer in by_group(reward)] == [world.reward]
