"""What every TokenModel promises, whatever stands behind it. Each law takes a model, prefixes and a tolerance [nats].

Call them all: `@pytest.mark.parametrize("law", contract.LAWS, ids=lambda law: law.__name__)`, then
`await law(model, prefixes, tolerance)`. The model must be deterministic up to `tolerance`, and its vocabulary small
enough for `top_next(prefix)` without k; prefixes are not empty and none is the beginning of another.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from alignstar.meter import Meter, metering, together
from alignstar.models import TokenModel
from alignstar.sampling import Noise, Sampling, near_tie, tempered
from alignstar.types import Ids

Law = Callable[[TokenModel, Sequence[Ids], float], Awaitable[None]]
LENGTH = 6
NOISE = Noise(seed=20, purpose="rollout", step=3, candidate=1)
STRATEGIES = (
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=1.4, top_k=2),
    Sampling(temperature=0.9, top_p=0.7),
)


async def full_law(model: TokenModel, prefix: Ids) -> np.ndarray:
    """Log-probabilities [vocab_size]."""
    top = await model.top_next(prefix)
    law = np.full(model.vocab_size, -np.inf)
    law[top.ids] = top.logps
    return law


def close(a: object, b: object, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=tolerance)


async def probabilities_sum_to_one(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    for prefix in prefixes:
        top = await model.top_next(prefix)
        close(top.mass, 1.0, max(tolerance, 1e-12))
        assert np.all(np.isfinite(top.logps)), "tokens of probability 0 are left out"
        assert len(set(top.ids.tolist())) == len(top.ids)


async def best_tokens_come_first(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    for prefix in prefixes:
        law = await full_law(model, prefix)
        for k in (1, 2, model.vocab_size + 3):
            top = await model.top_next(prefix, k)
            expected = [z for z in np.lexsort((np.arange(len(law)), -law)) if np.isfinite(law[z])][:k]
            assert len(top.ids) == len(expected)
            close(top.logps, law[expected], tolerance)
            if tolerance == 0.0:
                assert top.ids.tolist() == expected, "ties go to the lower id"
        ranked = np.sort(law)[::-1]
        top = await model.top_next(prefix, 1)
        assert top.near_tie == near_tie(ranked[:2], model.tie_tolerance)


async def three_questions_one_answer(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """top_next, next_logprobs and logprobs tell the same law."""
    for prefix in prefixes:
        law = await full_law(model, prefix)
        every = np.arange(model.vocab_size)
        close(await model.next_logprobs(prefix, every), law, tolerance)
        close(await model.next_logprobs(prefix, every[::-2]), law[::-2], tolerance)
        for z in (0, model.vocab_size - 1):
            close(await model.logprobs(prefix, (z,)), law[[z]], tolerance)


async def unknown_tokens_are_impossible(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    ids = np.array([model.vocab_size, 0, model.vocab_size + 7])
    found = await model.next_logprobs(prefixes[0], ids)
    assert found[0] == found[2] == -np.inf
    close(found[1], (await full_law(model, prefixes[0]))[0], tolerance)


async def greedy_is_stepwise_argmax(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    for prefix in prefixes:
        (row,) = await model.continue_(prefix, max_new_tokens=LENGTH)
        assert 1 <= len(row.ids) <= LENGTH
        ties = 0
        for j, z in enumerate(row.ids):
            law = await full_law(model, prefix + row.ids[:j])
            assert law[z] >= np.max(law) - tolerance
            if tolerance == 0.0:
                assert z == int(np.argmax(law)), "ties go to the lower id"
            close(row.logps[j], law[z], tolerance)
            ties += near_tie(law, model.tie_tolerance)
        assert row.near_ties == ties
        assert row.ended == (row.ids[-1] in model.eos_ids)
        assert row.ended or len(row.ids) == LENGTH
        assert not any(z in model.eos_ids for z in row.ids[:-1])


async def told_log_probabilities_are_teacher_forced_ones(
    model: TokenModel, prefixes: Sequence[Ids], tolerance: float
) -> None:
    for prefix in prefixes:
        for row in await model.continue_(prefix, max_new_tokens=LENGTH, n=3, sampling=Sampling(), noise=NOISE):
            close(await model.logprobs(prefix, row.ids), row.logps, tolerance)
            for j in range(len(row.ids)):
                close(await model.logprobs(prefix + row.ids[:j], row.ids[j:]), row.logps[j:], tolerance)
    assert len(await model.logprobs(prefixes[0], ())) == 0


async def a_draw_is_the_argmax_of_law_and_noise(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """Row i has its own rollout coordinate, and a token's noise is that of its absolute position."""
    for sampling in STRATEGIES:
        for prefix in prefixes[:2]:
            rows = await model.continue_(prefix, max_new_tokens=LENGTH, n=3, sampling=sampling, noise=NOISE)
            for i, row in enumerate(rows):
                for j, z in enumerate(row.ids):
                    law = await full_law(model, prefix + row.ids[:j])
                    noise = replace(NOISE, rollout=NOISE.rollout + i)
                    gumbel = noise.gumbel(len(prefix) + j, model.vocab_size)
                    scores = tempered(law, sampling) + gumbel
                    assert scores[z] >= np.max(scores) - tolerance / sampling.temperature


