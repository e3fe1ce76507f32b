"""The toy model, codec and reward: the contract of every backend, and what makes them worth testing methods with."""

import math

import numpy as np
import pytest

import contract
from alignstar.errors import ModelError, PromptError
from alignstar.meter import Meter, metering, together
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward, letters_to_ids
from alignstar.sampling import Noise, Sampling
from alignstar.types import Message, Prompt, Reply

MODELS = {
    "plain": ToyModel.random(1, 5),
    "short memory": ToyModel.random(2, 6, order=2, temperature=0.7),
    "ends early": ToyModel.random(3, 4, eos_weight=6.0),
    "ties": ToyModel.random(4, 6, ties=True),
    "zeros": ToyModel.random(5, 6, zeros=0.3, ties=True),
    "two ends": ToyModel.random(6, 5, n_eos=2),
    "table": ToyModel.from_table({"A": (0.5, 0.3, 0.0, 0.2), "AB": (0.25, 0.25, 0.25, 0.25)}),
}
PREFIXES = ((0, 1), (1, 0, 0), (0, 0, 1), (2,))


@pytest.mark.parametrize("law", contract.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", MODELS)
async def test_contract(name, law):
    await law(MODELS[name], PREFIXES, 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_trajectories_are_all_of_them(name):
    model = MODELS[name]
    found = dict(model.trajectories((0, 1), 4))
    assert math.fsum(math.exp(logp) for logp in found.values()) == pytest.approx(1.0, abs=1e-12)
    for ids, logp in found.items():
        assert len(ids) == 4 or ids[-1] in model.eos_ids
        assert not any(z in model.eos_ids for z in ids[:-1])
        assert logp == pytest.approx(sum(model.law((0, 1, *ids[:j]))[z] for j, z in enumerate(ids)), abs=1e-12)


async def test_whole_responses_follow_the_trajectory_law():
    model = MODELS["ends early"]
    n = 1000
    rows = await model.continue_(
        (0, 1), max_new_tokens=3, n=n, sampling=Sampling(), noise=Noise(seed=7, purpose="sample")
    )
    counts = {ids: 0 for ids, _ in model.trajectories((0, 1), 3)}
    for row in rows:
        counts[row.ids] += 1
    for ids, logp in model.trajectories((0, 1), 3):
        p = math.exp(logp)
        if n * p * (1 - p) >= 5:
            assert abs(counts[ids] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_laws_depend_on_what_they_should():
    short = ToyModel.random(1, 4, order=2)
    assert np.array_equal(short.law((0, 1, 2)), short.law((3, 3, 1, 2)))
    assert not np.array_equal(short.law((0, 1, 2)), short.law((0, 2, 2)))
    whole = ToyModel.random(1, 4)
    assert not np.array_equal(whole.law((0, 1, 2)), whole.law((3, 1, 2)))
    assert np.array_equal(whole.law((0, 1)), ToyModel.random(1, 4).law((0, 1)))
    assert not np.array_equal(whole.law((0, 1)), ToyModel.random(2, 4).law((0, 1)))


def test_knobs_do_what_they_say():
    states = [(a, b) for a in range(4) for b in range(4)]

    def ending(**options):
        return np.mean([np.exp(ToyModel.random(1, 4, **options).law(s)[3]) for s in states])

    assert ending(eos_weight=10.0) > 2 * ending()
    assert ending(eos_weight=0.1) < ending() / 2

    def peak(temperature):
        return np.mean([np.max(np.exp(ToyModel.random(1, 4, temperature=temperature).law(s))) for s in states])

    assert peak(0.3) > peak(1.0) > peak(3.0)
    tied = [ToyModel.random(1, 4, ties=True).law(s) for s in states]
    assert sum(len(set(law.tolist())) < 4 for law in tied) > len(states) / 2
    holes = [ToyModel.random(1, 4, zeros=0.4).law(s) for s in states]
    assert any(np.isneginf(law).any() for law in holes)
    assert all(np.exp(law).sum() == pytest.approx(1.0) for law in holes)


async def test_exact_ties_go_to_the_lower_id_and_are_counted():
    model = ToyModel.from_table({"A": (0.2, 0.3, 0.3, 0.2)})
    (row,) = await model.continue_((0,), max_new_tokens=1)
    assert row.ids == (1,)
    assert row.near_ties == 1
    assert (await model.top_next((0,), 1)).near_tie
    assert not (await model.top_next((0,), 2)).near_tie
    assert (await model.top_next((0,), 3)).ids.tolist() == [1, 2, 0]


async def test_impossible_tokens_are_never_told_or_drawn():
    model = ToyModel.from_table({"A": (0.0, 1.0, 0.0), "AB": (0.5, 0.0, 0.5)})
    assert (await model.top_next((0,))).ids.tolist() == [1]
    assert (await model.next_logprobs((0,), np.arange(3))).tolist() == [-np.inf, 0.0, -np.inf]
    rows = await model.continue_(
        (0,), max_new_tokens=2, n=20, sampling=Sampling(), noise=Noise(seed=1, purpose="sample")
    )
    assert {row.ids for row in rows} == {(1, 0), (1, 2)}


async def test_no_tokens_cost_nothing():
    with metering(Meter()) as meter:
        (row,) = await MODELS["plain"].continue_((0, 1), max_new_tokens=0, top=2)
        assert row.ids == ()
        assert len(row.logps) == 0
        assert not row.ended
        assert row.tops == ()
        assert meter.usage().lm_tokens == meter.usage().sequential_steps == 0


async def test_cost_of_rollouts_from_several_candidates():
    model = ToyModel.random(9, 4, eos_weight=0.0001)
    prefix = (0, 1, 2)
    with metering(Meter()) as meter:
        await model.top_next(prefix, 3)
        await together([model.continue_((*prefix, z), max_new_tokens=5) for z in range(3)])
        assert meter.usage().lm_tokens == 3 + 3 * 5
        assert meter.usage().sequential_steps == 1 + 5
        # The next step waits for the slowest rollout of this one.
        await together([model.continue_((*prefix, 3, z), max_new_tokens=2) for z in range(2)])
        assert meter.usage().lm_tokens == 18 + 1 + 2 * 2
        assert meter.usage().sequential_steps == 6 + 2


def test_rows_of_a_table_are_checked():
    with pytest.raises(ModelError, match="sums to"):
        ToyModel.from_table({"A": (0.5, 0.4)})
    with pytest.raises(ModelError, match="lengths"):
        ToyModel.from_table({"A": (0.5, 0.5), "B": (0.5, 0.25, 0.25)})


def test_tables_stand_after_the_prompt():
    default = ToyModel.random(1, 3)
    model = ToyModel.from_table({"": (0.5, 0.25, 0.25), "B": (0.0, 0.0, 1.0)}, prompt=(4, 0), default=default)
    assert np.exp(model.law((4, 0)))[0] == 0.5
    assert np.exp(model.law((4, 0, 1)))[2] == 1.0
    assert np.array_equal(model.law((4, 0, 0)), default.law((4, 0, 0)))
    assert np.exp(ToyModel.from_table({(1,): (0.5, 0.25, 0.25)}).law((0,))) == pytest.approx([1 / 3] * 3)


def test_codec():
    codec = ToyCodec(5, n_eos=2)
    prompt = codec.prompt("ABC")
    assert prompt == Prompt(messages=(Message(role="user", content="ABC"),), text="ABC", ids=(0, 1, 2))
    assert prompt.ids == letters_to_ids("ABC")
    assert codec.eos_ids == {3, 4}
    assert codec.decode((0, 2, 4)) == "AC"
    assert codec.decode((codec.bos_id, 0, 3, codec.pad_id), special=True) == "<s>A</s><pad>"
    turns = [Message(role="user", content="A"), Message(role="assistant", content="B")]
    assert codec.prompt(turns).text == "AB"


def test_codec_and_bos():
    assert ToyCodec(3, bos=True).prompt("").ids == (4,)
    assert ToyCodec(3, bos=True).prompt("B").ids == (4, 1)
    with pytest.raises(PromptError, match="empty"):
        ToyCodec(3).prompt("")
    with pytest.raises(PromptError, match="'C'"):
        ToyCodec(3).prompt("AC")


async def test_reward():
    prompt = ToyCodec(4).prompt("AB")
    replies = [Reply(text="A", complete=False), Reply(text="A", complete=True), Reply(text="BB", complete=True)]
    reward = ToyReward({("BB", True): 9.0}, seed=1, low=-2.0, high=3.0, nan=frozenset({"C"}))
    with metering(Meter()) as meter:
        scores = await reward.score(prompt, replies)
    assert scores[2] == 9.0
    assert scores[0] != scores[1]
    assert all(-2.0 <= score <= 3.0 for score in scores[:2])
    assert meter.usage().rm_calls == 3
    # Two replies share all their characters, but rows of one call share the prompt alone.
    assert meter.usage().rm_tokens == 2 + 1 + 1 + 2
    assert meter.usage().lm_tokens == meter.usage().sequential_steps == 0
    assert scores == await reward.score(prompt, replies)
    assert scores[:2] != (await ToyReward(seed=2).score(prompt, replies))[:2]
    assert scores[:2] != (await reward.score(ToyCodec(4).prompt("A"), replies))[:2]
    assert math.isnan(reward.value(prompt, "C", True))
    assert reward.range is None
    assert ToyReward(low=-1.0, declared=True).range == (-1.0, 1.0)


def test_noise_is_the_same_numbers_on_every_machine():
    noise = Noise(seed=3, purpose="sample", step=1, candidate=7, rollout=2)
    assert noise.uniform(5, 3).tolist() == [0.2573853827144962, 0.7107946138540528, 0.7195143964566838]
    assert noise.uniform(5, 2).tolist() == noise.uniform(5, 3).tolist()[:2]
    assert not set(noise.uniform(5, 300)) & set(noise.uniform(6, 300))
