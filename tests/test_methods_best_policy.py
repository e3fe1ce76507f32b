"""The best policy for the worst group: against the definition, enumeration, and the methods that it reduces to."""

import numpy as np
import pytest

from alignstar.meter import Meter, metering
from alignstar.methods.best_policy import best_policy, fairness
from alignstar.methods.plain import sample
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.rewards.groups import GroupRewards
from alignstar.sampling import Noise, Sampling
from worlds import PROMPT, codec, ids_of, random_world, scorer, steps_of, toy_table


async def one(sft, baseline, parts, *, size, **options):
    """The single step."""
    reward = Scorer(GroupRewards(parts), codec(size))
    options = {"max_new_tokens": 5, **options}
    (step,) = await steps_of(best_policy(PROMPT, sft=sft, baseline=baseline, reward=reward, **options))
    assert step.emitted == step.considered[step.chosen].ids
    return step


def groups_of(world, seed, count=3):
    return [world.reward, *(ToyReward(seed=seed + 30 * u) for u in range(1, count))]


@pytest.mark.parametrize("strategy", [{}, {"temperature": 0.6, "top_k": 3}, {"top_p": 0.8}])
async def test_it_is_the_policy_whose_smallest_mean_is_largest(strategy):
    """Of the very draws that the models give for the seed; the response is the first draw, that of `sample`."""
    chosen = []
    for seed in range(30):
        world, other = random_world(seed), ToyModel.random(seed + 500)
        parts = groups_of(world, seed)
        step = await one(world.sft, other, parts, size=4, n=5, seed=seed, **strategy)
        worst = []
        for j, model in enumerate((world.sft, other)):
            noise = Noise(seed=seed, purpose="sample")
            rows = await model.continue_(PROMPT.ids, max_new_tokens=5, n=5, sampling=Sampling(**strategy), noise=noise)
            assert [c.ids for c in step.considered[5 * j : 5 * j + 5]] == [row.ids for row in rows]
            worst.append(min(np.mean([world.r(row.ids, part) for row in rows]) for part in parts))
        assert [c.score for c in step.considered] == pytest.approx(np.repeat(worst, 5).tolist(), abs=1e-12)
        best = int(np.argmax(worst))
        assert step.chosen == 5 * best
        model = (world.sft, other)[best]
        drawn = await steps_of(sample(PROMPT, sft=model, max_new_tokens=5, seed=seed, **strategy))
        assert step.emitted == ids_of(drawn)
        chosen.append(best)
    assert 0 < sum(chosen) < 30


async def test_with_many_draws_it_is_the_best_policy_by_enumeration():
    """Wherever the two policies are four standard errors apart."""
    decided = 0
    for seed in range(30):
        world, other, n = random_world(seed), ToyModel.random(seed + 500), 800
        parts = groups_of(world, seed, 2)
        exact = [
            min(sum(p * world.r(ids, part) for ids, p in world.completions(model, ())) for part in parts)
            for model in (world.sft, other)
        ]
        if abs(exact[0] - exact[1]) < 4 * np.sqrt(2 * 0.25 / n):  # rewards lie between 0 and 1
            continue
        step = await one(world.sft, other, parts, size=4, n=n, seed=seed)
        assert step.chosen == n * int(np.argmax(exact))
        decided += 1
    assert decided >= 6


async def test_a_policy_may_please_the_groups_in_turn():
    """Half A, half B is 0.5 for either group, though every single response is 0 for one of them; E is 0.4 for both."""
    turns = ToyModel.from_table({"": (0.5, 0.5, 0.0)}, prompt=PROMPT.ids)
    always = ToyModel.from_table({"": (0.0, 0.0, 1.0)}, prompt=PROMPT.ids)
    parts = [toy_table({"A": 1.0, "B": 0.0, "E": 0.4}, "a"), toy_table({"A": 0.0, "B": 1.0, "E": 0.4}, "b")]
    for seed in range(5):
        step = await one(always, turns, parts, size=3, n=400, seed=seed, max_new_tokens=1)
        assert step.chosen == 400
        assert step.considered[400].score == pytest.approx(0.5, abs=4 * 0.5 / 20)
        assert {c.value for c in step.considered[400:]} == {0.0}
        assert {c.value for c in step.considered[:400]} == {0.4}


