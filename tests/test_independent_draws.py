"""Random numbers are not used twice: draws that must be independent agree as often as chance has it."""

import itertools

import numpy as np
import pytest

from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.rewards import Scorer

# One law in every state, of three letters that hardly ever end: what differs between two draws is their noise alone.
MODEL = ToyModel.random(1, 4, order=0, eos_weight=1e-12, temperature=3.0)
CODEC = ToyCodec(4)
SEEDS = range(400)
P = np.exp(MODEL.law(()))
CHANCE = float(P @ P)


async def steps(seed, **options):
    generator = transfer_q(
        CODEC.prompt("AB"),
        baseline=MODEL,
        reward=Scorer(ToyReward(low=0.5, high=0.5), CODEC),
        k=3,
        rollout_strategy="sample",
        selection="sample",
        max_new_tokens=2,
        seed=seed,
        **options,
    )
    return [step async for step in generator]


def rollout(step, z):
    """The rollout of candidate z."""
    return next(c.future for c in step.considered if c.ids == (z,))


def agree_by_chance(pairs):
    frequency = np.mean([one == other for one, other in pairs])
    return frequency == pytest.approx(CHANCE, abs=4 * np.sqrt(CHANCE * (1 - CHANCE) / len(pairs)))


async def test_candidates_have_rollouts_of_their_own():
    first = [(await steps(seed, rollout_len=1))[0] for seed in SEEDS]
    assert agree_by_chance([(rollout(s, 0), rollout(s, 1)) for s in first])
    assert agree_by_chance([(rollout(s, 1), rollout(s, 2)) for s in first])


async def test_steps_have_rollouts_of_their_own():
    """The second step's rollouts begin at the position where the first step's have their second token."""
    runs = [await steps(seed, rollout_len=2, rollout_past_max=True) for seed in SEEDS]
    assert agree_by_chance([(rollout(run[0], 2)[1], rollout(run[1], 2)[0]) for run in runs])


async def test_every_step_chooses_anew():
    runs = [await steps(seed, rollout_len=0) for seed in SEEDS]
    assert agree_by_chance([(run[0].emitted, run[1].emitted) for run in runs])
    tokens = np.array([run[0].emitted[0] for run in runs])
    for z in range(3):
        assert np.mean(tokens == z) == pytest.approx(P[z], abs=4 * np.sqrt(P[z] * (1 - P[z]) / len(SEEDS)))


async def test_the_choice_does_not_follow_a_rollout():
    """A token is chosen as often when a rollout begins with it as when it does not."""
    first = [(await steps(seed, rollout_len=1))[0] for seed in SEEDS]
    for z in range(3):
        assert agree_by_chance([(s.emitted, rollout(s, z)) for s in first])


async def test_seeds_are_independent():
    runs = [await steps(seed, rollout_len=1) for seed in SEEDS]
    assert agree_by_chance([(one[0].emitted, other[0].emitted) for one, other in itertools.pairwise(runs)])
    assert agree_by_chance([(rollout(one[0], 0), rollout(other[0], 0)) for one, other in itertools.pairwise(runs)])
