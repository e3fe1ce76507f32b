"""Greedy, sample and ARGS against enumeration."""

import numpy as np
import pytest

from alignstar.errors import NeedsError
from alignstar.meter import Meter, metering
from alignstar.methods.args import args
from alignstar.methods.plain import greedy, sample
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.sampling import Noise, Sampling
from worlds import PROMPT, by_id, ids_of, random_world, scorer, softmax, steps_of, w1

TWO = {"max_new_tokens": 2}
RESPONSES = ((2,), (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))


async def test_greedy_takes_the_best_token_whatever_the_seed():
    for seed in range(20):
        model = ToyModel.random(seed)
        ids = ids_of(await steps_of(greedy(PROMPT, sft=model, max_new_tokens=6, seed=seed)))
        for t, z in enumerate(ids):
            assert z == np.argmax(model.law(PROMPT.ids + ids[:t]))
        assert ids == ids_of(await steps_of(greedy(PROMPT, baseline=model, max_new_tokens=6)))
        cold = sample(PROMPT, sft=model, temperature=1e-6, max_new_tokens=6, seed=seed)
        assert ids == ids_of(await steps_of(cold))


async def test_sampling_follows_the_law():
    world, n = w1()[0], 3000
    p = dict(world.completions(world.sft, ()))
    counts = dict.fromkeys(RESPONSES, 0)
    for seed in range(n):
        counts[ids_of(await steps_of(sample(PROMPT, sft=world.sft, seed=seed, **TWO)))] += 1
    for response in RESPONSES:
        assert counts[response] / n == pytest.approx(p[response], abs=4 * np.sqrt(p[response] / n))


async def test_a_sample_is_one_draw_of_the_model_however_it_is_asked_for():
    model = ToyModel.random(3, 6)
    for seed in range(20):
        for sampling in (Sampling(), Sampling(temperature=0.7, top_k=3, top_p=0.8)):
            steps = await steps_of(
                sample(
                    PROMPT, sft=model, seed=seed, max_new_tokens=9, temperature=sampling.temperature,
                    top_k=sampling.top_k, top_p=sampling.top_p,
                )
            )  # fmt: skip
            drawn = await model.continue_(
                PROMPT.ids, max_new_tokens=9, sampling=sampling, noise=Noise(seed=seed, purpose="sample")
            )
            assert ids_of(steps) == drawn[0].ids
            assert [c.logp for s in steps for c in s.considered] == pytest.approx(drawn[0].logps.tolist())


async def test_roles():
    one, other = ToyModel.random(1), ToyModel.random(2)
    for model, expected in ((None, one), ("sft", one), ("baseline", other)):
        steps = await steps_of(greedy(PROMPT, sft=one, baseline=other, model=model))
        assert ids_of(steps) == ids_of(await steps_of(greedy(PROMPT, sft=expected)))
    with pytest.raises(NeedsError, match="method='greedy' needs the baseline model; give one with --baseline"):
        greedy(PROMPT, sft=one, model="baseline")


async def test_plain_cost():
    model = ToyModel.random(0, 6, eos_weight=1e-300)
    meter = Meter()
    with metering(meter):
        await steps_of(greedy(PROMPT, sft=model, max_new_tokens=7))
    assert (meter.usage().lm_tokens, meter.usage().sequential_steps) == (len(PROMPT.ids) + 6, 7)


async def test_args_law():
    world, _ = w1()
    reward = scorer(world.reward)
    steps = await steps_of(args(PROMPT, sft=world.sft, reward=reward, k=3, weight=2.0, **TWO))
    for t, step in enumerate(steps):
        state = ids_of(steps[:t])
        r = np.array([world.r((*state, z)) for z in range(3)])
        assert by_id(step) == pytest.approx(world.sft.law(PROMPT.ids + state) + 2.0 * r)
        assert step.emitted[0] == np.argmax(by_id(step))
    n, counts = 2500, np.zeros(3)
    p = softmax(by_id(steps[0]) / 0.7)
    for seed in range(n):
        drawn = args(PROMPT, sft=world.sft, reward=reward, k=3, weight=2.0, strategy="stochastic", seed=seed, **TWO)
        counts[(await anext(drawn)).emitted[0]] += 1
        await drawn.aclose()
    assert counts / n == pytest.approx(p, abs=4 * np.sqrt(0.25 / n))


async def test_args_limits():
    for seed in range(20):
        world = random_world(seed, horizon=6)
        options = {"sft": world.sft, "reward": scorer(world.reward, 4), "max_new_tokens": 6}
        plain = ids_of(await steps_of(greedy(PROMPT, sft=world.sft, max_new_tokens=6)))
        assert ids_of(await steps_of(args(PROMPT, weight=0.0, k=4, **options))) == plain
        assert ids_of(await steps_of(args(PROMPT, k=1, **options))) == plain
        best = ids_of(await steps_of(args(PROMPT, k=4, **options)))
        cold = args(PROMPT, k=4, strategy="stochastic", temperature=1e-9, **options)
        assert ids_of(await steps_of(cold)) == best
        moved = {**options, "reward": scorer(ToyReward(seed=seed, low=5.0, high=6.0), 4)}
        assert ids_of(await steps_of(args(PROMPT, k=4, **moved))) == best


async def test_args_cost():
    model = ToyModel.random(0, 6, eos_weight=1e-300)
    meter = Meter()
    with metering(meter):
        await steps_of(args(PROMPT, sft=model, reward=scorer(ToyReward(), 6), k=3, max_new_tokens=5))
    usage = meter.usage()
    assert (usage.lm_tokens, usage.rm_calls, usage.rm_tokens) == (len(PROMPT.ids) + 4, 15, len(PROMPT.text) + 15)
