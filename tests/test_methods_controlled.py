"""Controlled Decoding and value-distilled Transfer Q*, with exact values from tables: the laws, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError, OptionError, PromptError
from alignstar.meter import Meter, metering
from alignstar.methods.best_of_n import best_of_n
from alignstar.methods.controlled import controlled_decoding
from alignstar.methods.plain import sample
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.models.toy_value import ToyValue
from alignstar.sampling import Noise, log_softmax
from alignstar.types import Ids, Step, Usage
from worlds import PROMPT, World, by_id, codec, ids_of, random_world, scorer, steps_of

WORLDS = 40


def exact(world: World, model: ToyModel, **options: Any) -> ToyValue:
    """V of every prefix by enumeration: the mean reward of the model's completions."""

    def rule(prefix: Ids) -> float:
        return sum(p * world.r(ids) for ids, p in world.completions(model, prefix[len(PROMPT.ids) :]))

    return ToyValue(rule, **options)


async def decoded(world: World, value: ToyValue, **options: Any) -> tuple[list[Step], Usage]:
    with metering(Meter()) as meter:
        steps = await steps_of(
            controlled_decoding(PROMPT, sft=world.sft, value=value, **{"max_new_tokens": world.horizon, **options})
        )
    return steps, meter.usage()


async def transferred(world: World, **options: Any) -> tuple[list[Step], Usage]:
    with metering(Meter()) as meter:
        steps = await steps_of(
            transfer_q(
                PROMPT, baseline=world.sft, reward=scorer(world.reward, world.vocab_size),
                **{"max_new_tokens": world.horizon, **options},
            )
        )  # fmt: skip
    return steps, meter.usage()


async def test_without_weight_it_samples() -> None:
    """lambda = 0: over all tokens, and over the k best ones, the very tokens of `sample`."""
    different = 0
    for seed in range(WORLDS):
        world, value = random_world(seed), ToyValue.random(seed)
        for k in (2, 4):
            steps, _ = await decoded(world, value, weight=0.0, k=k, seed=seed)
            plain = await steps_of(sample(PROMPT, sft=world.sft, top_k=k, max_new_tokens=world.horizon, seed=seed))
            assert ids_of(steps) == ids_of(plain)
        steps, _ = await decoded(world, value, weight=8.0, k=4, seed=seed)
        different += ids_of(steps) != ids_of(plain)
    assert different > WORLDS / 4


