"""Transfer Q* against enumeration: the worked example, the exact laws, costs."""

import numpy as np
import pytest

from alignstar.meter import Meter, metering
from alignstar.methods.args import args
from alignstar.methods.plain import greedy
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.rewards import Scorer
from worlds import PROMPT, Proportional, by_id, ids_of, random_world, scorer, softmax, steps_of, w1

FULL = {"rollout_len": None, "max_new_tokens": 2, "k": 3}
A, B, E = 0, 1, 2


async def run(world, *, sft=None, baseline=None, baseline_reward=None, reward=None, **options):
    rewards = {
        "reward": Scorer(reward or world.reward, world.codec),
        "baseline_reward": None if baseline_reward is None else Scorer(baseline_reward, world.codec),
    }
    options = {"max_new_tokens": world.horizon, **options}
    return await steps_of(transfer_q(PROMPT, sft=sft, baseline=baseline, **rewards, **options))


def trace(steps):
    return [(step.emitted, [(c.ids, c.logp, c.score, c.value) for c in step.considered]) for step in steps]


def six(*numbers):
    return pytest.approx(np.array(numbers), abs=6e-7)


@pytest.mark.parametrize(
    ("options", "response", "root", "a"),
    [
        ({"transfer": "direct"}, (A, A), (-0.275059, -1.405800, -1.855902), (0.024622, -1.068525, -2.967137)),
        (
            {"indirect_mode": "unnormalised"},
            (A, B),
            (-0.425740, -1.475680, -1.855902),
            (-0.126059, 1.986675, -2.770408),
        ),
        ({}, (A, B), (-1.675059, -2.605800, -2.855902), (-1.375378, 0.331475, -2.567137)),
    ],
)
async def test_worked_example_with_the_other_baseline(options, response, root, a):
    world, r_bl = w1()
    baseline = world.gibbs(0.5, r_bl)
    steps = await run(world, baseline=baseline, baseline_reward=r_bl, beta=0.5, **FULL, **options)
    assert ids_of(steps) == response
    assert by_id(steps[0]) == six(*root)
    assert by_id(steps[1]) == six(*a)


async def test_worked_example_with_the_right_baseline():
    world, _ = w1()
    steps = await run(world, baseline=world.gibbs(0.5), **FULL)
    assert ids_of(steps) == (A, B)
    assert by_id(steps[0]) == six(0.537940, -0.622679, -2.582633)
    assert by_id(steps[1]) == six(-1.115108, 0.591745, -2.306868)
    assert [c.future for c in steps[0].considered] == [(B,), (E,), ()]


async def test_the_last_step_is_the_exact_policy():
    world, _ = w1()
    steps = await run(world, baseline=world.gibbs(0.5), **FULL)
    assert softmax(by_id(steps[1])) == six(0.146729, 0.808711, 0.044560)


async def test_sampled_rollouts_are_unbiased():
    world, _ = w1()
    n = 3000
    steps = await run(world, baseline=world.gibbs(0.5), rollout_strategy="sample", num_rollouts=n, **FULL)
    assert by_id(steps[0], "value") == pytest.approx([0.745196, 0.558716, 0], abs=4 * 0.5 / np.sqrt(n))


MANY = {**FULL, "rollout_strategy": "sample", "num_rollouts": 2000, "beta": 0.5, "log_weight_clip": None}
EXACT_VALUES = pytest.approx([0.745196, 0.558716, 0], abs=0.004)
EXACT_POLICY = pytest.approx([0.692136, 0.268455, 0.039410], abs=0.004)


async def test_many_rollouts_give_the_exact_policy():
    world, r_bl = w1(Proportional)
    steps = await run(world, baseline=world.gibbs(0.5, kind=Proportional), **MANY)
    assert by_id(steps[0], "value") == EXACT_VALUES
    assert softmax(by_id(steps[0])) == EXACT_POLICY
    # Indirect transfer from another baseline reaches the same policy: pi_BL M exp(TQ) is pi_r exp(TQ).
    other = world.gibbs(0.5, r_bl, kind=Proportional)
    steps = await run(world, baseline=other, baseline_reward=r_bl, **MANY)
    assert np.exp(by_id(steps[0], "log_m")) == pytest.approx([0.770844, 1.009900, 0.367879], abs=0.004)
    assert by_id(steps[0], "value") == EXACT_VALUES
    assert softmax(by_id(steps[0])) == EXACT_POLICY


