"""What every method of the table promises, whatever it searches for. Each law takes a case: a method and its options.

Call them all: `@pytest.mark.parametrize("law", method_contract.LAWS, ids=lambda law: law.__name__)`, then
`await law(case)`, with `method_cases.defaults()` for every law and `variants()` for those of ALWAYS. A method that
draws nothing needs a line in DRAWS_NOTHING, a new letter of a cost formula one in `letters`.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError
from alignstar.methods import METHODS, MODEL_ROLES
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.options import complete, roles
from alignstar.types import Ids, Prompt
from counted import CountedModel, CountedReward, TextOnly
from method_cases import LONG, ONE, VOCABULARY, Case, bindings, method, prompt, run

Law = Callable[[Case], Awaitable[None]]

DRAWS_NOTHING = {"greedy", "args", "transfer-q", "deal", "maxmin"}
"""Methods whose default options use no noise: every seed gives the same response."""

VOTES = {"selection": "majority", "values": "head"}.items()
"""Under these options no reward has a say."""

TEXTS = ["".join(text) for length in range(5) for text in itertools.product("ABCD", repeat=length)]


async def a_response_ends_where_it_says(case: Case) -> None:
    """At the first end token, or at the limit, and nowhere else; however short prompt and limit are."""
    ended = 0
    for seed in range(case.worlds):
        n_eos = 1 + seed % 2
        bound = bindings(case, seed, n_eos=n_eos, zeros=0.3 * (seed % 3 == 2))
        ends = range(VOCABULARY - n_eos, VOCABULARY)
        for asked, limit in ((ONE, 1), (ONE, 6), (LONG, 1), (LONG, 2), (LONG, 9)):
            done = await run(case, bound, asked, seed=seed, n_eos=n_eos, max_new_tokens=limit)
            assert 1 <= len(done.ids) <= limit
            assert not any(z in ends for z in done.ids[:-1])
            finish = done.steps[-1].finish
            assert finish == ("stop" if done.ids[-1] in ends else "length")
            assert finish == "stop" or len(done.ids) == limit
            ended += finish == "stop" and len(done.ids) < limit
    assert ended, "no response ends by itself: choose other worlds"


async def steps_are_told_in_order(case: Case) -> None:
    """Indices count up, the last one finishes, and what was chosen is emitted (in a block: with its future's start)."""
    for seed in range(case.worlds):
        for limit in (1, 8):
            steps = (await run(case, bindings(case, seed), seed=seed, max_new_tokens=limit)).steps
            assert [step.index for step in steps] == list(range(len(steps)))
            assert [step.finish is not None for step in steps] == [False] * (len(steps) - 1) + [True]
            for step in steps:
                assert step.emitted
                if step.considered:
                    won = step.considered[step.chosen]
                    assert won.ids + won.future[: case.options.get("block", 1) - 1] == step.emitted


async def it_streams_as_the_table_says(case: Case) -> None:
    for seed in range(case.worlds):
        steps = (await run(case, bindings(case, seed), seed=seed)).steps
        streams = METHODS[case.name].streams
        if streams.startswith("token"):
            assert all(len(step.emitted) == 1 for step in steps)
        elif streams.startswith("at the end"):
            assert len(steps) == 1
        else:
            assert streams.startswith("segment")


async def more_candidates_than_tokens_are_all_tokens(case: Case) -> None:
    if "k" not in complete(case.name, {}):
        return
    for seed in range(case.worlds):
        bound = bindings(case, seed, zeros=0.3)
        found = [await run(case, bound, seed=seed, k=k) for k in (VOCABULARY, VOCABULARY + 1, 50)]
        assert found[0] == found[1] == found[2]


async def nan_rewards_do_not_win(case: Case) -> None:
    """A NaN counts as -inf or as the declared minimum; it is chosen only where nothing usable is; a response comes."""
    if "reward" not in case.needed or case.options.items() & VOTES:
        return
    counted, codec, scale = 0, ToyCodec(VOCABULARY), {"low": -2.0, "high": -1.0}
    for seed in range(case.worlds):
        some = frozenset(text for i, text in enumerate(TEXTS) if (7 * i + i // 5 + seed) % 3 == 0)
        for reward, lost in (
            (ToyReward(seed=seed, nan=some, **scale), -math.inf),
            (ToyReward(seed=seed, nan=some, declared=True, **scale), -2.0),
            (ToyReward(seed=seed, nan=frozenset(TEXTS), **scale), -math.inf),
        ):
            done = await run(case, bindings(case, seed, reward=reward), seed=seed, max_new_tokens=4)
            counted += done.usage.nan_rewards
            assert done.ids
            response: Ids = ()
            for step in done.steps:
                values = [candidate.value for candidate in step.considered]
                for candidate, value in zip(step.considered, values, strict=True):
                    read = codec.decode(response + candidate.ids + candidate.future) in reward.nan
                    # One lost reward spoils a mean; one declared minimum does not.
                    if read and value is not None and (lost == -math.inf or "num_rollouts" not in case.options):
                        assert value == lost
                if any(value != -math.inf for value in values):
                    assert values[step.chosen] != -math.inf
                response += step.emitted
    assert counted


async def a_seed_is_a_response(case: Case) -> None:
    for seed in range(case.worlds):
        bound = bindings(case, seed)
        assert await run(case, bound, seed=seed) == await run(case, bound, seed=seed)


async def other_seeds_are_other_responses(case: Case) -> None:
    """Unless nothing is drawn: then every seed gives the same."""
    bound = bindings(case, 3, temperature=4.0)
    responses = {(await run(case, bound, seed=seed)).ids for seed in range(case.worlds)}
    assert (len(responses) == 1) == (case.name in DRAWS_NOTHING)


async def company_changes_nothing(case: Case) -> None:
    """Alone, together and in another order: the same responses, steps and costs, each with its own seed."""
    prompts = [ONE, LONG, prompt("DD"), prompt("AC")]
    seeds = [5, 6, 7, 8]
    aligner = Aligner(**bindings(case), codec=ToyCodec(VOCABULARY))
    alone = [
        await aligner.agenerate(p, method=case.name, seed=seed, max_new_tokens=6, **case.given)
        for p, seed in zip(prompts, seeds, strict=True)
    ]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        several = aligner.agenerate_many(
            [prompts[i] for i in order],
            seeds=[seeds[i] for i in order],
            method=case.name,
            max_new_tokens=6,
            **case.given,
        )
        async for at, response in several:
            assert same(response) == same(alone[order[at]])


def same(response: Any) -> Any:
    """A response without what company and cache may change."""
    alone = replace(
        response.usage,
        cached_tokens=0, recomputed_tokens=0, discarded_tokens=0, lm_calls=0, peak_kv_tokens=0, wall_s=0.0,
    )  # fmt: skip
    return replace(response, usage=alone)


async def usage_adds_up(case: Case) -> None:
    """What is reported is what the models themselves saw, and near ties are those of the steps."""
    for seed in range(case.worlds):
        ties = seed % 2 == 1
        reward = CountedReward(seed=seed, high=0.0 if ties else 1.0)
        bound = bindings(case, seed, kind=CountedModel, reward=reward, ties=ties)
        done = await run(case, bound, seed=seed)
        models = [model for model in bound.values() if isinstance(model, CountedModel)]
        assert done.usage.lm_tokens == sum(model.counted.tokens for model in models) > 0
        assert done.usage.near_ties == sum(step.near_ties for step in done.steps)
        if "baseline_reward" not in bound:
            assert done.usage.rm_tokens == reward.counted.tokens
            assert done.usage.rm_calls == reward.replies
        assert 1 <= done.usage.sequential_steps <= done.usage.lm_tokens


def letters(case: Case, asked: Prompt, limit: int) -> dict[str, int]:
    """What the letters of the method's cost formula are in a run with default options."""
    options = complete(case.name, case.given)
    ahead = options.get("rollout_len")
    return {
        "P": len(asked.ids),
        "T": limit,
        "L": 20 if ahead == "auto" else ahead or limit,
        "k": options.get("k", 1),
        "n": options.get("num_rollouts", 1),
        "N": options.get("n", 1),
        "b": options.get("beam", 1),
        "U": 1,
    }


def formula(cost: str, model: str, values: Mapping[str, int]) -> int:
    """The value of "LM P+nkTL" or "RM P+kT"; 0 where the cost names no such model."""
    found = re.search(rf"\b{model} ([\w+()/-]+)", cost)
    if found is None:
        return 0
    factors = re.findall(r"\d+|[A-Za-z]|[+/()-]", found.group(1))
    total = ""
    for before, factor in zip(["+", *factors], factors, strict=False):
        both = (before.isalnum() or before == ")") and (factor.isalnum() or factor == "(")
        total += ("*" if both else "") + (str(values[factor]) if factor.isalpha() else factor)
    return math.ceil(eval(total, {"__builtins__": {}}))  # numbers, + - * / and parentheses only


async def no_response_costs_more_than_the_formula(case: Case) -> None:
    """A formula that says "about" is no bound."""
    cost = METHODS[case.name].cost
    assert cost.startswith("LM ")
    if "about" in cost:
        return
    for seed in range(case.worlds):
        bound = bindings(case, seed, eos_weight=1e-300 if seed % 2 else 1.0)
        for asked, limit in ((ONE, 1), (LONG, 6)):
            usage = (await run(case, bound, asked, seed=seed, max_new_tokens=limit)).usage
            values = letters(case, asked, limit)
            assert 0 < usage.lm_tokens <= formula(cost, "LM", values)
            assert usage.rm_tokens <= formula(cost, "RM", values)


async def leaving_leaves_nothing_running(case: Case) -> None:
    """A reader who leaves after any step, and a task that is cancelled anywhere: no task stays behind."""
    before = asyncio.all_tasks()
    whole = (await run(case, bindings(case))).steps
    for count in range(len(whole)):
        steps = method(case, bindings(case), LONG, max_new_tokens=7)
        assert [await anext(steps) for _ in range(count)] == list(whole[:count])
        await steps.aclose()
        assert asyncio.all_tasks() == before
    for turns in range(0, 60, 3):
        task = asyncio.create_task(run(case, bindings(case)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) or outcome.steps == whole
        assert asyncio.all_tasks() == before


async def the_table_says_what_it_needs(case: Case) -> None:
    """Text only or log-probabilities, a reward or none, one model or two."""
    entry, needs = METHODS[case.name], {need.name: need for need in roles(case.name)}
    told = entry.needs
    assert set(needs) <= set(MODEL_ROLES)
    tokens = any(need.tokens for need in needs.values())
    assert ("log-probs" in told) == tokens
    assert ("text suffices" in told) == (not tokens)
    assert "reward" in told or "reward" not in needs
    assert "baseline" in told or "sft" not in case.needed or "baseline" not in case.needed
    assert entry.summary
    assert entry.paper


async def what_is_missing_is_said(case: Case) -> None:
    """One sentence before anything starts: a model that is not there, or one that tells text only."""
    bound, codec = bindings(case), ToyCodec(VOCABULARY)
    for role in bound:
        aligner = Aligner(**{other: m for other, m in bound.items() if other != role}, codec=codec)
        with pytest.raises(NeedsError, match=rf"^method='{case.name}' needs [^;]*; give one with --[a-z-]+\.$"):
            await aligner.agenerate(LONG, method=case.name, **case.given)
    texts = {role: TextOnly(m) if isinstance(m, ToyModel) else m for role, m in bound.items()}
    asking = Aligner(**texts, codec=codec).agenerate(LONG, method=case.name, max_new_tokens=6, **case.given)
    if any(need.tokens for need in roles(case.name)):
        with pytest.raises(NeedsError, match=rf"^method='{case.name}' needs next-token log-probabilities, which 'toy"):
            await asking
    else:
        told = await Aligner(**bound, codec=codec).agenerate(LONG, method=case.name, max_new_tokens=6, **case.given)
        assert (await asking).ids == told.ids


ALWAYS: tuple[Law, ...] = (
    a_response_ends_where_it_says,
    steps_are_told_in_order,
    more_candidates_than_tokens_are_all_tokens,
    nan_rewards_do_not_win,
    a_seed_is_a_response,
    usage_adds_up,
)
"""Laws that hold under every option."""

LAWS: tuple[Law, ...] = (
    *ALWAYS,
    it_streams_as_the_table_says,
    other_seeds_are_other_responses,
    company_changes_nothing,
    no_response_costs_more_than_the_formula,
    leaving_leaves_nothing_running,
    the_table_says_what_it_needs,
    what_is_missing_is_said,
)
"""Laws of the table's methods as they are."""
