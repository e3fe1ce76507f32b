"""Approximations of Transfer Q*: each against its restatement, and with nothing left out the plain algorithm."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import OptionError
from alignstar.meter import Meter, metering
from alignstar.methods.plain import greedy
from alignstar.methods.savings import Savings
from alignstar.methods.transfer_q import transfer_q
from alignstar.methods.values import mean_bounds
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.types import Ids, Step, Usage
from worlds import PROMPT, World, codec, ids_of, scorer, steps_of

WORLDS = 200
SAMPLED = {"rollout_strategy": "sample", "num_rollouts": 8}


def toy(seed: int) -> tuple[World, dict[str, Any]]:
    """One of very many worlds, and options of the plain algorithm that are drawn from all there are."""
    rng = random.Random(seed)
    size = rng.randint(3, 6)
    model = ToyModel.random(
        seed,
        size,
        eos_weight=rng.choice([1e-300, 0.3, 1.0, 4.0]),
        ties=rng.random() < 0.3,
        temperature=rng.choice([0.3, 1.0]),
        zeros=rng.choice([0.0, 0.3]),
    )
    reward = ToyReward(seed=seed, declared=rng.random() < 0.5)
    options = {
        "k": rng.randint(1, size),
        "candidate_rule": rng.choice(["topk", "topk", "topp", "full", "sample_without_replacement"]),
        "alpha": 10 ** rng.uniform(-1, 1),
        "rollout_len": rng.choice([0, 1, 2, 3, 5, 8, None]),
        "rollout_past_max": rng.random() < 0.2,
        "stop_on_eos": rng.random() < 0.8,
        "selection": rng.choice(["greedy", "greedy", "sample"]),
        "reward_norm": rng.choice(["none", "clip(0.2,0.7)", "candidate_zscore"]),
        "seed": seed,
    }
    if rng.random() < 0.4:
        options |= {"rollout_strategy": "sample", "num_rollouts": rng.randint(1, 5), "rollout_temperature": 0.8}
    return World(model, reward, rng.randint(1, 8), size), options


async def decoded(world: World, **options: Any) -> tuple[list[Step], Usage]:
    with metering(Meter()) as meter:
        steps = await steps_of(
            transfer_q(
                PROMPT,
                baseline=world.sft,
                reward=scorer(world.reward, world.vocab_size),
                **({"max_new_tokens": world.horizon} | options),
            )
        )
    return steps, meter.usage()


def greedily(world: World, response: Ids, length: int) -> Ids:
    """`response` and its most probable continuation by at most `length` tokens."""
    for _ in range(length):
        if response and response[-1] in world.sft.eos_ids:
            break
        response = (*response, int(np.argmax(world.sft.law(PROMPT.ids + response))))
    return response


def restated(world: World, *, k: int, alpha: float, length: int, block: int, halving: int, gate: float) -> Ids:
    """The approximations once more, on the table itself: top k, greedy rollouts, the best score."""
    response: Ids = ()
    while len(response) < world.horizon and not (response and response[-1] in world.sft.eos_ids):
        law, room = world.sft.law(PROMPT.ids + response), world.horizon - len(response)
        left = [int(z) for z in np.argsort(-law, kind="stable")[:k] if np.isfinite(law[z])]
        if np.exp(law[left[0]]) > gate:
            response = (*response, left[0])
            continue
        whole = min(length, room - 1)
        for rolled in sorted({math.ceil(whole / 2**j) for j in range(halving)}):
            scores = {z: law[z] + world.r(greedily(world, (*response, z), rolled)) / alpha for z in left}
            best_first = sorted(left, key=lambda z: (-scores[z], -law[z], z))
            left = best_first[: math.ceil(len(left) / 2)] if rolled < whole else best_first
        response = greedily(world, (*response, left[0]), min(block, room) - 1)
    return response


async def test_nothing_left_out_is_the_plain_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """One token a decision, one round, a gate that no probability passes: every step, number and cost."""
    for seed in range(WORLDS):
        world, options = toy(seed)
        indirect = {"baseline_reward": scorer(ToyReward(seed=seed + 1), world.vocab_size)} if seed % 3 == 0 else {}
        plain = await decoded(world, **options, **indirect, acceleration="off")
        with monkeypatch.context() as patched:
            patched.setattr(Savings, "none", False)
            assert await decoded(world, **options, **indirect) == plain, seed
        if options["rollout_len"] in (0, 1):
            # Rollouts of one token cannot be halved.
            assert await decoded(world, **options, **indirect, halving=3) == plain, seed


async def test_all_but_impossible_races_choose_as_all_rollouts_do() -> None:
    saved = 0
    for seed in range(WORLDS):
        world, options = toy(seed)
        options |= {"rollout_strategy": "sample", "num_rollouts": 2 + seed % 9, "reward_norm": "clip(0.2,0.7)"}
        plain, full_price = await decoded(world, **options, acceleration="off")
        raced, price = await decoded(world, **options, adaptive_rollouts=1e-300)
        assert ids_of(raced) == ids_of(plain), seed
        assert [s.finish for s in raced] == [s.finish for s in plain]
        for one, other in zip(raced, plain, strict=True):
            assert {c.ids for c in one.considered} <= {c.ids for c in other.considered}
            if len(one.considered) > 1:
                won, same = one.considered[one.chosen], other.considered[other.chosen]
                assert (won.ids, won.value, won.score) == (same.ids, same.value, same.score)
        assert price.rm_calls <= full_price.rm_calls
        assert price.lm_tokens <= full_price.lm_tokens
        saved += full_price.rm_calls - price.rm_calls
    assert saved > 1000


@pytest.mark.parametrize("drawn", ["block", "halving", "gate", "all"])
async def test_each_is_what_it_says(drawn: str) -> None:
    """Against a restatement on the table, and different from the plain algorithm somewhere."""
    changed = 0
    for seed in range(WORLDS):
        world, _ = toy(seed)
        rng = random.Random(f"{seed} {drawn}")
        common = {"k": rng.randint(1, 6), "alpha": 10 ** rng.uniform(-1, 0)}
        length = rng.choice([3, 5, 7])
        savings: dict[str, Any] = {"block": 1, "halving": 1, "gate": 1.0}
        several = {"block": rng.randint(2, 4), "halving": rng.randint(2, 4), "gate": rng.choice([0.5, 0.7, 0.9])}
        savings |= several if drawn == "all" else {drawn: several[drawn]}
        steps, _ = await decoded(world, **common, rollout_len=length, **savings)
        assert ids_of(steps) == restated(world, **common, length=length, **savings), seed
        plain, _ = await decoded(world, **common, rollout_len=length)
        assert steps[-1].finish == ("stop" if ids_of(steps)[-1] in world.sft.eos_ids else "length")
        assert [step.index for step in steps] == list(range(len(steps)))
        changed += ids_of(steps) != ids_of(plain)
    assert changed > 5


# Blocks


@pytest.mark.parametrize("block", [8, 100])
async def test_one_block_is_the_best_of_k_responses(block: int) -> None:
    for seed in range(WORLDS):
        world, _ = toy(seed)
        law = world.sft.law(PROMPT.ids)
        steps, _ = await decoded(world, k=3, rollout_len=None, block=block)
        best = [int(z) for z in np.argsort(-law, kind="stable")[:3] if np.isfinite(law[z])]
        responses = [greedily(world, (z,), world.horizon - 1) for z in best]
        scores = [law[ids[0]] + world.r(ids) for ids in responses]
        assert ids_of(steps) == responses[int(np.argmax(scores))]
        assert len(steps) == 1


async def test_blocks_never_lower_the_reward_of_complete_rollouts() -> None:
    """As token by token: the next decision's most probable candidate leads to the last winner's response."""
    for seed in range(80):
        world, _ = toy(seed)
        steps, _ = await decoded(world, k=3, rollout_len=None, block=1 + seed % 4, alpha=[0.1, 1.0][seed % 2])
        won = [step.considered[step.chosen].value for step in steps]
        assert won == sorted(won)
        assert won[-1] == pytest.approx(world.r(ids_of(steps)))
        assert won[0] >= world.r(greedily(world, (), world.horizon))


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
async def test_a_block_is_the_beginning_of_the_winners_rollout(strategy: str) -> None:
    for seed in range(80):
        world, options = toy(seed)
        options |= {"rollout_strategy": strategy, "num_rollouts": 1, "rollout_len": 4}
        steps, usage = await decoded(world, **options, block=3)
        for before, step in zip([0, *np.cumsum([len(s.emitted) for s in steps])], steps, strict=False):
            winner = step.considered[step.chosen]
            assert step.emitted == (*winner.ids, *winner.future[:2])[: world.horizon - before]
        assert not options["stop_on_eos"] or not set(ids_of(steps)[:-1]) & world.sft.eos_ids
        assert usage.candidates == sum(len(step.considered) for step in steps)


def endless(size: int = 12) -> World:
    """A world whose responses never end by themselves."""
    return World(ToyModel.random(0, size, eos_weight=1e-300), ToyReward(), 1, size)


@pytest.mark.parametrize(("block", "steps"), [(1, 6), (2, 6), (3, 7), (4, 8), (5, 5)])
async def test_cost_of_blocks(block: int, steps: int) -> None:
    """As token by token, decision by decision: P + kL, then (k-1)L and the block's length of new tokens each."""
    k, length = 4, 6
    done, usage = await decoded(
        endless(), k=k, rollout_len=length, rollout_past_max=True, max_new_tokens=steps, block=block, gate=0.9999
    )
    assert len(done) == math.ceil(steps / block)
    assert usage.lm_tokens == len(PROMPT.ids) + k * length + (len(done) - 1) * ((k - 1) * length + block)
    assert usage.rm_calls == usage.candidates == k * len(done)