@pytest.mark.parametrize(
    "proposal",
    [{}, {"rollout_temperature": 1.7}, {"rollout_model": "sft"}, {"rollout_model": "sft", "rollout_temperature": 2.0}],
)
async def test_whatever_law_rollouts_are_drawn_from_is_corrected(proposal):
    world, r_bl = w1(Proportional)
    models = {"sft": world.sft, "baseline": world.gibbs(0.5, r_bl, kind=Proportional)}
    steps = await run(world, **models, baseline_reward=r_bl, **MANY, **proposal)
    assert np.exp(by_id(steps[0], "log_m")) == pytest.approx([0.770844, 1.009900, 0.367879], abs=0.01)
    assert by_id(steps[0], "value") == EXACT_VALUES
    # The implicit form needs no assumption on the baseline; its base policy is pi_sft, its M the SFT model's.
    steps = await run(world, **models, implicit_baseline_reward=True, **MANY, **proposal)
    assert by_id(steps[0], "value") == EXACT_VALUES
    assert softmax(by_id(steps[0])) == EXACT_POLICY


async def test_global_and_unnormalised_modes():
    world, r_bl = w1()
    other = world.gibbs(0.5, r_bl, kind=Proportional)
    published = np.array([0.574430, 0.564247, 0.0])
    steps = await run(world, baseline=other, baseline_reward=r_bl, indirect_mode="unnormalised", **MANY)
    assert by_id(steps[0], "value") == pytest.approx(published, abs=0.004)
    assert by_id(steps[1], "value") == pytest.approx([0.049319, 4.055200, 0.596730], abs=1e-6)
    # Z of the prompt is estimated by whole responses drawn from the baseline: greedily there is one, AA.
    steps = await run(
        world, baseline=world.gibbs(0.5, r_bl), baseline_reward=r_bl, indirect_mode="global", beta=0.5, **FULL
    )
    z = np.exp((0.2 - 0.9) / 0.5)
    assert by_id(steps[1], "value") == pytest.approx(np.array([0.049319, 4.055200, 0.596730]) / z, rel=1e-5)
    sampled = {**MANY, "num_rollouts": 1, "normaliser_rollouts": 3000}
    steps = await run(world, baseline=world.gibbs(0.5, r_bl), baseline_reward=r_bl, indirect_mode="global", **sampled)
    response = (*steps[0].emitted, A)
    estimated = np.exp(by_id(steps[1], "log_m")[A]) * world.r(response) / by_id(steps[1], "value")[A]
    assert estimated == pytest.approx(0.760888, abs=4 * 1.209 / np.sqrt(3000))  # 1.209: sd of exp(Delta / beta)


async def test_the_choice_follows_the_law_of_rollouts_and_selection():
    """Rollouts and choice are independent draws: the first token's law, by enumeration of the rollouts."""
    world, _ = w1()
    baseline, n = world.gibbs(0.5), 2500
    logps = baseline.law(PROMPT.ids)
    outcomes = [[(p, world.r(ids)) for ids, p in world.completions(baseline, (z,))] for z in range(3)]
    exact = np.zeros(3)
    for pa, ra in outcomes[A]:
        for pb, rb in outcomes[B]:
            exact += pa * pb * softmax(logps + np.array([ra, rb, outcomes[E][0][1]]) / 0.5)
    counts = np.zeros(3)
    for seed in range(n):
        options = {**FULL, "alpha": 0.5, "rollout_strategy": "sample", "selection": "sample", "seed": seed}
        generator = transfer_q(PROMPT, baseline=baseline, reward=scorer(world.reward), **options)
        counts[(await anext(generator)).emitted[0]] += 1
        await generator.aclose()
    assert counts / n == pytest.approx(exact, abs=4 * np.sqrt(0.25 / n))


async def test_strength_limits():
    world = random_world(3)
    baseline = ToyModel.random(9)
    for base, model in (("baseline", baseline), ("sft", world.sft)):
        options = {"sft": world.sft, "baseline": baseline, "base_policy": base, "k": 4, "rollout_len": None}
        weak = await run(world, alpha=1e9, **options)
        assert by_id(weak[0], size=4) == pytest.approx(model.law(PROMPT.ids), abs=1e-8)
        strong = await run(world, alpha=1e-6, **options)
        assert strong[0].chosen == max(range(4), key=lambda i: strong[0].considered[i].value)
        tied = await run(world, reward=ToyReward(low=0.5, high=0.5), alpha=1e-6, **options)
        scores = by_id(tied[0], size=4)
        assert softmax(scores) == pytest.approx(np.exp(model.law(PROMPT.ids)), abs=1e-6)