async def test_one_draw_of_one_group_is_the_better_of_two_responses():
    for seed in range(20):
        world, other = random_world(seed), ToyModel.random(seed + 500)
        found = await one(world.sft, other, [world.reward], size=4, n=1, seed=seed)
        drawn = [sample(PROMPT, sft=model, max_new_tokens=5, seed=seed) for model in (world.sft, other)]
        responses = [ids_of(await steps_of(steps)) for steps in drawn]
        assert found.emitted == max(responses, key=world.r)  # the first one on ties
        plain = best_policy(
            PROMPT, sft=world.sft, baseline=other, reward=scorer(world.reward, 4), n=1, max_new_tokens=5, seed=seed
        )
        assert (await steps_of(plain)) == [found]


async def test_order_and_repetition_of_groups_change_nothing():
    for seed in range(10):
        world, other = random_world(seed), ToyModel.random(seed + 500)
        a, b, c = groups_of(world, seed)
        found = await one(world.sft, other, [a, b, c], size=4, seed=seed)
        for parts in ([c, a, b], [a, b, c, b], [a, b, c, ToyReward(low=900.0, high=901.0)]):
            assert await one(world.sft, other, parts, size=4, seed=seed) == found


async def test_equal_policies_are_no_doubt_and_the_first_one_answers():
    world = random_world(3)
    step = await one(world.sft, world.sft, groups_of(world, 3), size=4)
    assert (step.chosen, step.near_ties) == (0, 0)
    two = [ToyModel.from_table({"": row}, prompt=PROMPT.ids) for row in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))]
    same = toy_table({"A": 0.5, "B": 0.5}, "same")
    step = await one(*two, [same], size=3, max_new_tokens=1)
    assert (step.emitted, step.near_ties) == ((0,), 1)


async def test_what_a_group_cannot_judge_is_left_out():
    """Of the mean and of the choice; a policy with nothing left loses, and of two such the first one answers."""
    model = ToyModel.from_table({"": (0.5, 0.5, 0.0)}, prompt=PROMPT.ids)
    poor = ToyModel.from_table({"": (0.0, 0.0, 1.0)}, prompt=PROMPT.ids)
    clear = toy_table({"A": 1.0, "B": 0.5, "E": 0.1}, "clear")
    blind = ToyReward({("A", False): 1.0, ("B", False): 1.0, ("", True): 1.0}, nan=frozenset(("A",)))
    for seed in range(8):
        step = await one(poor, model, [clear, blind], size=3, n=6, seed=seed, max_new_tokens=1)
        assert step.emitted == (1,)
        assert step.considered[6].score == 0.5
        assert step.chosen == 6 + [c.ids for c in step.considered[6:]].index((1,))
    nothing = ToyReward(nan=frozenset(("", "A", "B")))
    step = await one(poor, model, [clear, nothing], size=3, n=6, max_new_tokens=1)
    assert (step.chosen, step.emitted) == (0, (2,))
    assert fairness(np.zeros((0, 2))) == -np.inf


async def test_cost_in_closed_form():
    """Prompt and n responses of both models, every group's reward of every response."""
    models = [ToyModel.random(seed, 6, eos_weight=1e-300) for seed in (1, 2)]
    with metering(Meter()) as meter:
        await one(*models, [ToyReward(seed=1), ToyReward(seed=2)], size=6, n=3, max_new_tokens=8)
    usage = meter.usage()
    assert usage.rm_calls == 2 * 2 * 3
    assert usage.lm_tokens <= 2 * (len(PROMPT.ids) + 3 * 7)
    assert usage.sequential_steps == 8