# Halving


@pytest.mark.parametrize(
    ("k", "length", "halving"), [(10, 20, 3), (10, 20, 1), (7, 8, 4), (5, 6, 2), (1, 9, 3), (3, 2, 9), (4, 5, 3)]
)
async def test_cost_of_halving(k: int, length: int, halving: int) -> None:
    """P, and ceil(k / 2^j) candidates for what round j adds; nobody waits longer than for whole rollouts."""
    _, usage = await decoded(endless(), k=k, rollout_len=length, rollout_past_max=True, halving=halving, gate=0.9999)
    lengths = sorted({math.ceil(length / 2**j) for j in range(halving)})
    left = [math.ceil(k / 2**j) for j in range(len(lengths))]
    added = [after - before for before, after in pairwise([0, *lengths])]
    assert usage.lm_tokens == len(PROMPT.ids) + sum(c * tokens for c, tokens in zip(left, added, strict=True))
    assert usage.rm_calls == sum(left)
    assert usage.candidates == k
    assert usage.sequential_steps == 1 + length


@pytest.mark.parametrize("selection", ["greedy", "sample"])
async def test_a_drawn_selection_is_halved_as_it_is_drawn(selection: str) -> None:
    """Where a reward does not change with the length of rollouts, the winner is in the better half of every round."""
    for seed in range(100):
        world, options = toy(seed)
        flat = World(world.sft, ToyReward(low=0.5, high=0.5), world.horizon, world.vocab_size)
        options |= {"selection": selection, "rollout_len": 6}
        plain, full_price = await decoded(flat, **options, acceleration="off")
        halved, price = await decoded(flat, **options, halving=3)
        assert ids_of(halved) == ids_of(plain), seed
        assert price.lm_tokens <= full_price.lm_tokens


