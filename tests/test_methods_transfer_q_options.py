"""Transfer Q*: its options, edge cases and refusals, on toy models."""

import numpy as np
import pytest

from alignstar.errors import NeedsError, OptionError
from alignstar.meter import Meter, metering
from alignstar.methods.presets import PRESETS
from alignstar.methods.transfer_q import transfer_q
from alignstar.models.toy import ToyModel, ToyReward
from alignstar.rewards import Scorer
from alignstar.sampling import Sampling
from worlds import PROMPT, by_id, ids_of, random_world, scorer, steps_of, w1

A, B, E = 0, 1, 2


async def run(world, *, baseline=None, baseline_reward=None, reward=None, **options):
    options = {"max_new_tokens": world.horizon, "k": 3, "rollout_len": 2, **options}
    if baseline_reward is not None:
        options["baseline_reward"] = Scorer(baseline_reward, world.codec)
    baseline = world.sft if baseline is None else baseline
    return await steps_of(
        transfer_q(PROMPT, baseline=baseline, reward=Scorer(reward or world.reward, world.codec), **options)
    )


def candidates(step):
    return [c.ids[0] for c in step.considered]


class Spy(ToyReward):
    """Remembers the replies that it was given."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    async def score(self, prompt, replies):
        self.calls.append(replies)
        return await super().score(prompt, replies)


async def test_candidate_sources_and_rules():
    world, other = random_world(1, vocab_size=6, horizon=3), ToyModel.random(77, 6)
    own, foreign = world.sft.law(PROMPT.ids), other.law(PROMPT.ids)
    best, best_other = np.argsort(-own), np.argsort(-foreign)
    models = {"baseline": world.sft, "sft": other}

    async def first(**options):
        return (await run(world, **{**models, **options}))[0]

    assert candidates(await first()) == best[:3].tolist()
    assert candidates(await first(candidate_source="sft")) == best_other[:3].tolist()
    union = await first(candidate_source="union")
    assert candidates(union) == list(dict.fromkeys([*best[:3].tolist(), *best_other[:3].tolist()]))
    for step, law in ((union, own), (await first(candidate_source="union", base_policy="sft"), foreign)):
        assert [c.logp for c in step.considered] == pytest.approx([law[z] for z in candidates(step)])
    assert candidates(await first(k=100)) == best.tolist()
    assert candidates(await first(candidate_rule="full", k=1)) == best.tolist()
    mass = np.exp(own[best]).cumsum()
    nucleus = await first(candidate_rule="topp", candidate_top_p=float(mass[1]) - 1e-9, k=6)
    assert candidates(nucleus) == best[:2].tolist()
    assert candidates(await first(candidate_rule="topp", candidate_top_p=1.0, k=2)) == best[:2].tolist()


async def test_candidates_drawn_without_replacement_follow_their_law():
    world, n = w1()[0], 3000
    logps = world.sft.law(PROMPT.ids)
    p = np.exp(logps)
    # P(token among two draws) = p + sum over the other first draws
    exact = p + sum(p[j] * np.where(np.arange(3) == j, 0, p / (1 - p[j])) for j in range(3))
    seen = np.zeros(3)
    for seed in range(n):
        generator = transfer_q(
            PROMPT, baseline=world.sft, reward=scorer(world.reward), k=2, seed=seed, rollout_len=0, max_new_tokens=1,
            candidate_rule="sample_without_replacement",
        )  # fmt: skip
        seen[candidates(await anext(generator))] += 1
        await generator.aclose()
    assert seen / n == pytest.approx(exact, abs=4 * np.sqrt(0.25 / n))


async def test_forbidden_tokens_are_dropped():
    forbidding = ToyModel.from_table({"": (0.0, 0.4, 0.6), "B": (0.0, 0.0, 1.0)}, prompt=PROMPT.ids)
    world, _ = w1()
    steps = await run(world, baseline=forbidding, sft=world.sft, candidate_source="sft")
    assert candidates(steps[0]) == [B, E]
    # Where the base policy forbids every candidate, its own best token stands.
    steps = await run(world, baseline=forbidding, sft=world.sft, candidate_source="sft", k=1)
    assert candidates(steps[0]) == [E]
    steps = await run(world, baseline=forbidding, k=3)
    assert candidates(steps[0]) == [E, B]


async def test_a_candidate_that_ends_the_response_has_no_rollout():
    world, _ = w1()
    steps = await run(world, rollout_len=5)
    assert [c.future == () for c in steps[0].considered] == [z == E for z in candidates(steps[0])]
    assert all(c.future == () for c in steps[1].considered)
    assert by_id(steps[0], "value")[E] == world.r((E,))


async def test_rollout_lengths():
    world = random_world(2, vocab_size=5, horizon=6, eos_weight=1e-300)
    for options, expected in (
        ({"rollout_len": 3}, [3, 3, 3, 2, 1, 0]),
        ({"rollout_len": None}, [5, 4, 3, 2, 1, 0]),
        ({"rollout_len": "auto"}, [5, 4, 3, 2, 1, 0]),
        ({"rollout_len": 3, "rollout_past_max": True}, [3] * 6),
        ({"rollout_len": "auto", "rollout_past_max": True}, [20] * 6),
        ({"rollout_len": "auto", "rollout_past_max": True, "baseline_reward": ToyReward(seed=8)}, [5] * 6),
    ):
        steps = await run(world, **options)
        assert [len(step.considered[0].future) for step in steps] == expected


async def test_without_stop_at_eos_it_is_a_token_like_any_other():
    world = random_world(3, vocab_size=3, horizon=6, eos_weight=20.0)
    steps = await run(world, stop_on_eos=False)
    assert len(steps) == 6
    assert steps[-1].finish == "length"
    assert E in ids_of(steps)[:-1]
    assert any(c.ids == (E,) and c.future for c in steps[0].considered)


async def test_several_end_tokens():
    world = random_world(4, vocab_size=5, horizon=8)
    model = ToyModel.random(4, 5, n_eos=2)
    ended = set()
    for seed in range(30):
        steps = await steps_of(
            transfer_q(
                PROMPT, baseline=model, reward=scorer(world.reward, 5, n_eos=2), k=5, selection="sample", seed=seed,
                max_new_tokens=8,
            )
        )  # fmt: skip
        ended.add(ids_of(steps)[-1])
        assert all(c.future == () for step in steps for c in step.considered if c.ids[0] in model.eos_ids)
    assert {3, 4} <= ended


async def test_rewards_that_cannot_be_told():
    world = random_world(5, vocab_size=4, horizon=3)
    texts = [letters for letters in ("A", "B", "C", "")]
    meter = Meter()
    with metering(meter):
        steps = await run(world, rollout_len=0, reward=ToyReward(nan=frozenset(texts)), k=4)
    # Every first candidate is unusable: the base policy's best token is taken.
    assert steps[0].chosen == 0
    assert meter.usage().nan_rewards >= 4
    assert all(c.score == -np.inf for c in steps[0].considered)
    one_left = await run(world, rollout_len=0, reward=ToyReward(nan=frozenset(("A", "C", ""))), k=4)
    assert one_left[0].emitted == (B,)
    told = await run(
        world, rollout_len=0, reward=ToyReward(nan=frozenset(texts), declared=True, low=-1.0), k=4, weight=2.0
    )
    assert all(c.value == -1.0 for c in told[0].considered)
    for side in ("reward", "baseline_reward"):
        given = {"reward": world.reward, "baseline_reward": world.reward} | {side: ToyReward(nan=frozenset(texts))}
        for mode in ("snis", "unnormalised", "global"):
            steps = await run(world, rollout_len=0, k=4, indirect_mode=mode, **given)
            assert all(c.score == -np.inf for c in steps[0].considered)
            assert steps[0].chosen == 0


async def test_norms_act_before_anything_else():
    world, r_bl = w1()
    options = {"rollout_len": None, "baseline_reward": r_bl, "beta": 0.5}
    plain = await run(world, **options)
    halved = await run(world, reward_norm="standardise(0,2)", **{**options, "beta": 0.25}, alpha=0.5)
    assert by_id(halved[0]) == pytest.approx(by_id(plain[0]))
    clipped = await run(world, rollout_len=None, reward_norm="clip(0.3,0.5)")
    assert all(0.3 <= c.value <= 0.5 for step in clipped for c in step.considered)
    scored = await run(world, rollout_len=None, reward_norm="candidate_zscore")
    values, logps = by_id(scored[0], "value"), by_id(scored[0], "logp")
    assert by_id(scored[0]) == pytest.approx(logps + (values - values.mean()) / values.std())


async def test_verbatim_replies_are_filled_up_to_the_longest():
    world = random_world(6, vocab_size=3, horizon=3, eos_weight=3.0)
    spy = Spy(seed=1)
    await run(world, reward=spy, reward_text="verbatim", stop_on_eos=False, rollout_past_max=True, rollout_len=4)
    for replies in spy.calls:
        tokens = [reply.verbatim.replace("</s>", "#").replace("<pad>", "_") for reply in replies]
        assert len({len(text) for text in tokens}) == 1
        assert all(text.startswith("A") for text in tokens)
        assert {text.rstrip("_")[-1] for text in tokens if text.endswith("_")} <= {"#"}
    assert any("<pad>" in reply.verbatim for replies in spy.calls for reply in replies)


async def test_rollouts_as_the_checkpoint_says():
    world = random_world(7, vocab_size=5, horizon=5)
    greedy = await run(world, rollout_strategy="greedy")
    assert await run(world, rollout_strategy="checkpoint") == greedy
    rule = world.sft.law
    sampling = ToyModel(rule, vocab_size=5, default_sampling=Sampling(temperature=0.8))
    drawn = await run(world, baseline=sampling, rollout_strategy="checkpoint")
    assert drawn == await run(world, baseline=sampling, rollout_strategy="sample", rollout_temperature=0.8)
    assert drawn != greedy


async def test_the_ess_floor_flattens_weights():
    world, r_bl = w1()
    options = {"baseline_reward": r_bl, "beta": 0.1, "rollout_strategy": "sample", "num_rollouts": 8}
    free = await run(world, **options)
    floored = await run(world, ess_floor=0.9, **options)
    assert min(c.ess for c in free[0].considered if c.future) < 0.9 * 8
    assert min(c.ess for c in floored[0].considered if c.future) >= 0.9 * 8 - 1e-6


async def test_log_weights_are_clipped():
    world, r_bl = w1()
    steps = await run(world, baseline_reward=r_bl, beta=0.01, log_weight_clip=3.0, rollout_len=None)
    assert [abs(c.log_m) for step in steps for c in step.considered] == pytest.approx([3.0] * 6)


async def test_near_ties_are_counted_where_they_happen():
    tied = ToyModel.from_table({"": (0.3, 0.3, 0.2, 0.2)}, prompt=PROMPT.ids)
    flat = ToyReward(low=0.5, high=0.5)

    async def count(**options):
        meter = Meter()
        with metering(meter):
            steps = await steps_of(
                transfer_q(PROMPT, baseline=tied, reward=scorer(flat, 4), max_new_tokens=1, rollout_len=0, **options)
            )
        assert meter.usage().near_ties == sum(step.near_ties for step in steps)
        return steps[0].near_ties

    assert await count(k=2) == 1  # the choice; the candidate set is not in doubt
    assert await count(k=1) == 1  # the candidate set; nothing to choose
    assert await count(k=3) == 2  # both
    assert await count(k=4) == 1
    # A rollout whose arg-max is in doubt: tokens after the first are uniform.
    assert await count(k=2, rollout_past_max=True) == 1
    wide = ToyModel.from_table({"": (0.55, 0.45, 0.0, 0.0)}, prompt=PROMPT.ids)
    steps = await steps_of(
        transfer_q(PROMPT, baseline=wide, reward=scorer(flat, 4), max_new_tokens=2, rollout_len=1, k=2)
    )
    assert steps[0].near_ties == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rollouts": 2}, "num_rollouts=2 with greedy rollouts"),
        ({"winner_protection": True, "rollout_strategy": "sample"}, "winner_protection=true holds for complete"),
        ({"winner_protection": True, "rollout_len": 3}, "winner_protection=true holds for complete"),
        ({"return_best_rollout": True, "rollout_past_max": True}, "return_best_rollout=true needs rollouts that end"),
        ({"return_best_rollout": True, "stop_on_eos": False}, "return_best_rollout=true needs rollouts that end"),
        ({"base_policy": "pi_r"}, "base_policy='pi_r' exists for indirect transfer only"),
        ({"implicit_baseline_reward": True, "transfer": "direct"}, "implicit_baseline_reward=true has no use"),
        ({"reward_norm": "rank"}, "reward_norm='rank' must be"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    world, _ = w1()
    with pytest.raises(OptionError, match=message):
        transfer_q(PROMPT, baseline=world.sft, reward=scorer(world.reward), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs the baseline model; give one with --baseline"),
        ({"candidate_source": "union"}, "needs the baseline model"),
        ({"transfer": "indirect"}, "needs the reward that the baseline was aligned to; give one with"),
    ],
)
def test_what_is_missing_is_named(options, message):
    world, _ = w1()
    with pytest.raises(NeedsError, match=message):
        transfer_q(PROMPT, sft=world.sft, reward=scorer(world.reward), **options)
    with pytest.raises(NeedsError, match="needs the sft model; give one with --sft"):
        transfer_q(PROMPT, baseline=world.sft, reward=scorer(world.reward), implicit_baseline_reward=True)


async def test_the_published_loop_step_by_step():
    """The presets against a literal transcription of the published program, on a toy model."""
    for seed in range(10):
        world = random_world(seed, vocab_size=12, horizon=5, eos_weight=3.0)
        model, target, source = world.sft, ToyReward(seed=seed + 50), ToyReward(seed=seed + 90)
        pad = world.codec.pad_id

        async def published(length, score, model=model, world=world, pad=pad):
            ids = PROMPT.ids
            for _ in range(world.horizon):
                logits = model.law(ids) + 3.0
                top = np.argsort(-logits, kind="stable")[:10]
                rows = []
                for z in top:
                    row = (*ids, int(z))
                    for _ in range(length):
                        ended = len(row) > len(ids) + 1 and (row[-1] in model.eos_ids or row[-1] == pad)
                        row += (pad if ended else int(np.argmax(model.law(row))),)
                    rows.append(row)
                while all(row[-1] == pad for row in rows):
                    rows = [row[:-1] for row in rows]
                texts = [world.codec.decode(row, special=True) for row in rows]
                ids = (*ids, int(top[int(np.argmax([score(t) + logits[z] for t, z in zip(texts, top, strict=True)]))]))
            return ids[len(PROMPT.ids) :]

        verbatim = {r: Verbatim(r) for r in (target, source)}
        t, s = verbatim[target].number, verbatim[source].number
        for name, length, score in (
            ("official-direct", 20, t),
            ("official-indirect", 5, lambda text, t=t, s=s: np.exp(0.5 * (t(text) - s(text))) * t(text)),
        ):
            options = {**PRESETS[name].options, "max_new_tokens": world.horizon}
            steps = await run(world, reward=verbatim[target], baseline_reward=verbatim[source], **options)
            assert ids_of(steps) == await published(length, score)


class Verbatim:
    """A reward of the verbatim text."""

    range = None
    name = "verbatim"

    def __init__(self, reward):
        self._reward = reward

    def number(self, text):
        return self._reward.value(PROMPT, text, True)

    async def score(self, prompt, replies):
        return [self.number(reply.verbatim) for reply in replies]
