"""Metrics of replies and of methods: worked numbers, closed forms, the divergence on worlds that can be enumerated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import worlds
from alignstar.aligner import Aligner
from alignstar.errors import ModelError, OptionError
from alignstar.evaluate import kl, metrics
from alignstar.evaluate.statistics import Bootstrap
from alignstar.evaluate.text_metrics import Coherence, HashedNgrams, cut_at_next_turn, repetition_of, sentence_encoder
from alignstar.models.toy import ToyModel
from alignstar.options import complete
from alignstar.types import Candidate, Response, Step, Usage

# Repetition


@pytest.mark.parametrize(
    ("text", "rep", "diversity"),
    [
        ("a b c d e", (20.0, 25.0, 33.3333), 0.4),
        ("a b " * 4, (75.0, 71.4286, 66.6667), 0.02381),
        ("zero one two three four five six seven eight nine", (10.0, 11.1111, 12.5), 0.7),
        ("one", (100.0, 100.0, 100.0), 0.0),
        ("", (100.0, 100.0, 100.0), 0.0),
    ],
)
def test_repetition_as_args_counts_it(text, rep, diversity):
    found = repetition_of(text)
    assert found.rep == pytest.approx(rep, abs=5e-5)
    assert found.diversity == pytest.approx(diversity, abs=5e-6)


def test_the_plain_form_has_no_plus_one():
    assert repetition_of("a b c d e", plus_one=False).diversity == 1.0
    assert repetition_of("a b " * 4, plus_one=False).rep[0] == pytest.approx(100 * (1 - 2 / 7))


def test_order_matters_only_where_something_repeats():
    fresh = ["one", "two", "three", "four", "five", "six"]
    values = {repetition_of(" ".join(order)).diversity for order in itertools.permutations(fresh)}
    assert len(values) == 1
    assert repetition_of("a b a b c d").diversity != repetition_of("a a b b c d").diversity


def test_a_reply_ends_where_the_model_asks_itself():
    assert cut_at_next_turn("Yes.\n\nHuman: and then?") == "Yes."
    assert cut_at_next_turn("Yes.\n\nhUMAN : and") == "Yes."
    assert cut_at_next_turn("A human being is no turn.") == "A human being is no turn."


# Coherence


class Counting(HashedNgrams):
    def __init__(self):
        super().__init__(64)
        self.asked = []

    def embed(self, texts):
        self.asked += texts
        return super().embed(texts)


def test_coherence_is_the_cosine():
    coherence = Coherence(HashedNgrams())
    same, none, half = coherence(["where is my parcel"] * 3, ["Where is my parcel", "", "where is it"])
    assert same == pytest.approx(1.0)
    assert math.isnan(none)
    # 4 words and 3 pairs, 3 words and 2 pairs, "where", "is" and "where is" in common (no hashes fall together).
    assert half == pytest.approx(3 / math.sqrt(7 * 5))
    by_hand = HashedNgrams().embed(["a b c", "b c d d"])
    assert coherence(["a b c"], ["b c d d"])[0] == pytest.approx(
        by_hand[0] @ by_hand[1] / np.linalg.norm(by_hand[0]) / np.linalg.norm(by_hand[1])
    )


def test_a_prompt_is_embedded_once():
    encoder = Counting()
    coherence = Coherence(encoder)
    coherence(["p", "p", "q"], ["a", "b", "c"])
    coherence(["q"], ["d"])
    assert [text for text in encoder.asked if text in "pq"] == ["p", "q"]


def test_hashes_do_not_depend_on_the_process():
    # Python's own hash of a text is another one in every process.
    places = np.flatnonzero(HashedNgrams(32).embed(["refund please"])[0])
    assert places.tolist() == [10, 24, 25]  # crc32 of "please" and "refund" modulo 32, and the pair


def test_an_encoder_is_never_fetched():
    with pytest.raises(ModelError, match="not fetched"):
        sentence_encoder("simcse")
    assert "hashed" in sentence_encoder(None).name


def test_a_local_encoder_gives_one_vector_per_text(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    encoder = sentence_encoder(str(tmp_path))
    together, alone = encoder.embed(["a b", "c d e f g", ""]), encoder.embed(["a b"])
    assert together.shape == (3, 16)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-6)
    assert Coherence(encoder)(["a b"], ["a b"])[0] == pytest.approx(1.0)
    encoder.embed(["a " * 2000])  # cut at 512 tokens


# Divergence


def response_of(model_name, ids, steps=(), method="sample", certified=0, **options):
    return Response(
        prompt=worlds.PROMPT,
        text="",
        ids=ids,
        method=method,
        finish_reason="stop",
        reward=None,
        seed=0,
        usage=Usage(certified=certified),
        steps=steps,
        options={**complete(method, options), "model": model_name} if method == "sample" else complete(method, options),
    )


def completed(world, model):
    return world.completions(model, ())


async def expectation(world, policy, measure):
    """Probability-weighted mean of both estimates over every response."""
    plain = spread = 0.0
    for ids, p in completed(world, policy):
        found = await measure(ids)
        plain, spread = plain + p * found.plain, spread + p * found.rao_blackwell
    return plain, spread


async def test_both_estimates_have_the_divergence_as_expectation():
    world, _ = worlds.w1()
    baseline = world.gibbs(0.5)
    models = {"sft": world.sft, "baseline": baseline}
    found = await expectation(world, baseline, lambda ids: kl.divergence(response_of("baseline", ids), models))
    assert found == pytest.approx((0.294747, 0.294747), abs=1e-6)


async def test_the_models_divergence_from_itself_is_zero():
    world, _ = worlds.w1()
    for ids, _ in completed(world, world.sft):
        found = await kl.divergence(response_of("sft", ids), {"sft": world.sft})
        assert (found.plain, found.rao_blackwell) == pytest.approx((0.0, 0.0), abs=1e-12)


def candidate_steps(world, base, ids, alpha):
    """Transfer Q*'s steps with exact values and all candidates, along a given response."""
    steps = []
    for t, z in enumerate(ids):
        law, q = base.law(worlds.PROMPT.ids + ids[:t]), world.q(base, ids[:t])
        considered = tuple(
            Candidate(ids=(c,), logp=float(law[c]), score=float(law[c] + q[c] / alpha)) for c in range(3)
        )
        steps.append(Step(index=t, emitted=(z,), considered=considered, chosen=z))
    return tuple(steps)


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, 0.604172), (0.25, 1.292554)])
async def test_drawn_candidates_have_the_divergence_of_the_worked_example(alpha, expected):
    world, _ = worlds.w1()
    base = world.gibbs(0.5)

    def law(ids):
        steps = candidate_steps(world, base, ids, alpha)
        scores = [np.array([c.score for c in step.considered]) for step in steps]
        return math.prod(worlds.softmax(s)[step.chosen] for s, step in zip(scores, steps, strict=True))

    async def measure(ids):
        steps = candidate_steps(world, base, ids, alpha)
        given = response_of(None, ids, steps, method="transfer-q", selection="sample", alpha=alpha)
        return await kl.divergence(given, {"sft": world.sft})

    plain = spread = total = 0.0
    for ids, _ in completed(world, base):
        p, found = law(ids), await measure(ids)
        plain, spread, total = plain + p * found.plain, spread + p * found.rao_blackwell, total + p
        assert found.rao_blackwell >= 0
    assert total == pytest.approx(1.0)
    assert (plain, spread) == pytest.approx((expected, expected), abs=1e-6)