# The gate


async def test_a_gate_that_everything_passes_is_greedy_decoding() -> None:
    for seed in range(WORLDS):
        world, options = toy(seed)
        options["candidate_rule"] = ["topk", "topp", "full"][seed % 3]
        options["stop_on_eos"] = True
        steps, usage = await decoded(world, **options, gate=0.0)
        with metering(Meter()) as meter:
            plain = await steps_of(greedy(PROMPT, baseline=world.sft, max_new_tokens=world.horizon))
        assert [(s.emitted, s.finish) for s in steps] == [(s.emitted, s.finish) for s in plain]
        assert all(s.considered[0].value is None for s in steps)
        assert usage.lm_tokens == meter.usage().lm_tokens
        assert usage.sequential_steps == meter.usage().sequential_steps
        assert usage.rm_calls == usage.candidates == 0


async def test_the_gate_is_open_where_the_base_policy_is_sure() -> None:
    opened = closed = 0
    for seed in range(60):
        world, _ = toy(seed)
        steps, usage = await decoded(world, k=3, gate=0.6)
        for t, step in enumerate(steps):
            best = float(np.exp(np.max(world.sft.law(PROMPT.ids + ids_of(steps)[:t]))))
            assert (best > 0.6) == (step.considered[0].value is None)
        opened += sum(step.considered[0].value is None for step in steps)
        closed += sum(step.considered[0].value is not None for step in steps)
        searched = [step for step in steps if step.considered[0].value is not None]
        assert usage.candidates == usage.rm_calls == sum(len(step.considered) for step in searched)
        assert usage.near_ties == sum(step.near_ties for step in steps)
    assert min(opened, closed) > 30


