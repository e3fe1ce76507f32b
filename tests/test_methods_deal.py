"""DeAL against Transfer Q*, exhaustive search and plain beam search by enumeration; what it streams and costs."""

import math

import numpy as np
import pytest

from alignstar.errors import NeedsError
from alignstar.meter import Meter, metering
from alignstar.methods.deal import deal, shared_start
from alignstar.methods.presets import PRESETS
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from worlds import PROMPT, ids_of, random_world, scorer, steps_of

CD_MINUS = {**PRESETS["cd-minus"].options, "acceleration": "off"}


async def run(world, **options):
    own = {"sft": world.sft, "reward": scorer(world.reward, world.vocab_size), "max_new_tokens": world.horizon}
    return await steps_of(deal(PROMPT, **{**own, **options}))


def c(world, ids, weight):
    """log P(y|x) + lambda h(y) of a complete response."""
    return sum(world.sft.law(PROMPT.ids + ids[:t])[z] for t, z in enumerate(ids)) + weight * world.r(ids)


@pytest.mark.parametrize("law", [{}, {"ties": True}, {"zeros": 0.3}, {"n_eos": 2}], ids=str)
@pytest.mark.parametrize("length", [0, 1, 3, None])
async def test_one_beam_is_cd_minus(law, length):
    """Token for token, with the values, lookaheads and near ties of every candidate; scores differ by log P so far."""
    for seed in range(60):
        world = random_world(seed, 4, 7, **law)
        ended = 1 if "n_eos" not in law else 2
        reward = scorer(ToyReward(seed=seed, nan=frozenset(("A", "AB", "BA", "C"))), 4, ended)
        options = {"k": 1 + seed % 5, "alpha": (0.2, 1.0, 5.0)[seed % 3], "rollout_len": length}
        found = await run(world, reward=reward, **options)
        expected = await steps_of(
            transfer_q(PROMPT, sft=world.sft, reward=reward, max_new_tokens=7, **{**CD_MINUS, **options})
        )
        before = 0.0
        for step, other in zip(found, expected, strict=True):
            assert (step.index, step.emitted, step.chosen, step.finish) == (
                other.index, other.emitted, other.chosen, other.finish
            )  # fmt: skip
            assert step.near_ties == other.near_ties
            for one, two in zip(step.considered, other.considered, strict=True):
                assert (one.ids, one.logp, one.value, one.future) == (two.ids, two.logp, two.value, two.future)
                assert one.score == pytest.approx(before + two.score, abs=1e-9)
            before += step.considered[step.chosen].logp


async def test_accelerated_cd_minus_gives_the_same_response():
    for seed in range(60):
        world = random_world(seed, 5, 8)
        reward = scorer(ToyReward(seed=seed, declared=True), 5)
        expected = transfer_q(
            PROMPT, sft=world.sft, reward=reward, max_new_tokens=8, **PRESETS["cd-minus"].options | {"rollout_len": 32}
        )
        assert ids_of(await run(world, reward=reward)) == ids_of(await steps_of(expected))