async def test_the_law_of_a_draw_is_at_its_temperature():
    world, _ = worlds.w1()
    steps = candidate_steps(world, world.sft, (0, 1), 1.0)
    given = response_of(None, (0, 1), steps, method="transfer-q", selection="sample", selection_temperature=0.25)
    found = await kl.divergence(given, {"sft": world.sft})
    own = [worlds.softmax([c.score / 0.25 for c in step.considered])[step.chosen] for step in steps]
    assert found.plain == pytest.approx(math.log(own[0] * own[1]) - math.log(0.5 * 0.3))


async def test_rao_blackwell_varies_less():
    world = worlds.random_world(3)
    policy = world.gibbs(0.3)
    models = {"sft": world.sft, "baseline": policy}
    rows = [(p, await kl.divergence(response_of("baseline", ids), models)) for ids, p in completed(world, policy)]

    def variance(values):
        mean = sum(p * v for (p, _), v in zip(rows, values, strict=True))
        return sum(p * (v - mean) ** 2 for (p, _), v in zip(rows, values, strict=True))

    assert variance([d.rao_blackwell for _, d in rows]) < variance([d.plain for _, d in rows])


async def test_a_method_that_takes_the_best_token_is_a_point_mass():
    world, _ = worlds.w1()
    found = await kl.divergence(response_of(None, (1, 0), method="greedy"), {"sft": world.sft})
    assert found.plain == found.rao_blackwell == pytest.approx(-math.log(0.3 * 0.2))
    assert found.law == kl.POINT_MASS


