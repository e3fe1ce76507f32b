"""Speculative Rejection against best-of-n, against a plain simulation of its rules, and its token schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest

from alignstar.aligner import Aligner
from alignstar.errors import NeedsError, OptionError, PromptError
from alignstar.meter import Meter, metering
from alignstar.methods.best_of_n import best_of_n
from alignstar.methods.rows import Row
from alignstar.methods.speculative_rejection import Cut, Memory, Scored, speculative_rejection
from alignstar.models.toy import ToyCodec, ToyModel, ToyReward
from alignstar.options import complete
from alignstar.rewards import Scorer
from alignstar.sampling import Noise
from alignstar.text import Stops
from alignstar.types import Message, Prompt
from worlds import PROMPT, scorer, steps_of

ENOUGH = 10_000


class Watched(ToyModel):
    """Remembers what it was asked to draw: (length of the prefix, rows drawn) per call."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    async def continue_(self, prefix, **options):
        rows = await super().continue_(prefix, **options)
        self.calls.append((len(prefix), rows))
        return rows

    @property
    def phases(self):
        """(length before, rows) per phase: rows go on in step, so one phase has one length."""
        lengths = sorted({length for length, _ in self.calls})
        return [(at, [row for length, rows in self.calls if length == at for row in rows]) for at in lengths]


def prompt_of(length):
    text = ("ABCD" * length)[:length]
    return Prompt(messages=(Message(role="user", content=text),), text=text, ids=tuple("ABCD".index(c) for c in text))


def endless(vocab_size=27, order=1):
    return Watched.random(3, vocab_size, order=order, eos_weight=1e-300, temperature=4.0)


async def run(prompt=PROMPT, **given):
    """(the Step, the Usage)"""
    with metering(Meter()) as meter:
        steps = await steps_of(speculative_rejection(prompt, **given))
    (step,) = steps
    return step, meter.usage()