async def test_one_block_is_sampling() -> None:
    for seed in range(WORLDS):
        world, value = random_world(seed), ToyValue.random(seed)
        for block_len in (1, 2, 3):
            steps, _ = await decoded(world, value, mode="blockwise", blocks=1, block_len=block_len, seed=seed)
            plain = await steps_of(sample(PROMPT, sft=world.sft, max_new_tokens=world.horizon, seed=seed))
            assert ids_of(steps) == ids_of(plain)
            assert len(steps) == -(-len(ids_of(plain)) // block_len)


async def test_a_block_as_long_as_the_response_is_best_of_n() -> None:
    """Scored by V, which for a whole response is its reward: the same draws, the same choice, the same ties."""
    for seed in range(WORLDS):
        world = random_world(seed)
        value = exact(world, world.sft)
        for block_len in (world.horizon, world.horizon + 3):
            steps, _ = await decoded(world, value, mode="blockwise", blocks=6, block_len=block_len, seed=seed)
            best = best_of_n(
                PROMPT, sft=world.sft, reward=scorer(world.reward, 4), n=6, max_new_tokens=world.horizon, seed=seed
            )
            assert steps == await steps_of(best)


async def test_many_single_tokens_are_the_best_value_of_the_support() -> None:
    """M = 1 and K so large that every possible token is drawn."""
    for seed in range(12):
        world = random_world(seed, horizon=3)
        value = ToyValue.random(seed)
        steps, _ = await decoded(world, value, mode="blockwise", blocks=400, block_len=1, seed=seed)
        response: Ids = ()
        for step in steps:
            law = world.sft.law(PROMPT.ids + response)
            reachable = [z for z in range(4) if law[z] > np.log(0.03)]
            assert {c.ids[0] for c in step.considered} >= set(reachable)
            response += step.emitted
            drawn = {c.ids[0] for c in step.considered}
            assert step.emitted[0] == max(drawn, key=lambda z: value.value((*PROMPT.ids, *response[:-1], z)))


async def test_tokens_are_drawn_from_the_tilted_law() -> None:
    """pi(z|s) proportional to p(z|s) exp(lambda V(s, z)), within 4 standard errors; greedy takes its best token."""
    world, n = random_world(3, horizon=1), 4000
    value = exact(world, world.sft)
    law = np.exp(
        log_softmax(world.sft.law(PROMPT.ids) + 3.0 * np.array([value.value((*PROMPT.ids, z)) for z in range(4)]))
    )
    counts = np.zeros(4)
    for seed in range(n):
        steps, _ = await decoded(world, value, weight=3.0, k=4, seed=seed)
        counts[steps[0].emitted[0]] += 1
    np.testing.assert_array_less(np.abs(counts / n - law), 4 * np.sqrt(law * (1 - law) / n))
    steps, _ = await decoded(world, value, alpha=1 / 3, k=4, selection="greedy")
    assert steps[0].emitted == (int(np.argmax(law)),)
    np.testing.assert_allclose(np.exp(log_softmax(by_id(steps[0], size=4))), law)


async def test_an_exact_head_is_the_exact_policy_of_transfer_q() -> None:
    """values=head with a table of TQ*(s, z): the law of Eq. 12 at every step, and the token that its arg-max names."""
    for seed in range(WORLDS):
        world = random_world(seed)
        value = exact(world, world.sft)
        steps, usage = await transferred(world, value=value, values="head", k=4, alpha=0.3, seed=seed)
        response: Ids = ()
        for step in steps:
            tq = world.q(world.sft, response)
            expected = log_softmax(world.sft.law(PROMPT.ids + response) + tq / 0.3)
            np.testing.assert_allclose(log_softmax(by_id(step, size=4)), expected)
            np.testing.assert_allclose(by_id(step, "value", size=4), tq)
            assert step.emitted == (int(np.argmax(expected)),)
            response += step.emitted
        assert usage.rm_tokens == usage.rm_calls == 0
        assert usage.lm_tokens == len(PROMPT.ids) + len(response) - 1  # plain decoding's


async def test_a_head_of_greedy_rollouts_is_transfer_q_itself() -> None:
    """What is distilled exactly decodes the same tokens, at the price of plain decoding."""

    def greedily(world: World, response: Ids) -> Ids:
        while len(response) < world.horizon and response[-1] not in world.sft.eos_ids:
            response = (*response, int(np.argmax(world.sft.law(PROMPT.ids + response))))
        return response

    for seed in range(WORLDS):
        world = random_world(seed)
        value = ToyValue(lambda prefix, world=world: world.r(greedily(world, prefix[len(PROMPT.ids) :])))
        options = {"k": 3, "alpha": 0.2, "rollout_len": None, "seed": seed}
        for selection in ("greedy", "sample"):
            rolled, _ = await transferred(world, acceleration="off", selection=selection, **options)
            told, _ = await transferred(world, value=value, values="head", selection=selection, **options)
            assert ids_of(told) == ids_of(rolled)
            np.testing.assert_array_equal([by_id(s, size=4) for s in told], [by_id(s, size=4) for s in rolled])


async def test_a_prefilter_that_keeps_all_changes_nothing() -> None:
    for seed in range(WORLDS):
        world, value = random_world(seed), ToyValue.random(seed, share=0.5)
        options = {"k": 3, "rollout_len": 2, "seed": seed, "acceleration": "off"}
        plain = await transferred(world, **options)
        assert await transferred(world, value=value, value_top=3, **options) == plain
        assert await transferred(world, value=value, value_top=9, **options) == plain


async def test_a_prefilter_keeps_the_best_by_the_heads_scores() -> None:
    """The m best of log pi + Q/alpha are rolled out, in their old order; the rollouts' values decide among them."""
    for seed in range(WORLDS):
        world, value = random_world(seed), ToyValue.random(seed)
        steps, _ = await transferred(world, value=value, value_top=2, k=4, alpha=0.2, rollout_len=1)
        response: Ids = ()
        for step in steps:
            law = world.sft.law(PROMPT.ids + response)
            score = [law[z] + 5 * value.value((*PROMPT.ids, *response, z)) for z in range(4)]
            kept = {c.ids[0] for c in step.considered}
            assert kept == set(sorted(range(4), key=lambda z: -score[z])[:2])
            assert [c.logp for c in step.considered] == sorted((law[z] for z in kept), reverse=True)
            assert step.emitted[0] == max(step.considered, key=lambda c: c.score).ids[0]
            response += step.emitted


async def test_what_a_head_reads_is_charged_by_its_share() -> None:
    """Half of every position read, rounded up over the whole request; a scorer reads every candidate, a Q-head none."""
    world = random_world(1, eos_weight=1e-300)
    plain = len(PROMPT.ids) + world.horizon - 1
    for per_token, read in ((True, plain), (False, plain + 3 * world.horizon - (world.horizon - 1))):
        value = ToyValue.random(1, per_token=per_token, share=0.5)
        _, usage = await decoded(world, value, k=3)
        assert usage.lm_tokens == plain + -(-read // 2)
        assert usage.candidates == 3 * world.horizon
    _, usage = await decoded(world, ToyValue.random(1, share=0.5), mode="blockwise", blocks=3, block_len=world.horizon)
    assert usage.lm_tokens == len(PROMPT.ids) + 3 * (world.horizon - 1) + -(-usage_read(world, 3) // 2)


def usage_read(world: World, blocks: int) -> int:
    """Different positions before the last token of the draws of seed 0."""
    noise = [Noise(seed=0, purpose="sample", rollout=i) for i in range(blocks)]
    positions: set[Ids] = set()
    for each in noise:
        ids = PROMPT.ids
        for _ in range(world.horizon):
            positions.add(ids)
            ids = (*ids, int(np.argmax(world.sft.law(ids) + each.gumbel(len(ids), world.vocab_size))))
    return len(positions)


@pytest.mark.parametrize(
    "options",
    [
        {"block": 2}, {"gate": 0.5}, {"value_top": 2}, {"return_best_rollout": True},
        {"winner_protection": True}, {"transfer": "indirect", "implicit_baseline_reward": True},
    ],
)  # fmt: skip
async def test_a_head_alone_goes_with_nothing_that_rolls_out(options: dict[str, Any]) -> None:
    world = random_world(0)
    with pytest.raises(OptionError, match="values=head makes no rollouts and knows direct transfer alone"):
        await transferred(world, sft=world.sft, value=ToyValue.random(0), values="head", **options)


def test_the_aligner_binds_the_value_model_and_says_when_it_is_missing() -> None:
    world, value = random_world(0), ToyValue.random(0)
    given = {"sft": world.sft, "baseline": world.sft, "reward": ToyReward(seed=0), "codec": codec(4)}
    short = ToyValue(value.value, max_context=4)
    with Aligner(**given, value=value) as aligner, Aligner(**given) as bare, Aligner(**given, value=short) as small:
        assert aligner.generate("A", method="controlled-decoding", max_new_tokens=5).ids
        told = aligner.generate("A", method="transfer-q", value="head", max_new_tokens=5)
        assert told.options["values"] == "head"
        for request in ({"method": "controlled-decoding"}, {"value": "head"}, {"value_top": 2}):
            with pytest.raises(NeedsError, match=r"needs the value model; give one with --value\.$"):
                bare.generate("A", **request)
        with pytest.raises(PromptError, match="The prompt has 1 tokens and 5 may follow, but toy value reads 4"):
            small.generate("A", value="head", max_new_tokens=5)
        assert small.generate("A", max_new_tokens=5).ids  # it is not asked