@pytest.mark.parametrize(
    ("method", "options", "law"),
    [
        ("greedy", {}, kl.POINT_MASS),
        ("deal", {}, kl.POINT_MASS),
        ("args", {}, kl.POINT_MASS),
        ("args", {"strategy": "stochastic"}, kl.CANDIDATES),
        ("transfer-q", {}, kl.POINT_MASS),
        ("transfer-q", {"selection": "sample"}, kl.CANDIDATES),
        ("transfer-q", {"selection": "sample", "return_best_rollout": True}, kl.UNKNOWN),
        ("maxmin", {"selection": "sample"}, kl.CANDIDATES),
        ("controlled-decoding", {}, kl.CANDIDATES),
        ("controlled-decoding", {"selection": "greedy"}, kl.POINT_MASS),
        ("controlled-decoding", {"mode": "blockwise", "selection": "greedy"}, kl.UNKNOWN),
        ("sample", {}, kl.VOCABULARY),
        ("dera", {}, kl.VOCABULARY),
        ("genarm", {"selection": "greedy"}, kl.POINT_MASS),
        ("best-of-n", {}, kl.BOUND),
        ("best-of-n", {"selection": "soft"}, kl.UNKNOWN),
        ("speculative-rejection", {}, kl.UNKNOWN),
        ("tree-bon", {}, kl.UNKNOWN),
    ],
)
def test_what_is_known_of_each_methods_law(method, options, law):
    assert kl.law_of(method, complete(method, options)) == law


async def test_there_is_no_figure_without_a_law():
    world, _ = worlds.w1()
    models = {"sft": world.sft}
    steps = candidate_steps(world, world.sft, (0, 1), 1.0)
    drawn = {"method": "transfer-q", "selection": "sample"}
    assert await kl.divergence(response_of(None, (0, 1), method="best-of-n"), models) is None
    assert await kl.divergence(response_of(None, (0, 1), steps, certified=1, **drawn), models) is None
    assert await kl.divergence(response_of(None, (0, 1), steps[:1], **drawn), models) is None
    assert await kl.divergence(response_of(None, (0, 1), steps, **drawn), {}) is None
    never = ToyModel.from_table({"": (1.0, 0.0, 0.0)}, prompt=worlds.PROMPT.ids, default=world.sft)
    assert await kl.divergence(response_of(None, (1, 0), method="greedy"), {"sft": never}) is None


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dera", {"weight": 0.7}),
        ("dera", {"weight": 1.4, "temperature": 0.7, "top_k": 3}),
        ("genarm", {"beta": 2.0}),
        ("sample", {"model": "baseline", "top_p": 0.8}),
        ("args", {"strategy": "stochastic", "k": 3}),
        ("maxmin", {"selection": "sample", "k": 3, "selection_temperature": 0.5, "model": "baseline"}),
    ],
)
async def test_real_methods_have_the_divergence_of_what_they_drew(method, options):
    """Against the frequencies of many draws of the first token, where the law is simplest to see."""
    world = worlds.random_world(5)
    aligner = Aligner(sft=world.sft, baseline=world.gibbs(0.5), reward=world.reward, codec=world.codec)
    n, counts, spread, plain = 400, np.zeros(4), [], []
    for seed in range(n):
        response = await aligner.agenerate("A", method=method, seed=seed, max_new_tokens=1, **options)
        found = await kl.divergence(response, aligner.models)
        counts[response.ids[0]] += 1
        spread.append(found.rao_blackwell)
        plain.append(found.plain)
    assert np.ptp(spread) < 1e-9  # one state: the sum over its law is always the same
    drawn = counts > 0
    p, q = counts[drawn] / n, np.exp(world.sft.law(response.prompt.ids))[drawn]
    ratios = np.log(p / q)
    error = np.sqrt((p * ratios**2).sum() - (p * ratios).sum() ** 2) / np.sqrt(n)
    assert spread[0] == pytest.approx((p * ratios).sum(), abs=4 * error + 3 / n)
    assert np.mean(plain) == pytest.approx(spread[0], abs=4 * np.std(plain) / np.sqrt(n) + 1e-9)