async def rows_do_not_know_each_other(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """Alone, as one of n, among other requests and in another order: the same rows."""
    several = [
        model.continue_(prefix, max_new_tokens=LENGTH, n=2, sampling=sampling, noise=NOISE)
        for prefix in prefixes
        for sampling in STRATEGIES[:2]
    ]
    answers = await together(several)
    for at, (prefix, sampling) in reversed(list(enumerate((p, s) for p in prefixes for s in STRATEGIES[:2]))):
        for i, row in enumerate(answers[at]):
            noise = replace(NOISE, rollout=NOISE.rollout + i)
            (alone,) = await model.continue_(prefix, max_new_tokens=LENGTH, sampling=sampling, noise=noise)
            assert alone.ids == row.ids
            assert alone.ended == row.ended
            close(alone.logps, row.logps, tolerance)


async def a_draw_can_be_taken_up_again(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """Going on from the middle of a row, with the same noise, gives the rest of the row; a shorter limit its start."""
    for prefix in prefixes:
        for sampling, noise in ((Sampling(temperature=0.0), None), (Sampling(), NOISE)):
            (row,) = await model.continue_(prefix, max_new_tokens=LENGTH, sampling=sampling, noise=noise)
            if len(row.ids) < 2:
                continue
            (rest,) = await model.continue_(
                prefix + row.ids[:1], max_new_tokens=LENGTH - 1, sampling=sampling, noise=noise
            )
            assert rest.ids == row.ids[1:]
            (start,) = await model.continue_(prefix, max_new_tokens=1, sampling=sampling, noise=noise)
            assert start.ids == row.ids[:1]
            close(rest.logps, row.logps[1:], tolerance)


async def seeds_matter(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    async def rows(seed: int) -> list[Ids]:
        found = await model.continue_(
            prefixes[0], max_new_tokens=LENGTH, n=8, sampling=Sampling(), noise=replace(NOISE, seed=seed)
        )
        return [row.ids for row in found]

    assert await rows(1) == await rows(1)
    assert await rows(1) != await rows(2)
    assert len(set(await rows(1))) > 1


async def end_tokens_can_be_tokens_like_others(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    noise = {"sampling": Sampling(), "noise": NOISE}
    for prefix in prefixes:
        stopped = await model.continue_(prefix, max_new_tokens=LENGTH, n=4, **noise)
        going = await model.continue_(prefix, max_new_tokens=LENGTH, n=4, stop_at_eos=False, **noise)
        for short, long in zip(stopped, going, strict=True):
            assert len(long.ids) == LENGTH
            assert long.ids[: len(short.ids)] == short.ids
            assert long.ended == (long.ids[-1] in model.eos_ids)
    found = [row for row in await model.continue_(prefixes[0], max_new_tokens=LENGTH, n=64, **noise) if row.ended]
    assert found, "no row ends by itself: choose prefixes, or a model, that do"
    length = len(found[0].ids)
    cut = await model.continue_(prefixes[0], max_new_tokens=length, n=64, stop_at_eos=False, **noise)
    assert all(row.ended == (row.ids[-1] in model.eos_ids) for row in cut)
    assert any(row.ended for row in cut)


async def visited_states_are_told(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """`top` gives one entry per state visited: a count of tokens, or all within a distance of the best."""
    for prefix in prefixes:
        (row,) = await model.continue_(prefix, max_new_tokens=LENGTH)
        assert row.tops == ()
        (row,) = await model.continue_(prefix, max_new_tokens=LENGTH, top=2)
        assert len(row.tops) == len(row.ids)
        for j, top in enumerate(row.tops):
            told = await model.top_next(prefix + row.ids[:j], 2)
            assert len(top.ids) == len(told.ids)
            close(top.logps, told.logps, tolerance)
            assert top.near_tie == told.near_tie
        distance = 1.5
        (row,) = await model.continue_(prefix, max_new_tokens=LENGTH, sampling=Sampling(), noise=NOISE, top=distance)
        for j, top in enumerate(row.tops):
            law = await full_law(model, prefix + row.ids[:j])
            within = np.flatnonzero(law >= np.max(law) - distance + tolerance)
            assert set(within.tolist()) <= set(top.ids.tolist())
            assert np.all(top.logps >= np.max(law) - distance - tolerance)


async def positions_are_charged_once(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """A row of m tokens pushes its prefix and m-1 tokens; a state that was pushed answers for nothing."""
    prefix = prefixes[0]
    with metering(Meter()) as meter:
        rows = await model.continue_(prefix, max_new_tokens=LENGTH, n=3, sampling=Sampling(), noise=NOISE)
        longest = max(len(row.ids) for row in rows)
        assert meter.usage().lm_tokens == len(prefix) + sum(len(row.ids) - 1 for row in rows)
        assert meter.usage().sequential_steps == longest
        before = meter.usage()
        await model.top_next(prefix)
        await model.next_logprobs(prefix + rows[0].ids[:-1], np.array([0]))
        await model.logprobs(prefix, rows[0].ids)
        assert meter.usage().lm_tokens == before.lm_tokens
        assert meter.usage().sequential_steps == before.sequential_steps
        await model.continue_(prefix, max_new_tokens=LENGTH, n=3, sampling=Sampling(), noise=NOISE)
        assert meter.usage().lm_tokens == before.lm_tokens
        await model.top_next(prefix + rows[0].ids)
        assert meter.usage().lm_tokens == before.lm_tokens + 1
    with metering(Meter()) as meter:
        await model.top_next(prefix)
        (row,) = await model.continue_(prefix, max_new_tokens=LENGTH)
        assert meter.usage().lm_tokens == len(prefix) + len(row.ids) - 1
        assert meter.usage().sequential_steps == len(row.ids)
    with metering(Meter()) as meter:
        rows = await model.continue_(prefix, max_new_tokens=LENGTH, n=3)
        assert rows[0].ids == rows[1].ids == rows[2].ids
        assert meter.usage().lm_tokens == len(prefix) + len(rows[0].ids) - 1, "equal rows cost one"
    with metering(Meter()) as meter:
        await together([model.top_next(prefix) for prefix in prefixes])
        distinct = {prefix[: i + 1] for prefix in prefixes for i in range(len(prefix))}
        assert meter.usage().lm_tokens == len(distinct)
        assert meter.usage().sequential_steps == 1
    with metering(Meter()) as meter:
        await model.logprobs(prefix, prefixes[-1])
        assert meter.usage().lm_tokens == len(prefix) + len(prefixes[-1]) - 1
        assert meter.usage().sequential_steps == 1


async def draws_follow_the_law(model: TokenModel, prefixes: Sequence[Ids], tolerance: float) -> None:
    """Frequencies of the best token, of the next two and of the rest lie within 4 standard errors."""
    n = 600
    law = await full_law(model, prefixes[0])
    for sampling in STRATEGIES:
        weights = tempered(law, sampling)
        p = np.exp(weights - np.max(weights))
        p /= p.sum()
        rows = await model.continue_(prefixes[0], max_new_tokens=1, n=n, sampling=sampling, noise=NOISE)
        frequency = np.bincount([row.ids[0] for row in rows], minlength=len(p)) / n
        assert np.all(frequency[p == 0] == 0)
        order = np.argsort(-p)
        for group in (order[:1], order[1:3], order[3:]):
            share = float(p[group].sum())
            if n * share * (1 - share) >= 5:
                error = abs(float(frequency[group].sum()) - share)
                assert error < 4 * math.sqrt(share * (1 - share) / n)


LAWS: tuple[Law, ...] = (
    probabilities_sum_to_one,
    best_tokens_come_first,
    three_questions_one_answer,
    unknown_tokens_are_impossible,
    greedy_is_stepwise_argmax,
    told_log_probabilities_are_teacher_forced_ones,
    a_draw_is_the_argmax_of_law_and_noise,
    rows_do_not_know_each_other,
    a_draw_can_be_taken_up_again,
    seeds_matter,
    end_tokens_can_be_tokens_like_others,
    visited_states_are_told,
    positions_are_charged_once,
    draws_follow_the_law,
)