def schedule(budget, prompt, limit, rate, shared, most=1000, headroom=8):
    """(rows, new tokens) of every phase of rows that never end, in whole numbers."""
    rows = min(most, (budget - prompt) // headroom if shared else budget // (prompt + headroom))
    length, phases = 0, []
    while length < limit:
        full = (budget - prompt) // rows if shared else budget // rows - prompt
        new = max(1, min(limit, full) - length)
        phases.append((rows, new))
        length += new
        rows = max(1, math.ceil((1 - rate) * rows - 1e-9))
    return phases


SETTINGS = [
    (10_000, 50, 450, 0.5, False),
    (2_000, 50, 300, 0.5, True),
    (900, 20, 90, 0.7, True),
    (900, 9, 60, 0.3, False),
]


@pytest.mark.parametrize(("budget", "length", "limit", "rate", "shared"), SETTINGS)
async def test_phases_and_tokens_are_those_of_the_integer_schedule(budget, length, limit, rate, shared):
    prompt, model = prompt_of(length), endless()
    expected = schedule(budget, length, limit, rate, shared)
    step, usage = await run(
        prompt, sft=model, reward=scorer(ToyReward(), 27), budget=budget, rejection_rate=rate,
        prompt_kv="shared" if shared else "per_row", max_new_tokens=limit,
    )  # fmt: skip
    assert [(len(rows), len(rows[0].ids)) for _, rows in model.phases] == expected
    sizes = [rows for rows, _ in expected]
    assert sizes == sorted(sizes, reverse=True)
    drawn = sum(rows * new for rows, new in expected)
    # The last token of a row is not pushed, and a row that goes on pushes it then.
    assert usage.lm_tokens == length + drawn - sizes[0]
    assert usage.sequential_steps == limit
    assert usage.rm_calls == sum(sizes)
    assert usage.rm_tokens == length + drawn  # texts grow by a letter for a token, and what was read is not read again
    assert len(step.considered) == sizes[-1]
    assert len(step.emitted) == limit
    if not shared and rate == 0.5:
        assert (sizes, drawn) == ([172, 86, 43, 22, 11], 16_742)
        assert drawn <= (budget - 172 * length) + rate * budget * 4 == 21_400


@pytest.mark.parametrize("kv", ["shared", "per_row"])
@pytest.mark.parametrize("rate", [0.5, 0.8])
async def test_the_budget_holds_after_every_token(kv, rate):
    for seed in range(10):
        model, prompt, budget = Watched.random(seed, 6, eos_weight=0.01), prompt_of(7), 400
        await run(
            prompt, sft=model, reward=scorer(ToyReward(seed=seed), 6), budget=budget, prompt_kv=kv,
            rejection_rate=rate, max_new_tokens=60, seed=seed,
        )  # fmt: skip
        assert len(model.phases) > 1
        for before, rows in model.phases:
            longest = max(len(row.ids) for row in rows)
            for t in range(1, longest + 1):
                grown = sum(before - 7 + min(t, len(row.ids)) for row in rows)
                held = grown + (7 if kv == "shared" else 7 * len(rows))
                assert held <= budget
            full = grown + len(rows) + (7 if kv == "shared" else 7 * len(rows))
            ended = any(row.ended for row in rows)
            assert ended or before - 7 + longest == 60 or full > budget, "a decision while the next token fits"


@pytest.mark.parametrize("budget", [ENOUGH, 40])
async def test_without_rejection_it_is_best_of_n(budget):
    for seed in range(20):
        model, reward = ToyModel.random(seed, 5, eos_weight=0.5), scorer(ToyReward(seed=seed), 5)
        options = {"sft": model, "reward": reward, "max_new_tokens": 12, "seed": seed, "temperature": 1.3, "top_k": 4}
        step, usage = await run(budget=budget, headroom=4, max_rows=7, rejection_rate=0.0, **options)
        with metering(Meter()) as meter:
            (best,) = await steps_of(best_of_n(PROMPT, n=7, **options))
        assert replace(step, near_ties=0) == replace(best, near_ties=0)
        if budget == ENOUGH:
            assert step == best
            assert replace(usage, lm_calls=0) == replace(meter.usage(), lm_calls=0)


def simulated(draws, r, *, budget, rate, limit, quantile, with_finished):
    """The rules by hand on whole draws: the complete rows by number, in any order."""
    alive = list(range(len(draws)))
    length, ranked, archive = 0, [], {}
    while alive:
        length = max(length + 1, min(limit, (budget - 1) // len(alive)))
        scores = {i: r(draws[i][:length]) for i in alive}
        over = [i for i in alive if len(draws[i]) <= length]
        archive |= {i: scores[i] for i in over}
        open_ = [i for i in alive if i not in over]
        pool = sorted([*ranked, *alive]) if with_finished else open_
        value = scores | archive
        if quantile == "rank":
            best = sorted(pool, key=lambda i: (-value[i], i))
            kept = set(best[: max(1, math.ceil((1 - rate) * len(pool) - 1e-9))])
        else:
            level = np.quantile([value[i] for i in pool], rate) if pool else 0.0
            kept = {i for i in pool if value[i] >= level}
        ranked = [i for i in pool if i in archive and i in kept]
        alive = [i for i in open_ if i in kept]
    return archive


@pytest.mark.parametrize("quantile", ["rank", "interp"])
@pytest.mark.parametrize("with_finished", [True, False])
async def test_rows_and_winner_are_those_of_the_rules(quantile, with_finished):
    stopped_early = 0
    for seed in range(24):
        model, reward = ToyModel.random(seed, 6, eos_weight=0.6), ToyReward(seed=seed)
        options = {"sft": model, "reward": scorer(reward, 6), "max_new_tokens": 20, "seed": seed}
        (all_of_them,) = await steps_of(best_of_n(PROMPT, n=24, **options))
        draws = [c.ids for c in all_of_them.considered]

        def r(ids, reward=reward):
            reply = scorer(reward, 6).reply(ids)
            return reward.value(PROMPT, reply.text, reply.complete)

        rate = (0.3, 0.5, 0.75)[seed % 3]
        archive = simulated(draws, r, budget=73, rate=rate, limit=20, quantile=quantile, with_finished=with_finished)
        step, _ = await run(
            budget=73, headroom=3, rejection_rate=rate, quantile=quantile, finished_in_quantile=with_finished, **options
        )
        assert [c.ids for c in step.considered] == [draws[i] for i in sorted(archive)]
        assert [c.value for c in step.considered] == [archive[i] for i in sorted(archive)]
        winner = max(sorted(archive), key=lambda i: archive[i])
        assert step.emitted == draws[winner]
        assert step.considered[step.chosen].value == max(archive.values())
        assert step.finish == ("stop" if draws[winner][-1] == 5 else "length")
        stopped_early += all(ids[-1] == 5 for ids in (c.ids for c in step.considered))
    assert stopped_early > 0 or not with_finished


class FirstLetter(ToyReward):
    """Decided by the first letter of the reply: with a model that has no other choice, its value function."""

    def value(self, prompt, text, complete):
        return {"A": 0.1, "B": 0.9, "C": 0.5, "D": 0.3}[text[0]]


async def test_with_the_value_function_it_is_best_of_n():
    """A model that draws its first token and then repeats it until position 12."""

    def rule(prefix):
        law = np.full(5, -np.inf)
        if len(prefix) == 1:
            law[:4] = np.log([0.4, 0.02, 0.18, 0.4])
        else:
            law[4 if len(prefix) == 12 else prefix[-1]] = 0.0
        return law

    model, found = ToyModel(rule, vocab_size=5), set()
    for seed in range(30):
        options = {"sft": model, "reward": scorer(FirstLetter(), 5), "max_new_tokens": 30, "seed": seed}
        step, usage = await run(budget=33, headroom=2, rejection_rate=0.6, **options)
        (best,) = await steps_of(best_of_n(PROMPT, n=16, **options))
        assert step.emitted == best.emitted
        assert usage.lm_tokens < 16 * 11 / 2
        found.add(best.emitted[0])
    assert len(found) > 1


async def test_a_rejection_rate_near_one_leaves_one_row():
    model = endless(5, None)
    await run(sft=model, reward=scorer(ToyReward(), 5), budget=101, rejection_rate=0.999, max_new_tokens=30)
    assert [len(rows) for _, rows in model.phases] == [12, 1]


async def test_equal_scores_keep_the_first_rows():
    model = endless(9, None)
    options = {"sft": model, "reward": scorer(ToyReward(low=0.5, high=0.5), 9), "max_new_tokens": 30}
    step, usage = await run(budget=101, **options)
    (best,) = await steps_of(best_of_n(PROMPT, n=12, **options))
    assert [c.ids for c in step.considered] == [c.ids for c in best.considered[:3]]
    assert step.chosen == 0
    assert step.near_ties == usage.near_ties == 3, "both cuts and the choice"


async def test_one_row_is_a_sample_and_goes_on_where_nothing_fits():
    model = endless(5, None)
    options = {"sft": model, "reward": scorer(ToyReward(), 5), "max_new_tokens": 9, "seed": 4}
    (best,) = await steps_of(best_of_n(PROMPT, n=1, **options))
    model.calls.clear()
    step, _ = await run(budget=6, **options)
    assert step.emitted == best.emitted
    assert [len(rows[0].ids) for _, rows in model.phases] == [5, 1, 1, 1, 1]


async def test_when_every_row_ends_at_once_it_is_best_of_n():
    model = ToyModel.random(5, 4, eos_weight=1e9)
    options = {"sft": model, "reward": scorer(ToyReward(), 4), "max_new_tokens": 50}
    step, usage = await run(budget=97, **options)
    (best,) = await steps_of(best_of_n(PROMPT, n=12, **options))
    assert replace(step, near_ties=0) == replace(best, near_ties=0)
    assert usage.rm_calls == 12


class NanFor(ToyReward):
    """NaN for partial texts that begin so; `always`: for all texts."""

    def __init__(self, letters, *, always=False):
        super().__init__(seed=1)
        self.letters, self.always = letters, always

    def value(self, prompt, text, complete):
        hidden = text[:1] in self.letters and (self.always or not complete)
        return math.nan if hidden else super().value(prompt, text, complete)


async def test_a_partial_text_without_a_score_is_rejected():
    for rate in (0.0, 0.5):
        model = endless(5, None)
        options = {"sft": model, "max_new_tokens": 30, "seed": 2}
        (best,) = await steps_of(best_of_n(PROMPT, n=12, reward=scorer(ToyReward(), 5), **options))
        step, usage = await run(reward=scorer(NanFor("BC"), 5), budget=101, rejection_rate=rate, **options)
        began = {c.ids[0] for c in step.considered}
        assert began <= {0, 3}
        assert usage.nan_rewards == sum(c.ids[0] in (1, 2) for c in best.considered) > 0
        if rate == 0.0:
            assert [c.ids for c in step.considered] == [c.ids for c in best.considered if c.ids[0] in (0, 3)]


async def test_without_usable_scores_the_first_row_is_returned():
    model = endless(5, None)
    options = {"sft": model, "reward": scorer(NanFor("ABCD", always=True), 5), "max_new_tokens": 30, "seed": 2}
    (best,) = await steps_of(best_of_n(PROMPT, n=12, **options))
    step, _ = await run(budget=101, **options)
    assert step.emitted == best.considered[0].ids == best.emitted


@pytest.mark.parametrize(
    ("n", "rate", "kept"), [(5, 0.9, 1), (5, 0.0, 5), (5, 0.5, 3), (10, 0.7, 3), (3, 0.99, 1), (1, 0.5, 1), (7, 0.3, 5)]
)
def test_how_many_stay(n, rate, kept):
    """Never 0, and no rounding noise: (1 - 0.7) x 10 is 3, not 3.0000000000000004 rounded up."""
    scored = [Scored(row=Row(noise=Noise(seed=0, purpose="")), score=float(s), complete=False) for s in range(n)]
    stay, _ = Cut(rejection_rate=rate, quantile="rank", tolerance=0.0).kept(scored)
    assert [s.score for s in stay] == [float(s) for s in range(n - kept, n)]


def test_the_interpolated_quantile_keeps_ties():
    def kept(scores, rate):
        scored = [Scored(row=Row(noise=Noise(seed=0, purpose="")), score=s, complete=False) for s in scores]
        return [s.score for s in Cut(rejection_rate=rate, quantile="interp", tolerance=0.0).kept(scored)[0]]

    assert kept([1.0, 2.0, 2.0, 2.0], 0.5) == [2.0, 2.0, 2.0]
    assert kept([4.0, 3.0, 2.0, 1.0], 0.5) == [4.0, 3.0]
    assert kept([4.0, -math.inf, 2.0, 3.0], 0.5) == [4.0, 3.0]
    assert kept([1.0, 2.0], 0.0) == [1.0, 2.0]


def test_the_first_batch():
    assert Memory(budget=10_000, prompt=50, shared=False).rows(8, 1000) == 172
    assert Memory(budget=10_000, prompt=50, shared=True).rows(8, 1000) == 1000
    assert Memory(budget=10_000, prompt=50, shared=True).rows(8, 5000) == 1243
    assert Memory(budget=52, prompt=50, shared=False).rows(8, 1000) == 1


async def test_a_prompt_that_fills_the_budget_is_refused():
    for budget in (9, 10):
        with pytest.raises(PromptError, match=f"10 tokens, but budget={budget} positions"):
            await run(prompt_of(10), sft=endless(), reward=scorer(ToyReward(), 27), budget=budget)
    step, _ = await run(prompt_of(10), sft=endless(), reward=scorer(ToyReward(), 27), budget=11, max_new_tokens=2)
    assert len(step.emitted) == 2


async def test_a_stop_string_ends_a_row():
    model = endless(5, None)
    options = {"sft": model, "reward": Scorer(ToyReward(), ToyCodec(5), Stops(["AB"])), "max_new_tokens": 60}
    step, _ = await run(budget=401, rejection_rate=0.2, **options)
    text = ToyCodec(5).decode(step.emitted)
    assert "AB" in text
    assert step.finish == "stop"
    for _, rows in model.phases:
        assert len(rows) > 0
    last = model.phases[-1][0] - 1
    assert all("AB" not in ToyCodec(5).decode(c.ids[:last]) or len(c.ids) <= last for c in step.considered)


async def test_equal_seeds_are_equal_and_others_are_not():
    def one(seed):
        model, reward = ToyModel.random(1, 6, eos_weight=0.1), scorer(ToyReward(), 6)
        return run(sft=model, reward=reward, budget=200, max_new_tokens=25, seed=seed)

    assert await one(3) == await one(3)
    assert len({(await one(seed))[0].emitted for seed in range(6)}) > 1


class Holding(ToyModel):
    """A model with a pool."""

    kv_positions = 101


async def test_the_budget_may_be_the_backends_pool():
    law = ToyModel.random(1, 6, eos_weight=0.1)
    options = {"reward": scorer(ToyReward(), 6), "max_new_tokens": 25}
    measured, _ = await run(sft=Holding(law.law, vocab_size=6), budget="auto", **options)
    assert measured == (await run(sft=law, budget=100, **options))[0]
    assert measured != (await run(sft=law, budget=112, **options))[0]
    with pytest.raises(NeedsError, match="budget=auto needs a backend that holds KV"):
        await run(sft=law, budget="auto", **options)


def test_from_the_aligner():
    model = ToyModel.random(1, 6, eos_weight=0.2)
    with Aligner(sft=model, reward=ToyReward(seed=1), codec=ToyCodec(6, bos=True)) as aligner:
        response = aligner.generate("AB", method="speculative-rejection", budget=120, max_new_tokens=20, seed=5)
        assert response.steps[0].emitted == response.ids
        assert response.usage.near_ties == response.steps[0].near_ties
        assert response.reward == max(c.value for c in response.steps[0].considered)


def test_rates_of_one_and_more_are_refused():
    with pytest.raises(OptionError, match=r"rejection_rate=1.0 must be a finite number >= 0 and < 1"):
        complete("speculative-rejection", {"rejection_rate": 1.0})