def test_best_of_n_is_bounded():
    assert kl.best_of_n_bound(1) == 0.0
    assert kl.best_of_n_bound(4) == pytest.approx(math.log(4) - 0.75)


# Figures of methods


def table(**columns):
    return Bootstrap({name: np.asarray(values, dtype=float) for name, values in columns.items()}, resamples=300)


def test_normalised_rewards_have_the_reference_at_one_and_the_lowest_at_zero():
    means = table(a=[1.0, 3.0], b=[0.0, 1.0], c=[4.0, 5.0])
    shares, about = metrics.normalised(means, {x: x for x in "abc"}, reference="a", lowest="b")
    assert (shares["a"].mean, shares["b"].mean, shares["c"].mean) == (1.0, 0.0, (4.5 - 0.5) / (2.0 - 0.5))
    assert (shares["a"].low, shares["a"].high, shares["b"].high) == (1.0, 1.0, 0.0)
    assert about == "(r - r[b]) / (r[a] - r[b])"
    plain, about = metrics.normalised(means, {x: x for x in "abc"})
    assert (plain["c"].mean, plain["b"].mean, about) == (1.0, 0.0, "(r - r[b]) / (r[c] - r[b])")


def test_normalised_rewards_ignore_shift_and_scale():
    values = np.random.default_rng(1).normal(size=(3, 20)) + np.arange(3)[:, None]
    plain, _ = metrics.normalised(table(**dict(zip("abc", values, strict=True))), {x: x for x in "abc"})
    moved, _ = metrics.normalised(table(**dict(zip("abc", 3 * values - 7, strict=True))), {x: x for x in "abc"})
    assert moved["b"].mean == pytest.approx(plain["b"].mean)
    assert moved["b"].low == pytest.approx(plain["b"].low)


def test_a_ratio_of_rewards_is_a_ratio():
    means = table(a=[2.0, 2.0], b=[3.0, 2.8])
    shares, about = metrics.normalised(means, {x: x for x in "ab"}, convention="ratio", reference="a")
    assert (shares["b"].mean, about) == (pytest.approx(1.45), "r / r[a]")


def test_where_normalising_divides_by_nothing_there_is_no_figure():
    shares, _ = metrics.normalised(table(a=[1.0, 2.0], b=[1.0, 2.0]), {x: x for x in "ab"})
    assert math.isnan(shares["a"].mean)
    assert math.isnan(shares["a"].low)
    with pytest.raises(OptionError, match="'z' has no mean reward"):
        metrics.normalised(table(a=[1.0]), {"a": "a"}, reference="z")