async def test_the_gate_takes_the_base_policys_best() -> None:
    model = ToyModel.from_table({"": (0.6, 0.3, 0.1)}, prompt=PROMPT.ids)
    other = ToyModel.from_table({"": (0.1, 0.2, 0.7)}, prompt=PROMPT.ids)
    world = World(model, ToyReward(), 1, 3)
    for base, emitted in (("baseline", (0,)), ("sft", (2,))):
        steps, _ = await decoded(world, sft=other, candidate_source="sft", base_policy=base, gate=0.5)
        assert steps[0].emitted == emitted
        assert len(steps[0].considered) == 1


async def test_a_probability_at_the_gate_is_a_near_tie() -> None:
    model = ToyModel.from_table({"": (0.5, 0.3, 0.2)}, prompt=PROMPT.ids)
    world = World(model, ToyReward(), 1, 3)
    for gate, searched, near_ties in ((0.5, True, 1), (0.5 - 1e-13, False, 1), (0.49, False, 0), (0.51, True, 0)):
        steps, usage = await decoded(world, k=3, gate=gate)
        assert (len(steps[0].considered) == 3) == searched
        assert steps[0].near_ties == usage.near_ties == near_ties


# Races


def tails(ones: int, n: int, m: int, risk: float) -> tuple[float, float]:
    """Probability that the mean of n rewards, some 1 and the others 0, is above and below its bounds from m of them."""
    above = below = 0.0
    for first in range(max(0, m - (n - ones)), min(m, ones) + 1):
        p = math.comb(ones, first) * math.comb(n - ones, m - first) / math.comb(n, m)
        low, high = mean_bounds(np.repeat([1.0, 0.0], [first, m - first]), n, (0.0, 1.0), risk)
        above += p * (ones / n > high + 1e-12)
        below += p * (ones / n < low - 1e-12)
    return above, below