async def test_k_1_is_greedy_and_rollout_len_0_is_args():
    for seed in range(20):
        world = random_world(seed, horizon=8)
        steps = await run(world, baseline=world.sft, k=1)
        plain = await steps_of(greedy(PROMPT, sft=world.sft, max_new_tokens=8))
        assert ids_of(steps) == ids_of(plain)
        assert steps[-1].finish == plain[-1].finish
        steps = await run(world, baseline=world.sft, k=3, rollout_len=0, weight=1.5)
        short = args(PROMPT, sft=world.sft, reward=Scorer(world.reward, world.codec), k=3, weight=1.5, max_new_tokens=8)
        assert trace(steps) == trace(await steps_of(short))


async def test_baseline_limits():
    """A baseline of no strength is the SFT model; one of endless strength rolls out the best there is."""
    world, _ = w1()
    sampled = {**FULL, "rollout_strategy": "sample", "num_rollouts": 50}
    weak = await run(world, baseline=world.gibbs(1e9), **sampled)
    plain = await run(world, baseline=world.sft, **sampled)
    assert by_id(weak[0]) == pytest.approx(by_id(plain[0]), abs=1e-6)
    strong = await run(
        world,
        baseline=world.gibbs(0.01),
        alpha=1e9,
        candidate_source="sft",
        base_policy="sft",
        sft=world.sft,
        **sampled,
    )
    assert by_id(strong[0], "value") == pytest.approx([1.0, 0.8, 0.0], abs=1e-9)


async def test_baseline_in_the_place_of_sft_is_cd_minus():
    for seed in range(10):
        world = random_world(seed)
        options = {"k": 3, "rollout_len": 3, "seed": seed, "rollout_strategy": "sample", "selection": "sample"}
        cd = {"candidate_source": "sft", "base_policy": "sft", "rollout_model": "sft", "transfer": "direct"}
        one = await run(world, baseline=world.sft, **options)
        assert trace(one) == trace(await run(world, sft=world.sft, **cd, **options))


async def test_constants_and_scales_change_nothing_in_direct_transfer():
    for seed in range(20):
        world = random_world(seed)
        moved = ToyReward({}, seed=seed, low=3.0, high=4.0)
        wide = ToyReward({}, seed=seed, low=0.0, high=4.0)
        plain = await run(world, baseline=world.sft, k=3, rollout_len=2)
        shifted = await run(world, baseline=world.sft, k=3, rollout_len=2, reward=moved)
        scaled = await run(world, baseline=world.sft, k=3, rollout_len=2, reward=wide, alpha=4.0)
        assert ids_of(plain) == ids_of(shifted) == ids_of(scaled)


@pytest.mark.parametrize("mode", ["snis", "unnormalised", "global"])
@pytest.mark.parametrize(("strategy", "n"), [("greedy", 1), ("sample", 1), ("sample", 3)])
async def test_the_same_reward_makes_indirect_direct(mode, strategy, n):
    for seed in range(5):
        world = random_world(seed)
        options = {"k": 3, "rollout_len": 3, "rollout_strategy": strategy, "num_rollouts": n, "seed": seed}
        options |= {"selection": "sample"}
        direct = await run(world, baseline=world.sft, **options)
        same = await run(
            world, baseline=world.sft, baseline_reward=world.reward, indirect_mode=mode, transfer="indirect", **options
        )
        assert ids_of(direct) == ids_of(same)
        for one, other in zip(direct, same, strict=True):
            assert by_id(one, size=4) == pytest.approx(by_id(other, size=4), nan_ok=True)


async def test_one_rollout_puts_all_the_weight_into_m():
    world, r_bl = w1()
    steps = await run(world, baseline=world.gibbs(0.5, r_bl), baseline_reward=r_bl, beta=0.5, **FULL)
    for candidate in steps[0].considered:
        delta = world.r(candidate.ids + candidate.future) - world.r(candidate.ids + candidate.future, r_bl)
        assert candidate.log_m == pytest.approx(delta / 0.5)
        assert candidate.ess == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