@pytest.mark.parametrize("weight", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("length", [0, None])
async def test_with_room_for_all_it_is_exhaustive_search(weight, length):
    for seed in range(25):
        world = random_world(seed, 3, 4)
        responses = [ids for ids, _ in world.completions(world.sft, ())]
        best = max(responses, key=lambda ids: c(world, ids, weight))
        steps = await run(world, beam=len(responses), k=3, rollout_len=length, weight=weight)
        assert ids_of(steps) == best
        assert steps[-1].considered[steps[-1].chosen].score == pytest.approx(c(world, best, weight), abs=1e-12)
        assert sorted(ids_of(steps[:-1]) + x.ids for x in steps[-1].considered) == sorted(responses)


def beam_search(world, beam, k):
    """Plain beam search that keeps what ended: the definition, over whole prefixes."""
    kept = [()]
    for _ in range(world.horizon):
        pool = [ids for ids in kept if ids and ids[-1] in world.sft.eos_ids]
        for ids in kept:
            if not ids or ids[-1] not in world.sft.eos_ids:
                law = world.sft.law(PROMPT.ids + ids)
                pool.extend((*ids, int(z)) for z in np.argsort(-law, kind="stable")[:k] if np.isfinite(law[z]))
        kept = sorted(pool, key=lambda ids: (-c(world, ids, 0.0), ids))[:beam]
    return kept


@pytest.mark.parametrize("beam", [1, 2, 3, 7])
@pytest.mark.parametrize("k", [1, 2, 9])
async def test_without_the_reward_it_is_beam_search(beam, k):
    found, greedy = [], []
    for seed in range(25):
        world = random_world(seed, 4, 5)
        found.append(ids_of(await run(world, beam=beam, k=k, weight=0.0)))
        assert found[-1] == beam_search(world, beam, k)[0]
        greedy.append(ids_of(await run(world, beam=1, k=k, weight=0.0)))
    assert (found == greedy) == (beam == 1 or k == 1)


async def test_more_beams_find_more():
    """Not in every world (a wide beam may drop the path of a narrow one), but on average; the full width always."""
    totals = {}
    for beam in (1, 2, 4, 40):
        worlds = [random_world(seed, 4, 4) for seed in range(30)]
        totals[beam] = sum([c(w, ids_of(await run(w, beam=beam, k=4, weight=4.0)), 4.0) for w in worlds])
    assert totals[1] < totals[2] < totals[40]
    assert totals[4] <= totals[40]


async def test_a_beam_that_ended_is_kept():
    """The response that ends at once is the best of all, though A is more probable at first and goes on longest."""
    table = {"": (0.5, 0.1, 0.4), "A": (0.4, 0.4, 0.2), "AA": (0.4, 0.4, 0.2), "AB": (0.4, 0.4, 0.2)}
    model = ToyModel.from_table(table, prompt=PROMPT.ids)
    steps = await steps_of(
        deal(PROMPT, sft=model, reward=scorer(ToyReward()), beam=2, k=3, weight=0.0, max_new_tokens=3)
    )
    assert [(s.emitted, s.finish) for s in steps] == [((2,), "stop")]
    assert {x.ids for x in steps[0].considered} >= {(2,), (0, 0, 0)}


@pytest.mark.parametrize("beam", [1, 2, 4])
async def test_only_what_all_beams_agree_on_is_emitted(beam):
    """Whatever is emitted at a time begins every response that the search could still give."""
    early = 0
    for seed in range(40):
        world = random_world(seed, 4, 7)
        steps = await run(world, beam=beam, k=3)
        assert [s.index for s in steps] == list(range(len(steps)))
        assert [s.finish is None for s in steps] == [True] * (len(steps) - 1) + [False]
        assert all(s.emitted for s in steps)
        assert steps[-1].considered
        for step in steps:
            if step.considered:
                assert step.considered[step.chosen].ids == step.emitted
        early += len(steps) > 1
    assert early
    assert shared_start([(1, 2, 3), (1, 2, 4, 5), (1, 2)]) == (1, 2)
    assert shared_start([(1, 2), (3,)]) == ()
    assert shared_start([(1, 2)]) == (1, 2)


async def test_a_constraint_is_met_where_that_is_possible():
    """A programmatic h, heavy enough: no letter B before the end, found by looking ahead to the end."""
    free = {("AAAA"[:n], ended): 1.0 for n in range(5) for ended in (True, False)}
    met = 0
    for seed in range(30):
        world = random_world(seed, 3, 4)
        reward = ToyReward(free, low=0.0, high=0.0)
        response = ids_of(await run(world, reward=scorer(reward), beam=8, k=3, weight=100.0))
        assert 1 not in response
        met += 1 in ids_of(await run(world, reward=scorer(reward), weight=0.0))
    assert met, "plain decoding meets the constraint everywhere: choose other worlds"


async def test_without_usable_rewards_it_is_beam_search_for_the_most_probable():
    for seed in range(20):
        world = random_world(seed, 4, 5)
        nothing = scorer(ToyReward(low=math.nan, high=math.nan), 4)
        for beam in (1, 3):
            steps = await run(world, reward=nothing, beam=beam, k=4)
            assert ids_of(steps) == beam_search(world, beam, 4)[0]


@pytest.mark.parametrize(("beam", "k", "length", "steps"), [(1, 3, 4, 6), (2, 3, 2, 5), (3, 2, 1, 5), (4, 4, 9, 4)])
async def test_cost_in_closed_form(beam, k, length, steps):
    """Per beam and step every candidate's lookahead once, the most probable one's known from the step before."""
    model = ToyModel.random(0, 6, eos_weight=1e-300)
    meter = Meter()
    with metering(meter):
        await steps_of(
            deal(
                PROMPT, sft=model, reward=scorer(ToyReward(), 6), beam=beam, k=k, rollout_len=length,
                max_new_tokens=steps,
            )
        )  # fmt: skip
    ahead = [min(length, steps - t - 1) for t in range(steps)]
    widths = [1]
    for _ in range(steps - 1):
        widths.append(min(beam, k * widths[-1]))
    tokens = len(PROMPT.ids) + k * ahead[0]
    for t in range(1, steps):
        tokens += widths[t] * ((k - 1) * ahead[t] + 1 - (ahead[t - 1] - ahead[t]))
    usage = meter.usage()
    assert usage.lm_tokens == tokens <= len(PROMPT.ids) + beam * k * steps * length
    assert usage.rm_calls == usage.candidates == k * sum(widths)


async def test_near_ties_reach_the_usage():
    seen = 0
    for seed in range(40):
        world = random_world(seed, 4, 6, ties=True)
        for beam in (1, 2, 5):
            meter = Meter()
            with metering(meter):
                steps = await run(world, beam=beam, k=3, weight=0.0)
            assert meter.usage().near_ties == sum(step.near_ties for step in steps)
            seen += meter.usage().near_ties
    assert seen


async def test_roles():
    world = random_world(1)
    with pytest.raises(NeedsError, match="method='deal' needs the baseline model"):
        await run(world, model="baseline")
    other = ToyModel.random(77)
    assert ids_of(await run(world, baseline=other, model="baseline")) == ids_of(
        await run(world, sft=None, baseline=other)
    )