@pytest.mark.parametrize("risk", [0.5, 0.2, 0.05, 1e-3])
def test_bounds_of_a_mean_hold_as_often_as_they_say(risk: float) -> None:
    """By enumeration: how many of the first m are ones, of n rewards of which `ones` are, is hypergeometric."""
    worst = max(
        max(tails(ones, n, m, risk))
        for n, m in ((200, 1), (200, 16), (200, 50), (200, 150), (40, 8), (6, 3))
        for ones in range(0, n + 1, max(1, n // 10))
    )
    assert worst <= risk
    assert worst > risk / 50


def test_bounds_that_cannot_fail() -> None:
    """With a risk of next to nothing only what the unknown rewards can be at most and at least is left."""
    rewards = np.array([0.5, 2.0, -1.0])
    assert mean_bounds(rewards, 4, (-1.0, 3.0), 1e-300) == pytest.approx((0.5 / 4, 4.5 / 4))
    assert mean_bounds(rewards, 3, (-1.0, 3.0), 0.9) == pytest.approx((0.5, 0.5))


async def test_a_race_chooses_otherwise_no_more_often_than_it_may() -> None:
    """The guarantee is one of each decision: first tokens, over seeds, of two candidates worth 0.65 and 0.4."""
    reward = ToyReward(
        {(text, end): float(text in ("AA", "BB")) for text in ("AA", "AB", "BA", "BB") for end in (True, False)}
    )
    reward.range = (0.0, 1.0)
    near = {"": (0.5, 0.5, 0.0), "A": (0.65, 0.35, 0.0), "B": (0.6, 0.4, 0.0)}
    world = World(ToyModel.from_table(near, prompt=PROMPT.ids), reward, 2, 3)
    options = {"k": 2, "alpha": 0.05, "rollout_strategy": "sample", "num_rollouts": 64}
    runs, delta, otherwise, rewards = 100, 0.5, 0, 0
    for seed in range(runs):
        plain, full_price = await decoded(world, **options, seed=seed)
        raced, price = await decoded(world, **options, seed=seed, adaptive_rollouts=delta)
        otherwise += plain[0].emitted != raced[0].emitted
        rewards += price.rm_calls
        assert price.rm_calls <= full_price.rm_calls == 2 * 64 + 2
    assert otherwise / runs <= delta + 4 * math.sqrt(delta * (1 - delta) / runs)
    assert rewards < 0.98 * runs * (2 * 64 + 2)


@pytest.mark.parametrize(("n", "counts"), [(2, [1]), (3, [1, 2]), (8, [1, 2, 4]), (11, [1, 2, 4, 8])])
async def test_a_race_draws_twice_as_many_each_time_at_a_share_of_the_risk(
    n: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int, float]] = []

    def spy(first: np.ndarray, of: int, bounds: tuple[float, float], risk: float) -> tuple[float, float]:
        asked.append((len(first), of, risk))
        return mean_bounds(first, of, bounds, risk)

    monkeypatch.setattr("alignstar.methods.savings.mean_bounds", spy)
    world = World(ToyModel.random(3, 4, eos_weight=1e-300), ToyReward(seed=3, declared=True), 2, 4)
    options = {"k": 3, "rollout_strategy": "sample", "num_rollouts": n, "alpha": 1e-6, "max_new_tokens": 2}
    # At this strength only values count, and no candidate of three is out of reach before the last rollouts.
    steps, usage = await decoded(world, **options, adaptive_rollouts=1e-300, reward_norm="clip(-50,50)")
    assert asked[: 3 * len(counts)] == [(m, n, 1e-300 / (3 * len(counts))) for m in counts for _ in range(3)]
    assert len(steps[0].considered) == 3
    assert usage.rm_calls == 3 * n + 3  # the last token's candidates have no rollout


# What does not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 4, "rollout_len": 2}, "block=4 emits 3 tokens of a candidate's one rollout; use num_rollouts=1"),
        ({"block": 2, "rollout_len": 0}, "block=2 emits 1 tokens"),
        ({"block": 2, **SAMPLED}, "block=2 emits 1 tokens"),
        ({"adaptive_rollouts": 0.1}, "adaptive_rollouts=0.1 compares mean rewards of known range"),
        ({"adaptive_rollouts": 0.1, **SAMPLED}, "reward_norm=clip"),
        ({"adaptive_rollouts": 0.1, **SAMPLED, "reward_norm": "candidate_zscore"}, "adaptive_rollouts=0.1 compares"),
        ({"adaptive_rollouts": 0.1, **SAMPLED, "halving": 2, "reward_norm": "sigmoid"}, "both say which candidates"),
        ({"block": 2, "return_best_rollout": True}, "leave out block, halving, gate and adaptive_rollouts"),
        ({"gate": 0.9, "winner_protection": True}, "leave out block, halving, gate and adaptive_rollouts"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    world, _ = toy(0)
    with pytest.raises(OptionError, match=message):
        transfer_q(PROMPT, baseline=world.sft, reward=scorer(ToyReward(), world.vocab_size), **options)


def test_blocks_and_gates_through_the_front_door() -> None:
    world = endless(4)
    with Aligner(baseline=world.sft, reward=world.reward, codec=codec(4)) as aligner:
        response = aligner.generate("A", k=3, block=3, gate=0.8, halving=2, max_new_tokens=10)
        steps = list(aligner.stream("A", k=3, block=3, gate=0.8, halving=2, max_new_tokens=10))
    assert len(response.ids) == 10
    assert ids_of(steps) == response.ids
    assert "".join(step.text for step in steps) == response.text