async def test_monotone_improvement(alpha):
    """Full greedy rollouts of the base policy: the winner's reward never falls, and is the text's own at the end."""
    for seed in range(40):
        world = random_world(seed, horizon=6, eos_weight=0.3)
        steps = await run(world, baseline=world.sft, k=1 + seed % 4, alpha=alpha, rollout_len=None)
        won = [step.considered[step.chosen].value for step in steps]
        plain = await steps_of(greedy(PROMPT, sft=world.sft, max_new_tokens=6))
        assert won == sorted(won)
        assert won[0] >= world.r(ids_of(plain))
        assert won[-1] == world.r(ids_of(steps))


async def test_winner_protection_makes_any_base_monotone():
    fell = 0
    for seed in range(60):
        world = random_world(seed, horizon=6, eos_weight=0.3)
        options = {"sft": ToyModel.random(seed + 1000), "baseline": world.sft, "base_policy": "sft", "k": 2}
        options |= {"candidate_source": "sft"}
        steps = await run(world, winner_protection=True, **options)
        won = [step.considered[step.chosen].value for step in steps]
        assert won == sorted(won)
        assert won[-1] == world.r(ids_of(steps))
        free = await run(world, rollout_len=None, **options)
        won = [step.considered[step.chosen].value for step in free]
        fell += won != sorted(won)
    assert fell > 0


async def test_the_best_rollout_can_be_returned():
    replaced = 0
    for seed in range(40):
        world = random_world(seed, horizon=5, eos_weight=0.5)
        options = {"baseline": world.sft, "k": 3, "rollout_len": None, "alpha": 5.0}
        plain, best = await run(world, **options), await run(world, return_best_rollout=True, **options)
        seen = [world.r(ids_of(plain[: step.index]) + c.ids + c.future) for step in plain for c in step.considered]
        assert world.r(ids_of(best)) == max(seen)
        assert [s.finish is None for s in best] == [True] * (len(best) - 1) + [False]
        replaced += best[-1].replaces
        if best[-1].replaces:
            assert best[-1].finish == ("stop" if ids_of(best)[-1] == 3 else "length")
        else:
            assert trace(best) == trace(plain)
    assert 0 < replaced < 40


async def test_what_is_returned_is_well_formed():
    for seed in range(40):
        world = random_world(seed, horizon=6)
        steps = await run(
            world, baseline=world.sft, k=1 + seed % 5, rollout_len=seed % 4, selection="sample", seed=seed
        )
        ids = ids_of(steps)
        assert len(ids) == len(steps) <= 6
        assert all(z not in world.sft.eos_ids for z in ids[:-1])
        assert steps[-1].finish == ("stop" if ids[-1] in world.sft.eos_ids else "length")
        assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)


def endless(vocab_size=6, seed=0):
    """A model that never ends by itself."""
    return ToyModel.random(seed, vocab_size, eos_weight=1e-300)


@pytest.mark.parametrize(("k", "length", "steps"), [(3, 4, 6), (1, 3, 5), (4, 1, 7), (2, 7, 3)])
async def test_cost_in_closed_form(k, length, steps):
    """Shared prefix, free main step and reuse of the winner's rollout: P + kL + (T-1)((k-1)L + 1) tokens."""
    meter = Meter()
    with metering(meter):
        done = await steps_of(
            transfer_q(
                PROMPT, baseline=endless(), reward=scorer(ToyReward(), 6), k=k, rollout_len=length,
                rollout_past_max=True, max_new_tokens=steps, acceleration="off",
            )
        )  # fmt: skip
    usage = meter.usage()
    assert len(done) == steps
    assert usage.lm_tokens == len(PROMPT.ids) + k * length + (steps - 1) * ((k - 1) * length + 1)
    assert usage.rm_calls == k * steps
    # At k = 1 every rollout is known but for its last token.
    assert usage.sequential_steps == 1 + (steps * length if k > 1 else length + steps - 1)


async def test_cost_of_unshared_rollouts_is_bounded_by_the_formula():
    meter = Meter()
    options = {"k": 3, "num_rollouts": 2, "rollout_len": 4, "rollout_strategy": "sample", "rollout_past_max": True}
    with metering(meter):
        await steps_of(
            transfer_q(PROMPT, baseline=endless(), reward=scorer(ToyReward(), 6), max_new_tokens=5, **options)
        )
    assert meter.usage().lm_tokens <= len(PROMPT.ids) + 2 * 3 * 5 * 4