def test_the_gap_is_how_much_further_the_optimised_reward_rises():
    rng = np.random.default_rng(2)
    learned, gold = rng.normal(5.0, 2.0, size=400), rng.normal(-1.0, 0.5, size=400)
    own = metrics.over_optimisation(learned, gold, reference_learned=learned, reference_gold=gold)
    assert own.mean() == pytest.approx(0.0, abs=1e-12)
    # Two deviations of the optimised reward, one of the gold one.
    pushed = metrics.over_optimisation(
        learned + 2 * learned.std(), gold + gold.std(), reference_learned=learned, reference_gold=gold
    )
    assert pushed.mean() == pytest.approx(1.0)
    flat = metrics.over_optimisation(learned, gold, reference_learned=np.ones(400), reference_gold=gold)
    assert np.isnan(flat).all()


def controlled(rewards, lengths, **how):
    return metrics.length_controlled(rewards, lengths, level=0.95, resamples=300, seed=0, **how)


def test_what_length_alone_explains_is_taken_out():
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 5, size=300)
    lengths = {"short": rng.integers(10, 30, 300) * 1.0, "long": rng.integers(30, 50, 300) * 1.0}
    rewards = {m: prompts + 0.1 * x + 0.05 * rng.normal(size=300) for m, x in lengths.items()}
    adjusted, slope = controlled(rewards, lengths)
    assert slope.mean == pytest.approx(0.1, abs=0.005)
    assert slope.low < 0.1 < slope.high
    assert adjusted["long"].mean - adjusted["short"].mean == pytest.approx(0.0, abs=0.1)
    assert rewards["long"].mean() - rewards["short"].mean() > 1.9
    # The mean over the methods stays.
    assert sum(i.mean for i in adjusted.values()) == pytest.approx(sum(r.mean() for r in rewards.values()))


def test_the_slope_is_least_squares_with_prompt_and_method_effects():
    rng = np.random.default_rng(4)
    n, labels = 12, ("a", "b", "c")
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    design = np.zeros((n * 3, 1 + n + 3))
    for i, m in itertools.product(range(n), range(3)):
        design[i * 3 + m, [1 + i, 1 + n + m]] = 1.0
        design[i * 3 + m, 0] = x[i, m]
    expected = np.linalg.lstsq(design, y.ravel(), rcond=None)[0][0]
    columns = [dict(zip(labels, values.T, strict=True)) for values in (y, x)]
    _, slope = controlled(*columns)
    assert slope.mean == pytest.approx(expected)


def test_equal_lengths_change_nothing():
    rewards = {"a": np.array([1.0, 2.0, np.nan]), "b": np.array([3.0, 4.0, 9.0])}
    adjusted, slope = controlled(rewards, {"a": np.full(3, 7.0), "b": np.full(3, 7.0)})
    assert (adjusted["a"].mean, adjusted["b"].mean, adjusted["b"].n) == (1.5, 3.5, 2)
    assert slope.mean == 0.0
    assert controlled({}, {}) == ({}, None)


def test_cost_per_token_is_a_ratio_of_totals():
    columns = {
        ("lm_tokens", "m"): [100.0, 300.0],
        ("rm_tokens", "m"): [10.0, 10.0],
        ("response_tokens", "m"): [5.0, 15.0],
    }
    means = Bootstrap(columns, resamples=200)
    found = {cost.metric.name: metrics.cost_of(cost, means, "m") for cost in metrics.cost_metrics(0.5)}
    assert found["lm_per_token"].mean == 20.0
    assert found["rm_per_token"].mean == 1.0
    assert found["cost"].mean == 205.0
    assert found["cost_per_token"].mean == 20.5
    assert {cost.metric.name for cost in metrics.cost_metrics(None)} == {"lm_per_token", "rm_per_token"}


def test_the_reward_models_weight_is_the_ratio_of_parameters():
    models = {"sft": {"parameters": 7e9}, "baseline": {"parameters": 1e9}}
    rewards = {"r": {"role": "reward", "parameters": 3.5e9}, "g": {"role": "gold", "parameters": None}}
    assert metrics.reward_weight({"models": models, "rewards": rewards}) == 0.5
    assert metrics.reward_weight({"models": {**models, "sft": {"parameters": None}}, "rewards": rewards}) is None
    assert metrics.reward_weight({"models": models, "rewards": {}}) is None
